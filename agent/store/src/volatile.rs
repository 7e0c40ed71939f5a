//! A key-value space in memory alone, for what must never wear a card.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::kv::{CommitError, Compacted, Kv, Page, Record, Revision, Txn, Watch};
use crate::space::{Limits, Space};
use crate::wire::Image;

/// A space that is empty after every restart. Its revisions begin at the clock's milliseconds and so are larger than
/// those of an earlier process or leader, as long as fewer than a thousand commits a second are made and the clock
/// does not go back.
#[derive(Clone)]
pub struct Volatile {
    space: Arc<Space>,
}

impl Volatile {
    /// An empty space that keeps `history` events for watches.
    pub fn new(history: usize) -> Self {
        let limits = Limits { events: history, bytes: 4 << 20, queue: 4096 };
        Self { space: Space::new(now(), limits) }
    }

    /// Forgets everything and ends all watches: this node leads no longer, or begins to.
    pub fn reset(&self) {
        let revision = now().max(self.space.revision() + 1);
        self.space.restore(Image { revision, records: Vec::new() });
    }
}

impl Default for Volatile {
    fn default() -> Self {
        Self::new(4096)
    }
}

fn now() -> Revision {
    // Before 1970 there is no clock at all; any start will do.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as Revision)
}

#[async_trait::async_trait]
impl Kv for Volatile {
    fn get(&self, key: &str) -> Option<Record> {
        self.space.get(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        self.space.list(prefix, after, limit)
    }

    fn list_at(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Page, Compacted> {
        self.space.list_at(prefix, after, limit, at)
    }

    fn revision(&self) -> Revision {
        self.space.revision()
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        match self.space.apply([txn]).pop() {
            Some(Ok(revision)) => Ok(revision),
            Some(Err(conflict)) => {
                Err(CommitError::Conflict { key: conflict.key, current: conflict.current })
            }
            None => Ok(self.space.revision()),
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Compacted> {
        self.space.watch(prefix, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Expect, Write};

    #[tokio::test]
    async fn a_reset_forgets_ends_watches_and_goes_on_counting() {
        let space = Volatile::default();
        let lease = Txn {
            writes: vec![Write { key: "/lease".into(), expect: Expect::Absent, value: Some("x".into()) }],
        };
        let first = space.commit(lease.clone()).await.unwrap();
        assert!(matches!(space.commit(lease.clone()).await, Err(CommitError::Conflict { .. })));
        let mut watch = space.watch("/", first).unwrap();
        space.reset();
        assert!(watch.next().await.is_none());
        assert!(space.get("/lease").is_none());
        assert!(space.commit(lease).await.unwrap() > first);
    }
}
