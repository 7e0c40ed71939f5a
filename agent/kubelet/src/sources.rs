//! ConfigMaps, Secrets and service account tokens, asked for when a container or volume needs them; the last answer serves while the API is
//! away, so that containers restart without it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

/// Keys and contents.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Where ConfigMaps and Secrets come from.
#[async_trait::async_trait]
pub trait Sources: Send + Sync {
    /// A ConfigMap's data; the error is for the user.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Data, String>;
    /// A Secret's data; the error is for the user.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Data, String>;
    /// A token of a pod's service account, good for some time yet. An empty audience: the API's.
    async fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String>;
}

/// From the API.
pub struct ApiSources {
    client: Client,
    seen: Mutex<HashMap<(&'static str, String, String), Data>>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
}

/// The pod's uid, the audience, how long it is to last.
type TokenKey = (String, String, i64);

#[derive(Clone)]
struct Token {
    text: String,
    /// From when on another one is asked for.
    renew: Instant,
    ends: Instant,
}

/// No token is kept for longer without asking for another.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// Entries kept for when the API is away.
const KEPT: usize = 256;

impl ApiSources {
    /// Asks by this client.
    pub fn new(client: Client) -> ApiSources {
        ApiSources { client, seen: Mutex::default(), tokens: Mutex::default() }
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

impl ApiSources {
    fn tokens(&self) -> MutexGuard<'_, HashMap<TokenKey, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fresh_token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<Token, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience).filter(|a| !a.is_empty()).map(|a| vec![a.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let asked = Instant::now();
        let answer = api.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| format!("failed to fetch token: {error}"))?;
        let text = answer.status.and_then(|status| status.token).filter(|token| !token.is_empty());
        let text = text.ok_or("failed to fetch token: the answer holds none")?;
        let lasts = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        // By this machine's own clock, which may be another than the API's.
        Ok(Token { text, renew: asked + (lasts * 4 / 5).min(RENEWED), ends: asked + lasts })
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

    async fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
        let key = (pod.metadata.uid.clone().unwrap_or_default(), audience.to_owned(), seconds);
        let known = self.tokens().get(&key).cloned();
        let now = Instant::now();
        if let Some(token) = known.as_ref().filter(|token| now < token.renew) {
            return Ok(token.text.clone());
        }
        match self.fresh_token(pod, audience, seconds).await {
            Ok(token) => {
                let mut tokens = self.tokens();
                tokens.retain(|_, old| now < old.ends);
                tokens.insert(key, token.clone());
                Ok(token.text)
            }
            // The API is away: what there is serves a while yet.
            Err(why) => known.filter(|token| now < token.ends).map(|token| token.text).ok_or(why),
        }
    }
}
