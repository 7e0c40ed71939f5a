//! The containers of this node, as the daemon sees them: what it started, and what it found when it came.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{Container, ContainerSpec, Error, Exit};
use crate::cgroup::Hierarchy;
use crate::config::Config;
use crate::control::{self, Control, Go, Report};
use crate::shim::NEVER_RAN;
use crate::state::{Dir, Job, Process, State};
use crate::sys;

/// A shim that has not started its container by then is given up.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_ID: usize = 128;
/// What a container ends with whose shim was killed: as if it had been killed itself.
const LOST: i32 = 137;

/// One container.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) job: Job,
    pub(crate) dir: Dir,
    life: watch::Sender<Life>,
}

/// How far it is.
#[derive(Clone, Debug, Default)]
struct Life {
    init: Option<Process>,
    started_at: Option<String>,
    exit: Option<Exit>,
}

impl Entry {
    fn new(dir: Dir, job: Job) -> Arc<Self> {
        Arc::new(Self { job, dir, life: watch::Sender::default() })
    }

    pub(crate) fn container(&self) -> Container {
        let life = self.life.borrow();
        Container {
            id: self.job.spec.id.clone(),
            image: self.job.spec.image.clone(),
            labels: self.job.spec.labels.clone(),
            pid: life.init.filter(|_| life.exit.is_none()).map(|p| p.pid),
            started_at: life.started_at.clone(),
            exit: life.exit.clone(),
            log_path: self.job.spec.log_path.clone(),
        }
    }

    /// A handle on the main process, while it runs.
    pub(crate) fn init(&self) -> Option<OwnedFd> {
        let life = self.life.borrow();
        if life.exit.is_some() { None } else { life.init?.pidfd() }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.life.borrow().exit.is_some()
    }

    /// Resolves when it has ended.
    pub(crate) async fn wait(&self) -> Result<Exit, Error> {
        let mut life = self.life.subscribe();
        let ended = life.wait_for(|l| l.exit.is_some()).await.ok().and_then(|l| l.exit.clone());
        ended.ok_or_else(|| Error::Node("the runtime is shutting down".into()))
    }
}

/// All containers.
pub(crate) struct Containers {
    config: Config,
    hierarchy: Arc<Hierarchy>,
    all: Mutex<HashMap<String, Arc<Entry>>>,
}

impl Containers {
    /// Finds the containers of earlier lives; must be called within a tokio runtime.
    pub(crate) fn open(config: &Config, hierarchy: Arc<Hierarchy>) -> Result<Self, Error> {
        let node = |e: io::Error| Error::Node(format!("read the containers' folder: {e}"));
        for dir in [config.containers_dir(), config.sockets_dir()] {
            fs::create_dir_all(&dir).map_err(node)?;
            // What containers write, setuid programs among it, is not for the users of the host.
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(node)?;
        }
        let this = Self { config: config.clone(), hierarchy, all: Mutex::default() };
        for entry in fs::read_dir(config.containers_dir()).map_err(node)? {
            let dir = Dir::new(entry.map_err(node)?.path());
            match dir.job() {
                Ok(job) => this.pick_up(dir, job),
                Err(e) => {
                    // Written before anything else, so nothing ever ran here; or its removal was interrupted.
                    tracing::warn!(dir = %dir.path().display(), %e, "removing a container without a job");
                    fs::remove_dir_all(dir.path()).map_err(node)?;
                }
            }
        }
        Ok(this)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pick_up(&self, dir: Dir, job: Job) {
        let state = dir.state();
        let exit = dir.exit(&job);
        let entry = Entry::new(dir, job);
        entry.life.send_modify(|life| {
            life.init = state.as_ref().filter(|s| s.boot_id == sys::boot_id()).and_then(|s| s.init);
            life.started_at = state.as_ref().and_then(|s| s.started_at.clone());
            life.exit = exit.clone();
        });
        self.all().insert(entry.job.spec.id.clone(), entry.clone());
        // Also when `exit.json` is there: the shim may still be cleaning up.
        let shim = state.as_ref().filter(|s| s.boot_id == sys::boot_id()).and_then(|s| s.shim.pidfd());
        match shim {
            Some(shim) => self.supervise(entry, shim, None),
            None if exit.is_none() => {
                let hierarchy = self.hierarchy.clone();
                tokio::task::spawn_blocking(move || conclude(&entry, &hierarchy, state.as_ref()));
            }
            None => {}
        }
    }

    /// Waits for the shim's end in the background and takes over what it left.
    fn supervise(&self, entry: Arc<Entry>, shim: OwnedFd, mut child: Option<Child>) {
        let hierarchy = self.hierarchy.clone();
        tokio::spawn(async move {
            if let Err(e) = sys::ended(shim).await {
                tracing::error!(id = entry.job.spec.id, %e, "cannot wait for a shim");
            }
            let done = tokio::task::spawn_blocking(move || {
                if let Some(child) = &mut child {
                    // It has ended, so this only takes the zombie away.
                    let _ = child.wait();
                }
                let state = entry.dir.state();
                conclude(&entry, &hierarchy, state.as_ref());
            });
            if let Err(e) = done.await {
                tracing::error!(%e, "concluding a container failed");
            }
        });
    }

    pub(crate) fn get(&self, id: &str) -> Result<Arc<Entry>, Error> {
        self.all().get(id).cloned().ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    pub(crate) fn list(&self) -> Vec<Arc<Entry>> {
        self.all().values().cloned().collect()
    }

    pub(crate) fn uses_image(&self, image: &str) -> bool {
        self.all().values().any(|e| e.job.spec.image == image)
    }

    /// Puts a new container on record; from here on its image is in use.
    pub(crate) fn register(&self, spec: ContainerSpec, layers: Vec<String>) -> Result<Arc<Entry>, Error> {
        check(&spec).map_err(Error::Start)?;
        let job = Job {
            layers_dir: self.config.layers_dir(),
            layers,
            cgroup: full_cgroup(&self.config.cgroup_root, &spec.cgroup),
            socket: self.config.sockets_dir().join(socket_name(&spec.id)),
            spec,
        };
        let dir = Dir::new(self.config.containers_dir().join(&job.spec.id));
        fs::create_dir(dir.path()).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::Start(format!("container {} exists already", job.spec.id)),
            _ => Error::Node(format!("make {}: {e}", dir.path().display())),
        })?;
        if let Err(e) = dir.write_job(&job) {
            let _ = fs::remove_dir_all(dir.path());
            return Err(Error::Node(format!("write the container's job: {e}")));
        }
        let entry = Entry::new(dir, job);
        self.all().insert(entry.job.spec.id.clone(), entry.clone());
        Ok(entry)
    }

    /// Starts a registered container. One that fails stays on record, ended, until it is removed.
    pub(crate) async fn start(&self, entry: Arc<Entry>) -> Result<Container, Error> {
        let handshake = match self.spawn_shim(&entry) {
            Ok(handshake) => handshake,
            Err(e) => {
                let why = format!("run {}: {e}", self.config.helper.display());
                never_ran(&entry, &why);
                return Err(Error::Start(why));
            }
        };
        match handshake.await.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(()) => Ok(entry.container()),
            Err(why) => {
                // Its shim is about to end; then it can be removed.
                let _ = tokio::time::timeout(START_TIMEOUT, entry.wait()).await;
                Err(Error::Start(why))
            }
        }
    }

    /// The handshake goes on by itself even if nobody waits for it any more.
    fn spawn_shim(&self, entry: &Arc<Entry>) -> io::Result<JoinHandle<Result<(), String>>> {
        let (control, child) = self.spawn(entry)?;
        let shim = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(shim, rustix::process::PidfdFlags::empty())?;
        let killer = pidfd.try_clone()?;
        self.supervise(entry.clone(), pidfd, Some(child));
        let entry = entry.clone();
        Ok(tokio::spawn(async move {
            let result = tokio::time::timeout(START_TIMEOUT, handshake(&control, &entry)).await;
            result.unwrap_or_else(|_| {
                let _ = rustix::process::pidfd_send_signal(&killer, rustix::process::Signal::KILL);
                Err(format!("not started within {START_TIMEOUT:?}"))
            })
        }))
    }

    fn spawn(&self, entry: &Entry) -> io::Result<(Control, Child)> {
        let (ours, theirs) = control::pair()?;
        let log = fs::OpenOptions::new().create(true).append(true).open(entry.dir.join("shim.log"))?;
        let child = std::process::Command::new(&self.config.helper)
            .arg("shim")
            .arg(entry.dir.path())
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok((Control::new(ours)?, child))
    }

    /// Sends a signal to the main process, if it still runs.
    pub(crate) fn kill(&self, id: &str, signal: i32) -> Result<(), Error> {
        let entry = self.get(id)?;
        let signal = rustix::process::Signal::from_named_raw(signal)
            .ok_or_else(|| Error::Node(format!("there is no signal {signal}")))?;
        let Some(init) = entry.init() else { return Ok(()) };
        match rustix::process::pidfd_send_signal(init, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::Node(format!("signal container {id}: {e}"))),
        }
    }

    /// Forgets an ended container.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        let Ok(entry) = self.get(id) else { return Ok(()) };
        if !entry.has_ended() {
            return Err(Error::Node(format!("container {id} is running")));
        }
        let hierarchy = self.hierarchy.clone();
        let removed = tokio::task::spawn_blocking({
            let entry = entry.clone();
            move || clean(&entry, &hierarchy)
        });
        removed
            .await
            .map_err(|e| Error::Node(e.to_string()))?
            .map_err(|e| Error::Node(format!("remove container {id}: {e}")))?;
        self.all().remove(id);
        Ok(())
    }
}

async fn handshake(control: &Control, entry: &Entry) -> Result<(), String> {
    let gone = || {
        let log = fs::read_to_string(entry.dir.join("shim.log")).unwrap_or_default();
        format!("the shim ended early: {}", log.trim())
    };
    let next =
        || async { control.report().await.map_err(|e| format!("talk to the shim: {e}"))?.ok_or_else(gone) };
    match next().await?.0 {
        Report::Ready => {}
        Report::Failed(why) => return Err(why),
        other => return Err(format!("the shim began with {other:?}")),
    }
    control.send(&Go).await.map_err(|e| format!("talk to the shim: {e}"))?;
    match next().await?.0 {
        Report::Started { pid, at } => {
            entry.life.send_modify(|life| {
                life.init = entry.dir.state().and_then(|s| s.init).filter(|p| p.pid == pid);
                life.started_at = Some(at);
            });
            Ok(())
        }
        Report::Failed(why) => Err(why),
        other => Err(format!("the shim answered {other:?}")),
    }
}

fn never_ran(entry: &Entry, why: &str) {
    let exit = Exit {
        code: NEVER_RAN,
        signal: None,
        oom_killed: false,
        finished_at: sys::now(),
        error: Some(why.to_owned()),
    };
    if let Err(e) = entry.dir.write_exit(&entry.job, &exit) {
        tracing::error!(id = entry.job.spec.id, %e, "cannot record an exit");
    }
    entry.life.send_modify(|life| life.exit = Some(exit));
}

/// After a shim's end: publishes the exit it left, or makes one up and ends what it left running.
fn conclude(entry: &Entry, hierarchy: &Hierarchy, state: Option<&State>) {
    let exit = entry.dir.exit(&entry.job).unwrap_or_else(|| {
        let oom_killed = hierarchy.oom_kills(&entry.job.cgroup) > 0;
        let why = match state {
            Some(state) if state.boot_id != sys::boot_id() => "the node was restarted",
            Some(State { init: Some(_), .. }) => "its shim was lost",
            _ => "it was not started: the agent or its shim was stopped",
        };
        if let Err(e) =
            hierarchy.kill_all(&entry.job.cgroup).and_then(|()| hierarchy.remove(&entry.job.cgroup))
        {
            tracing::error!(id = entry.job.spec.id, %e, "cannot clean up after a lost shim");
        }
        let exit = Exit {
            code: LOST,
            signal: None,
            oom_killed,
            finished_at: sys::now(),
            error: Some(why.to_owned()),
        };
        if let Err(e) = entry.dir.write_exit(&entry.job, &exit) {
            tracing::error!(id = entry.job.spec.id, %e, "cannot record an exit");
        }
        exit
    });
    entry.life.send_modify(|life| life.exit = Some(exit));
}

fn clean(entry: &Entry, hierarchy: &Hierarchy) -> io::Result<()> {
    hierarchy.kill_all(&entry.job.cgroup)?;
    hierarchy.remove(&entry.job.cgroup)?;
    let _ = fs::remove_file(&entry.job.socket);
    let _ = fs::remove_file(entry.job.spare_exit());
    // The job goes first: a folder without one is litter, and the next start takes it away.
    match fs::remove_file(entry.dir.join("job.json")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fs::remove_dir_all(entry.dir.path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn check(spec: &ContainerSpec) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if spec.id.is_empty() || spec.id.len() > MAX_ID || spec.id.starts_with('.') || !spec.id.chars().all(plain)
    {
        return Err(format!("{:?} is no container id", spec.id));
    }
    if spec.cgroup.split('/').any(|part| part == "..") || spec.cgroup.trim_matches('/').is_empty() {
        return Err(format!("{:?} is no cgroup path", spec.cgroup));
    }
    if spec.args.is_empty() {
        return Err("no command specified".into());
    }
    for mount in &spec.mounts {
        if !mount.container_path.is_absolute() || !mount.host_path.is_absolute() {
            return Err(format!(
                "mount {} at {}: not absolute",
                mount.host_path.display(),
                mount.container_path.display()
            ));
        }
        if !mount.host_path.exists() {
            return Err(format!("mount {}: no such file or directory", mount.host_path.display()));
        }
    }
    Ok(())
}

/// A cgroup below the root, absolute: a relative one would make the library talk to systemd.
pub(crate) fn full_cgroup(root: &str, path: &str) -> String {
    let parts = root.split('/').chain(path.split('/')).filter(|p| !p.is_empty());
    parts.fold(String::new(), |all, part| format!("{all}/{part}"))
}

/// Socket addresses are short, ids may be long.
fn socket_name(id: &str) -> String {
    let hash = crate::manifest::finish(Sha256::new_with_prefix(id));
    format!("{}.sock", &hash["sha256:".len()..][..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_are_absolute_and_clean() {
        assert_eq!(full_cgroup("/bramble", "/kubepods//x/"), "/bramble/kubepods/x");
        assert_eq!(full_cgroup("bramble/", "x"), "/bramble/x");
    }
}
