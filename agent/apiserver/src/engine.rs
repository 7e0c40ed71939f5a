//! The engine behind [`crate::Api`]: the spaces, the settings, and what all verbs share.

use crate::audit::Audit;
use crate::auth::{self, Facts};
use crate::custom::Kinds;
use crate::jwt::Signer;
use crate::kubelet::Kubelets;
use crate::metrics::Metrics;
use crate::object::text;
use crate::openapi::Documents;
use crate::outside::Trust;
use crate::rbac;
use crate::static_tokens::StaticTokens;
use crate::status::Status;
use resources::Descriptor;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use store::{Expect, Kv, Write};

/// What an API server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where services' cluster IPs come from; the first address is the API's own, the tenth is kept for DNS.
    pub service_cidr: ipnet::Ipv4Net,
    /// Where node ports come from.
    pub node_ports: RangeInclusive<u16>,
    /// The largest request body.
    pub max_body: usize,
    /// The port the API is reached at on the nodes.
    pub port: u16,
    /// The Kubernetes version that is spoken: `v1.36.0+bramble`.
    pub git_version: String,
    /// The commit this was built from, or empty.
    pub git_commit: String,
    /// When this was built (RFC 3339), or empty.
    pub build_date: String,
    /// Who gives service account tokens out, and whom they are for unless somebody else is named.
    pub issuer: String,
    /// The cluster's CA, PEM, for those who get a legacy token.
    pub ca: String,
    /// Users who come with a token of a file.
    pub tokens: StaticTokens,
    /// Admission plugins ([`crate::ADMISSION`]) that are off.
    pub disabled_admission: BTreeSet<String>,
    /// Where requests are written down, and which.
    pub audit: Option<Arc<Audit>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            service_cidr: ipnet::Ipv4Net::new_assert([10, 0, 0, 0].into(), 24),
            node_ports: 30_000..=32_767,
            max_body: 3 * 1024 * 1024,
            port: 6443,
            git_version: "v1.36.0+bramble".to_owned(),
            git_commit: String::new(),
            build_date: String::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            ca: String::new(),
            tokens: StaticTokens::default(),
            disabled_admission: BTreeSet::new(),
            audit: None,
        }
    }
}

/// What requests are served from.
pub(crate) struct Engine {
    pub config: Config,
    pub durable: Arc<dyn Kv>,
    pub volatile: Arc<dyn Kv>,
    pub leading: tokio::sync::watch::Receiver<bool>,
    pub kubelets: Arc<dyn Kubelets>,
    /// OpenAPI.
    pub documents: Documents,
    /// What was read out of definitions of kinds.
    pub kinds: Kinds,
    /// Signs service account tokens; read from the store when first needed.
    pub signer: OnceLock<Signer>,
    /// What every cluster has is there.
    pub bootstrapped: AtomicBool,
    pub metrics: Metrics,
    /// Whom outside it believes.
    pub trust: Trust,
}

impl Engine {
    /// Whether an admission plugin is on.
    pub fn admits(&self, plugin: &str) -> bool {
        !self.config.disabled_admission.contains(plugin)
    }

    /// The space a kind is kept in.
    pub fn kv(&self, kind: &Descriptor) -> &dyn Kv {
        if kind.volatile { self.volatile.as_ref() } else { self.durable.as_ref() }
    }

    /// Namespace lifecycle: nothing is made where there is no namespace, or one that is going away. Gives the
    /// condition under which this still holds when the object is written.
    pub fn admit_namespace(&self, kind: &Descriptor, namespace: &str, name: &str) -> Result<Write, Status> {
        let namespaces = resources::find("", "v1", "namespaces").ok_or_else(Status::no_resource)?;
        let record = self.record(namespaces, None, namespace)?;
        let found = crate::object::load(namespaces, &record)?;
        if crate::object::deleting(&found) || text(&found, "/status/phase") == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(Status::forbidden(&kind.group, &kind.plural, name, &why).terminating(namespace));
        }
        Ok(Write { key: record.key.to_string(), expect: Expect::Stays(record.modified), value: None })
    }
}

impl Engine {
    /// All objects of a kind, for whoever decides by them. What cannot be read is left out.
    pub fn all(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let Some(kind) = resources::find(group, "v1", plural) else { return Vec::new() };
        self.objects(kind, namespace)
    }

    /// The same of a kind that need not be built in.
    pub fn objects(&self, kind: &Descriptor, namespace: &str) -> Vec<Value> {
        let prefix = crate::object::prefix(kind, Some(namespace).filter(|n| !n.is_empty()));
        let records = self.kv(kind).list(&prefix, None, 0).records;
        records.iter().filter_map(|record| crate::object::load(kind, record).ok()).collect()
    }

    /// One object of a kind, for the same; `None` if there is none.
    pub fn one(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = resources::find(group, "v1", plural)?;
        let key = crate::object::key(kind, Some(namespace).filter(|n| !n.is_empty()), name);
        crate::object::load(kind, &self.kv(kind).get(&key)?).ok()
    }
}

impl Facts for Engine {
    fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        self.one("", "pods", namespace, name)
    }

    fn bindings(&self, namespace: &str) -> Vec<Value> {
        let plural = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
        self.all(rbac::GROUP, plural, namespace)
    }

    fn role(&self, namespace: &str, name: &str) -> Option<Value> {
        let plural = if namespace.is_empty() { "clusterroles" } else { "roles" };
        self.one(rbac::GROUP, plural, namespace, name)
    }

    fn cluster_roles(&self) -> Vec<Value> {
        self.all(rbac::GROUP, "clusterroles", "")
    }

    fn needs(&self, node: &str, namespace: &str, plural: &str, name: &str) -> bool {
        let Some(kind) = resources::find("", "v1", "pods") else { return false };
        let pods = self.kv(kind).list(&crate::object::prefix(kind, Some(namespace)), None, 0);
        pods.records.iter().any(|record| {
            // Most pods hold neither name anywhere: those are not parsed.
            let may = std::str::from_utf8(&record.value).is_ok_and(|t| t.contains(node) && t.contains(name));
            may && serde_json::from_slice::<Value>(&record.value).is_ok_and(|pod| {
                text(&pod, "/spec/nodeName") == node && auth::refers(&pod["spec"], plural, name)
            })
        })
    }
}
