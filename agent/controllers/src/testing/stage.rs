//! The whole loop without a network: news, routes, keys, reconciles, writes, over a [`Sim`] and a clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Sim, config, news};
use crate::{
    Config,
    reconcile::{Context, Controller, Failure, Key, reconcile},
    routes,
    world::{Change, World},
    write::Write,
};

/// See the module.
pub(crate) struct Stage {
    pub(crate) sim: Sim,
    pub(crate) world: World,
    pub(crate) now: Instant,
    pub(crate) wall: Timestamp,
    /// Events told, as `reason: message`.
    pub(crate) told: Vec<String>,
    only: &'static [Controller],
    seen: usize,
    keys: BTreeSet<Key>,
    due: BTreeMap<Key, Instant>,
    failures: BTreeMap<Key, Failure>,
    rng: StdRng,
    config: Config,
}

impl Stage {
    /// A stage on which only these controllers act.
    pub(crate) fn new(only: &'static [Controller]) -> Self {
        let (sim, now) = (Sim::new(), Instant::now());
        let world = sim.world(now);
        Self {
            sim,
            world,
            now,
            wall: "2026-01-01T00:00:00Z".parse().unwrap(),
            told: Vec::new(),
            only,
            seen: 0,
            keys: BTreeSet::new(),
            due: BTreeMap::new(),
            failures: BTreeMap::new(),
            rng: StdRng::seed_from_u64(1),
            config: config(),
        }
    }

    fn take(&mut self, change: Change) {
        for diff in self.world.apply(change, self.now) {
            let keys = routes::keys(&self.world, &diff);
            self.keys.extend(keys.into_iter().filter(|key| self.only.contains(&key.controller)));
        }
    }

    /// At most so many of the waiting news arrive.
    pub(crate) fn deliver(&mut self, count: usize) {
        let news_of: Vec<_> = self.sim.log.iter().skip(self.seen).take(count).cloned().collect();
        self.seen += news_of.len();
        news_of.into_iter().for_each(|(kind, verb, value)| self.take(news(kind, verb, &value)));
    }

    /// Works on one key that waits, with its writes; breaks off after `writes` of them.
    pub(crate) fn turn(&mut self, writes: usize) -> bool {
        let due: Vec<Key> =
            self.due.iter().filter(|(_, at)| **at <= self.now).map(|(k, _)| k.clone()).collect();
        for key in due {
            self.due.remove(&key);
            self.keys.insert(key);
        }
        let Some(key) = self.keys.pop_first() else { return false };
        let mut cx = Context {
            world: &self.world,
            config: &self.config,
            wall: self.wall,
            now: self.now,
            rng: &mut self.rng,
            failure: self.failures.get(&key),
        };
        let mut outcome = reconcile(&key, &mut cx);
        if let Some(again) = outcome.again {
            let at = self.now + again;
            let entry = self.due.entry(key.clone()).or_insert(at);
            *entry = (*entry).min(at);
        }
        let breaks_off = outcome.writes.len() > writes;
        outcome.writes.truncate(writes);
        self.listen(&outcome.writes);
        let (changes, result) = self.sim.execute(outcome.writes);
        changes.into_iter().for_each(|change| self.take(change));
        match result {
            Ok(()) if breaks_off => {
                self.keys.insert(key);
            }
            Ok(()) => {
                self.failures.remove(&key);
            }
            Err((code, reason)) => {
                if code != 409 {
                    let failure = Failure { reason: reason.to_owned(), message: reason.to_owned() };
                    self.failures.insert(key.clone(), failure);
                }
                self.keys.insert(key);
            }
        }
        true
    }

    fn listen(&mut self, writes: &[Write]) {
        for write in writes {
            let event = match write {
                Write::Create { done, .. }
                | Write::Update { done, .. }
                | Write::Patch { done, .. }
                | Write::Delete { done, .. } => done.as_ref(),
                Write::Tell(event) => Some(event),
                _ => None,
            };
            self.told.extend(event.map(|e| format!("{}: {}", e.reason, e.message)));
        }
    }

    /// A new leader: everything is learnt anew.
    pub(crate) fn restart(&mut self) {
        self.world = World::new(self.sim.kinds.clone());
        (self.due, self.failures) = (BTreeMap::new(), BTreeMap::new());
        self.keys.clear();
        self.seen = self.sim.log.len();
        for id in 0..self.sim.kinds.len() {
            let change = self.sim.listed(crate::kind::KindId(id));
            self.take(change);
        }
    }

    /// Runs until there is nothing left to do now.
    pub(crate) fn settle(&mut self) {
        for _ in 0..2000 {
            self.deliver(usize::MAX);
            if !self.turn(usize::MAX) && self.seen == self.sim.log.len() {
                return;
            }
        }
        panic!("it does not come to rest; waiting: {:?}, last: {:?}", self.keys, self.sim.log.last());
    }

    /// Time goes by, and everything that falls due meanwhile is done.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let next = self.due.values().min().copied().filter(|at| *at <= end).unwrap_or(end);
            let step = next.saturating_duration_since(self.now);
            self.now += step;
            self.wall += step;
            if next >= end {
                self.settle();
                return;
            }
        }
    }

    /// What a kubelet does: a pod's status.
    pub(crate) fn report(&mut self, name: &str, status: Value) {
        self.sim.edit::<Pod>("default", name, |pod| pod["status"] = status);
    }

    /// A pod that runs and is ready.
    pub(crate) fn ready(&mut self, name: &str) {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        self.report(name, json!({"phase": "Running", "conditions": ready}));
    }

    /// A pod that ended.
    pub(crate) fn end(&mut self, name: &str, phase: &str) {
        self.report(name, json!({ "phase": phase }));
    }
}
