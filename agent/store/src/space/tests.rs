use bytes::Bytes;
use futures::FutureExt as _;

use super::*;
use crate::kv::Write;

const LIMITS: Limits = Limits { events: 10, bytes: 1 << 20, queue: 4 };

fn write(key: &str, value: Option<&str>, expect: Expect) -> Write {
    Write { key: key.into(), expect, value: value.map(|v| Bytes::copy_from_slice(v.as_bytes())) }
}

fn put(space: &Space, key: &str, value: &str) -> Revision {
    let txn = Txn { writes: vec![write(key, Some(value), Expect::Any)] };
    space.apply([txn]).pop().unwrap().unwrap()
}

fn delete(space: &Space, key: &str) -> Revision {
    space.apply([Txn { writes: vec![write(key, None, Expect::Any)] }]).pop().unwrap().unwrap()
}

/// The events that are there without waiting, as revision and key.
fn drain(watch: &mut Box<dyn Watch>) -> Vec<(Revision, String)> {
    let mut events = Vec::new();
    while let Some(Some(event)) = watch.next().now_or_never() {
        events.push((event.revision, event.key.to_string()));
    }
    events
}

#[test]
fn revisions_count_what_had_effect() {
    let space = Space::new(0, LIMITS);
    assert_eq!(put(&space, "/a", "1"), 1);
    assert_eq!(delete(&space, "/none"), 1);
    assert_eq!(put(&space, "/a", "2"), 2);
    let record = space.get("/a").unwrap();
    assert_eq!((record.created, record.modified), (1, 2));
    assert_eq!(delete(&space, "/a"), 3);
    assert_eq!(put(&space, "/a", "3"), 4);
    assert_eq!(space.get("/a").unwrap().created, 4);
}

#[test]
fn a_transaction_is_all_or_none() {
    let space = Space::new(0, LIMITS);
    put(&space, "/a", "1");
    let expects =
        |expect| Txn { writes: vec![write("/b", Some("x"), Expect::Absent), write("/a", Some("y"), expect)] };
    let conflict = space.apply([expects(Expect::Modified(9))]).pop().unwrap().unwrap_err();
    assert_eq!(conflict, Conflict { key: "/a".into(), current: space.get("/a") });
    assert_eq!((space.get("/b"), space.revision()), (None, 1));
    assert_eq!(space.apply([expects(Expect::Modified(1))]), [Ok(2)]);
    assert_eq!(space.get("/b").unwrap().modified, 2);
    assert!(space.apply([expects(Expect::Any)]).pop().unwrap().is_err());
}

#[test]
fn a_condition_changes_nothing() {
    let space = Space::new(0, LIMITS);
    put(&space, "/home", "1");
    let inside = |at| Txn {
        writes: vec![write("/home", None, Expect::Stays(at)), write("/b", Some("x"), Expect::Any)],
    };
    assert_eq!(space.apply([inside(1)]), [Ok(2)]);
    let record = space.get("/home").unwrap();
    assert_eq!((record.modified, record.value.as_ref()), (1, b"1".as_slice()));
    put(&space, "/home", "2");
    assert_eq!(space.apply([inside(1)]).pop().unwrap().unwrap_err().key, "/home");
    delete(&space, "/home");
    assert!(space.apply([inside(3)]).pop().unwrap().is_err());
    assert_eq!(space.get("/b").unwrap().modified, 2);
}

#[test]
fn a_page_can_be_read_as_it_was() {
    let space = Space::new(0, LIMITS);
    for key in ["/p/1", "/p/2", "/p/3"] {
        put(&space, key, "old");
    }
    let before = space.list("/p/", None, 0);
    put(&space, "/p/0", "new");
    put(&space, "/p/2", "new");
    put(&space, "/p/2", "newer");
    delete(&space, "/p/3");
    put(&space, "/q", "new");
    let then = space.list_at("/p/", None, 0, before.revision).unwrap();
    assert_eq!((then.records, then.revision), (before.records, before.revision));
    let second = space.list_at("/p/", Some("/p/1"), 1, before.revision).unwrap();
    assert_eq!((second.records[0].value.as_ref(), second.remaining), (b"old".as_slice(), 1));
    let now = space.list_at("/p/", None, 0, space.revision()).unwrap();
    assert_eq!(now.records, space.list("/p/", None, 0).records);
    for i in 0..10 {
        put(&space, &format!("/x/{i}"), "x");
    }
    assert!(space.list_at("/p/", None, 0, before.revision).is_err());
}

#[test]
fn pages_follow_one_another() {
    let space = Space::new(0, LIMITS);
    for key in ["/a", "/p/1", "/p/2", "/p/3", "/q"] {
        put(&space, key, "x");
    }
    let check = |after: Option<&str>, limit, expect: &[&str], remaining| {
        let page = space.list("/p/", after, limit);
        assert_eq!(page.records.iter().map(|r| &*r.key).collect::<Vec<_>>(), expect);
        assert_eq!((page.remaining, page.more, page.revision), (remaining, remaining > 0, 5));
    };
    check(None, 0, &["/p/1", "/p/2", "/p/3"], 0);
    check(None, 2, &["/p/1", "/p/2"], 1);
    check(Some("/p/2"), 2, &["/p/3"], 0);
    check(Some("/p/2x"), 2, &["/p/3"], 0);
    check(Some("/z"), 2, &[], 0);
    check(Some("/a"), 1, &["/p/1"], 2);
    assert_eq!(space.list("", None, 0).records.len(), 5);
}

#[test]
fn history_and_live_events_join_without_a_gap() {
    let space = Space::new(0, LIMITS);
    put(&space, "/p/1", "a");
    put(&space, "/q", "b");
    let mut watch = space.watch("/p/", 0).unwrap();
    assert_eq!(watch.progress(), 0);
    put(&space, "/p/2", "c");
    delete(&space, "/p/1");
    put(&space, "/other", "d");
    assert_eq!(drain(&mut watch), [(1, "/p/1".into()), (3, "/p/2".into()), (4, "/p/1".into())]);
    assert_eq!(watch.progress(), 5);
    let mut late = space.watch("/p/", 3).unwrap();
    assert_eq!(drain(&mut late), [(4, "/p/1".into())]);
    let mut future = space.watch("", 6).unwrap();
    put(&space, "/x", "6");
    put(&space, "/x", "7");
    assert_eq!(drain(&mut future), [(7, "/x".into())]);
}

#[test]
fn an_event_carries_before_and_after() {
    let space = Space::new(0, LIMITS);
    let mut watch = space.watch("", 0).unwrap();
    put(&space, "/a", "1");
    put(&space, "/a", "2");
    delete(&space, "/a");
    let mut values = Vec::new();
    while let Some(Some(event)) = watch.next().now_or_never() {
        let value = |r: &Option<Record>| r.as_ref().map(|r| String::from_utf8(r.value.to_vec()).unwrap());
        values.push((value(&event.previous), value(&event.current)));
    }
    let some = |s: &str| Some(s.to_owned());
    assert_eq!(values, [(None, some("1")), (some("1"), some("2")), (some("2"), None)]);
}

#[test]
fn old_history_is_refused() {
    let space = Space::new(0, LIMITS);
    for i in 0..15 {
        put(&space, &format!("/{i}"), "x");
    }
    assert_eq!(space.watch("", 4).err(), Some(Compacted { asked: 4, oldest: 5 }));
    assert_eq!(drain(&mut space.watch("", 5).unwrap()).len(), 10);
    let small = Space::new(0, Limits { bytes: 2000, ..LIMITS });
    for i in 0..5 {
        put(&small, &format!("/{i}"), &"x".repeat(500));
    }
    assert!(small.watch("", 0).is_err());
    assert!(small.watch("", 5).is_ok());
}

#[test]
fn a_watcher_that_does_not_read_ends_and_holds_up_nobody() {
    let space = Space::new(0, LIMITS);
    let mut slow = space.watch("/", 0).unwrap();
    let mut quick = space.watch("/", 0).unwrap();
    for i in 0..8 {
        put(&space, "/a", "x");
        assert_eq!(drain(&mut quick).len(), 1, "event {i}");
    }
    for revision in 1..=4 {
        assert_eq!(slow.next().now_or_never().unwrap().unwrap().revision, revision);
    }
    assert!(slow.next().now_or_never().unwrap().is_none());
    assert_eq!((slow.progress(), quick.progress()), (4, 8));
}

#[test]
fn progress_waits_for_the_rest_of_a_transaction() {
    let space = Space::new(0, LIMITS);
    let mut watch = space.watch("/", 0).unwrap();
    let writes = vec![write("/a", Some("1"), Expect::Any), write("/b", Some("1"), Expect::Any)];
    space.apply([Txn { writes }]).pop().unwrap().unwrap();
    watch.next().now_or_never().unwrap().unwrap();
    assert_eq!(watch.progress(), 0);
    watch.next().now_or_never().unwrap().unwrap();
    assert_eq!(watch.progress(), 1);
}

#[test]
fn a_restored_space_ends_watches_and_has_no_history() {
    let space = Space::new(0, LIMITS);
    put(&space, "/a", "1");
    let image = space.image();
    put(&space, "/a", "2");
    let mut watch = space.watch("", 2).unwrap();
    space.restore(image.clone());
    assert!(watch.next().now_or_never().unwrap().is_none());
    assert_eq!(space.get("/a").unwrap().value, "1");
    assert!(space.watch("", 0).is_err());
    assert_eq!(
        crate::wire::decode_image(&crate::wire::encode_image(image.clone())).unwrap().records,
        image.records
    );
}

#[test]
fn watchers_that_are_gone_leave_nothing_behind() {
    let space = Space::new(0, LIMITS);
    let watches: Vec<_> = (0..1000).map(|i| space.watch(["/a/", "/ä/", ""][i % 3], 0).unwrap()).collect();
    put(&space, "/ä/1", "x");
    drop(watches);
    let inner = space.read();
    assert!(inner.watchers.by_prefix.is_empty() && inner.watchers.lengths.is_empty());
}

#[test]
fn a_watcher_that_does_not_read_keeps_few_bytes() {
    let limits = Limits { events: 4, bytes: 64 << 10, queue: 4096 };
    let space = Space::new(0, limits);
    let (mut slow, mut quick) = (space.watch("/", 0).unwrap(), space.watch("/", 0).unwrap());
    let large = "x".repeat(40 << 10);
    for _ in 0..8 {
        let revision = put(&space, "/a", &large);
        assert_eq!(drain(&mut quick), [(revision, "/a".to_owned())], "whoever reads misses nothing");
    }
    assert_eq!(drain(&mut slow).len(), 1, "a large event is taken, the next no more");
    assert!(matches!(slow.next().now_or_never(), Some(None)), "and the watch ends");
}
