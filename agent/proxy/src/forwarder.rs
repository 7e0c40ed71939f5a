//! The open listeners, kept in step with the table.

use crate::balancer::Balancer;
use crate::pipe::Pipes;
use crate::table::{Action, Backends, Frontend, Protocol, Table, diff};
use crate::{tcp, udp};
use ipnet::IpNet;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pipes: Pipes,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) flows: Arc<Semaphore>,
    pub(crate) shutdown: CancellationToken,
}

/// Where a listener leads; changed while it listens.
#[derive(Debug)]
pub(crate) struct Lead {
    balancer: Mutex<Balancer>,
    sources: RwLock<Vec<IpNet>>,
}

impl Lead {
    fn new(backends: &Backends) -> Self {
        let balancer = Balancer::new(backends.endpoints.clone(), backends.affinity);
        Self { balancer: Mutex::new(balancer), sources: RwLock::new(backends.sources.clone()) }
    }

    fn update(&self, backends: &Backends) {
        self.balancer().update(backends.endpoints.clone(), backends.affinity);
        *self.sources.write().unwrap_or_else(PoisonError::into_inner) = backends.sources.clone();
    }

    // Nothing panics half way through a change under these locks.
    pub(crate) fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a client may connect.
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        sources.is_empty() || sources.iter().any(|network| network.contains(&client))
    }
}

#[derive(Debug)]
struct Open {
    lead: Arc<Lead>,
    closed: CancellationToken,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// A frontend whose address could not be bound.
#[derive(Debug)]
pub struct BindFailure {
    /// Which.
    pub frontend: Frontend,
    /// Why.
    pub error: io::Error,
}

/// The listeners of this node. Dropping it closes them; connections that are open live on until the shutdown.
#[derive(Debug)]
pub struct Forwarder {
    node_ips: Vec<IpAddr>,
    shared: Arc<Shared>,
    /// What is open; a frontend that could not be bound is not in it, so applying a table again tries it again.
    current: Table,
    open: HashMap<Frontend, Open>,
}

impl Forwarder {
    /// A forwarder without listeners. `max_connections` bounds TCP connections and UDP flows, each.
    pub fn new(node_ips: Vec<IpAddr>, max_connections: usize, shutdown: CancellationToken) -> Self {
        let limit = || Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        let shared = Shared { pipes: Pipes::default(), connections: limit(), flows: limit(), shutdown };
        Self { node_ips, shared: Arc::new(shared), current: Table::new(), open: HashMap::new() }
    }

    /// Opens, closes and redirects listeners until they are those of the table, and returns those that could not be
    /// opened. Must be called in the runtime.
    pub fn apply(&mut self, wanted: &Table) -> Vec<BindFailure> {
        let mut failures = Vec::new();
        for action in diff(&self.current, wanted) {
            match action {
                Action::Close(frontend) => {
                    self.open.remove(&frontend);
                    self.current.remove(&frontend);
                }
                Action::Update(frontend, backends) => {
                    if let Some(open) = self.open.get(&frontend) {
                        open.lead.update(&backends);
                    }
                    self.current.insert(frontend, backends);
                }
                Action::Open(frontend, backends) => match self.listen(frontend, &backends) {
                    Ok(open) => {
                        self.open.insert(frontend, open);
                        self.current.insert(frontend, backends);
                    }
                    Err(error) => failures.push(BindFailure { frontend, error }),
                },
            }
        }
        failures
    }

    /// What is open.
    pub fn table(&self) -> &Table {
        &self.current
    }

    fn listen(&self, frontend: Frontend, backends: &Backends) -> io::Result<Open> {
        let open = Open { lead: Arc::new(Lead::new(backends)), closed: self.shared.shutdown.child_token() };
        let any = frontend.address.ip().is_unspecified();
        let result = match frontend.protocol {
            Protocol::Tcp => self.listen_on(Protocol::Tcp, frontend.address, &open),
            // An answer must come from the address that was asked, which a socket bound to none does not see to.
            Protocol::Udp if any => self.listen_on_each(frontend, &open),
            Protocol::Udp => self.listen_on(Protocol::Udp, frontend.address, &open),
        };
        match result {
            // Somebody has the port on one address: the others can still be served.
            Err(error) if any && error.kind() == io::ErrorKind::AddrInUse => {
                self.listen_on_each(frontend, &open)?
            }
            other => other?,
        }
        Ok(open)
    }

    /// Listens on every address of the node that is free. It fails if none is.
    fn listen_on_each(&self, frontend: Frontend, open: &Open) -> io::Result<()> {
        let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
        for ip in self.node_ips.iter().copied().chain([Ipv4Addr::LOCALHOST.into()]) {
            let address = SocketAddr::new(ip, frontend.address.port());
            outcome = match (outcome, self.listen_on(frontend.protocol, address, open)) {
                (Ok(()), _) | (_, Ok(())) => Ok(()),
                (_, failed) => failed,
            };
        }
        outcome
    }

    fn listen_on(&self, protocol: Protocol, address: SocketAddr, open: &Open) -> io::Result<()> {
        let (lead, shared, closed) = (open.lead.clone(), self.shared.clone(), open.closed.clone());
        match protocol {
            Protocol::Tcp => drop(tokio::spawn(tcp::serve(tcp::bind(address)?, lead, shared, closed))),
            Protocol::Udp => drop(tokio::spawn(udp::serve(udp::bind(address)?, lead, shared, closed))),
        }
        Ok(())
    }
}
