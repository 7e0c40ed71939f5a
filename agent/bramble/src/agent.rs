//! A node's whole life: in no cluster, then in one, and what a person can tell it to do.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster::join::{self, Token};
use cluster::members::Member;
use cluster::pki::{self, Authority, Pair};
use kube_config::wire::{DisableNode, EnableMaster, EnableWorker, Info};
use runtime::{Libcontainer, Runtime};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::address;
use crate::admin::{self, Say};
use crate::clock;
use crate::config::Config;
use crate::gate;
use crate::joiner::Channel;
use crate::node::{KUBERNETES, Running, Start};
use crate::plane::{self, Founding};
use crate::ports::Ports;
use crate::process;
use crate::state::{Files, NodeState};

/// How long a join token is good for: as long as kubeadm's.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The signal that ends a container when its node leaves the cluster.
const SIGKILL: i32 = 9;

/// Between two tries to start a node that is in a cluster.
const AGAIN: Duration = Duration::from_secs(2);
/// How long an unwilling or silent cluster is asked before a node leaves it anyway.
const ASKING: Duration = Duration::from_secs(10);
/// How long a change that is under way may hold up the end of the agent.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// One node.
pub struct Agent {
    config: Arc<Config>,
    files: Files,
    runtime: Arc<Libcontainer>,
    /// One change of what the node is at a time.
    changing: Mutex<()>,
    present: RwLock<Present>,
}

/// What the node is now, for whoever looks.
#[derive(Default)]
struct Present {
    running: Option<Arc<Running>>,
    /// Why it does not run although it is in a cluster.
    trouble: Option<String>,
}

/// Runs the agent until it is told to end.
pub async fn run(config: &Path) -> Result<()> {
    live(Arc::new(Config::read(config)?)).await
}

async fn live(config: Arc<Config>) -> Result<()> {
    let runtime = Libcontainer::open(config.runtime()).await.context("the container runtime cannot start")?;
    let files = Files::new(&config.data_dir);
    let (changing, present) = (Mutex::new(()), RwLock::default());
    let agent = Arc::new(Agent { config: config.clone(), files, runtime, changing, present });
    let path = config.run_dir.join("agent.sock");
    let socket = admin::listen(&path)?;
    tokio::select! {
        served = admin::serve(agent.clone(), socket) => served?,
        () = agent.keep() => {}
        () = feed_watchdog() => {}
        told = process::told_to_end() => told?,
    }
    // Who asks from now on is told that nobody is there.
    let _ = std::fs::remove_file(&path);
    // What a change was about to write is safe to break off: node.json is written last and removed first.
    let _change = timeout(UNDER_WAY, agent.changing.lock()).await;
    if let Some(node) = agent.set(Present::default()).running {
        node.stop().await;
    }
    Ok(())
}

/// Tells systemd that the agent's tasks get their turn, as often as the unit asks for.
async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(limit / 3).await;
    }
}

impl Agent {
    fn running(&self) -> Option<Arc<Running>> {
        self.present.read().unwrap_or_else(PoisonError::into_inner).running.clone()
    }

    fn set(&self, present: Present) -> Present {
        std::mem::replace(&mut *self.present.write().unwrap_or_else(PoisonError::into_inner), present)
    }

    fn runs(&self, running: Running) -> Arc<Running> {
        let running = Arc::new(running);
        self.set(Present { running: Some(running.clone()), trouble: None });
        running
    }

    /// Keeps the node running that this card is: starts it, again when that fails, and anew under another address.
    async fn keep(&self) {
        let mut addresses = match address::changes() {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "changes of this node's addresses will not be noticed"
                );
                address::Changes::never()
            }
        };
        let mut told = false;
        loop {
            let started = self.resume().await;
            // Outside of systemd there is nobody to tell.
            if !std::mem::replace(&mut told, true) {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            }
            match started {
                Ok(()) => addresses.next().await,
                Err(error) => {
                    let trouble = format!("{error:#}");
                    tracing::error!("this node cannot start, trying again: {trouble}");
                    self.set(Present { running: None, trouble: Some(trouble) });
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// One look: does the node run as `node.json` and this machine's addresses say?
    async fn resume(&self) -> Result<()> {
        let _change = self.changing.lock().await;
        let Some(mut state) = self.files.load()? else { return Ok(()) };
        let moved = address::moved(&self.config, &state);
        let running = self.running();
        if moved.is_none() && running.is_some() {
            return Ok(());
        }
        if let Some(running) = running {
            self.set(Present::default());
            running.stop().await;
        }
        if let Some(address) = moved {
            tracing::info!(old = ?state.member.addresses, %address, "this node has another address now");
            let moved = self.files.update(|state| state.member.addresses = vec![address])?;
            state = moved.context("node.json is gone")?;
        }
        let ports = Ports::bind(&self.config)?;
        let running = self.start(state, ports, None).await?;
        self.runs(running);
        Ok(())
    }

    async fn start(&self, state: NodeState, ports: Ports, founding: Option<Founding>) -> Result<Running> {
        let (config, files) = (self.config.clone(), self.files.clone());
        let runtime: Arc<dyn Runtime> = self.runtime.clone();
        Running::start(Start { config, runtime, files, ports, state }, founding).await
    }

    /// Refuses what only a node in no cluster may do.
    fn in_no_cluster(&self) -> Result<()> {
        match self.files.load() {
            Ok(None) => Ok(()),
            Ok(Some(state)) => bail!("{}", already(&state)),
            Err(error) => Err(error.context(
                "this node was in a cluster, but what it knows of it cannot be read; kube-config disable-node --force deletes it",
            )),
        }
    }

    fn preflight(&self) -> Result<()> {
        Ok(runtime::preflight(&self.config.cgroup_root)?)
    }

    /// `kube-config enable-master`.
    pub async fn enable_master(&self, ask: EnableMaster, say: &Say) -> Result<Value> {
        let _change = self.changing.lock().await;
        self.in_no_cluster()?;
        self.preflight()?;
        let ports = Ports::bind(&self.config)?;
        let address = address::own(ask.address.or(self.config.address))?;
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
        let store = self.runs(running).store.clone();
        let mut line = format!("On the other nodes: kube-config enable-worker {address}");
        if self.config.baked()?.is_none() {
            let token = gate::new_token(&store, TOKEN_LIFETIME).await;
            let token = token.context("the cluster is made, but has no token yet: kube-config token")?;
            line = format!(
                "{line} --token {token}\n(the token is good for 24 hours; kube-config token prints a new one)"
            );
        }
        Ok(json!(line))
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
            format: store::FORMAT,
        };
        let state = NodeState {
            cluster_id,
            members: vec![member.clone()],
            member,
            settings: self.config.settings(),
            pod_cidr: None,
            first: true,
        };
        let baked = self.config.baked()?;
        let founding = Founding { authority: Authority::load(authority.pair().clone())?, baked };
        let running = self.start(state.clone(), ports, Some(founding)).await?;
        let local = SocketAddr::from(([127, 0, 0, 1], self.config.api_port));
        let written = plane::write_kubeconfig(&self.files, &authority, local);
        if let Err(error) = written.and_then(|()| self.files.save(&state)) {
            running.stop().await;
            return Err(error);
        }
        Ok(running)
    }

    /// `kube-config enable-worker`.
    pub async fn enable_worker(&self, ask: EnableWorker, say: &Say) -> Result<Value> {
        let _change = self.changing.lock().await;
        self.in_no_cluster()?;
        self.preflight()?;
        if let Some(address) = ask.address {
            address::check(address)?;
        }
        ensure!(
            std::net::UdpSocket::bind((ask.master, 0)).is_err(),
            "{} is this node itself: give the address of the node on which kube-config enable-master has run",
            ask.master
        );
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
            format: store::FORMAT,
        };
        let welcome = channel.join(&token, &request).await?;
        clock::take(welcome.now);
        let running = match self.settle(welcome, key, ports).await {
            Ok(running) => running,
            Err(error) => {
                self.files.wipe().context("while undoing")?;
                return Err(error);
            }
        };
        say.line(format!("{} ({address}) is a member of the cluster", running.state.member.name));
        self.runs(running);
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
    pub async fn disable_node(&self, ask: DisableNode, say: &Say) -> Result<Value> {
        let _change = self.changing.lock().await;
        let running = self.running();
        if running.is_none() && matches!(self.files.load(), Ok(None)) {
            bail!("this node is in no cluster");
        }
        let left = match &running {
            Some(running) if ask.force => timeout(ASKING, running.leave())
                .await
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the cluster does not answer"))),
            Some(running) => running.leave().await,
            None => Err(anyhow::anyhow!("the node does not run: {}", self.trouble())),
        };
        match left {
            Ok(()) => say.line("Left the cluster; stopping containers"),
            Err(error) if ask.force => {
                say.line(format!(
                    "The cluster was not told ({error:#}): kubectl delete node there if it lives on"
                ));
            }
            Err(error) => {
                return Err(error.context(
                    "the node stays in its cluster (disable-node --force deletes its state all the same)",
                ));
            }
        }
        self.set(Present::default());
        if let Some(running) = running {
            running.stop().await;
        }
        self.clear().await;
        if let Err(error) = network::remove().await {
            say.line(format!("The pod network is not gone altogether ({error}); a reboot takes it away"));
        }
        self.files.wipe()?;
        Ok(json!("Kubernetes services disabled"))
    }

    fn trouble(&self) -> String {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        present.trouble.clone().unwrap_or_else(|| "it is being started".into())
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
        let running = self.running().context("this node runs in no cluster")?;
        ensure!(
            running.store.status().borrow().leading,
            "tokens are made on the leader: kube-config info names it"
        );
        Ok(json!(gate::new_token(&running.store, TOKEN_LIFETIME).await?.to_string()))
    }

    /// `kube-config info`.
    pub async fn info(&self) -> Result<Value> {
        let mut info = Info {
            version: env!("CARGO_PKG_VERSION").into(),
            kubernetes: KUBERNETES.into(),
            role: "none".into(),
            node: self.config.node_name.clone(),
            leader: None,
            voters: Vec::new(),
            problem: self.preflight().err().map(|e| format!("{e:#}")),
        };
        let role = |state: &NodeState| if state.first { "master" } else { "worker" }.to_owned();
        if let Some(running) = self.running() {
            let raft = running.raft.borrow();
            info.role = role(&running.state);
            info.leader.clone_from(&raft.leader);
            info.voters.clone_from(&raft.voters);
        } else if let Some(state) = self.files.load().unwrap_or_default() {
            info.role = role(&state);
            info.problem = Some(self.trouble());
        }
        Ok(serde_json::to_value(info)?)
    }
}

fn already(state: &NodeState) -> String {
    let role = if state.first { "master" } else { "worker" };
    format!(
        "this node is a {role} of a cluster already (as {}); kube-config disable-node takes it out and deletes its state",
        state.member.name
    )
}
