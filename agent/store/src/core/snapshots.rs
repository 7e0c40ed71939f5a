//! Snapshots: those that cut this node's log, and those that bring a follower up to date.

use raft::eraftpb::{ConfState, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};

use super::{Core, Job};
use crate::memlog::Position;
use crate::wire::{self, Image};

/// Ticks for which a snapshot made for a follower is kept for the next one.
const SNAPSHOT_KEPT_TICKS: u64 = 50;
/// Ticks after which a snapshot that was sent and not answered counts as lost.
const SNAPSHOT_LOST_TICKS: u64 = 100;
/// Ticks between attempts to write a snapshot that the disk refused.
const SNAPSHOT_RETRY_TICKS: u64 = 100;

impl Core {
    pub(super) fn expire_snapshots(&mut self) {
        if self.raw.store().snapshot.is_some() && self.now - self.snapshot_made > SNAPSHOT_KEPT_TICKS {
            self.raw.mut_store().snapshot = None;
        }
        let now = self.now;
        let lost = |sent: &u64| now - sent > SNAPSHOT_LOST_TICKS;
        let expired: Vec<u64> =
            self.snapshot_sent.iter().filter(|(_, at)| lost(at)).map(|(id, _)| *id).collect();
        for id in expired {
            self.snapshot_sent(id, false);
        }
    }

    pub(crate) fn snapshot_sent(&mut self, peer: u64, ok: bool) {
        self.snapshot_sent.remove(&peer);
        self.raw.report_snapshot(peer, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// The snapshot job is done; `at` is where, `None` when it failed.
    pub(crate) fn snapshotted(&mut self, at: Option<Position>) {
        self.snapshot_running = false;
        match at {
            // A snapshot that the leader sent meanwhile is newer.
            Some(at) if at.index > self.snapshot_at.index => {
                let base = self.snapshot_at.index;
                self.raw.mut_store().compact(base);
                self.snapshot_at = at;
            }
            Some(_) => {}
            None => self.snapshot_not_before = self.now + SNAPSHOT_RETRY_TICKS,
        }
        self.bytes_kept = self.raw.store().bytes();
    }

    pub(super) fn make_wanted_snapshot(&mut self) {
        if !self.raw.store().snapshot_wanted.replace(false) {
            return;
        }
        let snapshot = snapshot(self.space.image(), self.applied, self.conf_state.clone());
        self.snapshot_made = self.now;
        self.raw.mut_store().snapshot = Some(snapshot);
    }

    pub(super) fn note_sent_snapshots(&mut self) {
        for message in self.out.messages.iter().filter(|m| m.msg_type() == MessageType::MsgSnapshot) {
            self.snapshot_sent.insert(message.to, self.now);
        }
        let prs = self.raw.raft.prs();
        self.snapshot_sent.retain(|id, _| prs.get(*id).is_some_and(|p| p.state == ProgressState::Snapshot));
    }

    pub(super) fn snapshot_when_due(&mut self) {
        let entries = self.applied.index - self.snapshot_at.index;
        let bytes = self.raw.store().bytes().saturating_sub(self.bytes_kept);
        let due = entries >= self.config.snapshot_entries || bytes >= self.config.snapshot_bytes;
        // With nothing applied since the last one, a new snapshot could not cut the log.
        if !due
            || entries == 0
            || self.halted.is_some()
            || self.snapshot_running
            || self.now < self.snapshot_not_before
        {
            return;
        }
        self.snapshot_running = true;
        self.out.jobs.push(Job::Snapshot {
            conf_state: self.conf_state.clone(),
            at: self.applied,
            base: self.snapshot_at,
            image: self.space.image(),
        });
    }
}

/// The state a new cluster begins with: this node the only voter, nothing stored.
pub(crate) fn first_snapshot(id: u64) -> Snapshot {
    let voters = ConfState { voters: vec![id], ..ConfState::default() };
    snapshot(Image::default(), Position { index: 1, term: 1 }, voters)
}

fn snapshot(image: Image, at: Position, members: ConfState) -> Snapshot {
    let mut snapshot = Snapshot { data: wire::encode_image(image), ..Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (at.index, at.term);
    metadata.set_conf_state(members);
    snapshot
}
