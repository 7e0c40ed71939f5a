//! The part of the Raft log that is in memory: everything after the log's base. Raft reads entries here, the disk only
//! receives them, so a read never waits for a card.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// What was found on disk: where a node starts from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    pub hard_state: HardState,
    /// Index and term of the last entry that is no longer in the log.
    pub base: Position,
    pub entries: Vec<Entry>,
    pub snapshot: Option<Snapshot>,
}

/// An entry's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub index: u64,
    pub term: u64,
}

/// See the module's description.
pub(crate) struct MemLog {
    initial: RaftState,
    base: Position,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// A fresh snapshot for a follower that needs one.
    pub(crate) snapshot: Option<Snapshot>,
    /// Raft asked for a snapshot that is not there.
    pub(crate) snapshot_wanted: Cell<bool>,
}

impl MemLog {
    /// `conf_state` is the configuration at the snapshot's index.
    pub(crate) fn new(saved: Saved) -> Self {
        let conf_state = saved.snapshot.as_ref().map(|s| s.get_metadata().get_conf_state().clone());
        let bytes = saved.entries.iter().map(size).sum();
        Self {
            initial: RaftState::new(saved.hard_state, conf_state.unwrap_or_default()),
            base: saved.base,
            entries: saved.entries.into(),
            bytes,
            snapshot: None,
            snapshot_wanted: Cell::new(false),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn last(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    pub(crate) fn base(&self) -> Position {
        self.base
    }

    /// Appends entries, cutting off what they replace.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.last() >= first.index && !self.entries.is_empty() {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        debug_assert_eq!(self.last() + 1, first.index, "Raft appends without gaps");
        self.bytes += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets everything: a snapshot took its place.
    pub(crate) fn reset(&mut self, base: Position) {
        self.base = base;
        self.entries.clear();
        self.bytes = 0;
        self.snapshot = None;
    }

    /// Forgets the entries up to `index`.
    pub(crate) fn compact(&mut self, index: u64) {
        while self.base.index < index {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= size(&entry);
            self.base = Position { index: entry.index, term: entry.term };
        }
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        let offset = index.checked_sub(self.base.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?).map(|entry| entry.term)
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 32
}

impl Storage for MemLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let range = (low - self.base.index - 1) as usize..(high - self.base.index - 1) as usize;
        let mut total = 0;
        let within = self.entries.range(range).take_while(|entry| {
            let first = total == 0;
            total += size(entry) as u64;
            first || total <= limit
        });
        Ok(within.cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.base.index => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let needed = request_index.max(self.base.index).max(1);
        match &self.snapshot {
            Some(snapshot) if snapshot.get_metadata().index >= needed => Ok(snapshot.clone()),
            _ => {
                self.snapshot_wanted.set(true);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

/// Whether a change of members is half done: both the old and the new majority are needed.
pub(crate) fn is_joint(conf: &ConfState) -> bool {
    !conf.voters_outgoing.is_empty()
}
