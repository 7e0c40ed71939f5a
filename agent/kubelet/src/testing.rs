//! What the workers' tests play against: a runtime and a network in memory, and an API (`testing::api`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use runtime::*;
use tokio::sync::{mpsc, watch};

pub mod api;

#[derive(Default)]
pub struct State {
    pub containers: BTreeMap<String, Container>,
    pub specs: BTreeMap<String, ContainerSpec>,
    pub signals: Vec<(String, i32)>,
    pub sandboxes: BTreeSet<String>,
    pub attached: BTreeSet<String>,
    pub removed_cgroups: Vec<String>,
    /// Images that no registry has.
    pub missing: BTreeSet<String>,
    /// Commands that were killed because their client had gone.
    pub killed: Vec<Vec<String>>,
}

/// A runtime whose containers end when the test says so, or when they are signalled; a command of `stubborn` ends by
/// SIGKILL only, `broken` does not start. What is executed in them runs on this machine.
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl FakeRuntime {
    pub fn new() -> FakeRuntime {
        FakeRuntime { state: Arc::default(), changed: watch::Sender::new(()) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The id of the running container of that name.
    pub fn running(&self, name: &str) -> Option<String> {
        let state = self.state();
        let mut all = state.containers.values();
        all.find(|c| c.exit.is_none() && c.labels[crate::spec::label::CONTAINER] == name)
            .map(|c| c.id.clone())
    }

    /// Waits until a command was killed because its client had gone.
    pub async fn killed(&self) -> Vec<String> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(command) = self.state().killed.pop() {
                return command;
            }
            changed.changed().await.unwrap();
        }
    }

    pub fn exit(&self, id: &str, code: i32) {
        let exit = Exit {
            code,
            signal: None,
            oom_killed: false,
            finished_at: Timestamp::now().to_string(),
            error: None,
        };
        let mut state = self.state();
        let container = state.containers.get_mut(id).unwrap();
        container.exit.get_or_insert(exit);
        container.pid = None;
        drop(state);
        self.changed.send_replace(());
    }
}

pub fn image(reference: &str) -> Image {
    Image {
        id: format!("sha256:{reference}"),
        tags: vec![reference.to_owned()],
        digests: vec![format!("{reference}@sha256:1")],
        size: 1,
        entrypoint: vec!["/entry".into()],
        cmd: vec![],
        env: vec![],
        working_dir: String::new(),
        user: String::new(),
        stop_signal: String::new(),
    }
}

#[async_trait::async_trait]
impl Runtime for FakeRuntime {
    async fn pull(
        &self,
        reference: &str,
        _: Option<RegistryAuth>,
        _: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, Error> {
        if self.state().missing.contains(reference) {
            return Err(Error::ImageNotFound { reference: reference.to_owned() });
        }
        Ok(image(reference))
    }
    async fn image(&self, _: &str) -> Option<Image> {
        None
    }
    async fn images(&self) -> Vec<Image> {
        Vec::new()
    }
    async fn remove_image(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
    async fn load(&self, _: &Path) -> Result<Vec<Image>, Error> {
        Ok(Vec::new())
    }
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, Error> {
        let net = (!spec.host_network).then(|| PathBuf::from("/netns").join(&spec.pod_uid));
        self.state().sandboxes.insert(spec.pod_uid);
        Ok(Sandbox { net, ipc: None, uts: None, shm: None })
    }
    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), Error> {
        self.state().sandboxes.remove(pod_uid);
        Ok(())
    }
    async fn sandboxes(&self) -> Vec<String> {
        self.state().sandboxes.iter().cloned().collect()
    }
    async fn start(&self, spec: ContainerSpec) -> Result<Container, Error> {
        if spec.args.iter().any(|arg| arg == "broken") {
            return Err(Error::Start("exec: \"broken\": executable file not found in $PATH".into()));
        }
        let container = Container {
            id: spec.id.clone(),
            image: spec.image.clone(),
            labels: spec.labels.clone(),
            pid: Some(1),
            started_at: Some(Timestamp::now().to_string()),
            exit: None,
            log_path: spec.log_path.clone(),
        };
        let mut state = self.state();
        state.containers.insert(spec.id.clone(), container.clone());
        state.specs.insert(spec.id.clone(), spec);
        Ok(container)
    }
    async fn list(&self) -> Vec<Container> {
        self.state().containers.values().cloned().collect()
    }
    async fn container(&self, id: &str) -> Result<Container, Error> {
        self.state().containers.get(id).cloned().ok_or_else(|| Error::NotFound(id.to_owned()))
    }
    async fn wait(&self, id: &str) -> Result<Exit, Error> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(exit) = self.container(id).await?.exit {
                return Ok(exit);
            }
            changed.changed().await.unwrap();
        }
    }
    async fn kill(&self, id: &str, signal: i32) -> Result<(), Error> {
        let stubborn = {
            let mut state = self.state();
            state.signals.push((id.to_owned(), signal));
            state.specs[id].args.iter().any(|arg| arg == "stubborn")
        };
        if !stubborn || signal == 9 {
            self.exit(id, 128 + signal);
        }
        Ok(())
    }
    async fn remove(&self, id: &str) -> Result<(), Error> {
        self.state().containers.remove(id);
        Ok(())
    }
    /// Copies its input to its output, says its name on standard error, and exits with the number that is its argument.
    async fn exec(&self, _: &str, spec: ExecSpec) -> Result<Streams, Error> {
        let start = |error: std::io::Error| Error::Start(format!("{}: {error}", spec.command[0]));
        let mut child = tokio::process::Command::new(&spec.command[0])
            .args(&spec.command[1..])
            .stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let (mut ended, exit) = tokio::sync::oneshot::channel();
        let streams = Streams {
            stdin: child.stdin.take().map(|stream| Box::new(stream) as _),
            stdout: child.stdout.take().map(|stream| Box::new(stream) as _),
            stderr: child.stderr.take().map(|stream| Box::new(stream) as _),
            resize: None,
            exit,
        };
        let (state, changed) = (self.state.clone(), self.changed.clone());
        tokio::spawn(async move {
            tokio::select! {
                status = child.wait() => {
                    let _ = ended.send(Ok(status.unwrap().code().unwrap()));
                }
                () = ended.closed() => {
                    child.kill().await.unwrap();
                    state.lock().unwrap().killed.push(spec.command);
                    changed.send_replace(());
                }
            }
        });
        Ok(streams)
    }
    async fn attach(&self, id: &str, _: bool) -> Result<Streams, Error> {
        Err(Error::NotFound(id.to_owned()))
    }
    async fn usage(&self, _: &str) -> Result<Usage, Error> {
        Ok(Usage::default())
    }
    async fn remove_cgroup(&self, cgroup: &str) -> Result<(), Error> {
        self.state().removed_cgroups.push(cgroup.to_owned());
        Ok(())
    }
    async fn dial(
        &self,
        netns: Option<PathBuf>,
        to: IpAddr,
        port: u16,
    ) -> Result<tokio::net::TcpStream, Error> {
        assert_eq!(netns, Some(PathBuf::from("/netns/u1")));
        tokio::net::TcpStream::connect((to, port)).await.map_err(|e| Error::Node(e.to_string()))
    }
}

#[async_trait::async_trait]
impl crate::PodNetwork for FakeRuntime {
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Ipv4Addr, String> {
        assert_eq!(netns, Path::new("/netns").join(pod_uid));
        self.state().attached.insert(pod_uid.to_owned());
        Ok(Ipv4Addr::new(10, 1, 0, 5))
    }
    async fn detach(&self, pod_uid: &str) -> Result<(), String> {
        self.state().attached.remove(pod_uid);
        Ok(())
    }
    async fn attached(&self) -> Vec<String> {
        self.state().attached.iter().cloned().collect()
    }
}
