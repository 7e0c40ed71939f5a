//! A keyed work queue: a key is waiting at most once, is never worked on twice at a time, and waits longer each time
//! it fails. Pure: time comes in as an argument.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// First wait after a failure.
const BACK_OFF_FIRST: Duration = Duration::from_millis(25);
/// Longest wait after failures.
const BACK_OFF_MAX: Duration = Duration::from_secs(8);

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    working: HashSet<K>,
    dirty: HashSet<K>,
    later: BTreeSet<(Instant, K)>,
    due: BTreeMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    pub(crate) fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            working: HashSet::new(),
            dirty: HashSet::new(),
            later: BTreeSet::new(),
            due: BTreeMap::new(),
            failures: HashMap::new(),
        }
    }

    /// Something changed: look at this key as soon as possible. A key that is failing keeps its wait.
    pub(crate) fn add(&mut self, key: K) {
        if self.working.contains(&key) {
            self.dirty.insert(key);
        } else if !self.failures.contains_key(&key) || !self.due.contains_key(&key) {
            self.push(key);
        }
    }

    /// Look at this key at `when`, or sooner.
    pub(crate) fn add_at(&mut self, key: K, when: Instant) {
        match self.due.get(&key) {
            Some(due) if *due <= when => return,
            Some(due) => {
                self.later.remove(&(*due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), when);
        self.later.insert((when, key));
    }

    /// When the next key is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(when, _)| *when)
    }

    /// Makes everything that is due ready.
    pub(crate) fn promote(&mut self, now: Instant) {
        while let Some((when, key)) = self.later.first().cloned() {
            if when > now {
                break;
            }
            self.later.remove(&(when, key.clone()));
            self.due.remove(&key);
            if self.working.contains(&key) {
                self.dirty.insert(key);
            } else {
                self.push(key);
            }
        }
    }

    /// The next key to work on.
    pub(crate) fn pop(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// Work on the key succeeded.
    pub(crate) fn done(&mut self, key: &K) {
        self.working.remove(key);
        self.failures.remove(key);
        if self.dirty.remove(key) {
            self.push(key.clone());
        }
    }

    /// Work on the key failed: again after a while, at least `at_least`.
    pub(crate) fn failed(&mut self, key: &K, now: Instant, at_least: Duration) {
        self.working.remove(key);
        self.dirty.remove(key);
        let failures = self.failures.entry(key.clone()).or_insert(0);
        let wait = BACK_OFF_FIRST.saturating_mul(1 << (*failures).min(16)).min(BACK_OFF_MAX).max(at_least);
        *failures += 1;
        if let Some(due) = self.due.remove(key) {
            self.later.remove(&(due, key.clone()));
        }
        self.add_at(key.clone(), now + wait);
    }

    fn push(&mut self, key: K) {
        if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_once_and_is_not_worked_on_twice_at_a_time() {
        let mut queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.pop(), Some("a"));
        assert_eq!(queue.pop(), None);
        queue.add("a");
        assert_eq!(queue.pop(), None, "still being worked on");
        queue.done(&"a");
        assert_eq!(queue.pop(), Some("a"), "changed meanwhile");
        queue.done(&"a");
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn failures_wait_longer_each_time_and_success_resets() {
        let mut queue = Queue::new();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        queue.add("a");
        for _ in 0..12 {
            assert_eq!(queue.pop(), Some("a"));
            queue.failed(&"a", now, Duration::ZERO);
            queue.add("a");
            assert_eq!(queue.pop(), None, "news does not shorten the wait");
            let due = queue.next_due().unwrap();
            waits.push(due - now);
            now = due;
            queue.promote(now);
        }
        assert!(waits.windows(2).all(|w| w[0] < w[1] || w[1] == BACK_OFF_MAX));
        assert_eq!(waits.last(), Some(&BACK_OFF_MAX));
        queue.pop();
        queue.done(&"a");
        queue.add("a");
        queue.pop();
        queue.failed(&"a", now, Duration::ZERO);
        assert_eq!(queue.next_due(), Some(now + BACK_OFF_FIRST));
    }

    #[test]
    fn the_sooner_deadline_holds() {
        let mut queue = Queue::new();
        let now = Instant::now();
        queue.add_at("a", now + Duration::from_secs(5));
        queue.add_at("a", now + Duration::from_secs(1));
        queue.add_at("a", now + Duration::from_secs(9));
        assert_eq!(queue.next_due(), Some(now + Duration::from_secs(1)));
        queue.promote(now + Duration::from_secs(1));
        assert_eq!(queue.pop(), Some("a"));
        assert_eq!(queue.next_due(), None);
    }
}
