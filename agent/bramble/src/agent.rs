//! A node's whole life: in no cluster, then in one, and what a person can tell it to do.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use cluster::join::{self, Token};
use cluster::members::Member;
use cluster::pki::{self, Authority, Pair};
use kube_config::wire::{EnableMaster, EnableWorker, Info};
use runtime::{Libcontainer, Runtime};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::admin::{self, Say};
use crate::config::Config;
use crate::gate;
use crate::joiner::Channel;
use crate::node::{self, Founding, KUBERNETES, Running, Start};
use crate::ports::Ports;
use crate::raft_status;
use crate::state::{Files, NodeState};

/// The signal that ends a container when its node leaves the cluster.
const SIGKILL: i32 = 9;

/// One node.
pub struct Agent {
    config: Arc<Config>,
    files: Files,
    runtime: Arc<Libcontainer>,
    node: Mutex<Option<Running>>,
}

/// Runs the agent until it is told to end.
pub fn run(config: &Path) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BRAMBLE_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,raft=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let config = Arc::new(Config::read(config)?);
    // A Pi has four slow cores and little memory: two workers serve it, more only cost stacks.
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    tokio.block_on(live(config))
}

async fn live(config: Arc<Config>) -> Result<()> {
    let runtime = Libcontainer::open(config.runtime()).await.context("the container runtime cannot start")?;
    let files = Files::new(&config.data_dir);
    let agent = Arc::new(Agent { config: config.clone(), files, runtime, node: Mutex::new(None) });
    let socket = config.run_dir.join("agent.sock");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    if let Some(state) = agent.files.load()? {
        let ports = Ports::bind(&config)?;
        let node = agent.start(state, ports, None).await?;
        *agent.node.lock().await = Some(node);
    }
    // Outside of systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        served = admin::serve(agent.clone(), &socket) => served?,
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    // Who asks from now on is told that nobody is there.
    let _ = std::fs::remove_file(&socket);
    if let Some(node) = agent.node.lock().await.take() {
        node.stop().await;
    }
    Ok(())
}

impl Agent {
    async fn start(&self, state: NodeState, ports: Ports, founding: Option<Founding>) -> Result<Running> {
        let (config, files) = (self.config.clone(), self.files.clone());
        let runtime: Arc<dyn Runtime> = self.runtime.clone();
        Running::start(Start { config, runtime, files, ports, state }, founding).await
    }

    fn preflight(&self) -> Result<()> {
        Ok(runtime::preflight(&self.config.cgroup_root)?)
    }

    /// `kube-config enable-master`.
    pub async fn enable_master(&self, ask: EnableMaster, say: &Say) -> Result<Value> {
        let mut node = self.node.lock().await;
        if let Some(running) = &*node {
            bail!("{}", already(&running.state));
        }
        self.preflight()?;
        let ports = Ports::bind(&self.config)?;
        let address = self.own_address(ask.address)?;
        self.files.wipe()?;
        let founded = self.found(address, ports).await;
        let running = match founded {
            Ok(founded) => founded,
            Err(error) => {
                self.files.wipe().context("while undoing")?;
                return Err(error);
            }
        };
        say.line(format!("Kubernetes master services enabled on {} ({address})", running.state.member.name));
        say.line(format!("kubeconfig: {}", self.files.kubeconfig().display()));
        // From here on the cluster is there, whatever becomes of the token.
        let store = running.store.clone();
        *node = Some(running);
        let mut line = format!("On the other nodes: kube-config enable-worker {address}");
        if self.config.baked()?.is_none() {
            let token = gate::new_token(&store)
                .await
                .context("the cluster is made, but has no token yet: kube-config token")?;
            line = format!("{line} --token {token}");
        }
        Ok(json!([line]))
    }

    async fn found(&self, address: IpAddr, ports: Ports) -> Result<Running> {
        let cluster_id: String = format!("{:08x}", rand::random::<u32>());
        let authority = Authority::create(&cluster_id)?;
        let key = pki::new_key()?;
        let name = self.config.node_name.clone();
        let (certificate, fingerprint) = authority.sign_node(&pki::request(&key)?, &name)?;
        let ca = authority.pair().certificate.clone();
        self.files.save_pki(&Pair { certificate, key }, &ca)?;
        let member = Member {
            name,
            id: rand::random_range(1..=u64::MAX >> 1),
            addresses: vec![address],
            port: self.config.api_port,
            vote: true,
            key: fingerprint,
        };
        let state = NodeState {
            cluster_id,
            members: vec![member.clone()],
            member,
            settings: self.config.settings(),
            pod_cidr: None,
            first: true,
        };
        let founding = Founding { authority: Authority::load(authority.pair().clone())? };
        let running = self.start(state.clone(), ports, Some(founding)).await?;
        let written = node::write_kubeconfig(&self.files, &authority, self.config.api_port);
        if let Err(error) = written.and_then(|()| self.files.save(&state)) {
            running.stop().await;
            return Err(error);
        }
        Ok(running)
    }

    /// `kube-config enable-worker`.
    pub async fn enable_worker(&self, ask: EnableWorker, say: &Say) -> Result<Value> {
        let mut node = self.node.lock().await;
        if let Some(running) = &*node {
            bail!("{}", already(&running.state));
        }
        self.preflight()?;
        let token = match (&ask.token, self.config.baked()?) {
            (Some(text), _) => Token::parse(text).context("--token")?,
            (None, Some(baked)) => baked,
            (None, None) => bail!(
                "this card has no baked cluster secret: give the token that enable-master printed (enable-worker {} --token ...)",
                ask.master
            ),
        };
        let ports = Ports::bind(&self.config)?;
        let mut channel = Channel::open(SocketAddr::new(ask.master, self.config.api_port)).await?;
        channel.prove(&token).await?;
        say.line(format!("The Kubernetes master at {} knows our secret", ask.master));
        let address = ask.address.or(self.config.address).unwrap_or(channel.local);
        let key = pki::new_key()?;
        let request = join::Request {
            token: token.id.clone(),
            name: self.config.node_name.clone(),
            csr: pki::request(&key)?,
            addresses: vec![address],
            vote: !ask.no_vote,
        };
        let welcome = channel.join(&token, &request).await?;
        let running = match self.settle(welcome, key, ports).await {
            Ok(running) => running,
            Err(error) => {
                self.files.wipe().context("while undoing")?;
                return Err(error);
            }
        };
        say.line(format!("{} ({address}) is a member of the cluster", running.state.member.name));
        *node = Some(running);
        Ok(json!("Kubernetes worker services enabled"))
    }

    async fn settle(&self, welcome: join::Welcome, key: String, ports: Ports) -> Result<Running> {
        self.files.wipe()?;
        let ours = pki::fingerprint(&key)?;
        ensure!(welcome.member.key == ours, "the master signed another key than ours");
        self.files.save_pki(&Pair { certificate: welcome.certificate, key }, &welcome.ca)?;
        let state = NodeState {
            cluster_id: welcome.cluster_id,
            member: welcome.member,
            settings: welcome.settings,
            members: welcome.members,
            pod_cidr: None,
            first: false,
        };
        let running = self.start(state.clone(), ports, None).await?;
        if let Err(error) = self.files.save(&state) {
            running.stop().await;
            return Err(error);
        }
        Ok(running)
    }

    /// `kube-config disable-node`.
    pub async fn disable_node(&self, say: &Say) -> Result<Value> {
        let mut node = self.node.lock().await;
        let running = node.as_ref().context("this node is in no cluster")?;
        running.leave().await.context("the node stays in its cluster")?;
        if let Some(running) = node.take() {
            running.stop().await;
        }
        say.line("Left the cluster; stopping containers");
        self.clear().await;
        self.files.wipe()?;
        Ok(json!("Kubernetes services disabled"))
    }

    /// Ends every container and removes what pods had.
    async fn clear(&self) {
        for container in self.runtime.list().await {
            let ended = async {
                self.runtime.kill(&container.id, SIGKILL).await?;
                self.runtime.wait(&container.id).await?;
                self.runtime.remove(&container.id).await
            };
            if let Err(error) = ended.await {
                tracing::warn!(container = container.id, %error, "cannot be removed");
            }
        }
        for pod in self.runtime.sandboxes().await {
            if let Err(error) = self.runtime.remove_sandbox(&pod).await {
                tracing::warn!(pod, %error, "its sandbox cannot be removed");
            }
        }
    }

    /// `kube-config load`.
    pub async fn load(&self, path: &Path) -> Result<Value> {
        let images = self.runtime.load(path).await?;
        let lines = images.iter().flat_map(|i| i.tags.iter().map(|tag| format!("Loaded image: {tag}")));
        Ok(lines.collect())
    }

    /// `kube-config token`.
    pub async fn token(&self) -> Result<Value> {
        let node = self.node.lock().await;
        let running = node.as_ref().context("this node is in no cluster")?;
        ensure!(
            running.store.status().borrow().leading,
            "tokens are made on the leader: kube-config info names it"
        );
        Ok(json!(gate::new_token(&running.store).await?.to_string()))
    }

    /// `kube-config info`.
    pub async fn info(&self) -> Result<Value> {
        let node = self.node.lock().await;
        let problem = self.preflight().err().map(|e| format!("{e:#}"));
        let mut info = Info {
            version: env!("CARGO_PKG_VERSION").into(),
            kubernetes: KUBERNETES.into(),
            role: "none".into(),
            node: self.config.node_name.clone(),
            leader: None,
            voters: Vec::new(),
            problem,
        };
        if let Some(running) = &*node {
            let status = running.store.status().borrow().clone();
            let named = raft_status::named(&status, &running.roster, &running.state.member.name);
            info.role = if running.state.first { "master".into() } else { "worker".into() };
            info.leader = named.leader;
            info.voters = named.voters;
        }
        Ok(serde_json::to_value(info)?)
    }

    /// The address that others reach this node at: told, or the one that packets to the outside leave with.
    fn own_address(&self, told: Option<IpAddr>) -> Result<IpAddr> {
        if let Some(address) = told.or(self.config.address) {
            return Ok(address);
        }
        let probe = || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            // Nothing is sent: connecting a datagram socket only looks up the route (192.0.2.0/24, RFC 5737).
            socket.connect(("192.0.2.1", 9))?;
            socket.local_addr()
        };
        let found: std::io::Result<SocketAddr> = probe();
        Ok(found.context("this node's address cannot be found out: give it with --address")?.ip())
    }
}

fn already(state: &NodeState) -> String {
    let role = if state.first { "master" } else { "worker" };
    format!(
        "this node is a {role} of a cluster already (as {}); kube-config disable-node takes it out and deletes its state",
        state.member.name
    )
}
