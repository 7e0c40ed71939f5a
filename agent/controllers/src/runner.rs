//! The task that owns the world and the queue: news in, reconciles, writes out.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    coordination::v1::Lease,
    core::v1::{
        Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Service,
    },
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client,
    core::{DynamicObject, PartialObjectMeta},
    discovery::{Discovery, Scope, verbs},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    event::{EVENT_BOUND, write_events},
    executor::{Executor, StepError},
    kind::{KindId, KindInfo, Kinds, Object, Typed, for_each_typed},
    listwatch::list_watch,
    queue::Queue,
    reconcile::{Context, Failure, Key, reconcile},
    routes,
    world::{Change, World},
};

/// News waiting for the world; beyond this the watches wait.
const CHANGE_BOUND: usize = 1024;
/// News taken in before anything is reconciled.
const CHANGE_BATCH: usize = 256;
/// Keys worked on at a time.
const WORKERS: usize = 32;
/// One try of one key takes at most this long.
const TRY_TIMEOUT: Duration = Duration::from_secs(30);
const DISCOVERY_RETRY: Duration = Duration::from_millis(200);

/// What came of one key.
struct Done {
    key: Key,
    changes: Vec<Change>,
    result: Result<(), StepError>,
}

/// See the module.
pub(crate) struct Runner {
    config: Config,
    client: Client,
    world: World,
    queue: Queue<Key>,
    failures: HashMap<Key, Failure>,
    working: JoinSet<Done>,
    rng: StdRng,
    /// There may be kinds that are not watched yet.
    more_kinds: bool,
}

impl Runner {
    pub(crate) fn new(config: Config, client: Client) -> Self {
        Self {
            config,
            client,
            world: World::default(),
            queue: Queue::new(),
            failures: HashMap::new(),
            working: JoinSet::new(),
            rng: StdRng::from_os_rng(),
            more_kinds: false,
        }
    }

    /// Runs until `shutdown`; everything it started ends with it.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let Some(kinds) = shutdown.run_until_cancelled(discover(&self.client)).await else { return };
        self.world = World::new(kinds.clone());
        let mut tasks = JoinSet::new();
        let (events, inbox) = mpsc::channel(EVENT_BOUND);
        tasks.spawn(write_events(self.client.clone(), inbox));
        let (sender, mut changes) = mpsc::channel(CHANGE_BOUND);
        spawn_watches(&self.client, &kinds, &sender, &mut tasks);
        let mut executor = Executor { client: self.client.clone(), kinds: Arc::new(kinds), events };
        let mut discovering = JoinSet::new();
        let mut batch = Vec::with_capacity(CHANGE_BATCH);
        loop {
            if self.more_kinds && discovering.is_empty() {
                self.more_kinds = false;
                let client = self.client.clone();
                discovering.spawn(async move { discover(&client).await });
            }
            let due = self.queue.next_due().unwrap_or_else(|| Instant::now() + TRY_TIMEOUT);
            tokio::select! {
                () = shutdown.cancelled() => return,
                count = changes.recv_many(&mut batch, CHANGE_BATCH) => {
                    if count == 0 {
                        return;
                    }
                    batch.drain(..).for_each(|change| self.take_in(change));
                }
                Some(done) = self.working.join_next() => match done {
                    Ok(done) => self.finish(done),
                    // Its key would count as being worked on for ever.
                    Err(error) => return tracing::error!(%error, "a write broke off"),
                },
                // None ends by itself: without one of the watches the world would be old without knowing it.
                Some(ended) = tasks.join_next() => {
                    let error = ended.err().map(|e| e.to_string());
                    return tracing::error!(error, "a watch ended");
                }
                Some(Ok(found)) = discovering.join_next() => {
                    if let Some(kinds) = self.world.kinds.as_mut() {
                        add_kinds(&self.client, kinds, found, &sender, &mut tasks);
                        executor.kinds = Arc::new(kinds.clone());
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
            self.queue.promote(Instant::now());
            self.dispatch(&executor);
        }
    }

    fn take_in(&mut self, change: Change) {
        let now = Instant::now();
        for diff in self.world.apply(change, now) {
            let kind = diff.latest().map(Object::kind);
            self.more_kinds |=
                kind.is_some() && kind == self.world.kinds.as_ref().and_then(Kinds::definition);
            for key in routes::keys(&self.world, &diff) {
                self.queue.add(key);
            }
        }
    }

    /// Starts as many keys as may be worked on. Nothing before all has been seen once.
    fn dispatch(&mut self, executor: &Executor) {
        if !self.world.synced() {
            return;
        }
        while self.working.len() < WORKERS {
            let Some(key) = self.queue.pop() else { return };
            let now = Instant::now();
            let mut context = Context {
                world: &self.world,
                config: &self.config,
                wall: jiff::Timestamp::now(),
                now,
                rng: &mut self.rng,
                failure: self.failures.get(&key),
            };
            let outcome = reconcile(&key, &mut context);
            if let Some(again) = outcome.again {
                self.queue.add_at(key.clone(), now + again);
            }
            self.world.cidr_claims.extend(outcome.claims);
            if outcome.writes.is_empty() {
                self.failures.remove(&key);
                self.queue.done(&key);
                continue;
            }
            let executor = executor.clone();
            self.working.spawn(async move {
                let work = executor.execute(outcome.writes);
                match tokio::time::timeout(TRY_TIMEOUT, work).await {
                    Ok((changes, result)) => Done { key, changes, result },
                    // The answers are lost, the watches will tell.
                    Err(elapsed) => {
                        let error = kube::Error::Service(Box::new(elapsed));
                        Done { key, changes: Vec::new(), result: Err(StepError::Api(error)) }
                    }
                }
            });
        }
    }

    /// Own writes are seen before the key may run again: that is why no controller overshoots.
    fn finish(&mut self, done: Done) {
        let Done { key, changes, result } = done;
        changes.into_iter().for_each(|change| self.take_in(change));
        match result {
            Ok(()) => {
                self.failures.remove(&key);
                self.queue.done(&key);
            }
            Err(error) => {
                tracing::debug!(?key, %error, "not done, will be tried again");
                let wait = error.retry_after().map_or(Duration::ZERO, |s| Duration::from_secs(u64::from(s)));
                if !error.is_conflict() {
                    let failure = Failure { reason: "FailedCreate".to_owned(), message: error.message() };
                    self.failures.insert(key.clone(), failure);
                }
                self.queue.failed(&key, Instant::now(), wait);
            }
        }
    }
}

/// Every kind that can be listed, watched and deleted, the typed ones first. Tried until the API answers.
async fn discover(client: &Client) -> Kinds {
    loop {
        match Discovery::new(client.clone()).run().await {
            Ok(discovery) => {
                let mut kinds = Kinds::typed();
                for (resource, capabilities) in discovery.groups().flat_map(|g| g.recommended_resources()) {
                    let usable = [verbs::LIST, verbs::WATCH, verbs::DELETE]
                        .iter()
                        .all(|v| capabilities.supports_operation(v));
                    // The same events under a second name.
                    let twice = resource.group == "events.k8s.io";
                    if usable && !twice {
                        kinds
                            .push(KindInfo { resource, namespaced: capabilities.scope == Scope::Namespaced });
                    }
                }
                return kinds;
            }
            Err(error) => {
                tracing::debug!(%error, "discovery failed");
                tokio::time::sleep(DISCOVERY_RETRY).await;
            }
        }
    }
}

fn spawn_watches(client: &Client, kinds: &Kinds, changes: &mpsc::Sender<Change>, tasks: &mut JoinSet<()>) {
    macro_rules! spawn {
        ($kind:ident) => {
            let api = Api::<$kind>::all(client.clone());
            tasks.spawn(list_watch($kind::KIND, api, Typed::wrap, changes.clone()));
        };
    }
    for_each_typed!(spawn);
    for (kind, info) in kinds.untyped() {
        spawn_watch(client, kind, info, changes, tasks);
    }
}

/// Watches a kind of which only the metadata is kept.
fn spawn_watch(
    client: &Client,
    kind: KindId,
    info: &KindInfo,
    changes: &mpsc::Sender<Change>,
    tasks: &mut JoinSet<()>,
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &info.resource);
    let wrap = move |object: PartialObjectMeta<DynamicObject>| Object::Meta(kind, Box::new(object.metadata));
    tasks.spawn(list_watch(kind, api, wrap, changes.clone()));
}

/// Watches the kinds among these that are not watched yet. One that is no longer served stays, as if there were none
/// of it: it may come back.
fn add_kinds(
    client: &Client,
    kinds: &mut Kinds,
    found: Kinds,
    changes: &mpsc::Sender<Change>,
    tasks: &mut JoinSet<()>,
) {
    let before = kinds.len();
    found.untyped().for_each(|(_, info)| kinds.push(info.clone()));
    for (kind, info) in kinds.untyped().filter(|(kind, _)| kind.0 >= before) {
        spawn_watch(client, kind, info, changes, tasks);
    }
}

#[cfg(test)]
mod tests;
