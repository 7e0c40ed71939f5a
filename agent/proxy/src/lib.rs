//! The service forwarder: what makes cluster IPs, node ports, external IPs and load balancer addresses answer on this
//! node. It runs in userspace and needs no packet-filter rules: the service CIDR is local on every node, so each
//! cluster IP and port is simply bound and listened on.
//!
//! ```text
//!   Services, EndpointSlices ──watch──▶ table (pure) ──diff──▶ Forwarder ──▶ a listener per address and port
//!                                                                              │ Balancer (pure) picks an endpoint
//!                                                       client ◀──splice(2)──▶ endpoint
//! ```
//!
//! It is an ordinary Kubernetes client. When the API is away it keeps forwarding by what it knew last. TCP bytes stay in
//! the kernel (splice through pipes). Connections outlive changes: when endpoints or even the Service go, only new
//! connections notice.
//!
//! An endpoint sees this node's address, not the client's: that is the price of forwarding in userspace.
//!
//! Nothing is kept on disk; after power loss the table is built from the API again.

mod balancer;
mod forwarder;
mod pipe;
mod table;
mod tcp;
mod udp;
mod watch;

pub use crate::forwarder::{BindFailure, Forwarder};
pub use crate::table::{Action, Backends, Frontend, Protocol, ServiceRef, Table, build, diff};

use ipnet::Ipv4Net;
use std::net::{IpAddr, SocketAddr};
use tokio_util::sync::CancellationToken;

/// What the forwarder has to know about its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name: traffic policy `Local` means endpoints on it.
    pub node_name: String,
    /// Cluster IPs outside this network are not bound.
    pub service_cidr: Ipv4Net,
    /// The addresses of this node: external IPs and load balancer addresses among them are bound.
    pub node_ips: Vec<IpAddr>,
    /// Addresses that other parts of the agent answer themselves (the DNS server), left alone here.
    pub reserved: Vec<SocketAddr>,
    /// The most TCP connections and UDP flows forwarded at once, each. What exceeds them is refused.
    pub max_connections: usize,
}

impl Config {
    /// A configuration with nothing reserved, and a limit that a Pi's memory bears.
    pub fn new(node_name: impl Into<String>, service_cidr: Ipv4Net, node_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            service_cidr,
            node_ips,
            reserved: Vec::new(),
            max_connections: 8192,
        }
    }
}

/// Why the forwarder ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The watches ended, which they do not by themselves.
    #[error("the watch of services and endpoints ended")]
    WatchEnded,
}

/// Forwards until `shutdown`. Must be called in the network namespace the node lives in.
pub async fn run(config: Config, client: kube::Client, shutdown: CancellationToken) -> Result<(), Error> {
    watch::run(config, client, shutdown).await
}
