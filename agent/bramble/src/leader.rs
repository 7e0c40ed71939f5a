//! What runs on the leader only, for as long as it leads: the API's first objects, controllers, the scheduler, and
//! the choice of who votes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::members::{Candidate, Step, View, plan};
use store::{Change, Kv, Status, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client;
use crate::config::Config;
use crate::health::Health;
use crate::plane::Options;
use crate::roster::Roster;

/// A learner that is at most so many entries behind has caught up.
const CAUGHT_UP: u64 = 64;
/// Pause after a change of Raft's configuration that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the leader's tasks need.
#[derive(Clone)]
pub struct Leader {
    /// The API.
    pub api: apiserver::Api,
    /// The store.
    pub store: Store,
    /// Its volatile companion.
    pub volatile: Arc<store::Volatile>,
    /// Who there is.
    pub roster: Roster,
    /// Who is alive.
    pub health: Health,
    /// Settings.
    pub config: Arc<Config>,
    /// The cluster's ranges.
    pub settings: cluster::join::ClusterSettings,
    /// What runs here.
    pub options: Arc<Options>,
    /// The cluster's CA.
    pub ca: String,
}

impl Leader {
    /// Starts and stops with leadership, until shut down.
    pub async fn run(self, mut leading: watch::Receiver<bool>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                led = leading.wait_for(|l| *l) => if led.is_err() { return },
            }
            tracing::info!("this node leads");
            let term = shutdown.child_token();
            let mut tasks = self.start(&term);
            let broken = tokio::select! {
                () = shutdown.cancelled() => false,
                _ = leading.wait_for(|l| !*l) => false,
                broken = broken(&mut tasks) => broken,
            };
            term.cancel();
            while tasks.join_next().await.is_some() {}
            if broken {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            tracing::info!("this node no longer leads");
            self.volatile.reset();
        }
    }

    fn start(&self, term: &CancellationToken) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let names = self.roster.get().iter().map(|m| m.name.clone()).collect();
        let volatile: Arc<dyn Kv> = self.volatile.clone();
        until(&mut tasks, term, self.health.clone().follow(volatile, names));
        until(&mut tasks, term, self.clone().membership());
        let (this, cancel) = (self.clone(), term.clone());
        until(&mut tasks, term, async move {
            while let Err(error) = this.api.bootstrap().await {
                tracing::warn!(%error, "the first objects cannot be written yet");
                tokio::time::sleep(PAUSE).await;
            }
            this.controllers(cancel).await;
        });
        tasks
    }

    async fn controllers(&self, cancel: CancellationToken) {
        let client = self.api.client(client::system());
        let config = controllers::Config {
            node_monitor_grace: self.config.node_monitor_grace(),
            pod_eviction_timeout: self.config.pod_eviction_timeout(),
            api_addresses: self.options.addresses.clone(),
            ca: self.ca.clone(),
            ..controllers::Config::new(self.settings.cluster_cidr, self.config.api_port)
        };
        let signer = crate::signer::run(Arc::new(self.store.clone()), client.clone());
        let signer = unless(!self.options.controllers, signer);
        let controllers =
            unless(!self.options.controllers, controllers::run(config, client.clone(), cancel.clone()));
        let scheduler =
            unless(!self.options.scheduler, scheduler::run(scheduler::Config::default(), client, cancel));
        // None ends by itself, and a cluster with only some of them is worse than a pause of all.
        let (which, error) = tokio::select! {
            ended = controllers => ("controllers", ended.err().map(|e| e.to_string())),
            ended = scheduler => ("scheduler", ended.err().map(|e| e.to_string())),
            () = signer => ("signer", None),
        };
        tracing::error!(which, error, "a control loop ended");
    }

    /// Keeps the right members voting: looks whenever Raft, the member list or a heartbeat has news.
    async fn membership(self) {
        let mut status = self.store.status();
        let mut members = self.roster.subscribe();
        let mut beats = self.health.subscribe();
        loop {
            let view = self.view(&status.borrow_and_update().clone());
            if let Some(step) = plan(&view) {
                tracing::info!(?step, "changing raft's members");
                if let Err(error) = self.store.change(change(step, &view)).await {
                    tracing::warn!(%error, "raft's members cannot be changed now");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                _ = members.changed() => {}
                _ = beats.changed() => {}
            }
        }
    }

    fn view(&self, status: &Status) -> View {
        let caught_up = |id: u64| {
            let progress = status.progress.iter().find(|p| p.id == id);
            id == status.id
                || progress.is_some_and(|p| p.recent_active && p.matched + CAUGHT_UP >= status.last_index)
        };
        let members = self.roster.get();
        let candidates = members.iter().map(|member| {
            let (healthy_for, away_for) = self.health.of(&member.name);
            Candidate {
                id: member.id,
                vote: member.vote,
                healthy_for,
                away_for,
                caught_up: caught_up(member.id),
            }
        });
        View {
            leader: status.id,
            voters: status.voters.iter().copied().collect(),
            learners: status.learners.iter().copied().collect(),
            candidates: candidates.collect(),
        }
    }
}

/// Resolves when one of a term's tasks ended or panicked, which none does while the term lasts: a leader without
/// controllers must not go on as if nothing were wrong.
async fn broken(tasks: &mut JoinSet<()>) -> bool {
    let ended = tasks.join_next().await;
    let error = ended.and_then(Result::err).map(|e| e.to_string());
    tracing::error!(error, "a part of the leader ended; starting all of them again");
    true
}

/// Runs a future until it ends or the term does.
fn until(tasks: &mut JoinSet<()>, term: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let term = term.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = term.cancelled() => {}
            () = work => {}
        }
    });
}

/// Runs something, or waits for ever in its place.
async fn unless<T>(off: bool, work: impl Future<Output = T>) -> T {
    if off { std::future::pending().await } else { work.await }
}

fn change(step: Step, view: &View) -> Change {
    match step {
        Step::AddLearner(id) => Change::AddLearner(id),
        Step::Remove(id) => Change::Remove(vec![id]),
        Step::SetVoters(voters) => {
            let learners: BTreeSet<u64> = view.learners.difference(&voters).copied().collect();
            Change::Set { voters: voters.into_iter().collect(), learners: learners.into_iter().collect() }
        }
    }
}
