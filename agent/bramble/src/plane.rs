//! The API and what belongs to it, on a node or alone: the store, its listener, and what runs while this process leads.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use cluster::join::Token;
use cluster::members::understood;
use cluster::pki::{self, Authority, MASTERS_GROUP, Pair};
use rustls::ClientConfig;
use store::{Expect, Kv, Store, Txn, Volatile, Write};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{self, NodeClient};
use crate::config::Config;
use crate::dial::Dialer;
use crate::front::Front;
use crate::gate::{self, Gate};
use crate::health::Health;
use crate::kubelet_port::KubeletDialer;
use crate::leader::Leader;
use crate::node::KUBERNETES;
use crate::peers::{Peers, Transport};
use crate::roster::{CA, CLUSTER, MEMBERS, Roster};
use crate::serving::Certificate;
use crate::state::{Files, NodeState, kubeconfig};

/// Longest wait for the first election of a new cluster.
const ELECTION: Duration = Duration::from_secs(15);
/// Longest wait for running requests when it stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is different when there is no node here.
#[derive(Clone, Debug)]
pub struct Options {
    /// Controllers run while this process leads.
    pub controllers: bool,
    /// The scheduler does.
    pub scheduler: bool,
    /// Where the `kubernetes` Service leads to when there are no nodes that serve it.
    pub addresses: Vec<std::net::IpAddr>,
    /// Users by token.
    pub tokens: apiserver::StaticTokens,
    /// Admission plugins that are off.
    pub disabled_admission: BTreeSet<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controllers: true,
            scheduler: true,
            addresses: Vec::new(),
            tokens: Default::default(),
            disabled_admission: BTreeSet::new(),
        }
    }
}

/// What it starts from.
pub struct Given<'a> {
    /// Settings.
    pub config: &'a Arc<Config>,
    /// Files.
    pub files: &'a Files,
    /// Who this is.
    pub state: &'a NodeState,
    /// What is different without a node.
    pub options: Arc<Options>,
    /// The API's socket.
    pub listener: TcpListener,
}

/// A new cluster's secrets, written with its first transaction.
pub struct Founding {
    /// The CA.
    pub authority: Authority,
    /// The secret that all cards of the batch share, if there is one.
    pub baked: Option<Token>,
}

/// A running API.
pub struct Plane {
    /// Its replica.
    pub store: Store,
    /// Who there is.
    pub roster: Roster,
    /// To the API, wherever its leader is.
    pub client: NodeClient,
    /// To the leader.
    pub dialer: Dialer,
    /// To other members, as this one.
    pub peer_tls: Arc<ClientConfig>,
    /// This member's certificate.
    pub pair: Pair,
    /// The cluster's CA.
    pub ca: String,
    /// Ends everything.
    pub shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Plane {
    /// Starts it. With `founding` the cluster begins here.
    pub async fn start(given: Given<'_>, founding: Option<Founding>) -> Result<Self> {
        let Given { config, files, state, options, listener } = given;
        let (pair, ca) = files.load_pki()?;
        let shutdown = CancellationToken::new();
        // A start that fails halfway leaves nothing running.
        let unless_done = shutdown.clone().drop_guard();
        let tasks = TaskTracker::new();
        let roster = Roster::new(state.members.clone());

        let peer_tls = pki::client(&ca, &pair, &[pki::ALPN_RAFT])?;
        let peers = Peers::new(roster.clone(), peer_tls.clone(), shutdown.clone());
        let store_config = store::Config::new(files.raft(), state.member.id);
        let store = Store::open(store_config, Arc::new(Transport(peers.clone()))).await;
        let store = store.context("the cluster's state on this node cannot be opened")?;
        peers.attach(store.clone());
        if let Some(founding) = founding {
            found(&store, state, &founding).await?;
        }
        let kv: Arc<dyn Kv> = Arc::new(store.clone());
        let volatile = Arc::new(Volatile::default());
        let leading = leading(&store, &tasks, &shutdown);
        let kubelets = Arc::new(KubeletDialer { kv: kv.clone(), port: config.kubelet_port });
        let api_config = api_config(config, state, &options, &ca)?;
        let api = apiserver::Api::new(api_config, kv.clone(), volatile.clone(), leading.clone(), kubelets);
        let health = Health::new(config.node_monitor_grace());
        let dialer = Dialer::new(state.member.id, roster.clone(), &store);
        let certificate = Arc::new(Certificate::default());
        let cluster = (state.cluster_id.clone(), state.settings.clone());
        let gate = Gate::new(
            kv.clone(),
            api.clone(),
            leading.clone(),
            roster.clone(),
            health.clone(),
            cluster,
            config.api_port,
        );
        let front = Arc::new(Front {
            api: api.clone(),
            gate,
            leading: leading.clone(),
            dialer: dialer.clone(),
            store: store.clone(),
            roster: roster.clone(),
            certificate: certificate.clone(),
            clients: pki::server(&ca, certificate.clone(), false, &[b"h2", b"http/1.1"])?,
            peers: pki::server(&ca, Certificate::fixed(&pair)?, true, &[pki::ALPN_RAFT])?,
        });
        let client = NodeClient::new(
            api.clone(),
            client::node(&state.member.name),
            leading.clone(),
            dialer.clone(),
            pki::client(&ca, &pair, &[b"h2"])?,
        );
        let leader = Leader {
            api,
            store: store.clone(),
            volatile,
            roster: roster.clone(),
            health,
            config: config.clone(),
            settings: state.settings.clone(),
            options,
            ca: ca.clone(),
        };
        let spawn = Spawner { tasks: &tasks, shutdown: &shutdown };
        spawn.task(roster.clone().follow(kv.clone()));
        spawn.task(write_what_all_understand(store.clone(), roster.clone()));
        spawn.task(certificate.follow(kv, roster.clone(), state.settings.clone(), pair.key.clone()));
        tasks.spawn(front.run(listener, shutdown.clone()));
        tasks.spawn(leader.run(leading, shutdown.clone()));
        unless_done.disarm();
        Ok(Self { store, roster, client, dialer, peer_tls, pair, ca, shutdown, tasks })
    }

    /// For more tasks that end with it.
    pub fn spawner(&self) -> Spawner<'_> {
        Spawner { tasks: &self.tasks, shutdown: &self.shutdown }
    }

    /// Stops everything.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        if timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.store.clone().close().await;
    }
}

fn api_config(config: &Config, state: &NodeState, options: &Options, ca: &str) -> Result<apiserver::Config> {
    Ok(apiserver::Config {
        service_cidr: state.settings.service_cidr,
        port: config.api_port,
        git_version: KUBERNETES.to_owned(),
        issuer: format!("https://kubernetes.default.svc.{}", state.settings.domain),
        ca: ca.to_owned(),
        tokens: options.tokens.clone(),
        disabled_admission: options.disabled_admission.clone(),
        audit: config.audit.open()?,
        ..apiserver::Config::default()
    })
}

/// The tasks of one node.
pub struct Spawner<'a> {
    /// Those that end in their own time.
    pub tasks: &'a TaskTracker,
    /// Ends them.
    pub shutdown: &'a CancellationToken,
}

impl Spawner<'_> {
    /// Runs until it ends or the node stops.
    pub fn task(&self, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Starts a part that ends by itself only when something is wrong, again and again.
    pub fn part<F, E>(
        &self,
        name: &'static str,
        mut start: impl FnMut(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            while !shutdown.is_cancelled() {
                let ended = start(shutdown.clone()).await;
                if shutdown.is_cancelled() {
                    return;
                }
                let error = ended.err().map(|e| e.to_string());
                tracing::error!(part = name, error, "ended; starting it again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// The first transaction of a cluster, once its only voter leads.
async fn found(store: &Store, state: &NodeState, founding: &Founding) -> Result<()> {
    store.bootstrap().await.context("the cluster's state cannot be made")?;
    let mut status = store.status();
    timeout(ELECTION, status.wait_for(|s| s.leading)).await.context("the first election does not end")??;
    let json = |value: serde_json::Result<Vec<u8>>| value.map(Bytes::from);
    let write = |key: String, value| Write { key, expect: Expect::Absent, value: Some(value) };
    let mut writes = vec![
        write(CA.to_owned(), json(serde_json::to_vec(founding.authority.pair()))?),
        write(CLUSTER.to_owned(), json(serde_json::to_vec(&(&state.cluster_id, &state.settings)))?),
        write(format!("{MEMBERS}{}", state.member.name), json(serde_json::to_vec(&state.member))?),
    ];
    if let Some(baked) = &founding.baked {
        writes.push(gate::token_write(baked, None)?);
    }
    store.commit(Txn { writes }).await.context("the cluster's first records cannot be written")?;
    Ok(())
}

/// Raft's `leading` alone, so that the parts that follow it are not woken by log positions.
fn leading(store: &Store, tasks: &TaskTracker, shutdown: &CancellationToken) -> watch::Receiver<bool> {
    let mut status = store.status();
    let (sender, receiver) = watch::channel(status.borrow().leading);
    let shutdown = shutdown.clone();
    tasks.spawn(async move {
        loop {
            let now = status.borrow_and_update().leading;
            sender.send_if_modified(|leading| std::mem::replace(leading, now) != now);
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    });
    receiver
}

/// Keeps the store from writing what a member would not understand.
async fn write_what_all_understand(store: Store, roster: Roster) {
    let mut members = roster.subscribe();
    let mut before = None;
    loop {
        let format = understood(&members.borrow_and_update());
        if before.replace(format) != Some(format) {
            tracing::info!(format, "all members understand this format of the log");
        }
        store.understood(format);
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the administrator's kubeconfig.
pub fn write_kubeconfig(files: &Files, authority: &Authority, at: SocketAddr) -> Result<()> {
    let admin = authority.sign_client("kubernetes-admin", &[MASTERS_GROUP])?;
    let server = format!("https://{at}");
    let text = kubeconfig(&server, &authority.pair().certificate, &admin);
    let path = files.kubeconfig();
    Ok(cluster::ledger::write(Path::new(&path), text.as_bytes(), 0o600)?)
}
