//! The state machine: records by key, the revision counter, the history that watches replay and the watchers.
//!
//! One lock guards all of it. Writers hold it for one batch of applied transactions, readers for one read, so a read
//! from any thread waits for no disk and no network.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;

use crate::kv::{Compacted, Event, Expect, Page, Record, Revision, Txn, Watch};
use crate::wire::Image;

/// How much a space remembers for watches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Events kept.
    pub events: usize,
    /// Bytes of keys and values in the events kept, and in those that wait for one watcher.
    pub bytes: usize,
    /// Events that may wait for one watcher before it is dropped.
    pub queue: usize,
}

/// An expectation that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub key: String,
    pub current: Option<Record>,
}

/// See the module's description.
pub(crate) struct Space {
    inner: RwLock<Inner>,
    /// The revision whose events are all in the watchers' queues.
    published: AtomicU64,
}

struct Inner {
    records: BTreeMap<Arc<str>, Record>,
    revision: Revision,
    history: History,
    watchers: Watchers,
    limits: Limits,
}

impl Space {
    pub(crate) fn new(revision: Revision, limits: Limits) -> Arc<Self> {
        let history = History { compacted: revision, ..History::default() };
        let inner =
            Inner { records: BTreeMap::new(), revision, history, watchers: Watchers::default(), limits };
        Arc::new(Self { inner: RwLock::new(inner), published: AtomicU64::new(revision) })
    }

    // A panic while the lock is held would be a defect of this module; the data stays readable all the same.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &str) -> Option<Record> {
        self.read().records.get(key).cloned()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.read().revision
    }

    pub(crate) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let inner = self.read();
        page(inner.after(prefix, after), limit, inner.revision)
    }

    /// The page as it was at an earlier revision: what the history tells to have changed since is taken back.
    pub(crate) fn list_at(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Page, Compacted> {
        let inner = self.read();
        let mut then: BTreeMap<&str, Option<&Record>> = BTreeMap::new();
        for event in inner.history.since(at)?.filter(|event| event.key.starts_with(prefix)) {
            then.entry(&event.key).or_insert(event.previous.as_ref());
        }
        if then.is_empty() {
            return Ok(page(inner.after(prefix, after), limit, at));
        }
        let mut records: BTreeMap<&str, &Record> =
            inner.after(prefix, after).map(|record| (&*record.key, record)).collect();
        for (key, record) in then {
            match record {
                Some(record) if after.is_none_or(|after| key > after) => {
                    records.insert(key, record);
                }
                _ => {
                    records.remove(key);
                }
            }
        }
        Ok(page(records.into_values(), limit, at))
    }

    /// Applies transactions in order and tells the watchers.
    pub(crate) fn apply(&self, txns: impl IntoIterator<Item = Txn>) -> Vec<Result<Revision, Conflict>> {
        let mut inner = self.write();
        let results = txns.into_iter().map(|txn| inner.apply(txn)).collect();
        self.published.store(inner.revision, Ordering::Release);
        results
    }

    /// All records as they are now.
    pub(crate) fn image(&self) -> Image {
        let inner = self.read();
        Image { revision: inner.revision, records: inner.records.values().cloned().collect() }
    }

    /// Takes over another's state. The changes in between are unknown, so all watches end.
    pub(crate) fn restore(&self, image: Image) {
        let mut inner = self.write();
        inner.watchers = Watchers::default();
        inner.history = History { compacted: image.revision, ..History::default() };
        inner.revision = image.revision;
        inner.records = image.records.into_iter().map(|r| (Arc::clone(&r.key), r)).collect();
        self.published.store(image.revision, Ordering::Release);
    }

    /// Ends all watches; those who read them see `None` after what is queued.
    pub(crate) fn end_watches(&self) {
        self.write().watchers = Watchers::default();
    }

    pub(crate) fn watch(
        self: &Arc<Self>,
        prefix: &str,
        after: Revision,
    ) -> Result<Box<dyn Watch>, Compacted> {
        let mut inner = self.write();
        let backlog = inner.history.replay(prefix, after)?;
        let (sender, queue) = mpsc::channel(inner.limits.queue.max(1));
        let prefix: Arc<str> = Arc::from(prefix);
        let waiting = Arc::new(AtomicUsize::new(0));
        let id = inner.watchers.add(Arc::clone(&prefix), after, sender, Arc::clone(&waiting));
        let space = Arc::clone(self);
        Ok(Box::new(SpaceWatch { space, prefix, id, backlog, queue, waiting, reached: after }))
    }
}

/// The first `limit` (0: all) of these.
fn page<'a>(mut matching: impl Iterator<Item = &'a Record>, limit: usize, revision: Revision) -> Page {
    let mut page = Page { revision, ..Page::default() };
    if limit == 0 {
        page.records.extend(matching.cloned());
    } else {
        page.records.extend(matching.by_ref().take(limit).cloned());
        page.remaining = matching.count();
        page.more = page.remaining > 0;
    }
    page
}

impl Inner {
    /// The records under a prefix, after a key.
    fn after<'a>(&'a self, prefix: &'a str, after: Option<&str>) -> impl Iterator<Item = &'a Record> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = self.records.range::<str, _>((start, Bound::Unbounded));
        range.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, record)| record)
    }

    fn apply(&mut self, txn: Txn) -> Result<Revision, Conflict> {
        for write in &txn.writes {
            let current = self.records.get(write.key.as_str());
            let holds = match write.expect {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::Modified(revision) | Expect::Stays(revision) => {
                    current.is_some_and(|r| r.modified == revision)
                }
            };
            if !holds {
                return Err(Conflict { key: write.key.clone(), current: current.cloned() });
            }
        }
        let revision = self.revision + 1;
        let changes = txn.writes.into_iter().filter(|write| !matches!(write.expect, Expect::Stays(_)));
        for write in changes {
            let event = match write.value {
                Some(value) => self.put(&write.key, value, revision),
                None => self.delete(&write.key, revision),
            };
            if let Some(event) = event {
                self.revision = revision;
                let event = Arc::new(event);
                self.watchers.publish(&event, &self.limits);
                self.history.push(event, &self.limits);
            }
        }
        Ok(self.revision)
    }

    fn put(&mut self, key: &str, value: bytes::Bytes, revision: Revision) -> Option<Event> {
        let previous = self.records.get(key).cloned();
        let key = previous.as_ref().map_or_else(|| Arc::from(key), |p| Arc::clone(&p.key));
        let created = previous.as_ref().map_or(revision, |p| p.created);
        let record = Record { key: Arc::clone(&key), value, created, modified: revision };
        self.records.insert(Arc::clone(&key), record.clone());
        Some(Event { revision, key, current: Some(record), previous })
    }

    fn delete(&mut self, key: &str, revision: Revision) -> Option<Event> {
        let previous = self.records.remove(key)?;
        Some(Event { revision, key: Arc::clone(&previous.key), current: None, previous: Some(previous) })
    }
}

/// The newest events, bounded in number and bytes.
#[derive(Default)]
struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Events up to this revision may be gone.
    compacted: Revision,
}

impl History {
    fn push(&mut self, event: Arc<Event>, limits: &Limits) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.events.len() > limits.events || self.bytes > limits.bytes {
            let Some(gone) = self.events.pop_front() else { break };
            self.bytes -= weight(&gone);
            self.compacted = gone.revision;
        }
    }

    fn replay(&self, prefix: &str, after: Revision) -> Result<VecDeque<Arc<Event>>, Compacted> {
        Ok(self.since(after)?.filter(|event| event.key.starts_with(prefix)).cloned().collect())
    }

    /// The events after a revision.
    fn since(&self, after: Revision) -> Result<impl Iterator<Item = &Arc<Event>>, Compacted> {
        if after < self.compacted {
            return Err(Compacted { asked: after, oldest: self.compacted });
        }
        let start = self.events.partition_point(|event| event.revision <= after);
        Ok(self.events.range(start..))
    }
}

fn weight(event: &Event) -> usize {
    let value = |record: &Option<Record>| record.as_ref().map_or(0, |r| r.value.len());
    event.key.len() + value(&event.current) + value(&event.previous) + 128
}

/// Watchers by the prefix they watch. An event costs one look-up per distinct prefix length and one queue push per
/// watcher that wants it.
#[derive(Default)]
struct Watchers {
    by_prefix: HashMap<Arc<str>, Vec<Watcher>>,
    /// How many distinct prefixes have this length.
    lengths: BTreeMap<usize, usize>,
    next_id: u64,
}

struct Watcher {
    id: u64,
    after: Revision,
    queue: mpsc::Sender<Arc<Event>>,
    /// Bytes of events in the queue.
    waiting: Arc<AtomicUsize>,
}

impl Watcher {
    /// Hands over an event; false when this watcher has ended, or does not read.
    fn send(&self, event: &Arc<Event>, limits: &Limits) -> bool {
        let size = weight(event);
        let waiting = self.waiting.fetch_add(size, Ordering::Relaxed);
        // The history forgets what a queue would keep: a few large objects must not take a small node's memory.
        (waiting == 0 || waiting + size <= limits.bytes) && self.queue.try_send(Arc::clone(event)).is_ok()
    }
}

impl Watchers {
    fn add(
        &mut self,
        prefix: Arc<str>,
        after: Revision,
        queue: mpsc::Sender<Arc<Event>>,
        waiting: Arc<AtomicUsize>,
    ) -> u64 {
        self.next_id += 1;
        let length = prefix.len();
        let watchers = self.by_prefix.entry(prefix).or_default();
        if watchers.is_empty() {
            *self.lengths.entry(length).or_default() += 1;
        }
        watchers.push(Watcher { id: self.next_id, after, queue, waiting });
        self.next_id
    }

    fn remove(&mut self, prefix: &str, id: u64) {
        if let Some(watchers) = self.by_prefix.get_mut(prefix) {
            watchers.retain(|watcher| watcher.id != id);
            self.forget_if_empty(prefix);
        }
    }

    fn forget_if_empty(&mut self, prefix: &str) {
        if self.by_prefix.get(prefix).is_some_and(Vec::is_empty) {
            self.by_prefix.remove(prefix);
            if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        }
    }

    fn publish(&mut self, event: &Arc<Event>, limits: &Limits) {
        let mut emptied = Vec::new();
        for &length in self.lengths.keys() {
            let Some(prefix) = event.key.get(..length) else { continue };
            let Some(watchers) = self.by_prefix.get_mut(prefix) else { continue };
            // A full queue means a watcher that does not read: it ends, and lists again if it still lives.
            watchers.retain(|w| event.revision <= w.after || w.send(event, limits));
            if watchers.is_empty() {
                emptied.push(prefix);
            }
        }
        for prefix in emptied {
            self.forget_if_empty(prefix);
        }
    }
}

struct SpaceWatch {
    space: Arc<Space>,
    prefix: Arc<str>,
    id: u64,
    backlog: VecDeque<Arc<Event>>,
    queue: mpsc::Receiver<Arc<Event>>,
    waiting: Arc<AtomicUsize>,
    /// The revision of the event returned last.
    reached: Revision,
}

#[async_trait::async_trait]
impl Watch for SpaceWatch {
    async fn next(&mut self) -> Option<Arc<Event>> {
        let event = match self.backlog.pop_front() {
            Some(event) => event,
            None => {
                let event = self.queue.recv().await?;
                self.waiting.fetch_sub(weight(&event), Ordering::Relaxed);
                event
            }
        };
        self.reached = event.revision;
        Some(event)
    }

    fn progress(&self) -> Revision {
        // The order counts: what was published before this load is in the queue already.
        let published = self.space.published.load(Ordering::Acquire);
        let ended = self.queue.is_closed();
        if self.backlog.is_empty() && self.queue.is_empty() {
            return if ended { self.reached } else { published.max(self.reached) };
        }
        // The next event may be of the same transaction as the last one.
        self.reached.saturating_sub(1)
    }
}

impl Drop for SpaceWatch {
    fn drop(&mut self) {
        self.space.write().watchers.remove(&self.prefix, self.id);
    }
}

#[cfg(test)]
mod tests;
