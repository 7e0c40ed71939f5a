//! The pod network of one node: a bridge, a veth pair per pod, routes to the other nodes' pods, and one masquerade
//! rule for what leaves the cluster. Everything is done over netlink; no tool is called and no daemon helps.
//!
//! ```text
//!   pod eth0 ── veth ── bramble0 (pod CIDR .1) ──┬── plain route, peer on the same link
//!                          │                     ├── bramble.vx (VXLAN), peer behind a router
//!                          │                     └── masquerade, everything outside the cluster CIDR
//!                  service CIDR is local on lo, so the forwarder can bind any cluster IP
//! ```
//!
//! The kubelet calls [`Network::attach`] and [`Network::detach`]; whoever watches Nodes calls [`Network::set_peers`].
//!
//! **The kernel is the ledger.** A lease on an address is the alias of the pod's host-side veth. After an agent restart
//! the leases are read back from the links; after a power loss there are no links, no pods and no leases, which is the
//! truth. Nothing is written to the card.
//!
//! **Only what is ours is touched**: links named `bram...`, routes with our own protocol number, the nf_tables table
//! `bramble`.

mod attach;
mod error;
mod ipam;
mod links;
mod monitor;
mod netns;
mod nft;
mod peers;
mod routes;
mod vxlan;

pub use crate::error::Error;
pub use crate::monitor::follow_addresses;
pub use crate::peers::Peer;

use crate::ipam::Ipam;
use crate::links::Bridge;
use ipnet::Ipv4Net;
use rtnetlink::Handle;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most peers a node keeps routes to; a cluster of Raspberry Pis is far below it.
const MAX_PEERS: usize = 4096;

/// Takes away all that [`Network::start`] and what came after it put in: links, routes, the masquerade rule. The
/// network must have been dropped.
///
/// # Errors
/// When the kernel refuses; what is left then can be removed by calling this again.
pub async fn remove() -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::socket)?;
    let connection = tokio::spawn(connection);
    for link in links::list(&handle).await? {
        if links::name_of(&link).is_some_and(|name| name.starts_with("bram")) {
            links::delete(&handle, link.header.index).await?;
        }
    }
    routes::remove(&handle).await?;
    nft::remove()?;
    connection.abort();
    Ok(())
}

/// What one node has to know to build its part of the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The bridge's name, `bramble0` by default.
    pub bridge: String,
    /// All pods of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// All cluster IPs.
    pub service_cidr: Ipv4Net,
    /// The pods of this node.
    pub pod_cidr: Ipv4Net,
    /// The address other nodes reach this node at.
    pub node_ip: IpAddr,
    /// UDP port of VXLAN, 8472 by default.
    pub vxlan_port: u16,
}

impl Config {
    /// The pods' gateway: the bridge's own address, the first of the pod CIDR.
    pub fn gateway(&self) -> Ipv4Addr {
        ipam::gateway(self.pod_cidr)
    }

    fn check(&self) -> Result<(), Error> {
        let fail = |why: String| Err(Error::Config(why));
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains(['/', ' ']) {
            return fail(format!("{:?} cannot be an interface's name", self.bridge));
        }
        if !(8..=29).contains(&self.pod_cidr.prefix_len()) {
            return fail(format!("the pod CIDR {} must be between a /8 and a /29", self.pod_cidr));
        }
        if !self.cluster_cidr.contains(&self.pod_cidr) {
            return fail(format!("the pod CIDR {} lies outside {}", self.pod_cidr, self.cluster_cidr));
        }
        if overlap(self.service_cidr, self.cluster_cidr) {
            return fail(format!("the networks {} and {} overlap", self.service_cidr, self.cluster_cidr));
        }
        // Making the node's own LAN local, or routing it to pods, would cut the node off.
        for network in [self.service_cidr, self.cluster_cidr] {
            if matches!(self.node_ip, IpAddr::V4(address) if network.contains(&address)) {
                return fail(format!("the node's address {} lies inside {network}", self.node_ip));
            }
        }
        Ok(())
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The pod network of this node.
#[derive(Debug)]
pub struct Network {
    config: Config,
    handle: Handle,
    bridge: Bridge,
    ipam: Mutex<Ipam>,
    /// One attach or detach at a time: the kernel serialises link changes anyway, and it keeps an id's steps in order.
    links: tokio::sync::Mutex<()>,
    /// The peers as last told, put in again when the node's own links or addresses change.
    /// `None` until they are told for the first time: what an earlier agent routed stays until then.
    peers: tokio::sync::Mutex<Option<Vec<Peer>>>,
    /// Dropping these ends the netlink connection and the monitor.
    _tasks: tokio::task::JoinSet<()>,
}

impl Network {
    /// Builds what is missing and corrects what differs, so it may be called at each start of the agent, and with
    /// another pod CIDR than last time. Must be called in the network namespace the node lives in.
    pub async fn start(config: Config) -> Result<Arc<Network>, Error> {
        config.check()?;
        let mut tasks = tokio::task::JoinSet::new();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::socket)?;
        tasks.spawn(connection);
        links::enable_forwarding()?;
        links::loopback_up(&handle).await?;
        let mtu = links::node_mtu(&handle, config.node_ip).await?;
        let bridge = Bridge::ensure(&handle, &config.bridge, config.gateway(), config.pod_cidr, mtu).await?;
        routes::make_local(&handle, config.service_cidr).await?;
        nft::masquerade(&config.bridge, config.pod_cidr, config.cluster_cidr)?;
        let ipam = attach::read_leases(&handle, config.pod_cidr).await?;
        let events = monitor::subscribe(&mut tasks, config.node_ip)?;
        let network = Arc::new_cyclic(|network| {
            tasks.spawn(monitor::follow(network.clone(), events));
            Network {
                config,
                handle,
                bridge,
                ipam: Mutex::new(ipam),
                links: tokio::sync::Mutex::new(()),
                peers: tokio::sync::Mutex::new(None),
                _tasks: tasks,
            }
        });
        Ok(network)
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the other nodes' pods reachable, and forgets nodes that are not in `peers`. A peer on a directly connected
    /// subnet gets a plain route; one behind a router is reached by VXLAN. One peer's failure does not hold up the
    /// others: all are tried and the first error is returned.
    pub async fn set_peers(&self, mut peers: Vec<Peer>) -> Result<(), Error> {
        peers.truncate(MAX_PEERS);
        let mut current = self.peers.lock().await;
        peers::apply(self, current.insert(peers)).await
    }

    /// Puts the peers in again as last told.
    async fn refresh_peers(&self) -> Result<(), Error> {
        match self.peers.lock().await.as_deref() {
            Some(current) => peers::apply(self, current).await,
            None => Ok(()),
        }
    }

    /// Gives the network namespace at `netns` an `eth0` with an address of this node's pod CIDR, a default route and
    /// a loopback, and returns the address. Calling it again for the same `id` gives the same address and mends what
    /// is missing.
    pub async fn attach(&self, id: &str, netns: &Path) -> Result<Ipv4Addr, Error> {
        attach::check_id(id)?;
        let namespace = netns::Namespace::open(netns)?;
        let _one_at_a_time = self.links.lock().await;
        let (address, fresh) = self.ipam().lease(id)?;
        let attached = attach::attach(self, id, address, namespace).await;
        if attached.is_err() && fresh {
            self.ipam().release(id);
        }
        attached.map(|()| address)
    }

    /// Takes the pod off the network and frees its address. Detaching what is not attached is no error.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        attach::check_id(id)?;
        let _one_at_a_time = self.links.lock().await;
        attach::detach(&self.handle, id).await?;
        self.ipam().release(id);
        Ok(())
    }

    /// The address of an attached pod.
    pub fn address_of(&self, id: &str) -> Option<Ipv4Addr> {
        self.ipam().address_of(id)
    }

    /// Every id that holds an address, for garbage collection.
    pub async fn attached(&self) -> Vec<String> {
        self.ipam().ids()
    }

    fn ipam(&self) -> MutexGuard<'_, Ipam> {
        // No code panics while it holds the lock half way through a change.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            bridge: "bramble0".into(),
            cluster_cidr: "10.1.0.0/16".parse().unwrap(),
            service_cidr: "10.0.0.0/24".parse().unwrap(),
            pod_cidr: "10.1.3.0/24".parse().unwrap(),
            node_ip: "192.168.1.7".parse().unwrap(),
            vxlan_port: 8472,
        }
    }

    #[test]
    fn a_configuration_that_would_cut_the_node_off_is_refused() {
        assert!(config().check().is_ok());
        let wrong = [
            Config { bridge: "a-name-of-16-byt".into(), ..config() },
            Config { pod_cidr: "10.2.3.0/24".parse().unwrap(), ..config() },
            Config { pod_cidr: "10.1.3.0/30".parse().unwrap(), ..config() },
            Config { node_ip: "10.0.0.9".parse().unwrap(), ..config() },
            Config { node_ip: "10.1.200.9".parse().unwrap(), ..config() },
            Config { service_cidr: "10.1.9.0/24".parse().unwrap(), ..config() },
        ];
        for config in wrong {
            assert!(matches!(config.check(), Err(Error::Config(_))), "{config:?}");
        }
    }
}
