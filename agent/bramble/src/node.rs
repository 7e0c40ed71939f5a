//! Everything that runs on a node while it belongs to a cluster, in the order in which it starts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cluster::join::ClusterSettings;
use cluster::members::Member;
use cluster::pki::{self, Pair};
use dashboard::RaftStatus;
use http::Request;
use http_body_util::BodyExt;
use runtime::Runtime;
use store::Store;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client::NodeClient;
use crate::config::Config;
use crate::finder::Finder;
use crate::gate::{self, News};
use crate::kubelet_port;
use crate::plane::{self, Founding, Plane, Spawner};
use crate::pods::Keeper;
use crate::ports::Ports;
use crate::raft_status::{self, Follower};
use crate::roster::Roster;
use crate::serving::Certificate;
use crate::state::{Files, NodeState};
use crate::status_port;
use crate::upgrader::{self, Upgrader};

/// The API's version: behaviour and types are those of this Kubernetes.
pub const KUBERNETES: &str = concat!("v1.36.0+bramble.", env!("CARGO_PKG_VERSION"));
/// Longest wait for an election.
const ELECTION: Duration = Duration::from_secs(15);

/// A node that is in a cluster.
pub struct Running {
    /// What it is.
    pub state: NodeState,
    /// Its replica.
    pub store: Store,
    /// How Raft is, as far as this node knows.
    pub raft: watch::Receiver<RaftStatus>,
    /// Who there is.
    pub roster: Roster,
    client: NodeClient,
    plane: Plane,
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

impl Running {
    /// Starts everything. With `founding` the cluster begins here.
    pub async fn start(start: Start, founding: Option<Founding>) -> Result<Self> {
        let Start { config, runtime, files, ports, state } = start;
        let given = plane::Given {
            config: &config,
            files: &files,
            state: &state,
            options: Arc::default(),
            listener: ports.api,
        };
        let plane = Plane::start(given, founding).await?;
        // A start that fails halfway leaves nothing running.
        let unless_done = plane.shutdown.clone().drop_guard();
        let spawn = plane.spawner();
        let finder = Finder {
            me: state.member.clone(),
            roster: plane.roster.clone(),
            status: plane.store.status(),
            lost: plane.dialer.lost.clone(),
            tls: plane.peer_tls.clone(),
        };
        spawn.task(keep_members(files.clone(), plane.roster.clone()));
        if let Some(IpAddr::V4(address)) = state.member.addresses.first().copied() {
            spawn.task(dns::mdns::answer(address));
            spawn.task(finder.run(address));
        }
        let (store, roster, client) = (plane.store.clone(), plane.roster.clone(), plane.client.clone());
        let follower = Follower {
            status: store.status(),
            roster: roster.clone(),
            me: state.member.name.clone(),
            client: client.clone(),
        };
        let raft = follower.start(spawn.tasks, spawn.shutdown);
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
        let node = Parts {
            config,
            runtime,
            files,
            state: &state,
            store: &store,
            roster: &roster,
            client: &client,
            raft: raft.clone(),
            pair: plane.pair.clone(),
            ca: plane.ca.clone(),
        };
        node.start(ports.kubelet, ports.status, &spawn).await?;
        unless_done.disarm();
        Ok(Self { state, store, raft, roster, client, plane })
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
        self.plane.stop().await;
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
    raft: watch::Receiver<RaftStatus>,
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
        let raft = self.raft.clone();
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
        if raft_status::fed(&store.status().borrow()) {
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

async fn members(client: &NodeClient) -> Result<Vec<Member>> {
    let request = Request::get(format!("{}members", gate::PREFIX)).body(axum::body::Body::empty())?;
    let answer = client.request(request).await.map_err(|e| anyhow::anyhow!(e))?;
    anyhow::ensure!(answer.status().is_success(), "{}", answer.status());
    Ok(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?)
}
