use std::sync::atomic::{AtomicUsize, Ordering};

use raft::eraftpb::ConfState;
use tempfile::TempDir;

use super::*;

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![index as u8; 40], ..Entry::default() }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    let mut snapshot = Snapshot { data: wire::encode_image(wire::Image::default()), ..Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.set_conf_state(ConfState { voters: vec![1], ..ConfState::default() });
    snapshot
}

fn open(dir: &TempDir) -> (Disk, Saved) {
    Disk::open(dir.path(), None).unwrap()
}

/// A log with entries 1 to 5, one frame each.
fn five(dir: &TempDir) -> u64 {
    let (mut disk, saved) = open(dir);
    assert!(saved.snapshot.is_none() && saved.entries.is_empty());
    for index in 1..=5 {
        disk.append(&state(1, index - 1), &[entry(index, 1)]).unwrap();
    }
    fs::metadata(dir.path().join("log")).unwrap().len()
}

fn indexes(saved: &Saved) -> Vec<(u64, u64)> {
    saved.entries.iter().map(|e| (e.index, e.term)).collect()
}

#[test]
fn what_was_appended_is_found() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let (mut disk, saved) = open(&dir);
    assert_eq!(indexes(&saved), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    assert_eq!(saved.hard_state, state(1, 4));
    // A new leader replaces the end.
    disk.append(&state(2, 4), &[entry(4, 2), entry(5, 2)]).unwrap();
    disk.append(&state(3, 5), &[entry(5, 3)]).unwrap();
    drop(disk);
    let (_, saved) = open(&dir);
    assert_eq!(indexes(&saved), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3)]);
    assert_eq!(saved.hard_state, state(3, 5));
}

#[test]
fn a_folder_is_used_once_at_a_time() {
    let dir = TempDir::new().unwrap();
    let (disk, _) = open(&dir);
    assert!(matches!(Disk::open(dir.path(), None), Err(OpenError::Locked(_))));
    drop(disk);
    open(&dir);
}

#[test]
fn a_torn_end_is_cut_at_every_length() {
    let dir = TempDir::new().unwrap();
    let whole = five(&dir);
    let bytes = fs::read(dir.path().join("log")).unwrap();
    let four = open(&dir).0.log.unwrap().frames[4].1;
    for length in four..whole {
        fs::write(dir.path().join("log"), &bytes[..length as usize]).unwrap();
        let (mut disk, saved) = open(&dir);
        assert_eq!(saved.entries.len(), 4, "cut to {length}");
        disk.append(&state(1, 4), &[entry(5, 9)]).unwrap();
        drop(disk);
        assert_eq!(indexes(&open(&dir).1)[4], (5, 9));
    }
}

#[test]
fn an_end_of_zeroes_is_cut() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let mut bytes = fs::read(dir.path().join("log")).unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    fs::write(dir.path().join("log"), &bytes).unwrap();
    assert_eq!(open(&dir).1.entries.len(), 5);
}

#[test]
fn a_flipped_bit_anywhere_before_the_last_frame_is_found() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let path = dir.path().join("log");
    let bytes = fs::read(&path).unwrap();
    let last = open(&dir).0.log.unwrap().frames[4].1 as usize;
    for at in 0..last {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        match Disk::open(dir.path(), None) {
            Err(OpenError::Damaged { path: named, .. }) => assert_eq!(named, path),
            Err(other) => panic!("byte {at}: {other}"),
            Ok((_, saved)) => panic!("byte {at}: opened with {:?}", indexes(&saved)),
        }
    }
}

#[test]
fn a_snapshot_cuts_the_log_at_the_one_before() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let (mut disk, _) = open(&dir);
    disk.snapshot(&snapshot(3, 1), Position::default()).unwrap();
    let long = fs::metadata(dir.path().join("log")).unwrap().len();
    disk.snapshot(&snapshot(5, 1), Position { index: 3, term: 1 }).unwrap();
    assert!(fs::metadata(dir.path().join("log")).unwrap().len() < long);
    disk.append(&state(1, 5), &[entry(6, 1)]).unwrap();
    drop(disk);
    let (_, saved) = open(&dir);
    assert_eq!(saved.base, Position { index: 3, term: 1 });
    assert_eq!(indexes(&saved), [(4, 1), (5, 1), (6, 1)]);
    assert_eq!(position(saved.snapshot.as_ref().unwrap()).index, 5);
}

#[test]
fn one_rotten_snapshot_loses_nothing_two_are_an_error() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let (mut disk, _) = open(&dir);
    disk.snapshot(&snapshot(3, 1), Position::default()).unwrap();
    disk.snapshot(&snapshot(5, 1), Position { index: 3, term: 1 }).unwrap();
    drop(disk);
    let spoil = || {
        let mut bytes = fs::read(dir.path().join("snapshot")).unwrap();
        bytes[25] ^= 4;
        fs::write(dir.path().join("snapshot"), bytes).unwrap();
    };
    spoil();
    let (disk, saved) = open(&dir);
    assert_eq!(position(saved.snapshot.as_ref().unwrap()).index, 3);
    assert_eq!(indexes(&saved), [(4, 1), (5, 1)]);
    drop(disk);
    spoil();
    assert!(matches!(Disk::open(dir.path(), None), Err(OpenError::Damaged { .. })));
}

#[test]
fn a_leaders_snapshot_replaces_everything() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let (mut disk, _) = open(&dir);
    disk.install(&snapshot(100, 7), &state(7, 100)).unwrap();
    disk.append(&state(7, 100), &[entry(101, 7)]).unwrap();
    drop(disk);
    let (_, saved) = open(&dir);
    assert_eq!((saved.base.index, indexes(&saved)), (100, vec![(101, 7)]));
}

/// Every operation of an installation fails once; what is found then is the old state or the new.
#[test]
fn a_power_cut_at_any_moment_leaves_the_old_or_the_new() {
    for survive in 0..20 {
        let dir = TempDir::new().unwrap();
        five(&dir);
        let left = Arc::new(AtomicUsize::new(survive));
        let counter = Arc::clone(&left);
        let fault: Fault = Arc::new(move |_| {
            let spend = |n: usize| n.checked_sub(1);
            match counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
                Ok(_) => Ok(()),
                Err(_) => Err(io::Error::other("no power")),
            }
        });
        let (mut disk, _) = Disk::open(dir.path(), Some(fault)).unwrap();
        let done = disk.install(&snapshot(100, 7), &state(7, 100)).is_ok();
        drop(disk);
        let (_, saved) = open(&dir);
        match saved.snapshot {
            Some(found) => {
                assert_eq!(position(&found).index, 100);
                assert_eq!((saved.base.index, saved.entries.len()), (100, 0));
                assert!(saved.hard_state.commit >= 100 && saved.hard_state.term >= 7);
            }
            None => {
                assert!(!done);
                assert_eq!(saved.entries.len(), 5);
            }
        }
        if done {
            return;
        }
    }
    panic!("never succeeded");
}

#[test]
fn a_failed_append_can_be_tried_again() {
    let dir = TempDir::new().unwrap();
    five(&dir);
    let full = Arc::new(AtomicUsize::new(3));
    let counter = Arc::clone(&full);
    let fault: Fault = Arc::new(move |operation| {
        let failing = operation == Operation::Sync && counter.load(Ordering::SeqCst) > 0;
        if failing {
            counter.fetch_sub(1, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    });
    let (mut disk, _) = Disk::open(dir.path(), Some(fault)).unwrap();
    for _ in 0..3 {
        disk.append(&state(1, 5), &[entry(6, 1)]).unwrap_err();
    }
    disk.append(&state(1, 5), &[entry(6, 1), entry(7, 1)]).unwrap();
    drop(disk);
    assert_eq!(open(&dir).1.entries.len(), 7);
}
