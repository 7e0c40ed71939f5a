//! The kubelet: turns the pods that are bound to this node into running containers, and reports back.
//!
//! It is an ordinary Kubernetes client. A watch of this node's pods (`pods`) feeds one `worker` per pod; each worker
//! owns a pure state machine (`machine`, `unit`) that takes events and answers with actions, which the worker carries
//! out against the [`runtime::Runtime`] and the [`PodNetwork`]. What the API shows is a pure function of the machine
//! (`status`), written when it changes and retried until it lands (`report`). `node` keeps the Node object and its
//! Lease; `server` answers for logs, exec, attach and port-forward.
//!
//! What must hold after power loss or a restart of the agent: nothing is kept here but what the runtime, the volumes'
//! folders and the API hold. Containers that run are found by their labels and taken over; exits that happened
//! meanwhile are reported with their codes; pods that the API no longer has are taken down, but only once the API gave
//! a whole list. While the API is away everything keeps running and restarting by policy.

mod env;
mod event;
mod events;
mod files;
mod hooks;
mod image_gc;
mod limits;
mod machine;
mod meter;
mod node;
mod plan;
mod pods;
mod report;
mod server;
mod sources;
mod spdy;
mod spec;
mod start;
mod status;
mod takeover;
#[cfg(test)]
mod testing;
mod unit;
mod volumes;
mod worker;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Settings of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// The machine's hostname.
    pub hostname: String,
    /// The machine's addresses, the main one first.
    pub addresses: Vec<IpAddr>,
    /// State: `pods/<uid>` with volumes, logs, files.
    pub state_dir: PathBuf,
    /// Address of the cluster's DNS.
    pub cluster_dns: Ipv4Addr,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Pods that the node takes.
    pub max_pods: usize,
    /// Labels on the Node.
    pub labels: BTreeMap<String, String>,
    /// Taints of a Node that is registered for the first time.
    pub taints: Vec<Taint>,
    /// Kubernetes version that the node reports.
    pub version: String,
    /// Port that [`Kubelet::router`] is served on.
    pub port: u16,
    /// How often the node's Lease is renewed.
    pub lease_renew: Duration,
    /// How long it holds.
    pub lease_duration: Duration,
    /// The node's resolver settings, for pods that use them.
    pub resolv_conf: PathBuf,
    /// Whether file systems may be mounted: secrets in memory, subPaths pinned. Only tests go without.
    pub mounts: bool,
    /// Percent of the disk in use at which unused images are removed, and to which.
    pub image_gc_percent: (u64, u64),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node_name: "localhost".to_owned(),
            hostname: "localhost".to_owned(),
            addresses: Vec::new(),
            state_dir: PathBuf::from("/var/lib/bramble"),
            cluster_dns: Ipv4Addr::new(10, 0, 0, 10),
            cluster_domain: "cluster.local".to_owned(),
            max_pods: 110,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            version: "v1.36.0+bramble".to_owned(),
            port: 10250,
            lease_renew: Duration::from_secs(3),
            lease_duration: Duration::from_secs(10),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            mounts: true,
            image_gc_percent: (85, 80),
        }
    }
}

/// Connects pods to the cluster's network. Errors are texts for the user.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a pod's network namespace; the same address again for a pod that is connected.
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Ipv4Addr, String>;
    /// Disconnects it and frees its address. Idempotent.
    async fn detach(&self, pod_uid: &str) -> Result<(), String>;
    /// Pods that are connected.
    async fn attached(&self) -> Vec<String>;
}

/// Why the kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder cannot be used.
    #[error("state folder {path}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// One node's kubelet.
pub struct Kubelet {
    pub(crate) node: Arc<pods::Node>,
    ready: watch::Sender<Result<(), String>>,
}

impl Kubelet {
    /// A kubelet over a runtime and a network; not ready until [`Kubelet::set_ready`].
    pub fn new(
        config: Config,
        client: kube::Client,
        runtime: Arc<dyn runtime::Runtime>,
        network: Arc<dyn PodNetwork>,
    ) -> Arc<Kubelet> {
        let node = Arc::new(pods::Node::new(config, client, runtime, network));
        Arc::new(Kubelet { node, ready: watch::Sender::new(Err("the pod network is not up yet".to_owned())) })
    }

    /// Says whether the node can run pods; otherwise why not.
    pub fn set_ready(&self, ready: Result<(), String>) {
        self.ready.send_if_modified(|old| {
            let changed = *old != ready;
            *old = ready;
            changed
        });
    }

    /// Runs until shut down. Containers keep running afterwards.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Error> {
        let path = self.node.config.state_dir.join("pods");
        std::fs::create_dir_all(&path).map_err(|source| Error::State { path, source })?;
        let registrar = node::Registrar {
            config: self.node.config.clone(),
            client: self.node.client.clone(),
            ready: self.ready.subscribe(),
            runtime: self.node.runtime.clone(),
        };
        let heartbeat = node::heartbeat(self.node.config.clone(), self.node.client.clone(), shutdown.clone());
        tokio::join!(
            registrar.run(shutdown.clone()),
            heartbeat,
            image_gc::run(self.node.clone(), shutdown.clone()),
            meter::run(self.node.clone(), shutdown.clone()),
            self.node.clone().run(shutdown),
        );
        Ok(())
    }

    /// Logs, exec, attach, port-forward, statistics. Whoever serves it has authorised the peer.
    pub fn router(self: &Arc<Self>) -> axum::Router {
        server::router(self.node.clone())
    }
}
