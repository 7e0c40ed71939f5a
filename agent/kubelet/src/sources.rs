//! ConfigMaps and Secrets, asked for when a container or volume needs them; the last answer serves while the API is
//! away, so that containers restart without it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

/// Keys and contents.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Where ConfigMaps and Secrets come from.
#[async_trait::async_trait]
pub trait Sources: Send + Sync {
    /// A ConfigMap's data; the error is for the user.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Data, String>;
    /// A Secret's data; the error is for the user.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Data, String>;
}

/// From the API.
pub struct ApiSources {
    client: Client,
    seen: Mutex<HashMap<(&'static str, String, String), Data>>,
}

/// Entries kept for when the API is away.
const KEPT: usize = 256;

impl ApiSources {
    /// Asks by this client.
    pub fn new(client: Client) -> ApiSources {
        ApiSources { client, seen: Mutex::new(HashMap::new()) }
    }

    fn settle(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
        answer: Result<Option<Data>, kube::Error>,
    ) -> Result<Data, String> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(Some(data)) => {
                if seen.len() >= KEPT && !seen.contains_key(&key) {
                    seen.clear();
                }
                seen.insert(key, data.clone());
                Ok(data)
            }
            Ok(None) => {
                seen.remove(&key);
                Err(format!("{kind} \"{name}\" not found"))
            }
            Err(error) => seen.get(&key).cloned().ok_or_else(|| format!("{kind} \"{name}\": {error}")),
        }
    }
}

#[async_trait::async_trait]
impl Sources for ApiSources {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Data, String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let answer = api.get_opt(name).await.map(|found| {
            found.map(|map| {
                let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
                text.chain(binary).collect()
            })
        });
        self.settle("configmap", namespace, name, answer)
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Data, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let answer = api.get_opt(name).await.map(|found| {
            found.map(|secret| secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())
        });
        self.settle("secret", namespace, name, answer)
    }
}
