//! The pods of this node: follows the API's list and keeps one worker for each.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::env::NodeCapacity;
use crate::events::Recorder;
use crate::meter::Meter;
use crate::sources::{ApiSources, Sources};
use crate::worker::{self, Notice};
use crate::{Config, PodNetwork, takeover};

/// What all workers share.
pub struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<dyn runtime::Runtime>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) sources: Arc<dyn Sources>,
    pub(crate) recorder: Recorder,
    pub(crate) services: Store<Service>,
    pub(crate) capacity: NodeCapacity,
    pub(crate) meter: Meter,
    listed: AtomicBool,
    background: Mutex<Option<Background>>,
    pods: Mutex<HashMap<String, Handle>>,
}

/// What has to run beside, given out once.
struct Background {
    events: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    services: reflector::store::Writer<Service>,
}

/// A worker's mailbox, and the pod as it was last told.
struct Handle {
    pod: Arc<Pod>,
    inbox: mpsc::UnboundedSender<Notice>,
    netns: Option<PathBuf>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(
        config: Config,
        client: Client,
        runtime: Arc<dyn runtime::Runtime>,
        network: Arc<dyn PodNetwork>,
    ) -> Node {
        let (recorder, events) = Recorder::new(client.clone(), &config.node_name);
        let (services, writer) = reflector::store();
        let capacity = crate::node::Machine::look(&config).capacity();
        Node {
            config: Arc::new(config),
            sources: Arc::new(ApiSources::new(client.clone())),
            client,
            runtime,
            network,
            recorder,
            services,
            capacity,
            meter: Meter::default(),
            listed: AtomicBool::new(false),
            background: Mutex::new(Some(Background { events: Box::pin(events), services: writer })),
            pods: Mutex::new(HashMap::new()),
        }
    }

    /// Pods that workers look after.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        locked(&self.pods).values().map(|handle| handle.pod.clone()).collect()
    }

    /// The pod of that name; of several incarnations the newest.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = locked(&self.pods);
        let named = pods.values().map(|handle| &handle.pod);
        let named = named.filter(|pod| pod.metadata.name.as_deref() == Some(name));
        let named = named.filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
        named.max_by_key(|pod| pod.metadata.creation_timestamp.clone()).cloned()
    }

    /// The API has said which pods are here.
    pub(crate) fn listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// A pod's network namespace, for connections into it.
    pub(crate) fn netns(&self, uid: &str) -> Option<PathBuf> {
        locked(&self.pods).get(uid).and_then(|handle| handle.netns.clone())
    }

    /// A pod's worker made (or lost) its network namespace.
    pub(crate) fn set_netns(&self, uid: &str, netns: Option<PathBuf>) {
        if let Some(handle) = locked(&self.pods).get_mut(uid) {
            handle.netns = netns;
        }
    }

    /// Follows the API until shut down.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let background = locked(&self.background).take();
        if let Some(background) = background {
            tasks.spawn(until(shutdown.clone(), background.events));
            let api: Api<Service> = Api::all(self.client.clone());
            let services =
                reflector::reflector(background.services, watcher(api, watcher::Config::default()));
            let services = services.default_backoff().for_each(|_| async {});
            tasks.spawn(until(shutdown.clone(), services));
        }
        self.follow(&tasks, &shutdown).await;
        tasks.close();
        tasks.wait().await;
    }

    async fn follow(self: &Arc<Self>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let api: Api<Pod> = Api::all(self.client.clone());
        let selector = format!("spec.nodeName={}", self.config.node_name);
        let events = watcher(api, watcher::Config::default().fields(&selector)).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut listed: HashMap<String, Pod> = HashMap::new();
        let mut first = true;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => tracing::debug!(%error, "watching pods"),
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.insert(pod.uid().unwrap_or_default(), pod);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    let pods = std::mem::take(&mut listed);
                    self.whole_list(pods, std::mem::take(&mut first), tasks, shutdown).await;
                }
                Some(Ok(watcher::Event::Apply(pod))) => self.apply(pod, tasks, shutdown),
                Some(Ok(watcher::Event::Delete(pod))) => {
                    self.send(&pod.uid().unwrap_or_default(), Notice::Gone);
                }
            }
        }
    }

    /// A whole list: what is not on it is gone, also what an earlier agent left.
    async fn whole_list(
        self: &Arc<Self>,
        listed: HashMap<String, Pod>,
        first: bool,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let known: Vec<String> = locked(&self.pods).keys().cloned().collect();
        for uid in known.iter().filter(|uid| !listed.contains_key(*uid)) {
            self.send(uid, Notice::Gone);
        }
        let alive: HashSet<String> = listed.keys().cloned().chain(known).collect();
        for pod in listed.into_values() {
            self.apply(pod, tasks, shutdown);
        }
        self.listed.store(true, Ordering::Relaxed);
        if first {
            tasks.spawn(until(shutdown.clone(), takeover::remove_orphans(self.clone(), alive)));
        }
    }

    fn apply(self: &Arc<Self>, pod: Pod, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let Some(uid) = pod.uid().filter(|uid| !uid.is_empty()) else { return };
        let pod = Arc::new(pod);
        let mut pods = locked(&self.pods);
        if let Some(handle) = pods.get_mut(&uid) {
            handle.pod = pod.clone();
            if handle.inbox.send(Notice::Pod(pod.clone())).is_ok() {
                return;
            }
        }
        let (inbox, mail) = mpsc::unbounded_channel();
        pods.insert(uid.clone(), Handle { pod: pod.clone(), inbox, netns: None });
        let (node, shutdown) = (self.clone(), shutdown.clone());
        tasks.spawn(async move {
            let done = tokio::select! {
                () = shutdown.cancelled() => false,
                () = worker::run(node.clone(), pod, mail) => true,
            };
            if done {
                locked(&node.pods).remove(&uid);
            }
        });
    }

    fn send(&self, uid: &str, notice: Notice) {
        if let Some(handle) = locked(&self.pods).get(uid) {
            // A worker that is through needs no more news.
            let _ = handle.inbox.send(notice);
        }
    }
}

async fn until(shutdown: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}
