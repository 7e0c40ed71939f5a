//! A network in memory and helpers for clusters of real stores.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use store::{CommitError, Config, Expect, Kv, Status, Store, Transport, Txn, Write};
use tokio::sync::watch;

/// Everything in a test happens within this, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Carries messages between the stores of one process.
#[derive(Clone)]
pub struct Net {
    nodes: Arc<Mutex<HashMap<u64, Store>>>,
    cut: Arc<Mutex<HashSet<u64>>>,
    sent: Arc<watch::Sender<u64>>,
}

struct Link {
    net: Net,
    from: u64,
}

impl Transport for Link {
    fn send(&self, to: u64, message: Bytes) {
        self.net.sent.send_modify(|n| *n += 1);
        let snapshot = message.starts_with(&[8, 7]);
        let cut = self.net.cut.lock().unwrap();
        let connected = !cut.contains(&self.from) && !cut.contains(&to);
        drop(cut);
        let nodes = self.net.nodes.lock().unwrap();
        let target = nodes.get(&to).filter(|_| connected);
        let sent = target.is_some_and(|store| store.receive(message, Some(self.from)).is_ok());
        if let Some(sender) = nodes.get(&self.from) {
            if snapshot {
                sender.snapshot_sent(to, sent);
            } else if !sent {
                sender.unreachable(to);
            }
        }
    }
}

impl Net {
    pub fn new() -> Self {
        Self { nodes: Arc::default(), cut: Arc::default(), sent: Arc::new(watch::channel(0).0) }
    }

    pub async fn open(&self, config: Config) -> Store {
        let id = config.id;
        let link = Arc::new(Link { net: self.clone(), from: id });
        let store = Store::open(config, link).await.unwrap();
        self.nodes.lock().unwrap().insert(id, store.clone());
        store
    }

    /// The node is gone at once, without a farewell to the others.
    pub async fn kill(&self, id: u64) {
        let store = self.nodes.lock().unwrap().remove(&id).unwrap();
        store.close().await;
    }

    pub fn cut(&self, id: u64) {
        self.cut.lock().unwrap().insert(id);
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    /// Waits until this many more messages were sent.
    pub async fn messages(&self, count: u64) {
        let mut sent = self.sent.subscribe();
        let until = *sent.borrow() + count;
        within(sent.wait_for(|n| *n >= until)).await.unwrap();
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("takes too long")
}

/// Waits until the status is as wanted.
pub async fn until(store: &Store, wanted: impl Fn(&Status) -> bool) -> Status {
    let mut status = store.status();
    let found = tokio::time::timeout(PATIENCE, status.wait_for(|s| wanted(s))).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("never came: {:?}", store.status().borrow()),
    }
}

pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Txn {
    let value = Some(Bytes::from(value.into()));
    Txn { writes: vec![Write { key: key.into(), expect: Expect::Any, value }] }
}

/// A cluster of voters 1..=n; node 1 leads.
pub async fn cluster(net: &Net, configs: Vec<Config>) -> Vec<Store> {
    let mut stores = Vec::new();
    for config in configs {
        stores.push(net.open(config).await);
    }
    let first = &stores[0];
    first.bootstrap().await.unwrap();
    until(first, |s| s.leading).await;
    let others: Vec<u64> = (2..=stores.len() as u64).collect();
    for id in &others {
        within(first.change(store::Change::AddLearner(*id))).await.unwrap();
    }
    within(first.change(store::Change::Promote(others))).await.unwrap();
    for store in &stores {
        let count = stores.len();
        until(store, |s| s.voters.len() == count && s.leader == Some(1)).await;
    }
    stores
}

/// Commits to whoever leads, as a client would, until it is acknowledged.
pub async fn commit_anywhere(stores: &[Store], txn: Txn) -> u64 {
    let work = async {
        loop {
            for store in stores {
                match store.commit(txn.clone()).await {
                    Ok(revision) => return revision,
                    Err(CommitError::Conflict { .. } | CommitError::TooLarge { .. }) => panic!("refused"),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        }
    };
    within(work).await
}
