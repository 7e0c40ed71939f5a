//! The task that owns the cluster's picture: news in, decisions, bindings out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use rand::{SeedableRng, rngs::StdRng};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    bind::{EVENT_BOUND, Note, bind, preempted, refused, remove, write_events, write_status},
    cluster::{Cluster, Key, News},
    decide::{Unschedulable, View, decide},
    preempt::{may_preempt, preempt},
    snapshot::Snapshot,
};

/// News waiting for the owner; beyond this the watches wait.
const NEWS_BOUND: usize = 512;
/// News taken in before deciding.
const NEWS_BATCH: usize = 256;
/// Bindings and statuses under way at a time.
const IN_FLIGHT: usize = 64;
const BIND_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Wakes the loop when there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);

/// Why a pod that may not preempt waits.
const NEVER: &str = "preemption: not eligible due to preemptionPolicy=Never.";

/// What came of a write.
enum Done {
    Bound { key: Key, pod: Arc<Pod>, node: String, result: Result<(), String> },
    Removed { by: Key, pod: Arc<Pod>, result: Result<(), String> },
    Told,
}

/// See the module.
pub(crate) struct Runner {
    client: Client,
    scheduler: String,
    cluster: Cluster,
    rng: StdRng,
    in_flight: JoinSet<Done>,
    retries: BTreeSet<(Instant, Key)>,
    failures: BTreeMap<Key, u32>,
}

impl Runner {
    pub(crate) fn new(config: Config, client: Client) -> Self {
        Self {
            client,
            cluster: Cluster::new(config.name.clone()),
            scheduler: config.name,
            rng: config.seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64),
            in_flight: JoinSet::new(),
            retries: BTreeSet::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Runs until `shutdown`; everything it started ends with it.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let (notes, inbox) = mpsc::channel(EVENT_BOUND);
        tasks.spawn(write_events(self.client.clone(), self.scheduler.clone(), inbox));
        let (sender, mut news) = mpsc::channel(NEWS_BOUND);
        tasks.spawn(watch(Api::<Pod>::all(self.client.clone()), News::Pod, sender.clone()));
        tasks.spawn(watch(Api::<Node>::all(self.client.clone()), News::Node, sender.clone()));
        tasks.spawn(watch(Api::<Service>::all(self.client.clone()), News::Service, sender.clone()));
        tasks.spawn(watch(Api::<PodDisruptionBudget>::all(self.client.clone()), News::Budget, sender));
        let mut batch = Vec::with_capacity(NEWS_BATCH);
        loop {
            let due = self.retries.first().map_or_else(|| Instant::now() + IDLE, |(when, _)| *when);
            tokio::select! {
                () = shutdown.cancelled() => return,
                count = news.recv_many(&mut batch, NEWS_BATCH) => {
                    if count == 0 {
                        return;
                    }
                    batch.drain(..).for_each(|news| self.cluster.take_in(news));
                }
                Some(done) = self.in_flight.join_next() => {
                    if let Ok(done) = done {
                        self.finish(done, &notes);
                    }
                }
                () = tokio::time::sleep_until(due) => self.retry_due(Instant::now()),
            }
            self.schedule(&notes);
        }
    }

    fn retry_due(&mut self, now: Instant) {
        while let Some((when, key)) = self.retries.first().cloned() {
            if when > now {
                break;
            }
            self.retries.remove(&(when, key.clone()));
            self.cluster.activate(key);
        }
    }

    /// Decides about everything that waits, one after another over one picture.
    fn schedule(&mut self, notes: &mpsc::Sender<Note>) {
        if !self.cluster.synced() || !self.cluster.has_active() || self.in_flight.len() >= IN_FLIGHT {
            return;
        }
        let mut snapshot = self.cluster.snapshot();
        for (key, pod) in self.cluster.take_active() {
            if self.in_flight.len() >= IN_FLIGHT {
                self.cluster.activate(key);
                continue;
            }
            let expected = self.cluster.expected(&key, &pod);
            let crowded = (!expected.is_empty()).then(|| snapshot.with(expected));
            let view = View {
                snapshot: &snapshot,
                crowded: crowded.as_ref(),
                nominated: self.cluster.nominated(&key),
            };
            match decide(&pod, &view, &mut self.rng) {
                Ok(node) => {
                    self.cluster.assume(key.clone(), &pod, &node);
                    snapshot.put(&node, pod.clone());
                    self.start_binding(key, pod, node);
                }
                Err(Unschedulable(message)) => {
                    let why = self.make_room(&key, &pod, crowded.as_ref().unwrap_or(&snapshot), notes);
                    let message = why.map_or(message.clone(), |why| format!("{message} {why}"));
                    self.tell_refusal(&key, pod, message, notes);
                    self.cluster.park(key);
                }
            }
        }
    }

    /// Has less important pods go where that helps; or says why not.
    fn make_room(
        &mut self,
        key: &Key,
        pod: &Arc<Pod>,
        snapshot: &Snapshot,
        notes: &mpsc::Sender<Note>,
    ) -> Option<String> {
        if !may_preempt(pod) {
            return Some(NEVER.to_owned());
        }
        if self.cluster.is_made_room_for(key, pod) {
            return None;
        }
        let plan = match preempt(pod, snapshot, &self.cluster.budgets()) {
            Ok(plan) => plan,
            Err(why) => {
                self.cluster.nominate(key, None);
                return Some(why);
            }
        };
        tracing::debug!(pod = key.1, node = plan.node, victims = plan.victims.len(), "makes room");
        for victim in plan.victims {
            if victim.metadata.deletion_timestamp.is_none() && !self.cluster.is_leaving(&victim) {
                let message =
                    format!("Preempted by pod {} on node {}", pod.uid().unwrap_or_default(), plan.node);
                self.cluster.leave(&victim, true);
                self.start_removal(key.clone(), victim.clone());
                let _ = notes.try_send(Note { pod: victim, warning: false, reason: "Preempted", message });
            }
        }
        self.cluster.nominate(key, Some(plan.node));
        None
    }

    fn start_removal(&mut self, by: Key, pod: Arc<Pod>) {
        let client = self.client.clone();
        let marked = preempted(&pod, &self.scheduler, Timestamp::now());
        self.in_flight.spawn(async move {
            let work = async {
                write_status(client.clone(), marked).await;
                remove(client, &pod).await
            };
            let result = match tokio::time::timeout(BIND_TIMEOUT, work).await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(elapsed) => Err(elapsed.to_string()),
            };
            Done::Removed { by, pod, result }
        });
    }

    fn start_binding(&mut self, key: Key, pod: Arc<Pod>, node: String) {
        let client = self.client.clone();
        self.in_flight.spawn(async move {
            let result = match tokio::time::timeout(BIND_TIMEOUT, bind(client, &pod, &node)).await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(elapsed) => Err(elapsed.to_string()),
            };
            Done::Bound { key, pod, node, result }
        });
    }

    fn tell_refusal(&mut self, key: &Key, pod: Arc<Pod>, message: String, notes: &mpsc::Sender<Note>) {
        let nominated = self.cluster.nominated(key);
        let Some(status) = refused(&pod, &message, nominated, Timestamp::now()) else { return };
        let _ = notes.try_send(Note { pod, warning: true, reason: "FailedScheduling", message });
        let client = self.client.clone();
        self.in_flight.spawn(async move {
            // On time-out the pod's next news brings it here again.
            let _ = tokio::time::timeout(BIND_TIMEOUT, write_status(client, status)).await;
            Done::Told
        });
    }

    fn finish(&mut self, done: Done, notes: &mpsc::Sender<Note>) {
        let (key, pod, node, result) = match done {
            Done::Bound { key, pod, node, result } => (key, pod, node, result),
            Done::Removed { by, pod, result: Err(error) } => {
                tracing::debug!(%error, pod = pod.name_any(), "it does not make room");
                self.cluster.leave(&pod, false);
                self.retries.insert((Instant::now() + RETRY_MAX, by));
                return;
            }
            Done::Removed { .. } | Done::Told => return,
        };
        match result {
            Ok(()) => {
                self.failures.remove(&key);
                let message = format!("Successfully assigned {}/{} to {node}", key.0, key.1);
                let _ = notes.try_send(Note { pod, warning: false, reason: "Scheduled", message });
            }
            Err(error) => {
                tracing::debug!(%error, pod = key.1, node, "binding failed");
                if !self.cluster.forget(&key, &pod.uid().unwrap_or_default()) {
                    self.failures.remove(&key);
                    return;
                }
                let failures = self.failures.entry(key.clone()).or_default();
                let wait = RETRY_FIRST.saturating_mul(1 << (*failures).min(10)).min(RETRY_MAX);
                *failures += 1;
                self.cluster.park(key.clone());
                self.retries.insert((Instant::now() + wait, key));
            }
        }
    }
}

/// Waits between tries of a watch: short ones first, a new leader's API is there in a moment.
#[derive(Default)]
struct Waits(u32);

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = RETRY_FIRST.saturating_mul(1 << self.0.min(10)).min(RETRY_MAX);
        self.0 += 1;
        Some(wait)
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Feeds the owner with one kind until nobody listens.
async fn watch<K>(api: Api<K>, wrap: fn(watcher::Event<K>) -> News, news: mpsc::Sender<News>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default();
    let stream = watcher(api, config).backoff(Waits::default());
    let mut stream = Box::pin(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if news.send(wrap(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "watch failed"),
        }
    }
}
