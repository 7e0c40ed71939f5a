//! The controllers: what makes the cluster's state follow its specification.
//!
//! They run on the leader only, as an ordinary client of the API. Data flows one way round:
//!
//! ```text
//!  list+watch of every kind ──▶ World (one task owns it) ──▶ keyed queue ──▶ reconcile (pure)
//!            ▲                        ▲                                          │ Vec<Write>
//!            └──── API server ◀───────┴───────────── responses ◀── executor ◀────┘
//! ```
//!
//! A reconcile is a pure function of the [`World`](world::World) and a key; it returns [`Write`](write::Write)s. The
//! runner executes them and puts the *responses* into the world before the same key may run again, so that a
//! controller always sees its own writes and never makes one pod too many. Nothing is reconciled before everything
//! has been listed once.
//!
//! Nothing here is kept on disk. After power loss, or on a new leader, all is learnt anew by listing: whatever had
//! been acknowledged is in the store, whatever had not is simply done again. Time between nodes is never compared:
//! a node's silence is measured with this machine's monotonic clock, from the last change this process saw.

mod back_off;
mod cidr;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
mod event;
mod executor;
mod furnishing;
mod gc;
mod hash;
mod job;
mod kind;
mod listwatch;
mod meta;
mod namespace;
mod node;
mod owned;
mod pod;
mod podgc;
mod queue;
mod quota;
mod reconcile;
mod replicas;
mod revision;
mod routes;
mod runner;
mod selector;
mod slices;
mod stateful_set;
mod taints;
#[cfg(test)]
mod testing;
mod world;
mod write;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// What the controllers are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// A node whose lease has not changed for this long is NotReady.
    pub node_monitor_grace: Duration,
    /// Pods leave a NotReady node after this long.
    pub pod_eviction_timeout: Duration,
    /// Where the nodes' /24s are taken from.
    pub cluster_cidr: Ipv4Net,
    /// Events are deleted this long after they last changed.
    pub event_ttl: Duration,
    /// The port every node serves the API on: what the `kubernetes` service leads to.
    pub api_port: u16,
    /// Where that service leads to while there are no nodes.
    pub api_addresses: Vec<IpAddr>,
    /// The cluster's CA, PEM: every namespace has it in the ConfigMap `kube-root-ca.crt`.
    pub ca: String,
    /// Finished pods kept before the oldest are deleted.
    pub terminated_pod_limit: usize,
}

impl Config {
    /// The defaults kept from 2016, for a cluster CIDR and an API port.
    pub fn new(cluster_cidr: Ipv4Net, api_port: u16) -> Self {
        Self {
            node_monitor_grace: Duration::from_secs(10),
            pod_eviction_timeout: Duration::from_secs(5),
            cluster_cidr,
            event_ttl: Duration::from_secs(3600),
            api_port,
            api_addresses: Vec::new(),
            ca: String::new(),
            terminated_pod_limit: 500,
        }
    }
}

/// Why the controllers cannot run at all. A failing API is not among these: it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster CIDR has no room for a node.
    #[error("cluster CIDR {0} is smaller than a /24")]
    ClusterCidr(Ipv4Net),
}

/// Runs all controllers until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    if config.cluster_cidr.prefix_len() > cidr::NODE_PREFIX {
        return Err(Error::ClusterCidr(config.cluster_cidr));
    }
    runner::Runner::new(config, client).run(shutdown).await;
    Ok(())
}
