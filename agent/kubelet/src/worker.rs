//! One pod's worker: owns its machine, carries the actions out, brings the answers back, publishes the status.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodStatus};
use kube::{Api, Resource, ResourceExt};
use runtime::Sandbox;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::files::PodDir;
use crate::machine::{Action, Event, Machine, Now, Occurrence};
use crate::pods::Node;
use crate::report::{self, Landed, Wanted};
use crate::spec::label;
use crate::start::{self, Job};
use crate::status::{self, Surroundings};
use crate::{hooks, limits, plan, takeover, volumes};

/// What the API says about the pod.
pub enum Notice {
    /// It is like this.
    Pod(Arc<Pod>),
    /// It is not there any more.
    Gone,
}

/// What comes back from work.
enum News {
    Event(Event),
    Sandbox(Result<(Sandbox, Option<IpAddr>), String>),
}

struct Worker {
    node: Arc<Node>,
    pod: Arc<Pod>,
    uid: String,
    dir: PodDir,
    machine: Machine,
    started: Instant,
    sandbox: Option<Sandbox>,
    ip: Option<IpAddr>,
    published: PodStatus,
    wanted: watch::Sender<Wanted>,
    landed: watch::Receiver<Landed>,
    news: mpsc::UnboundedSender<News>,
    tasks: JoinSet<()>,
    probers: HashMap<String, AbortHandle>,
}

/// Looks after a pod until nothing of it is left.
pub async fn run(node: Arc<Node>, pod: Arc<Pod>, mut mail: mpsc::UnboundedReceiver<Notice>) {
    let (news, mut inbox) = mpsc::unbounded_channel();
    let mut worker = Worker::new(node, pod, news).await;
    let mut landed = worker.landed.clone();
    worker.begin();
    while !worker.machine.finished() {
        let wake = worker.machine.next_wake().map(|at| worker.started + at);
        tokio::select! {
            notice = mail.recv() => match notice {
                Some(notice) => worker.notice(notice),
                None => return,
            },
            Some(news) = inbox.recv() => worker.take(news),
            Ok(()) = landed.changed() => {
                if landed.borrow_and_update().deleted {
                    worker.step(Event::Deleted);
                }
            }
            () = sleep_until(wake) => worker.step(Event::Tick),
            Some(_) = worker.tasks.join_next(), if !worker.tasks.is_empty() => {}
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    async fn new(node: Arc<Node>, pod: Arc<Pod>, news: mpsc::UnboundedSender<News>) -> Worker {
        let uid = pod.uid().unwrap_or_default();
        let dir = PodDir::new(&node.config.state_dir, &uid);
        let known = takeover::known(&node, &pod, &dir).await;
        let now = Now { mono: Duration::ZERO, wall: Timestamp::now() };
        let machine = Machine::new(plan::plan(&pod, now.wall), known, now);
        let (wanted, wants) = watch::channel(Wanted::default());
        let (landed_by, landed) = watch::channel(Landed::default());
        let namespace = pod.namespace().unwrap_or_default();
        let api = Api::namespaced(node.client.clone(), &namespace);
        let mut tasks = JoinSet::new();
        tasks.spawn(report::run(api, pod.clone(), wants, landed_by));
        let published = pod.status.clone().unwrap_or_default();
        let ip = published.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
        Worker {
            node,
            uid,
            dir,
            machine,
            started: Instant::now(),
            sandbox: None,
            ip,
            published,
            wanted,
            landed,
            news,
            tasks,
            probers: HashMap::new(),
            pod,
        }
    }

    /// Watches what runs already, then goes on.
    fn begin(&mut self) {
        for (name, id) in self.machine.running() {
            self.watch(&name, &id);
        }
        if volumes::tokens(&self.pod).next().is_some() {
            self.tasks.spawn(renew_tokens(self.node.clone(), self.pod.clone(), self.dir.clone()));
        }
        self.notice(Notice::Pod(self.pod.clone()));
    }

    fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), wall: Timestamp::now() }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Gone => self.step(Event::Gone),
            Notice::Pod(pod) => {
                self.pod = pod;
                self.step(Event::Plan(plan::plan(&self.pod, Timestamp::now())));
                if self.pod.metadata.deletion_timestamp.is_some() {
                    let grace = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
                    self.step(Event::Delete(plan::seconds(grace)));
                }
                self.check_landed();
            }
        }
    }

    /// Somebody (a controller that took the node for lost) wrote over what we had reported: report again.
    fn check_landed(&self) {
        let version = self.pod.resource_version().and_then(|version| version.parse::<u64>().ok());
        let landed = self.landed.borrow();
        let Some(mine) = &landed.status else { return };
        let facts = |status: &PodStatus| {
            let own = |kind: &str| matches!(kind, "Ready" | "ContainersReady");
            let conditions = status.conditions.iter().flatten().filter(|c| own(&c.type_));
            let mut conditions: Vec<_> = conditions.map(|c| (c.type_.clone(), c.status.clone())).collect();
            conditions.sort();
            (status.phase.clone(), conditions)
        };
        let theirs = self.pod.status.as_ref();
        if version.is_some_and(|v| v > landed.version) && theirs.is_some_and(|s| facts(s) != facts(mine)) {
            drop(landed);
            self.wanted.send_modify(|wanted| wanted.again += 1);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Sandbox(Ok((sandbox, ip))) => {
                self.node.set_netns(&self.uid, sandbox.net.clone());
                (self.sandbox, self.ip) = (Some(sandbox), ip);
                self.step(Event::Sandbox(Ok(())));
                // Containers of an earlier agent: their probes needed the address.
                for (name, id) in self.machine.running() {
                    self.probe(&name, &id);
                }
            }
            News::Sandbox(Err(why)) => self.step(Event::Sandbox(Err(why))),
            News::Event(event) => {
                match &event {
                    Event::Started { container, id, .. } => {
                        let (container, id) = (container.clone(), id.clone());
                        self.watch(&container, &id);
                        self.probe(&container, &id);
                        self.post_start(&container, &id);
                    }
                    Event::Exited { container, .. } => {
                        if let Some(prober) = self.probers.remove(container) {
                            prober.abort();
                        }
                    }
                    _ => {}
                }
                self.step(event);
            }
        }
    }

    fn step(&mut self, event: Event) {
        for action in self.machine.step(self.now(), event) {
            self.act(action);
        }
        self.publish();
    }

    /// Writes the status if it changed.
    fn publish(&mut self) {
        let around = Surroundings {
            host_ips: self.node.config.addresses.clone(),
            pod_ip: self.ip,
            now: Timestamp::now(),
        };
        let status = status::status(&self.machine, &self.pod, &self.published, &around);
        if status != self.published {
            self.published = status.clone();
            self.wanted.send_modify(|wanted| wanted.status = Some(status));
        }
    }

    fn container(&self, name: &str) -> Option<Container> {
        self.pod.spec.as_ref().and_then(|spec| plan::container(spec, name))
    }

    fn spawn(&mut self, work: impl Future<Output = Event> + Send + 'static) -> AbortHandle {
        let news = self.news.clone();
        self.tasks.spawn(async move {
            let event = work.await;
            // The worker that would hear it may be gone; then so is the pod.
            let _ = news.send(News::Event(event));
        })
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::MountVolumes => self.mount_volumes(),
            Action::CreateSandbox => self.create_sandbox(),
            Action::Start { container, attempt } => self.start(container, attempt),
            Action::PreStop { container, id, within } => self.pre_stop(container, id, within),
            Action::Signal { id, kill, .. } => self.signal(id, kill),
            Action::TearDown => self.tear_down(),
            Action::DeleteObject => self.delete_object(),
            Action::Remove => self.remove(),
            Action::Emit(what) => self.emit(what),
        }
    }

    fn emit(&self, what: Occurrence) {
        record(&self.node, &self.pod, what);
    }

    fn mount_volumes(&mut self) {
        let (node, pod, dir) = (self.node.clone(), self.pod.clone(), self.dir.clone());
        self.spawn(async move {
            let host_ip = host_ip(&node);
            Event::Volumes(maker(&node, &pod, &dir, &host_ip).make_all().await)
        });
    }

    fn create_sandbox(&mut self) {
        let (node, pod, dir, news) =
            (self.node.clone(), self.pod.clone(), self.dir.clone(), self.news.clone());
        self.tasks.spawn(async move {
            let made = start::sandbox(&node, &pod, &dir).await;
            let made = made.map_err(|why| format!("Failed to create pod sandbox: {why}"));
            // As above.
            let _ = news.send(News::Sandbox(made));
        });
    }

    fn start(&mut self, name: String, attempt: u32) {
        let (Some(container), Some(sandbox)) = (self.container(&name), self.sandbox.clone()) else {
            return;
        };
        let job = Job {
            node: self.node.clone(),
            pod: self.pod.clone(),
            dir: self.dir.clone(),
            container,
            attempt,
            sandbox,
            ip: self.ip,
        };
        self.spawn(async move {
            match start::start(job).await {
                Ok((id, image_id)) => Event::Started { container: name, id, image_id },
                Err(why) => Event::StartFailed { container: name, why },
            }
        });
    }

    /// Waits for a container's end.
    fn watch(&mut self, name: &str, id: &str) {
        let (node, dir) = (self.node.clone(), self.dir.clone());
        let (name, id) = (name.to_owned(), id.to_owned());
        let container = self.container(&name);
        self.spawn(async move {
            let exit = node.runtime.wait(&id).await;
            let end = start::end_of(&node, &dir, container.as_ref(), &id, exit).await;
            Event::Exited { container: name, end }
        });
    }

    fn probe(&mut self, name: &str, id: &str) {
        let (Some(container), Some(ip)) = (self.container(name), self.ip) else { return };
        if self.probers.get(name).is_some_and(|prober| !prober.is_finished()) {
            return;
        }
        let target = hooks::Target { node: self.node.clone(), id: id.to_owned(), ip, container };
        let news = self.news.clone();
        let (name, id) = (name.to_owned(), id.to_owned());
        let tell = move |container: &str, probe, result| {
            let event = Event::Probed { container: container.to_owned(), id: id.clone(), probe, result };
            // As above.
            let _ = news.send(News::Event(event));
        };
        let prober = self.tasks.spawn(hooks::probe(target, tell));
        if let Some(old) = self.probers.insert(name, prober) {
            old.abort();
        }
    }

    fn post_start(&mut self, name: &str, id: &str) {
        let Some(container) = self.container(name) else { return };
        let hook = container.lifecycle.as_ref().and_then(|hooks| hooks.post_start.clone());
        let (Some(hook), Some(ip)) = (hook, self.ip) else { return };
        let target = hooks::Target { node: self.node.clone(), id: id.to_owned(), ip, container };
        let pod = self.pod.clone();
        self.tasks.spawn(async move {
            if let Err(why) = hooks::handler(&target, &hook, hooks::HOOK_PATIENCE).await {
                record(
                    &target.node,
                    &pod,
                    Occurrence {
                        warning: true,
                        reason: "FailedPostStartHook",
                        message: format!("PostStartHook failed: {why}"),
                        container: Some(target.container.name.clone()),
                    },
                );
                // It ends by this, which is reported as its end.
                let _ = target.node.runtime.kill(&target.id, start::SIGKILL).await;
            }
        });
    }

    fn pre_stop(&mut self, name: String, id: String, within: Duration) {
        let container = self.container(&name).unwrap_or_default();
        let hook = container.lifecycle.as_ref().and_then(|hooks| hooks.pre_stop.clone());
        let (node, pod) = (self.node.clone(), self.pod.clone());
        let ip = self.ip.or(self.node.config.addresses.first().copied());
        self.spawn(async move {
            if let (Some(hook), Some(ip)) = (hook, ip) {
                let target = hooks::Target { node: node.clone(), id: id.clone(), ip, container };
                if let Err(why) = hooks::handler(&target, &hook, within).await {
                    let message = format!("PreStopHook failed: {why}");
                    let container = Some(name.clone());
                    let what = Occurrence { warning: true, reason: "FailedPreStopHook", message, container };
                    record(&node, &pod, what);
                }
            }
            Event::PreStopped { container: name, id }
        });
    }

    fn signal(&mut self, id: String, kill: bool) {
        let node = self.node.clone();
        self.tasks.spawn(async move {
            let signal = if kill { start::SIGKILL } else { start::stop_signal(&node, &id).await };
            if let Err(error) = node.runtime.kill(&id, signal).await {
                tracing::warn!(container = id, signal, %error, "signal not delivered");
            }
        });
    }

    fn tear_down(&mut self) {
        self.probers.drain().for_each(|(_, prober)| prober.abort());
        self.node.set_netns(&self.uid, None);
        let (node, dir, uid) = (self.node.clone(), self.dir.clone(), self.uid.clone());
        let cgroup = limits::pod_cgroup(self.pod.spec.as_ref(), &uid);
        let networked = self.pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true));
        self.spawn(
            async move { Event::TornDown(tear_down(&node, &uid, &dir, Some(&cgroup), networked).await) },
        );
    }

    fn delete_object(&mut self) {
        if self.landed.borrow().deleted {
            self.step(Event::Deleted);
        } else {
            self.wanted.send_modify(|wanted| wanted.delete = true);
        }
    }

    fn remove(&mut self) {
        let (node, uid, dir) = (self.node.clone(), self.uid.clone(), self.dir.clone());
        self.spawn(async move {
            remove(&node, &uid, &dir).await;
            Event::Removed
        });
    }
}

/// How often a pod's tokens are looked at.
const TOKENS_LOOKED_AT: Duration = Duration::from_secs(60);

/// Gives a pod newer tokens for as long as it is there.
async fn renew_tokens(node: Arc<Node>, pod: Arc<Pod>, dir: PodDir) {
    let host_ip = host_ip(&node);
    loop {
        tokio::time::sleep(TOKENS_LOOKED_AT).await;
        if let Err(error) = maker(&node, &pod, &dir, &host_ip).renew_tokens().await {
            tracing::warn!(pod = pod.name_any(), error, "its token cannot be renewed yet");
        }
    }
}

fn maker<'a>(node: &'a Node, pod: &'a Pod, dir: &'a PodDir, host_ip: &'a str) -> volumes::Maker<'a> {
    let sources = &*node.sources;
    volumes::Maker { pod, dir, sources, host_ip, node: node.capacity, mounts: node.config.mounts }
}

fn host_ip(node: &Node) -> String {
    node.config.addresses.first().map(IpAddr::to_string).unwrap_or_default()
}

/// Records an event about a pod.
pub fn record(node: &Node, pod: &Pod, what: Occurrence) {
    let about = ObjectReference {
        field_path: what.container.as_ref().map(|name| format!("spec.containers{{{name}}}")),
        ..pod.object_ref(&())
    };
    node.recorder.record(about, what);
}

/// Undoes what a pod's containers stood on.
pub async fn tear_down(
    node: &Node,
    uid: &str,
    dir: &PodDir,
    cgroup: Option<&str>,
    networked: bool,
) -> Result<(), String> {
    if networked {
        node.network.detach(uid).await.map_err(|why| format!("network: {why}"))?;
    }
    node.runtime.remove_sandbox(uid).await.map_err(|e| format!("sandbox: {e}"))?;
    let dir = dir.clone();
    let unmade = tokio::task::spawn_blocking(move || volumes::unmake(&dir)).await;
    unmade.map_err(|e| e.to_string())?.map_err(|e| format!("volumes: {e}"))?;
    if let Some(cgroup) = cgroup
        && let Err(error) = node.runtime.remove_cgroup(cgroup).await
    {
        // Only clutter, and removing the containers tries again.
        tracing::debug!(cgroup, %error, "the pod's cgroup stays");
    }
    Ok(())
}

/// Removes what a pod that is gone left: records of its containers, logs, its folder.
pub async fn remove(node: &Node, uid: &str, dir: &PodDir) {
    for container in node.runtime.list().await {
        if container.labels.get(label::UID).map(String::as_str) == Some(uid)
            && let Err(error) = node.runtime.remove(&container.id).await
        {
            tracing::warn!(container = container.id, %error, "container record stays");
        }
    }
    let path = dir.path().to_owned();
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await;
    if let Ok(Err(error)) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(pod = uid, %error, "the pod's folder stays");
    }
}

#[cfg(test)]
mod tests;
