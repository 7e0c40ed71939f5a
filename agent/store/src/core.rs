//! The deciding part of the store: Raft, the log in memory and the state machine, without threads, clocks, disks or
//! sockets. Time comes in as [`Core::tick`], messages as [`Core::step`]; what must be done comes out of
//! [`Core::poll`] as data. The shell carries it out in order and reports with [`Core::persisted`].

mod report;
mod snapshots;

pub(crate) use snapshots::first_snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChange, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
};
use raft::{RawNode, Ready, StateRole};
use raft_prost::Message as _;

use crate::change::{Change, ChangeError};
use crate::guard::{self, MEMBERS};
use crate::kv::{CommitError, Revision};
use crate::memlog::{MemLog, Position, Saved, is_joint};
use crate::space::Space;
use crate::wire::{self, Image};

/// Bytes of entries in one append message.
const APPEND_BYTES: u64 = 1 << 20;
/// Append messages under way to one follower.
const APPENDS_IN_FLIGHT: usize = 64;
/// Bytes of entries that a leader keeps uncommitted; beyond, proposals are dropped. The handle's own bound is lower.
const UNCOMMITTED_BYTES: u64 = 64 << 20;

/// Names a request that waits for its answer.
pub(crate) type Token = u64;

#[derive(Clone, Debug)]
pub(crate) struct CoreConfig {
    pub id: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// A snapshot is due after this many applied entries,
    pub snapshot_entries: u64,
    /// or when the log has grown by this many bytes.
    pub snapshot_bytes: usize,
    /// Makes election timeouts a function of this and the term, so that a simulation can be replayed.
    pub election_seed: Option<u64>,
    /// The newest format of entries that is applied: [`wire::FORMAT`], but for tests.
    pub format: u32,
}

/// Work for the disk, to be done in the order given.
#[derive(Debug)]
pub(crate) enum Job {
    /// Append to the log and sync.
    Append { number: u64, hard_state: HardState, entries: Vec<Entry> },
    /// Replace everything by the leader's snapshot; the log starts anew behind it.
    Install { number: u64, hard_state: HardState, snapshot: Snapshot },
    /// Write the own state as a snapshot, then forget the log up to `base`.
    Snapshot { conf_state: ConfState, at: Position, base: Position, image: Image },
}

/// What [`Core::poll`] asks for.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub messages: Vec<Message>,
    pub jobs: Vec<Job>,
    pub committed: Vec<(Token, Result<Revision, CommitError>)>,
    pub changed: Vec<(Token, Result<(), ChangeError>)>,
}

struct Pending {
    at: Position,
    token: Token,
}

/// See the module's description.
pub(crate) struct Core {
    config: CoreConfig,
    raw: RawNode<MemLog>,
    space: Arc<Space>,
    hard_state: HardState,
    conf_state: ConfState,
    applied: Position,
    /// Why no entry is applied any more: the next one is newer than this code. Such a node is as if it were off; the
    /// others do without it until it is upgraded.
    halted: Option<String>,
    /// Proposals by index.
    pending: VecDeque<Pending>,
    pending_change: Option<Pending>,
    /// Numbers of the Readies whose jobs are not done.
    outstanding: VecDeque<u64>,
    /// Messages that must wait for jobs: the Ready's number and the messages.
    held: VecDeque<(u64, Vec<Message>)>,
    /// A snapshot that is being written: its Ready's number and its index. Raft must not campaign meanwhile.
    installing: Option<(u64, u64)>,
    /// The Ready that changed term or vote last.
    vote_number: u64,
    number: u64,
    out: Output,
    now: u64,
    heard: BTreeMap<u64, u64>,
    snapshot_sent: BTreeMap<u64, u64>,
    snapshot_made: u64,
    /// The newest snapshot on disk, and where the log may be cut once the next is there.
    snapshot_at: Position,
    snapshot_running: bool,
    /// After a failed snapshot, the tick before which none is tried.
    snapshot_not_before: u64,
    /// Log bytes right after the last compaction.
    bytes_kept: usize,
}

impl Core {
    pub(crate) fn new(config: CoreConfig, saved: Saved, space: Arc<Space>) -> Result<Self, raft::Error> {
        let mut saved = saved;
        let mut applied = saved.base;
        let mut conf_state = ConfState::default();
        if let Some(snapshot) = &mut saved.snapshot {
            let data = std::mem::take(&mut snapshot.data);
            let image = wire::decode_image(&data).map_err(|e| raft::Error::ConfigInvalid(e.to_string()))?;
            space.restore(image);
            let metadata = snapshot.get_metadata();
            applied = Position { index: metadata.index, term: metadata.term };
            conf_state = metadata.get_conf_state().clone();
            saved.hard_state.commit = saved.hard_state.commit.max(applied.index);
            saved.hard_state.term = saved.hard_state.term.max(applied.term);
        }
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: applied.index,
            max_size_per_msg: APPEND_BYTES,
            max_inflight_msgs: APPENDS_IN_FLIGHT,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            ..raft::Config::default()
        };
        let hard_state = saved.hard_state.clone();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, MemLog::new(saved), &logger)?;
        let mut core = Self {
            config,
            raw,
            space,
            hard_state,
            conf_state,
            applied,
            halted: None,
            pending: VecDeque::new(),
            pending_change: None,
            outstanding: VecDeque::new(),
            held: VecDeque::new(),
            installing: None,
            vote_number: 0,
            number: 0,
            out: Output::default(),
            now: 0,
            heard: BTreeMap::new(),
            snapshot_sent: BTreeMap::new(),
            snapshot_made: 0,
            snapshot_at: applied,
            snapshot_running: false,
            snapshot_not_before: 0,
            bytes_kept: 0,
        };
        core.bytes_kept = core.raw.store().bytes();
        core.seed_election();
        Ok(core)
    }

    pub(crate) fn tick(&mut self) {
        self.now += 1;
        if self.halted.is_some() {
            return;
        }
        // Raft asserts that whoever becomes leader has its whole log on disk; a lone voter elects itself at once.
        let log = &self.raw.raft.raft_log;
        let behind = self.is_only_voter() && log.persisted < log.last_index();
        if self.raw.raft.state == StateRole::Leader || !(behind || self.installing.is_some()) {
            self.raw.tick();
            self.seed_election();
        }
        self.expire_snapshots();
    }

    /// Asks for votes now. A lone voter need not wait for an election timeout.
    pub(crate) fn campaign_if_alone(&mut self) {
        if self.is_only_voter() {
            let _ = self.raw.campaign();
            self.seed_election();
        }
    }

    fn is_only_voter(&self) -> bool {
        self.conf_state.voters == [self.config.id] && !is_joint(&self.conf_state)
    }

    fn seed_election(&mut self) {
        if let Some(seed) = self.config.election_seed {
            let mix = (seed ^ self.config.id.wrapping_mul(0x9e37_79b9) ^ (self.raw.raft.term << 17))
                .wrapping_mul(0xff51_afd7_ed55_8ccd);
            let spread = (mix >> 33) as usize % self.config.election_ticks;
            self.raw.raft.set_randomized_election_timeout(self.config.election_ticks + spread);
        }
    }

    /// Takes a message from another member. One that no correct member would send is dropped.
    pub(crate) fn step(&mut self, message: Message) {
        if self.halted.is_some() {
            return;
        }
        if let Err(reason) = guard::check(&self.raw.raft, self.installing.is_some(), &message) {
            tracing::warn!(from = message.from, kind = ?message.msg_type(), reason, "dropped a Raft message");
            return;
        }
        self.heard.insert(message.from, self.now);
        if self.heard.len() > MEMBERS {
            let members: Vec<u64> = self.raw.raft.prs().iter().map(|(id, _)| *id).collect();
            self.heard.retain(|id, _| members.contains(id));
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(%error, "Raft did not take a message");
        }
        self.seed_election();
    }

    /// Appends transactions to the log, if this node leads.
    pub(crate) fn propose(&mut self, proposals: Vec<(Token, Vec<u8>)>) {
        if proposals.is_empty() {
            return;
        }
        let mut tokens = Vec::with_capacity(proposals.len());
        let mut message = Message { from: self.config.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        for (token, data) in proposals {
            tokens.push(token);
            message.entries.push(Entry { data, ..Entry::default() });
        }
        let first = self.raw.raft.raft_log.last_index() + 1;
        // A follower would pass the proposal on, and nobody could tell what became of it.
        let led = self.halted.is_none()
            && self.raw.raft.state == StateRole::Leader
            && self.raw.raft.step(message).is_ok();
        let term = self.raw.raft.term;
        for (offset, token) in tokens.into_iter().enumerate() {
            if led {
                let index = first + offset as u64;
                self.pending.push_back(Pending { at: Position { index, term }, token });
            } else {
                self.out.committed.push((token, Err(CommitError::NotLeader)));
            }
        }
    }

    /// Changes who is a member, if this node leads.
    pub(crate) fn change(&mut self, token: Token, change: &Change) {
        match self.propose_change(change) {
            Ok(Some(at)) => self.pending_change = Some(Pending { at, token }),
            Ok(None) => self.out.changed.push((token, Ok(()))),
            Err(error) => self.out.changed.push((token, Err(error))),
        }
    }

    fn propose_change(&mut self, change: &Change) -> Result<Option<Position>, ChangeError> {
        let raft = &self.raw.raft;
        if self.halted.is_some() || raft.state != StateRole::Leader || raft.lead_transferee.is_some() {
            return Err(ChangeError::NotLeader);
        }
        if self.pending_change.is_some() || raft.has_pending_conf() || is_joint(&self.conf_state) {
            return Err(ChangeError::InProgress);
        }
        let changes = change.steps(&self.conf_state)?;
        if changes.is_empty() {
            return Ok(None);
        }
        let change = ConfChangeV2 { changes, ..ConfChangeV2::default() };
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| ChangeError::NotLeader)?;
        let index = self.raw.raft.raft_log.last_index();
        Ok(Some(Position { index, term: self.raw.raft.term }))
    }

    pub(crate) fn transfer(&mut self, to: u64) {
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader && to != self.config.id && self.conf_state.voters.contains(&to) {
            self.raw.transfer_leader(to);
        }
    }

    /// Hands leadership to the voter that is furthest, because this node's disk fails. Whether there is one.
    pub(crate) fn step_aside(&mut self) -> bool {
        if self.raw.raft.state != StateRole::Leader || self.raw.raft.lead_transferee.is_some() {
            return false;
        }
        let best = self.raw.raft.prs().iter().filter(|(id, _)| self.conf_state.voters.contains(id));
        let best = best.filter(|(id, _)| **id != self.config.id && self.is_active(**id));
        let Some(to) = best.max_by_key(|(_, progress)| progress.matched).map(|(id, _)| *id) else {
            return false;
        };
        self.raw.transfer_leader(to);
        true
    }

    pub(crate) fn unreachable(&mut self, peer: u64) {
        self.raw.report_unreachable(peer);
    }

    /// Fails all that waits: the disk does not take it and no other voter could.
    pub(crate) fn fail_pending(&mut self, error: &CommitError) {
        let tokens = self.pending.drain(..).map(|p| (p.token, Err(error.clone())));
        self.out.committed.extend(tokens);
    }

    /// Whether commits depend on this node's disk alone.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_only_voter()
    }

    /// Whether nothing was ever saved or promised.
    pub(crate) fn is_pristine(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.hard_state == HardState::default()
            && self.raw.raft.term == 0
            && log.last_index() == 0
            && self.conf_state.voters.is_empty()
    }

    /// The jobs up to this number are on disk.
    pub(crate) fn persisted(&mut self, number: u64) {
        while self.outstanding.front().is_some_and(|&n| n <= number) {
            self.outstanding.pop_front();
        }
        self.release();
    }

    fn release(&mut self) {
        let done = self.outstanding.front().map_or(self.number, |&n| n - 1);
        self.raw.on_persist_ready(done);
        if let Some((_, index)) = self.installing.take_if(|(number, _)| *number <= done) {
            self.raw.advance_apply_to(index);
        }
        while self.held.front().is_some_and(|(number, _)| *number <= done) {
            if let Some((_, messages)) = self.held.pop_front() {
                self.out.messages.extend(messages);
            }
        }
    }

    /// Collects what is to be done.
    pub(crate) fn poll(&mut self) -> Output {
        while self.raw.has_ready() {
            let ready = self.raw.ready();
            self.take(ready);
        }
        if self.halted.is_some() {
            // What it would say or keep could be about entries that it has not applied.
            self.out.messages.clear();
            return std::mem::take(&mut self.out);
        }
        self.make_wanted_snapshot();
        self.note_sent_snapshots();
        self.snapshot_when_due();
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, mut ready: Ready) {
        let number = ready.number();
        self.number = number;
        if let Some(hard_state) = ready.hs() {
            let (term, vote) = (self.hard_state.term, self.hard_state.vote);
            if (term, vote) != (hard_state.term, hard_state.vote) {
                self.vote_number = number;
            }
            self.hard_state = hard_state.clone();
        }
        if ready.ss().is_some_and(|soft| soft.raft_state != StateRole::Leader) {
            self.lost_leadership();
        }
        self.lead(number, ready.take_messages());
        self.hold(number, ready.take_persisted_messages());
        if !ready.snapshot().is_empty() {
            self.install(number, ready.snapshot().clone());
        } else if ready.must_sync() {
            self.raw.mut_store().append(ready.entries());
            let entries = ready.take_entries();
            self.outstanding.push_back(number);
            self.out.jobs.push(Job::Append { number, hard_state: self.hard_state.clone(), entries });
        }
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        self.release();
        self.apply(committed);
    }

    /// A leader's messages go at once, once its vote for itself is on disk. Raft takes that for granted, but a lone
    /// voter leads in the same breath as it votes: were the vote lost, it could lead the same term twice.
    fn lead(&mut self, number: u64, messages: Vec<Message>) {
        let saved = self.outstanding.front().map_or(number, |&n| n) > self.vote_number;
        if saved || messages.is_empty() {
            self.out.messages.extend(messages);
        } else {
            self.held.push_back((number, messages));
        }
    }

    /// Messages that promise something wait for the disk; those that promise nothing go at once, so that a slow disk
    /// does not look like a dead node.
    fn hold(&mut self, number: u64, messages: Vec<Message>) {
        let (free, held): (Vec<_>, Vec<_>) = messages.into_iter().partition(|m| {
            matches!(
                m.msg_type(),
                MessageType::MsgHeartbeatResponse
                    | MessageType::MsgRequestPreVote
                    | MessageType::MsgRequestPreVoteResponse
            )
        });
        self.out.messages.extend(free);
        if !held.is_empty() {
            self.held.push_back((number, held));
        }
    }

    fn install(&mut self, number: u64, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        let at = Position { index: metadata.index, term: metadata.term };
        self.conf_state = metadata.get_conf_state().clone();
        // `guard` has decoded it before.
        match wire::decode_image(&snapshot.data) {
            Ok(image) => self.space.restore(image),
            Err(error) => tracing::error!(%error, "a snapshot changed in memory"),
        }
        self.raw.mut_store().reset(at);
        self.applied = at;
        self.snapshot_at = at;
        self.bytes_kept = 0;
        self.installing = Some((number, at.index));
        self.outstanding.push_back(number);
        self.out.jobs.push(Job::Install { number, hard_state: self.hard_state.clone(), snapshot });
    }

    fn lost_leadership(&mut self) {
        self.fail_pending(&CommitError::Unknown);
        if let Some(change) = self.pending_change.take() {
            self.out.changed.push((change.token, Err(ChangeError::Lost)));
        }
        self.snapshot_sent.clear();
        self.raw.mut_store().snapshot = None;
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last() else { return };
        let last = Position { index: last.index, term: last.term };
        let mut run = Vec::new();
        for entry in entries {
            match entry.entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {
                    self.applied = Position { index: entry.index, term: entry.term };
                }
                EntryType::EntryNormal => run.push(entry),
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_run(std::mem::take(&mut run));
                    if self.halted.is_some() {
                        return;
                    }
                    self.apply_change(&entry);
                }
            }
        }
        self.apply_run(run);
        if self.halted.is_some() {
            return;
        }
        self.applied = last;
        self.raw.advance_apply_to(last.index);
        self.finish_change();
        self.leave_if_removed();
    }

    fn apply_run(&mut self, mut entries: Vec<Entry>) {
        if self.halted.is_some() {
            return;
        }
        if let Some(newer) = entries.iter().position(|entry| wire::needs(&entry.data) > self.config.format) {
            self.halt(&entries[newer]);
            entries.truncate(newer);
        }
        let mut positions = Vec::with_capacity(entries.len());
        let mut txns = Vec::with_capacity(entries.len());
        for entry in entries {
            let at = Position { index: entry.index, term: entry.term };
            match wire::decode_txn(Bytes::from(entry.data)) {
                Ok(txn) => {
                    positions.push(at);
                    txns.push(txn);
                }
                // Every replica skips it alike.
                Err(error) => tracing::error!(index = at.index, %error, "skipped an entry"),
            }
        }
        if txns.is_empty() {
            return;
        }
        let results = self.space.apply(txns);
        for (at, result) in positions.into_iter().zip(results) {
            let result = result.map_err(|c| CommitError::Conflict { key: c.key, current: c.current });
            self.answer(at, result);
        }
    }

    fn halt(&mut self, newer: &Entry) {
        let why = wire::too_new(wire::needs(&newer.data), self.config.format);
        tracing::error!(index = newer.index, "{why}");
        self.halted = Some(why);
        self.lost_leadership();
    }

    fn answer(&mut self, at: Position, result: Result<Revision, CommitError>) {
        while self.pending.front().is_some_and(|p| p.at.index <= at.index) {
            let Some(pending) = self.pending.pop_front() else { break };
            let result = if pending.at == at { result.clone() } else { Err(CommitError::Unknown) };
            self.out.committed.push((pending.token, result));
        }
    }

    fn apply_change(&mut self, entry: &Entry) {
        let change = match entry.entry_type() {
            EntryType::EntryConfChange => {
                ConfChange::decode(entry.data.as_slice()).map(|c| raft_change_v2(&c))
            }
            _ => ConfChangeV2::decode(entry.data.as_slice()),
        };
        match change.map(|change| self.raw.apply_conf_change(&change)) {
            Ok(Ok(conf_state)) => self.conf_state = conf_state,
            Ok(Err(error)) => tracing::error!(%error, index = entry.index, "refused a membership change"),
            Err(error) => tracing::error!(%error, index = entry.index, "skipped a membership change"),
        }
        let members: Vec<u64> = self.raw.raft.prs().iter().map(|(id, _)| *id).collect();
        self.snapshot_sent.retain(|id, _| members.contains(id));
    }

    fn finish_change(&mut self) {
        let done = self.pending_change.as_ref().is_some_and(|c| c.at.index <= self.applied.index);
        if done
            && !is_joint(&self.conf_state)
            && let Some(change) = self.pending_change.take()
        {
            self.out.changed.push((change.token, Ok(())));
        }
    }

    fn leave_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        let votes = self.conf_state.voters.contains(&self.config.id)
            || self.conf_state.voters_outgoing.contains(&self.config.id);
        if raft.state == StateRole::Leader && !votes {
            let term = raft.term;
            raft.become_follower(term, 0);
        }
    }

    fn is_active(&self, id: u64) -> bool {
        let limit = 2 * self.config.election_ticks as u64;
        self.heard.get(&id).is_some_and(|at| self.now - at <= limit)
    }
}

fn raft_change_v2(change: &ConfChange) -> ConfChangeV2 {
    let single = raft::eraftpb::ConfChangeSingle { change_type: change.change_type, node_id: change.node_id };
    ConfChangeV2 { changes: vec![single], ..ConfChangeV2::default() }
}

#[cfg(test)]
mod tests;
