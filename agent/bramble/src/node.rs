//! Everything that runs on a node while it belongs to a cluster, in the order in which it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cluster::join::{ClusterSettings, Token};
use cluster::members::{Member, understood};
use cluster::pki::{self, Authority, MASTERS_GROUP, Pair};
use http::Request;
use http_body_util::BodyExt;
use runtime::Runtime;
use store::{Expect, Kv, Store, Txn, Volatile, Write};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{self, NodeClient};
use crate::config::Config;
use crate::dial::Dialer;
use crate::finder::Finder;
use crate::front::Front;
use crate::gate::{self, Gate, News};
use crate::health::Health;
use crate::kubelet_port::{self, KubeletDialer};
use crate::leader::Leader;
use crate::peers::{Peers, Transport};
use crate::pods::Keeper;
use crate::ports::Ports;
use crate::roster::{CA, CLUSTER, MEMBERS, Roster};
use crate::serving::Certificate;
use crate::state::{Files, NodeState, kubeconfig};
use crate::status_port;
use crate::upgrader::{self, Upgrader};

/// The API's version: behaviour and types are those of this Kubernetes.
pub const KUBERNETES: &str = concat!("v1.36.0+bramble.", env!("CARGO_PKG_VERSION"));
/// Longest wait for the first election of a new cluster.
const ELECTION: Duration = Duration::from_secs(15);
/// Longest wait for running requests when a node stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// A node that is in a cluster.
pub struct Running {
    /// What it is.
    pub state: NodeState,
    /// Its replica.
    pub store: Store,
    /// Who there is.
    pub roster: Roster,
    client: NodeClient,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What a node starts from.
pub struct Start {
    /// Settings.
    pub config: Arc<Config>,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Its files.
    pub files: Files,
    /// Its listening sockets.
    pub ports: Ports,
    /// What it is.
    pub state: NodeState,
}

/// A new cluster's secrets, written with its first transaction.
pub struct Founding {
    /// The CA.
    pub authority: Authority,
    /// The secret that all cards of the batch share, if there is one.
    pub baked: Option<Token>,
}

impl Running {
    /// Starts everything. With `founding` the cluster begins here.
    pub async fn start(start: Start, founding: Option<Founding>) -> Result<Self> {
        let Start { config, runtime, files, ports, state } = start;
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
            found(&store, &state, &founding).await?;
        }
        let kv: Arc<dyn Kv> = Arc::new(store.clone());
        let volatile = Arc::new(Volatile::default());
        let leading = leading(&store, &tasks, &shutdown);

        let api_config = apiserver::Config {
            service_cidr: state.settings.service_cidr,
            port: config.api_port,
            git_version: KUBERNETES.to_owned(),
            ..apiserver::Config::default()
        };
        let kubelets = Arc::new(KubeletDialer { kv: kv.clone(), port: config.kubelet_port });
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
        let finder = Finder {
            me: state.member.clone(),
            roster: roster.clone(),
            status: store.status(),
            lost: dialer.lost.clone(),
            tls: peer_tls,
        };
        let client = NodeClient::new(
            api.clone(),
            client::node(&state.member.name),
            leading.clone(),
            dialer,
            pki::client(&ca, &pair, &[b"h2"])?,
        );

        let spawn = Spawner { tasks: &tasks, shutdown: &shutdown };
        spawn.task(roster.clone().follow(kv.clone()));
        spawn.task(certificate.follow(kv, roster.clone(), state.settings.clone(), pair.key.clone()));
        spawn.task(keep_members(files.clone(), roster.clone()));
        if let Some(IpAddr::V4(address)) = state.member.addresses.first().copied() {
            spawn.task(dns::mdns::answer(address));
            spawn.task(finder.run(address));
        }
        spawn.task(write_what_all_understand(store.clone(), roster.clone()));
        let announcer = Announcer {
            client: client.clone(),
            store: store.clone(),
            roster: roster.clone(),
            me: state.member.clone(),
        };
        spawn.task(announcer.clone().run(News::Addresses(state.member.addresses.clone())));
        spawn.task(async move {
            // A system on trial may be left for the one before, which then would have to understand what this one does.
            upgrader::kept().await;
            announcer.run(News::Format(store::FORMAT)).await;
        });
        tasks.spawn(front.run(ports.api, shutdown.clone()));
        let leader = Leader {
            api,
            store: store.clone(),
            volatile,
            roster: roster.clone(),
            health,
            config: config.clone(),
            settings: state.settings.clone(),
        };
        tasks.spawn(leader.run(leading, shutdown.clone()));
        let node = Parts {
            config,
            runtime,
            files,
            state: &state,
            store: &store,
            roster: &roster,
            client: &client,
            pair,
            ca,
        };
        node.start(ports.kubelet, ports.status, &spawn).await?;
        unless_done.disarm();
        Ok(Self { state, store, roster, client, shutdown, tasks })
    }

    /// Takes the node out of its cluster, for good.
    pub async fn leave(&self) -> Result<()> {
        let status = self.store.status().borrow().clone();
        let alone = self.roster.get().len() <= 1;
        if alone {
            return Ok(());
        }
        anyhow::ensure!(
            status.voters.as_slice() != [status.id],
            "this node alone holds the cluster's state: take the other nodes out first, or wait until three vote"
        );
        let voters = status.progress.iter().filter(|p| p.recent_active && status.voters.contains(&p.id));
        if status.leading
            && let Some(next) = voters.max_by_key(|p| p.matched)
        {
            self.store.transfer(next.id).await;
            let mut news = self.store.status();
            let stepped_down = news.wait_for(|s| !s.leading && s.leader.is_some_and(|l| l != s.id));
            let _ = timeout(ELECTION, stepped_down).await.context("no other node took over the lead")?;
        }
        let request = Request::post(format!("{}leave", gate::PREFIX)).body(axum::body::Body::empty())?;
        let answer = self.client.request(request).await.map_err(|e| anyhow::anyhow!(e));
        let answer = answer.context("the cluster does not answer")?;
        // Who is forgotten already has nothing to take back.
        if !answer.status().is_success() && answer.status() != http::StatusCode::GONE {
            let body = answer.into_body().collect().await?.to_bytes();
            bail!("the cluster refuses: {}", String::from_utf8_lossy(&body));
        }
        Ok(())
    }

    /// Stops everything but containers.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        if timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.store.clone().close().await;
    }
}

/// The tasks of one node.
struct Spawner<'a> {
    tasks: &'a TaskTracker,
    shutdown: &'a CancellationToken,
}

impl Spawner<'_> {
    /// Runs until it ends or the node stops.
    fn task(&self, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Starts a part that ends by itself only when something is wrong, again and again.
    fn part<F, E>(&self, name: &'static str, mut start: impl FnMut(CancellationToken) -> F + Send + 'static)
    where
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

/// The parts that only know the Kubernetes API.
struct Parts<'a> {
    config: Arc<Config>,
    runtime: Arc<dyn Runtime>,
    files: Files,
    state: &'a NodeState,
    store: &'a Store,
    roster: &'a Roster,
    client: &'a NodeClient,
    pair: Pair,
    ca: String,
}

impl Parts<'_> {
    async fn start(
        self,
        kubelet_port: tokio::net::TcpListener,
        status_port: tokio::net::TcpListener,
        spawn: &Spawner<'_>,
    ) -> Result<()> {
        let name = self.state.member.name.clone();
        let client = kube::Client::new(self.client.clone(), "default");
        let (keeper, pods) = Keeper::start(self.state.clone(), self.files.clone()).await?;
        spawn.task(refresh_members(
            self.client.clone(),
            self.roster.clone(),
            self.store.clone(),
            keeper.news(),
        ));
        spawn.task(keeper.run(client.clone()));

        let node = kubelet::Kubelet::new(
            self.kubelet(),
            client.clone(),
            self.runtime.clone(),
            Arc::new(pods.clone()),
        );
        let tls = pki::server(&self.ca, Certificate::fixed(&self.pair)?, true, &[b"http/1.1"])?;
        spawn.tasks.spawn(kubelet_port::serve(kubelet_port, tls, node.router(), spawn.shutdown.clone()));
        let (ready, network) = (node.clone(), pods.clone());
        spawn.task(async move { ready.set_ready(network.ready().await) });
        spawn.part("kubelet", move |shutdown| node.clone().run(shutdown));

        spawn.task(Upgrader::new(client.clone(), name.clone()).run());
        self.services(&name, &client, &pods, spawn);
        self.status_pages(name, client, status_port, spawn);
        Ok(())
    }

    /// The forwarder and DNS: they need the service range to be local, which comes with the pod network.
    fn services(&self, name: &str, client: &kube::Client, pods: &crate::pods::Pods, spawn: &Spawner<'_>) {
        let settings = &self.state.settings;
        let dns_address = SocketAddr::new(settings.dns_address().into(), 53);
        let proxy_config = proxy::Config {
            reserved: vec![dns_address],
            ..proxy::Config::new(name, settings.service_cidr, self.state.member.addresses.clone())
        };
        let dns_config = dns::Config::new(
            vec![dns_address],
            settings.domain.clone(),
            self.upstream(settings),
            vec![settings.service_cidr, settings.cluster_cidr],
        );
        let (network, proxy_client) = (pods.clone(), client.clone());
        spawn.part("proxy", move |shutdown| {
            let (network, config, client) = (network.clone(), proxy_config.clone(), proxy_client.clone());
            async move {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    _ = network.ready() => {}
                }
                proxy::run(config, client, shutdown).await
            }
        });
        let (network, client) = (pods.clone(), client.clone());
        spawn.part("dns", move |shutdown| {
            let (network, config, client) = (network.clone(), dns_config.clone(), client.clone());
            async move {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    _ = network.ready() => {}
                }
                dns::run(config, client, shutdown).await
            }
        });
    }

    fn status_pages(
        &self,
        name: String,
        client: kube::Client,
        port: tokio::net::TcpListener,
        spawn: &Spawner<'_>,
    ) {
        let raft = crate::raft_status::follow(
            self.store.status(),
            self.roster.clone(),
            name.clone(),
            spawn.tasks,
            spawn.shutdown,
        );
        let config = dashboard::Config { node_name: name, version: KUBERNETES.to_owned() };
        let router = dashboard::router(config, client, raft);
        spawn.tasks.spawn(status_port::serve(port, router, spawn.shutdown.clone()));
    }

    fn kubelet(&self) -> kubelet::Config {
        let settings = &self.state.settings;
        let mut labels = self.config.labels.clone();
        if self.state.first {
            labels.insert("node-role.kubernetes.io/control-plane".into(), String::new());
        }
        kubelet::Config {
            node_name: self.state.member.name.clone(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            addresses: self.state.member.addresses.clone(),
            state_dir: self.config.data_dir.clone(),
            cluster_dns: settings.dns_address(),
            cluster_domain: settings.domain.clone(),
            labels,
            version: KUBERNETES.to_owned(),
            ..kubelet::Config::default()
        }
    }

    /// Name servers outside the cluster, never ourselves.
    fn upstream(&self, settings: &ClusterSettings) -> Vec<SocketAddr> {
        if !self.config.upstream_dns.is_empty() {
            return self.config.upstream_dns.clone();
        }
        let own: IpAddr = settings.dns_address().into();
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let servers =
            text.lines().filter_map(|l| l.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
        servers.filter(|ip| *ip != own).map(|ip| SocketAddr::new(ip, 53)).collect()
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

/// Keeps the member list on disk: how the node finds its cluster after a reboot.
async fn keep_members(files: Files, roster: Roster) {
    let mut members = roster.subscribe();
    loop {
        let now = members.borrow_and_update().clone();
        let saved = files.update(|state| state.members = now.to_vec());
        if let Err(error) = saved {
            tracing::warn!(error = format!("{error:#}"), "the member list cannot be written");
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// On a node without a replica, or with one that Raft feeds no longer: asks the leader for the members whenever a Node
/// comes, goes or moves.
async fn refresh_members(client: NodeClient, roster: Roster, store: Store, mut news: watch::Receiver<()>) {
    while news.changed().await.is_ok() {
        let fed = {
            let status = store.status();
            let status = status.borrow();
            let ours = status.voters.contains(&status.id) || status.learners.contains(&status.id);
            ours && status.leader.is_some()
        };
        if fed {
            continue;
        }
        match members(&client).await {
            Ok(members) => roster.set(members),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "the member list cannot be fetched"),
        }
    }
}

/// Tells the cluster what is new with this node whenever its record says otherwise.
#[derive(Clone)]
struct Announcer {
    client: NodeClient,
    store: Store,
    roster: Roster,
    me: Member,
}

impl Announcer {
    async fn run(self, news: News) {
        let mut members = self.roster.subscribe();
        loop {
            let me = &self.me;
            let known =
                members.borrow_and_update().iter().find(|m| m.name == me.name && m.key == me.key).cloned();
            let mut pause = None;
            if known.is_some_and(|known| !news.is_on(&known)) {
                match self.tell(&news).await {
                    Ok(()) => tracing::info!(?news, "the cluster knows what is new with this node"),
                    // A leader older than this agent may not even know of such news.
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::debug!(
                            ?news,
                            error,
                            "the cluster does not know yet what is new with this node"
                        );
                    }
                }
                // Until the record says so: what was told may have been told to a leader that has just lost its place.
                pause = Some(tokio::time::sleep(Duration::from_secs(1)));
            }
            tokio::select! {
                changed = members.changed() => if changed.is_err() { return },
                () = async { match pause { Some(pause) => pause.await, None => std::future::pending().await } } => {}
            }
        }
    }

    async fn tell(&self, news: &News) -> Result<()> {
        if self.store.status().borrow().leading {
            return gate::set(&self.store, &self.me.name, &self.me.key, news).await;
        }
        let answer = self.client.request(news.request()?).await.map_err(|e| anyhow::anyhow!(e))?;
        anyhow::ensure!(answer.status().is_success(), "{}", answer.status());
        Ok(())
    }
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

async fn members(client: &NodeClient) -> Result<Vec<Member>> {
    let request = Request::get(format!("{}members", gate::PREFIX)).body(axum::body::Body::empty())?;
    let answer = client.request(request).await.map_err(|e| anyhow::anyhow!(e))?;
    anyhow::ensure!(answer.status().is_success(), "{}", answer.status());
    Ok(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?)
}

/// Writes the administrator's kubeconfig.
pub fn write_kubeconfig(files: &Files, authority: &Authority, port: u16) -> Result<()> {
    let admin = authority.sign_client("kubernetes-admin", &[MASTERS_GROUP])?;
    let server = format!("https://127.0.0.1:{port}");
    let text = kubeconfig(&server, &authority.pair().certificate, &admin);
    let path = files.kubeconfig();
    Ok(cluster::ledger::write(Path::new(&path), text.as_bytes(), 0o600)?)
}
