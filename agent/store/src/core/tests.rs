//! Whole clusters of cores in one thread: a network that drops, delays, reorders and cuts, disks that are slow and
//! lose what was not synced, nodes that crash. Everything follows from a seed.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::kv::{Expect, Record, Txn, Write};
use crate::space::Limits;
use crate::status::{Role, Status};

const LIMITS: Limits = Limits { events: 50, bytes: 1 << 20, queue: 8 };

/// What a disk holds, as `disk.rs` would give it back.
#[derive(Default)]
struct FakeDisk {
    saved: Saved,
    /// Jobs that are not synced; lost in a crash.
    queue: VecDeque<Job>,
}

impl FakeDisk {
    /// Does the next job; its report.
    fn work(&mut self) -> Option<Done> {
        match self.queue.pop_front()? {
            Job::Append { number, hard_state, entries } => {
                self.saved.hard_state = hard_state;
                if let Some(first) = entries.first() {
                    let keep = first.index - self.saved.base.index - 1;
                    assert!(keep <= self.saved.entries.len() as u64, "a gap in the log");
                    self.saved.entries.truncate(keep as usize);
                    self.saved.entries.extend(entries);
                }
                Some(Done::Persisted(number))
            }
            Job::Install { number, hard_state, snapshot } => {
                self.saved.hard_state = hard_state;
                self.saved.base = crate::disk::position(&snapshot);
                self.saved.entries.clear();
                self.saved.snapshot = Some(snapshot);
                Some(Done::Persisted(number))
            }
            Job::Snapshot { conf_state, at, base, image } => {
                let mut snapshot = Snapshot { data: wire::encode_image(image), ..Snapshot::default() };
                let metadata = snapshot.mut_metadata();
                metadata.index = at.index;
                metadata.term = at.term;
                metadata.set_conf_state(conf_state);
                self.saved.snapshot = Some(snapshot);
                self.saved.entries.retain(|e| e.index > base.index);
                self.saved.base = base;
                Some(Done::Snapshotted(at))
            }
        }
    }
}

enum Done {
    Persisted(u64),
    Snapshotted(Position),
}

struct Node {
    core: Option<Core>,
    space: Arc<Space>,
    disk: FakeDisk,
}

struct Sim {
    rng: StdRng,
    seed: u64,
    nodes: BTreeMap<u64, Node>,
    network: Vec<Message>,
    cut: BTreeSet<u64>,
    /// Nodes whose disks hang most of the time.
    slow: BTreeSet<u64>,
    calm: bool,
    /// Nodes with older code.
    formats: BTreeMap<u64, u32>,
    next_value: u64,
    next_token: Token,
    /// Writes under way: node and token, with key and value.
    asked: BTreeMap<(u64, Token), (String, u64)>,
    /// The newest acknowledged value and revision of each key.
    acknowledged: BTreeMap<String, (u64, Revision)>,
    /// All that was ever tried for a key: what a read may find.
    tried: BTreeMap<String, BTreeSet<u64>>,
    leaders: BTreeMap<u64, u64>,
    /// The state at each revision as the first replica that reached it had it.
    states: BTreeMap<Revision, Vec<Record>>,
    changes: usize,
    crashes: usize,
    snapshots: usize,
}

impl Sim {
    fn new(seed: u64, voters: u64) -> Self {
        let mut sim = Self {
            rng: StdRng::seed_from_u64(seed),
            seed,
            nodes: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            slow: BTreeSet::new(),
            calm: true,
            formats: BTreeMap::new(),
            next_value: 0,
            next_token: 0,
            asked: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            tried: BTreeMap::new(),
            leaders: BTreeMap::new(),
            states: BTreeMap::new(),
            changes: 0,
            crashes: 0,
            snapshots: 0,
        };
        let mut disk = FakeDisk::default();
        disk.saved.snapshot = Some(first_snapshot(1));
        disk.saved.base = Position { index: 1, term: 1 };
        sim.start(1, disk);
        for id in 2..=voters {
            sim.start(id, FakeDisk::default());
            sim.change_until_done(Change::AddLearner(id));
        }
        sim.change_until_done(Change::Promote((2..=voters).collect()));
        sim
    }

    fn start(&mut self, id: u64, disk: FakeDisk) {
        let space = Space::new(0, LIMITS);
        let config = CoreConfig {
            id,
            election_ticks: 6,
            heartbeat_ticks: 2,
            snapshot_entries: 20,
            snapshot_bytes: 1 << 20,
            election_seed: Some(self.seed),
            format: self.formats.get(&id).copied().unwrap_or(wire::FORMAT),
        };
        let core = Core::new(config, disk.saved.clone(), Arc::clone(&space)).unwrap();
        self.nodes.insert(id, Node { core: Some(core), space, disk });
    }

    fn crash(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.core = None;
        // Some of what was not synced reached the medium all the same, in order.
        for _ in 0..self.rng.random_range(0..=node.disk.queue.len()) {
            node.disk.work();
        }
        node.disk.queue.clear();
        self.asked.retain(|(at, _), _| *at != id);
        self.crashes += 1;
    }

    fn restart(&mut self, id: u64) {
        let disk = FakeDisk { saved: self.nodes[&id].disk.saved.clone(), queue: VecDeque::new() };
        self.start(id, disk);
    }

    /// All nodes lose power at once, and come back.
    fn power_cut(&mut self) {
        let up: Vec<u64> = self.nodes.iter().filter(|(_, n)| n.core.is_some()).map(|(id, _)| *id).collect();
        self.network.clear();
        for id in up {
            self.crash(id);
            self.restart(id);
        }
    }

    /// One moment: each node may tick, do a job of its disk, and messages arrive.
    fn step(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            if self.calm || self.rng.random_bool(0.9) {
                self.with(id, Core::tick);
            }
            let jobs = match self.slow.contains(&id) {
                _ if self.calm => 10,
                true => usize::from(self.rng.random_bool(0.03)),
                false => self.rng.random_range(0..3),
            };
            for _ in 0..jobs {
                self.disk_work(id);
            }
            self.poll(id);
        }
        self.deliver();
        self.check_states();
    }

    fn with(&mut self, id: u64, f: impl FnOnce(&mut Core)) {
        if let Some(core) = self.nodes.get_mut(&id).and_then(|n| n.core.as_mut()) {
            f(core);
        }
    }

    fn disk_work(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(core) = &mut node.core else { return };
        match node.disk.work() {
            Some(Done::Persisted(number)) => core.persisted(number),
            Some(Done::Snapshotted(at)) => {
                self.snapshots += 1;
                core.snapshotted(Some(at));
            }
            None => {}
        }
    }

    fn poll(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(core) = &mut node.core else { return };
        let output = core.poll();
        let status = core.status();
        node.disk.queue.extend(output.jobs);
        self.network.extend(output.messages);
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "seed {}: two leaders in term {}", self.seed, status.term);
        }
        for (token, result) in output.committed {
            let Some((key, value)) = self.asked.remove(&(id, token)) else { continue };
            if let Ok(revision) = result {
                let newest = self.acknowledged.entry(key).or_insert((value, revision));
                if newest.1 < revision {
                    *newest = (value, revision);
                }
            }
        }
        self.changes += output.changed.iter().filter(|(_, result)| result.is_ok()).count();
    }

    fn deliver(&mut self) {
        let mut later = Vec::new();
        let mut now = std::mem::take(&mut self.network);
        if !self.calm {
            for i in (1..now.len()).rev() {
                now.swap(i, self.rng.random_range(0..=i));
            }
        }
        for message in now {
            if self.cut.contains(&message.from) || self.cut.contains(&message.to) {
                continue;
            }
            if !self.calm {
                if self.rng.random_bool(0.1) {
                    continue;
                }
                if self.rng.random_bool(0.05) {
                    later.push(message.clone());
                }
                if self.rng.random_bool(0.3) {
                    later.push(message);
                    continue;
                }
            }
            self.with(message.to, |core| core.step(message));
        }
        self.network.extend(later);
    }

    /// Replicas that are at the same revision have the same records.
    fn check_states(&mut self) {
        for (id, node) in self.nodes.iter().filter(|(_, n)| n.core.is_some()) {
            let image = node.space.image();
            let known = self.states.entry(image.revision).or_insert_with(|| image.records.clone());
            assert_eq!(*known, image.records, "seed {}: node {id} at revision {}", self.seed, image.revision);
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |n: &Node| n.core.as_ref().is_some_and(|c| c.status().leading);
        self.nodes.iter().filter(|(_, n)| leads(n)).map(|(id, _)| *id).next_back()
    }

    fn write(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let id = self.leader().unwrap_or(ids[self.rng.random_range(0..ids.len())]);
        let key = format!("/{}", self.rng.random_range(0..20));
        self.next_value += 1;
        self.next_token += 1;
        let (value, token) = (self.next_value, self.next_token);
        let expect = match self.nodes[&id].space.get(&key) {
            Some(record) if self.rng.random_bool(0.5) => Expect::Modified(record.modified),
            None if self.rng.random_bool(0.5) => Expect::Absent,
            _ => Expect::Any,
        };
        let bytes = Bytes::from(value.to_string());
        let txn = Txn { writes: vec![Write { key: key.clone(), expect, value: Some(bytes) }] };
        self.tried.entry(key.clone()).or_default().insert(value);
        self.asked.insert((id, token), (key, value));
        self.with(id, |core| core.propose(vec![(token, wire::encode_txn(txn))]));
    }

    fn change(&mut self, change: &Change) {
        self.next_token += 1;
        let token = self.next_token;
        if let Some(id) = self.leader() {
            self.with(id, |core| core.change(token, change));
        }
    }

    fn change_until_done(&mut self, change: Change) {
        let before = self.changes;
        for round in 0..2000 {
            if self.changes > before {
                return;
            }
            if round % 100 == 20 {
                self.change(&change);
            }
            self.step();
        }
        panic!("seed {}: {change:?} never happened", self.seed);
    }

    fn disturb(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let id = ids[self.rng.random_range(0..ids.len())];
        match self.rng.random_range(0..100) {
            0..=3 if self.nodes[&id].core.is_some() => self.crash(id),
            4..=12 if self.nodes[&id].core.is_none() => self.restart(id),
            13..=15 => drop(self.cut.insert(id)),
            16..=22 => self.cut.clear(),
            23 => {
                if let Some(leader) = self.leader() {
                    self.with(leader, |core| core.transfer(id));
                }
            }
            24 => {
                let voters = ids.iter().copied().filter(|v| v % 2 == id % 2 || *v == id).collect::<Vec<_>>();
                let learners = ids.iter().copied().filter(|l| !voters.contains(l)).collect();
                self.change(&Change::Set { voters, learners });
            }
            25 => self.power_cut(),
            26..=28 => drop(self.slow.insert(id)),
            29..=34 => self.slow.clear(),
            35..=70 => self.write(),
            _ => {}
        }
    }

    /// All is well again: everyone must come to the same end, with all that was acknowledged.
    fn settle(&mut self) {
        self.calm = true;
        self.cut.clear();
        let down: Vec<u64> = self.nodes.iter().filter(|(_, n)| n.core.is_none()).map(|(id, _)| *id).collect();
        for id in down {
            self.restart(id);
        }
        for _ in 0..3000 {
            self.step();
            let statuses: Vec<Status> =
                self.nodes.values().filter_map(|n| n.core.as_ref()).map(Core::status).collect();
            let one = &statuses[0];
            let even = statuses.iter().all(|s| s.revision == one.revision && s.applied == one.applied);
            if even && statuses.iter().any(|s| s.leading && s.applied == s.last_index) {
                return self.check_acknowledged();
            }
        }
        let statuses: Vec<_> =
            self.nodes.values().filter_map(|n| n.core.as_ref()).map(Core::status).collect();
        panic!("seed {}: never settled: {statuses:#?}", self.seed);
    }

    fn check_acknowledged(&self) {
        let space = &self.nodes[&1].space;
        for (key, (value, revision)) in &self.acknowledged {
            let record = space.get(key).unwrap_or_else(|| panic!("seed {}: {key} lost", self.seed));
            let found: u64 = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
            assert!(record.modified >= *revision, "seed {}: {key} went back", self.seed);
            assert!(record.modified > *revision || found == *value, "seed {}: {key} is wrong", self.seed);
            assert!(self.tried[key].contains(&found), "seed {}: {key} was invented", self.seed);
        }
    }
}

fn run(seed: u64, voters: u64) -> Sim {
    let mut sim = Sim::new(seed, voters);
    for _ in 0..3 {
        sim.calm = false;
        for _ in 0..400 {
            sim.disturb();
            sim.step();
        }
        sim.settle();
    }
    sim
}

#[test]
fn nothing_acknowledged_is_lost_and_replicas_agree() {
    let (mut acknowledged, mut crashes, mut snapshots, mut terms) = (0, 0, 0, 0);
    // In 1700 a lone voter led one term twice, before its messages waited for its vote.
    for seed in (0..120).chain([1700]) {
        let sim = run(seed, 3 + 2 * (seed % 2));
        acknowledged += sim.acknowledged.len();
        crashes += sim.crashes;
        snapshots += sim.snapshots;
        terms += sim.leaders.len();
    }
    // A simulation in which nothing happens proves nothing.
    assert!(acknowledged > 1200, "{acknowledged} keys acknowledged");
    assert!(crashes > 1000 && snapshots > 500, "{crashes} crashes, {snapshots} snapshots");
    assert!(terms > 500, "{terms} leaders");
}

#[test]
fn a_seed_replays() {
    let history = |sim: Sim| (sim.states, sim.leaders);
    assert_eq!(history(run(7, 3)), history(run(7, 3)));
}

#[test]
fn a_heartbeat_from_someone_who_remembers_more_is_dropped() {
    let mut sim = Sim::new(1, 3);
    let mut message = Message { to: 2, from: 1, term: 1000, commit: 1 << 40, ..Message::default() };
    message.set_msg_type(MessageType::MsgHeartbeat);
    sim.with(2, |core| core.step(message));
    sim.settle();
}

#[test]
fn a_lone_voter_is_silent_until_its_vote_is_on_disk() {
    let mut sim = Sim::new(1, 1);
    sim.start(2, FakeDisk::default());
    sim.change_until_done(Change::AddLearner(2));
    // The snapshot knows the learner, so it is known from the start.
    while sim.snapshots < 2 {
        sim.write();
        sim.step();
    }
    sim.crash(1);
    sim.restart(1);
    let core = sim.nodes.get_mut(&1).unwrap().core.as_mut().unwrap();
    core.campaign_if_alone();
    let output = core.poll();
    assert_eq!(core.role(), Role::Leader);
    let Some(Job::Append { number, hard_state, .. }) = output.jobs.first() else { panic!("{output:?}") };
    assert_eq!((hard_state.vote, output.messages), (1, vec![]));
    core.persisted(*number);
    assert!(!core.poll().messages.is_empty());
}

/// A transaction of format 1: it depends on a key that it leaves alone.
fn of_format_1(sim: &Sim, on: u64, key: &str) -> Txn {
    let home = sim.nodes[&on].space.get("/home").unwrap();
    let stays = Write { key: "/home".into(), expect: Expect::Stays(home.modified), value: None };
    let write = Write { key: key.into(), expect: Expect::Any, value: Some(Bytes::from_static(b"1")) };
    Txn { writes: vec![stays, write] }
}

fn propose_until(sim: &mut Sim, txn: &Txn, on: &[u64], key: &str) {
    for round in 0..2000 {
        if on.iter().all(|id| sim.nodes[id].space.get(key).is_some()) {
            return;
        }
        if let Some(leader) = sim.leader().filter(|_| round % 100 == 0) {
            sim.next_token += 1;
            let token = sim.next_token;
            sim.with(leader, |core| core.propose(vec![(token, wire::encode_txn(txn.clone()))]));
        }
        sim.step();
    }
    panic!("{key} was never written");
}

/// Whether it leads or follows, older code applies nothing from the first entry on that it does not understand, the
/// others go on without it, and upgraded it has lost nothing.
#[test]
fn older_code_stops_before_a_newer_entry_until_it_is_upgraded() {
    for (seed, leads) in (0..20).map(|seed| (seed, seed % 2 == 0)) {
        let mut sim = Sim::new(seed, 3);
        let home = Write { key: "/home".into(), expect: Expect::Any, value: Some(Bytes::from_static(b"1")) };
        propose_until(&mut sim, &Txn { writes: vec![home] }, &[1, 2, 3], "/home");
        let leader = sim.leader().unwrap();
        let old = if leads { leader } else { leader % 3 + 1 };
        let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
        sim.with(old, |core| core.config.format = 0);
        let txn = of_format_1(&sim, old, "/new");
        propose_until(&mut sim, &txn, &others, "/new");
        let after =
            Write { key: "/after".into(), expect: Expect::Any, value: Some(Bytes::from_static(b"1")) };
        propose_until(&mut sim, &Txn { writes: vec![after] }, &others, "/after");
        let node = &sim.nodes[&old];
        assert_eq!(node.core.as_ref().unwrap().status().role, Role::Halted, "seed {seed}");
        assert!(node.space.get("/new").is_none() && node.space.get("/after").is_none(), "seed {seed}");

        // Started again as it was, it stops at the same place.
        sim.formats.insert(old, 0);
        sim.crash(old);
        sim.restart(old);
        for _ in 0..300 {
            sim.step();
        }
        assert!(sim.nodes[&old].space.get("/new").is_none(), "seed {seed}");
        sim.formats.clear();
        sim.crash(old);
        sim.restart(old);
        sim.settle();
        assert!(sim.nodes[&old].space.get("/after").is_some(), "seed {seed}");
    }
}
