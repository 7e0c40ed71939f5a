//! Which nodes are alive, as the leader sees it: a node renews its Lease every few seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store::Kv;
use tokio::sync::watch;
use tokio::time::Instant;

/// Leases of nodes, in the volatile space.
const LEASES: &str = "/registry/coordination.k8s.io/leases/kube-node-lease/";

/// When each node was last heard of, by this node's own monotonic clock. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    grace: Duration,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    news: watch::Sender<()>,
    following: watch::Sender<bool>,
}

/// Follows no longer when dropped: its term is over.
struct Term<'a>(&'a watch::Sender<bool>);

impl Drop for Term<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    last: Instant,
}

impl Health {
    /// A node is healthy for `grace` after each heartbeat.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            seen: Arc::default(),
            news: watch::Sender::new(()),
            following: watch::Sender::new(false),
        }
    }

    /// Told at each heartbeat.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    fn beat(&self, name: &str) {
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(name.to_owned()).or_insert(Seen { since: now, last: now });
        if now - entry.last > self.grace {
            entry.since = now;
        }
        entry.last = now;
        drop(seen);
        self.news.send_replace(());
    }

    /// How long a node has been healthy, or else how long it has been away.
    pub fn of(&self, name: &str) -> (Option<Duration>, Option<Duration>) {
        let now = Instant::now();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(name) {
            Some(s) if now - s.last <= self.grace => (Some(now - s.since), None),
            Some(s) => (None, Some(now - s.last)),
            None => (None, None),
        }
    }

    /// Whether a node may be alive. A leader that has just been elected and follows nothing yet cannot say no.
    pub fn may_live(&self, name: &str) -> bool {
        !*self.following.borrow() || self.of(name).0.is_some()
    }

    /// Follows the leases while this node leads. A new leader knows nothing: it gives everyone the full grace.
    pub async fn follow(self, kv: Arc<dyn Kv>, members: Vec<String>) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for name in members {
            self.beat(&name);
        }
        self.following.send_replace(true);
        let _term = Term(&self.following);
        loop {
            let page = kv.list(LEASES, None, 0);
            let Ok(mut watch) = kv.watch(LEASES, page.revision) else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            while let Some(event) = watch.next().await {
                if event.current.is_some()
                    && let Some(name) = event.key.strip_prefix(LEASES)
                {
                    self.beat(name);
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_takes_nobody_for_dead() {
        let health = Health::new(Duration::from_secs(10));
        assert!(health.may_live("a"));
        let kv: Arc<dyn Kv> = Arc::new(store::Volatile::default());
        let term = tokio::spawn(health.clone().follow(kv, vec!["a".into()]));
        health.following.subscribe().wait_for(|f| *f).await.unwrap();
        assert!(health.may_live("a") && !health.may_live("b"));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!health.may_live("a"));
        term.abort();
        assert!(term.await.is_err() && health.may_live("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_healthy_for_its_grace() {
        let health = Health::new(Duration::from_secs(10));
        assert_eq!(health.of("a"), (None, None));
        health.beat("a");
        tokio::time::advance(Duration::from_secs(9)).await;
        health.beat("a");
        assert_eq!(health.of("a"), (Some(Duration::from_secs(9)), None));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(health.of("a"), (None, Some(Duration::from_secs(11))));
        health.beat("a");
        assert_eq!(health.of("a"), (Some(Duration::ZERO), None));
    }
}
