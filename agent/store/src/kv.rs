//! The door to a key-value space: what the API server sees of the store.

use std::sync::Arc;

use bytes::Bytes;

/// A point in a space's history. Each applied transaction that changes something makes the next one.
pub type Revision = u64;

/// One stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The full key.
    pub key: Arc<str>,
    /// The stored bytes.
    pub value: Bytes,
    /// The revision that created the key (since it last did not exist).
    pub created: Revision,
    /// The revision that last changed the key.
    pub modified: Revision,
}

/// What must hold for a key before a transaction is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists and was last modified at this revision.
    Modified(Revision),
    /// As [`Expect::Modified`], and the key is left as it is: a condition of the transaction, not a change. The
    /// write's value is not looked at.
    Stays(Revision),
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The full key.
    pub key: String,
    /// What must hold before.
    pub expect: Expect,
    /// The new value, or `None` to delete.
    pub value: Option<Bytes>,
}

/// Writes that are applied all or none, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The writes, in order; a key at most once.
    pub writes: Vec<Write>,
}

impl Txn {
    /// The format that a replica must know to apply it.
    pub(crate) fn needs(&self) -> u32 {
        u32::from(self.writes.iter().any(|write| matches!(write.expect, Expect::Stays(_))))
    }

    /// Does without what members of a format below 1 do not understand: [`Expect::Stays`] is checked now instead of
    /// when the transaction is applied.
    ///
    /// # Errors
    /// If such a condition does not hold.
    pub(crate) fn for_format_0(mut self, get: impl Fn(&str) -> Option<Record>) -> Result<Self, CommitError> {
        for write in &self.writes {
            let Expect::Stays(revision) = write.expect else { continue };
            let current = get(&write.key);
            if current.as_ref().is_none_or(|record| record.modified != revision) {
                return Err(CommitError::Conflict { key: write.key.clone(), current });
            }
        }
        self.writes.retain(|write| !matches!(write.expect, Expect::Stays(_)));
        Ok(self)
    }
}

/// One change as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change.
    pub revision: Revision,
    /// The full key.
    pub key: Arc<str>,
    /// The record after the change; `None` when it was deleted.
    pub current: Option<Record>,
    /// The record before the change; `None` when it was created.
    pub previous: Option<Record>,
}

/// A page of records.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Records in key order.
    pub records: Vec<Record>,
    /// The space's revision at the moment of the read.
    pub revision: Revision,
    /// Whether keys after the last one were left out because of the limit.
    pub more: bool,
    /// How many keys were left out, when `more`.
    pub remaining: usize,
}

/// Why a commit did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// An expectation did not hold. Nothing was written.
    #[error("{key}: changed meanwhile")]
    Conflict {
        /// The key whose expectation failed.
        key: String,
        /// The record as it is now.
        current: Option<Record>,
    },
    /// This node does not lead. Nothing was written.
    #[error("this node is not the leader")]
    NotLeader,
    /// Leadership was lost while the write was under way: it may or may not have been applied.
    #[error("the leader changed while the write was under way")]
    Unknown,
    /// The transaction is larger than a log entry may be. Nothing was written.
    #[error("the write has {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Bytes asked for.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The disk refused (full, read-only, broken). Nothing was acknowledged.
    #[error("the disk does not take writes: {0}")]
    Disk(String),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// The history asked for is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is too old, the oldest kept is {oldest}")]
pub struct Compacted {
    /// The revision asked for.
    pub asked: Revision,
    /// The oldest revision from which a watch may start.
    pub oldest: Revision,
}

/// A stream of changes under a prefix, in revision order, without gaps.
#[async_trait::async_trait]
pub trait Watch: Send {
    /// The next change. `None` when the store closed, leadership was lost, or this watcher fell so far behind that
    /// its events were dropped (it must list again).
    async fn next(&mut self) -> Option<Arc<Event>>;
    /// All events up to this revision that concern this watch have been returned by `next` (for bookmarks).
    fn progress(&self) -> Revision;
}

/// A key-value space with history.
#[async_trait::async_trait]
pub trait Kv: Send + Sync + 'static {
    /// One record.
    fn get(&self, key: &str) -> Option<Record>;
    /// Records whose keys start with `prefix` and come after `after` (exclusive), at most `limit` (0: all).
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page;
    /// What [`Kv::list`] would have given when `at` was the newest revision.
    fn list_at(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Page, Compacted>;
    /// The newest applied revision.
    fn revision(&self) -> Revision;
    /// Applies a transaction; the revision it was applied at. A transaction without effect (deleting what is not
    /// there) returns the present revision.
    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError>;
    /// Changes after `after` (exclusive) under `prefix`.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Compacted>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_older_members_do_not_know_is_checked_before() {
        let record = Record { key: Arc::from("/home"), value: Bytes::new(), created: 1, modified: 4 };
        let get = |key: &str| (key == "/home").then(|| record.clone());
        let write = Write { key: "/a".into(), expect: Expect::Absent, value: Some(Bytes::new()) };
        let txn = |key: &str, at| Txn {
            writes: vec![Write { key: key.into(), expect: Expect::Stays(at), value: None }, write.clone()],
        };
        assert_eq!(txn("/home", 4).needs(), 1);
        let older = txn("/home", 4).for_format_0(get).unwrap();
        assert_eq!(older, Txn { writes: vec![write.clone()] });
        assert_eq!(older.needs(), 0);
        let conflict = CommitError::Conflict { key: "/home".into(), current: Some(record.clone()) };
        assert_eq!(txn("/home", 3).for_format_0(get), Err(conflict));
        let conflict = CommitError::Conflict { key: "/gone".into(), current: None };
        assert_eq!(txn("/gone", 4).for_format_0(get), Err(conflict));
    }
}
