//! The pod network of a node, from the Node objects: its own range once it has one, the other nodes' as they come.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use network::{Network, Peer};
use tokio::sync::watch;

use crate::state::{Files, NodeState};

/// The bridge that a node's pods hang on.
const BRIDGE: &str = "bramble0";
/// UDP port of VXLAN between nodes that share no network (IANA's is 4789; flannel's, which firewalls know, is this).
const VXLAN_PORT: u16 = 8472;

/// The network once it is up. Waiting for it is waiting for a pod range from the leader.
#[derive(Clone)]
pub struct Pods {
    network: watch::Receiver<Option<Arc<Network>>>,
}

#[async_trait::async_trait]
impl kubelet::PodNetwork for Pods {
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Ipv4Addr, String> {
        self.up().await?.attach(pod_uid, netns).await.map_err(|e| chain(&e))
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), String> {
        self.up().await?.detach(pod_uid).await.map_err(|e| chain(&e))
    }

    async fn attached(&self) -> Vec<String> {
        match self.up().await {
            Ok(network) => network.attached().await,
            Err(_) => Vec::new(),
        }
    }
}

impl Pods {
    async fn up(&self) -> Result<Arc<Network>, String> {
        let mut network = self.network.clone();
        let up =
            network.wait_for(Option::is_some).await.map_err(|_| "the node is shutting down".to_owned())?;
        up.clone().ok_or_else(|| "the pod network is not up".to_owned())
    }

    /// Resolves once it is up.
    pub async fn ready(&self) -> Result<(), String> {
        self.up().await.map(drop)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Keeps the network in step with the Node objects.
pub struct Keeper {
    config: network::Config,
    state: NodeState,
    /// The range that `node.json` has. There is no such file yet while a node joins.
    kept: Option<ipnet::Ipv4Net>,
    files: Files,
    network: watch::Sender<Option<Arc<Network>>>,
    refresh: watch::Sender<()>,
}

impl Keeper {
    /// For one node; comes up at once if the node was given its range before.
    pub async fn start(state: NodeState, files: Files) -> Result<(Self, Pods)> {
        let config = network::Config {
            cluster_cidr: state.settings.cluster_cidr,
            service_cidr: state.settings.service_cidr,
            pod_cidr: state.pod_cidr.unwrap_or(state.settings.cluster_cidr),
            node_ip: state.address()?,
            bridge: BRIDGE.into(),
            vxlan_port: VXLAN_PORT,
        };
        let (network, receiver) = watch::channel(None);
        let mut keeper =
            Self { config, kept: state.pod_cidr, state, files, network, refresh: watch::Sender::new(()) };
        if let Some(range) = keeper.state.pod_cidr {
            keeper.up(range).await.context("the pod network cannot be set up")?;
        }
        Ok((keeper, Pods { network: receiver }))
    }

    /// Told whenever a node comes, goes or moves.
    pub fn news(&self) -> watch::Receiver<()> {
        self.refresh.subscribe()
    }

    async fn up(&mut self, range: ipnet::Ipv4Net) -> Result<()> {
        let config = network::Config { pod_cidr: range, ..self.config.clone() };
        let network = Network::start(config).await?;
        self.state.pod_cidr = Some(range);
        self.network.send_replace(Some(network));
        Ok(())
    }

    /// Follows the Node objects for ever.
    pub async fn run(mut self, client: Client) {
        let (nodes, writer) = reflector::store::<Node>();
        let stream = watcher(Api::<Node>::all(client), watcher::Config::default());
        let stream = reflector(writer, stream).default_backoff();
        tokio::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone) => {}
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%error, "watching nodes");
                    continue;
                }
            }
            while let Err(error) = self.apply(&nodes.state()).await {
                tracing::warn!(error = format!("{error:#}"), "the pod network is behind");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            self.refresh.send_replace(());
        }
    }

    async fn apply(&mut self, nodes: &[Arc<Node>]) -> Result<()> {
        let me = &self.state.member.name;
        let range = nodes.iter().find(|n| n.name_any() == *me).and_then(|n| range_of(n));
        if let Some(range) = range
            && (self.state.pod_cidr != Some(range) || self.network.borrow().is_none())
        {
            self.up(range).await?;
        }
        // Only this field is ours; the rest of the file may have changed since the start.
        if let Some(range) = range.filter(|range| self.kept != Some(*range))
            && self.files.update(|state| state.pod_cidr = Some(range))?.is_some()
        {
            self.kept = Some(range);
        }
        let peers = nodes
            .iter()
            .filter(|n| n.name_any() != self.state.member.name)
            .filter_map(|n| Some(Peer { name: n.name_any(), address: address(n)?, pod_cidr: range_of(n)? }));
        let network = self.network.borrow().clone();
        if let Some(network) = network {
            network.set_peers(peers.collect()).await?;
        }
        Ok(())
    }
}

fn range_of(node: &Node) -> Option<ipnet::Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

fn address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()
}
