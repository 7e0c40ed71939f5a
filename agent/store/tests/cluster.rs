//! Clusters of real stores, with threads, disks and time, over a network in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Net, cluster, commit_anywhere, put, until, within};
use store::{
    BootstrapError, Change, ChangeError, CommitError, Config, Kv, Operation, ReceiveError, Role, Store,
};
use tempfile::TempDir;

fn configs(dir: &TempDir, count: u64) -> Vec<Config> {
    (1..=count).map(|id| Config::new(dir.path().join(id.to_string()), id)).collect()
}

#[tokio::test]
async fn a_single_node_keeps_its_data_over_a_restart() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let store = net.open(Config::new(dir.path(), 1)).await;
    assert_eq!(store.status().borrow().role, Role::Dormant);
    assert_eq!(store.commit(put("/a", "1")).await, Err(CommitError::NotLeader));
    store.bootstrap().await.unwrap();
    assert_eq!(store.bootstrap().await, Err(BootstrapError::HasState));
    until(&store, |s| s.leading).await;
    assert_eq!(store.commit(put("/a", "1")).await, Ok(1));
    assert_eq!(store.commit(put("/b", "2")).await, Ok(2));
    let image = store.list("", None, 0).records;
    net.kill(1).await;
    assert_eq!(store.commit(put("/c", "3")).await, Err(CommitError::Closed).or(Err(CommitError::NotLeader)));

    let store = net.open(Config::new(dir.path(), 1)).await;
    until(&store, |s| s.leading).await;
    assert_eq!(store.list("", None, 0).records, image);
    assert_eq!(store.revision(), 2);
    assert_eq!(store.bootstrap().await, Err(BootstrapError::HasState));
    assert_eq!(store.commit(put("/c", "3")).await, Ok(3));
}

#[tokio::test]
async fn concurrent_commits_share_syncs() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let syncs = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&syncs);
    let mut config = Config::new(dir.path(), 1);
    config.fault = Some(Arc::new(move |operation| {
        if operation == Operation::Sync {
            *counter.lock().unwrap() += 1;
        }
        Ok(())
    }));
    let store = net.open(config).await;
    store.bootstrap().await.unwrap();
    until(&store, |s| s.leading).await;
    *syncs.lock().unwrap() = 0;
    let commits = (0..500).map(|i| {
        let store = store.clone();
        async move { store.commit(put(format!("/{i}"), "x")).await.unwrap() }
    });
    let mut revisions = within(futures::future::join_all(commits)).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=500).collect::<Vec<_>>());
    let syncs = *syncs.lock().unwrap();
    assert!(syncs <= 50, "{syncs} syncs for 500 commits");
}

#[tokio::test]
async fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let stores = cluster(&net, configs(&dir, 3)).await;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let leader = stores[0].clone();
    let log = Arc::clone(&acknowledged);
    let client = tokio::spawn(async move {
        for i in 0.. {
            match leader.commit(put(format!("/{i}"), format!("{i}"))).await {
                Ok(revision) => log.lock().unwrap().push((format!("/{i}"), revision)),
                Err(_) => return,
            }
        }
    });
    until(&stores[2], |s| s.revision >= 20).await;
    net.kill(1).await;
    let killed = Instant::now();
    commit_anywhere(&stores[1..], put("/after", "x")).await;
    assert!(killed.elapsed() < Duration::from_secs(2), "took {:?}", killed.elapsed());
    within(client).await.unwrap();

    let leader = stores[1..].iter().find(|s| s.status().borrow().leading).unwrap();
    let acknowledged = acknowledged.lock().unwrap();
    assert!(acknowledged.len() >= 20);
    for (key, revision) in acknowledged.iter() {
        let record = leader.get(key).unwrap_or_else(|| panic!("{key} was lost"));
        assert_eq!(record.modified, *revision);
    }
}

#[tokio::test]
async fn a_wiped_node_comes_back_under_a_new_id_by_snapshot() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let mut configs = configs(&dir, 3);
    for config in &mut configs {
        config.snapshot_entries = 50;
    }
    let stores = cluster(&net, configs).await;
    for i in 0..300 {
        stores[0].commit(put(format!("/{i}"), vec![7; 100])).await.unwrap();
    }
    until(&stores[0], |s| s.first_index > 100).await;
    net.kill(3).await;
    within(stores[0].change(Change::Remove(vec![3]))).await.unwrap();
    let mut config = Config::new(dir.path().join("4"), 4);
    config.snapshot_entries = 50;
    let new = net.open(config.clone()).await;
    within(stores[0].change(Change::AddLearner(4))).await.unwrap();
    until(&new, |s| s.role == Role::Learner && s.revision == 300).await;
    within(stores[0].change(Change::Promote(vec![4]))).await.unwrap();
    until(&new, |s| s.voters == [1, 2, 4]).await;
    assert_eq!(new.list("", None, 0).records, stores[0].list("", None, 0).records);

    // What it received is on its disk.
    net.kill(4).await;
    let again = net.open(config).await;
    assert!(again.revision() > 0);
    until(&again, |s| s.revision == 300 && s.voters == [1, 2, 4]).await;
    assert_eq!(again.list("", None, 0).records, stores[0].list("", None, 0).records);
}

#[tokio::test]
async fn leadership_is_handed_over() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let stores = cluster(&net, configs(&dir, 3)).await;
    stores[0].commit(put("/a", "1")).await.unwrap();
    within(stores[0].transfer(2)).await;
    until(&stores[1], |s| s.leading).await;
    assert_eq!(stores[0].commit(put("/b", "1")).await, Err(CommitError::NotLeader));
    assert_eq!(stores[0].change(Change::AddLearner(9)).await, Err(ChangeError::NotLeader));
    assert_eq!(within(stores[1].commit(put("/b", "1"))).await, Ok(2));
}

#[tokio::test]
async fn a_leader_cut_off_steps_down_and_its_write_is_unknown() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let stores = cluster(&net, configs(&dir, 3)).await;
    stores[0].commit(put("/a", "1")).await.unwrap();
    net.cut(1);
    assert_eq!(within(stores[0].commit(put("/a", "lost"))).await, Err(CommitError::Unknown));
    commit_anywhere(&stores[1..], put("/a", "2")).await;
    net.heal();
    until(&stores[0], |s| s.revision == 2 && s.leader.is_some()).await;
    assert_eq!(stores[0].get("/a").unwrap().value, "2");
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_recovers() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let full = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&full);
    let mut config = Config::new(dir.path(), 1);
    config.fault = Some(Arc::new(move |_| {
        if switch.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }));
    let store = net.open(config).await;
    store.bootstrap().await.unwrap();
    until(&store, |s| s.leading).await;
    store.commit(put("/a", "1")).await.unwrap();
    full.store(true, Ordering::SeqCst);
    let error = within(store.commit(put("/b", "1"))).await;
    assert!(matches!(error, Err(CommitError::Disk(_))), "{error:?}");
    until(&store, |s| s.disk_error.is_some()).await;
    let error = within(store.commit(put("/c", "1"))).await;
    assert!(matches!(error, Err(CommitError::Disk(_))), "{error:?}");
    assert_eq!(store.get("/a").unwrap().value, "1");
    full.store(false, Ordering::SeqCst);
    until(&store, |s| s.disk_error.is_none()).await;
    within(store.commit(put("/d", "1"))).await.unwrap();
    let before = store.list("", None, 0).records;
    net.kill(1).await;
    let store = net.open(Config::new(dir.path(), 1)).await;
    until(&store, |s| s.leading).await;
    assert_eq!(store.list("", None, 0).records, before);
}

/// A disk whose syncs hang while the gate is shut.
fn gated(config: &mut Config) -> Arc<(Mutex<bool>, Condvar)> {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let inner = Arc::clone(&gate);
    config.fault = Some(Arc::new(move |_| {
        let shut = inner.0.lock().unwrap();
        drop(inner.1.wait_while(shut, |shut| *shut).unwrap());
        Ok(())
    }));
    gate
}

fn set_gate(gate: &(Mutex<bool>, Condvar), shut: bool) {
    *gate.0.lock().unwrap() = shut;
    gate.1.notify_all();
}

#[tokio::test]
async fn a_follower_whose_disk_hangs_neither_stops_the_cluster_nor_looks_dead() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let mut configs = configs(&dir, 3);
    let gate = gated(&mut configs[2]);
    let stores = cluster(&net, configs).await;
    let term = stores[0].status().borrow().term;
    set_gate(&gate, true);
    for i in 0..50 {
        within(stores[0].commit(put(format!("/{i}"), "x"))).await.unwrap();
    }
    net.messages(100).await;
    let status = stores[0].status().borrow().clone();
    assert!(status.leading && status.term == term, "{status:?}");
    assert!(status.progress.iter().all(|p| p.recent_active), "{status:?}");
    assert!(stores[2].revision() < 50);
    set_gate(&gate, false);
    until(&stores[2], |s| s.revision == 50 && s.term == term).await;
}

#[tokio::test]
async fn a_leader_whose_disk_hangs_hands_over() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let mut configs = configs(&dir, 3);
    let gate = gated(&mut configs[0]);
    let stores = cluster(&net, configs).await;
    set_gate(&gate, true);
    let stuck = stores[0].clone();
    let write = tokio::spawn(async move { stuck.commit(put("/a", "1")).await });
    commit_anywhere(&stores[1..], put("/b", "1")).await;
    assert_eq!(within(write).await.unwrap(), Err(CommitError::Unknown));
    set_gate(&gate, false);
    until(&stores[0], |s| s.revision == 2).await;
}

#[tokio::test]
async fn an_idle_cluster_writes_nothing() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let operations = Arc::new(Mutex::new(0));
    let mut configs = configs(&dir, 3);
    for config in &mut configs {
        let counter = Arc::clone(&operations);
        config.fault = Some(Arc::new(move |_| {
            *counter.lock().unwrap() += 1;
            Ok(())
        }));
    }
    let stores = cluster(&net, configs).await;
    let revision = stores[0].commit(put("/a", "1")).await.unwrap();
    for store in &stores {
        until(store, |s| s.revision == revision && s.committed == s.last_index).await;
    }
    let mut statuses: Vec<_> = stores.iter().map(Store::status).collect();
    // The positions of the last write are published within half a second.
    net.messages(20).await;
    statuses.iter_mut().for_each(|s| s.mark_unchanged());
    let (before, files) = (*operations.lock().unwrap(), fingerprint(&dir));
    net.messages(100).await;
    assert_eq!(*operations.lock().unwrap(), before);
    assert_eq!(fingerprint(&dir), files);
    for (status, store) in statuses.iter().zip(&stores) {
        assert!(!status.has_changed().unwrap(), "{:?}", store.status().borrow());
    }
}

fn fingerprint(dir: &TempDir) -> Vec<(std::path::PathBuf, u64, std::time::SystemTime)> {
    let mut files = Vec::new();
    for node in std::fs::read_dir(dir.path()).unwrap() {
        for file in std::fs::read_dir(node.unwrap().path()).unwrap() {
            let file = file.unwrap();
            let metadata = file.metadata().unwrap();
            files.push((file.path(), metadata.len(), metadata.modified().unwrap()));
        }
    }
    files.sort();
    files
}

#[tokio::test]
async fn hostile_messages_are_refused_and_harm_nothing() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let store = net.open(Config::new(dir.path(), 1)).await;
    store.bootstrap().await.unwrap();
    until(&store, |s| s.leading).await;
    assert!(store.receive(vec![0xff; 100].into(), None).is_err());
    assert!(store.receive(vec![0; 32 << 20].into(), None).is_err());
    // Of each kind, to us, from 2, with a commit far ahead and one entry of an unknown type.
    for kind in 0..30 {
        for term in [0, 1, 2, 50] {
            let message = [8, kind, 16, 1, 24, 2, 32, term, 64, 99, 58, 4, 8, 77, 24, 1];
            // On the stream of another than who it speaks for, it is not even looked at.
            assert_eq!(store.receive(message.to_vec().into(), Some(3)), Err(ReceiveError::Impostor(2)));
            let _ = store.receive(message.to_vec().into(), Some(2));
        }
    }
    assert!(store.receive(vec![8, 3, 16, 9, 24, 2].into(), None).is_err());
    // The one message a stranger can disturb with is a higher term; the cluster goes on in the next.
    commit_anywhere(&[store], put("/a", "1")).await;
}

#[tokio::test]
async fn who_is_leaving_counts_until_the_change_is_over() {
    let (dir, net) = (TempDir::new().unwrap(), Net::new());
    let stores = cluster(&net, configs(&dir, 3)).await;
    // Nobody is 8 or 9: the old voters decide to begin the change, the new ones cannot end it.
    let change = stores[0].change(Change::Set { voters: vec![1, 8, 9], learners: Vec::new() });
    let begun = until(&stores[0], |s| !s.leaving.is_empty());
    let (changed, begun) = tokio::join!(within(change), begun);
    assert_eq!(changed, Err(ChangeError::Lost));
    assert_eq!((begun.voters, begun.leaving), (vec![1, 8, 9], vec![2, 3]));
}
