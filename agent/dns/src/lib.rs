//! Cluster DNS: names for services, endpoints and pods, answered on every node.
//!
//! ```text
//! watch services, endpoint slices ──▶ Zone ──▶ resolver (pure) ──▶ UDP and TCP on the DNS service's address
//!                                                  └─ outside the zone ──▶ upstream servers, small cache
//! ```
//!
//! Each node answers for itself on the same address, so a query never crosses the network to be answered. Until
//! services have been listed once, names of the cluster are answered with SERVFAIL, never with "does not exist".
//!
//! [`mdns`] answers for `bramble.local` on the nodes' own network.
//!
//! Nothing is kept on disk: after power loss the zone is learnt anew by listing.

mod cache;
mod forward;
pub mod mdns;
mod message;
mod resolver;
mod server;
mod sync;
mod zone;

use std::net::SocketAddr;

use ipnet::Ipv4Net;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// What DNS is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to answer, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain (`cluster.local`).
    pub domain: String,
    /// Who answers the rest, in this order. Our own addresses among them are left out.
    pub upstream: Vec<SocketAddr>,
    /// Addresses (pods, services) whose reverse names are ours.
    pub reverse: Vec<Ipv4Net>,
}

impl Config {
    /// Where to answer, for which domain, whom to ask about the rest, and whose reverse names are ours.
    pub fn new(
        listen: Vec<SocketAddr>,
        domain: impl Into<String>,
        upstream: Vec<SocketAddr>,
        reverse: Vec<Ipv4Net>,
    ) -> Self {
        Self { listen, domain: domain.into(), upstream, reverse }
    }
}

/// Why DNS cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain is no name.
    #[error("cluster domain {0:?} is not a DNS name")]
    Domain(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}/{protocol}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that runs for ever did not.
    #[error("a task ended{0}")]
    Ended(String),
}

/// Answers until `shutdown`; an error when something broke, and it may be started again.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let domain = zone::parse_domain(&config.domain).ok_or_else(|| Error::Domain(config.domain.clone()))?;
    let server = server::Server::bind(&config, domain)?;
    server.run(client, shutdown).await
}
