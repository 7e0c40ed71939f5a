//! Decisions, by tables and by chance.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    bind::refused,
    cluster::{Cluster, News},
    decide::{Unschedulable, View, decide},
    snapshot::Snapshot,
};

pub(crate) fn node(name: &str, extra: &Value) -> Node {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    overlay(&mut value, extra);
    serde_json::from_value(value).unwrap()
}

pub(crate) fn pod(name: &str, extra: &Value) -> Pod {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    overlay(&mut value, extra);
    serde_json::from_value(value).unwrap()
}

pub(crate) fn overlay(target: &mut Value, extra: &Value) {
    match (target, extra) {
        (Value::Object(target), Value::Object(extra)) => {
            for (key, value) in extra {
                overlay(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, extra) => *target = extra.clone(),
    }
}

pub(crate) fn cpu(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}})
}

fn plain(snapshot: &Snapshot) -> View<'_> {
    View { snapshot, crowded: None, nominated: None }
}

fn choose(p: &Pod, nodes: &[Node], placed: &[(&str, Pod)]) -> Result<String, String> {
    let placed = placed.iter().map(|(node, pod)| (*node, Arc::new(pod.clone())));
    let snapshot = Snapshot::new(nodes.iter(), placed, Vec::new());
    decide(p, &plain(&snapshot), &mut StdRng::seed_from_u64(1)).map_err(|Unschedulable(text)| text)
}

#[test]
fn reasons_are_counted_in_upstreams_words() {
    let labelled = json!({"metadata": {"labels": {"app": "db"}}});
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}]}}}});
    let together = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "cache"}}}]}}}});
    let port =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let silent = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let arch = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
    for (pod_extra, node_extra, expect) in [
        (cpu("3"), json!({}), "Insufficient cpu"),
        (json!({}), json!({"spec": {"unschedulable": true}}), "node(s) were unschedulable"),
        (json!({}), taint("NoSchedule"), "node(s) had untolerated taint {k: v}"),
        (json!({}), silent, "node(s) had untolerated taint {node.kubernetes.io/not-ready: }"),
        (arch, json!({}), "node(s) didn't match Pod's node affinity/selector"),
        (port.clone(), json!({}), "node(s) didn't have free ports for the requested pod ports"),
        (apart, json!({}), "node(s) didn't match pod anti-affinity rules"),
        (together, json!({}), "node(s) didn't match pod affinity rules"),
        (json!({}), json!({"status": {"allocatable": {"pods": "1"}}}), "Too many pods"),
    ] {
        let mut present = labelled.clone();
        overlay(&mut present, &port);
        let nodes = [node("a", &node_extra), node("b", &node_extra)];
        let placed = [("a", pod("x", &present)), ("b", pod("y", &present))];
        let expect = format!("0/2 nodes are available: 2 {expect}.");
        assert_eq!(choose(&pod("p", &pod_extra), &nodes, &placed), Err(expect));
    }
    assert_eq!(
        choose(&pod("p", &json!({})), &[], &[]),
        Err("no nodes available to schedule pods".to_owned())
    );
    let mixed = [node("a", &taint("NoSchedule")), node("b", &json!({})), node("c", &json!({}))];
    assert_eq!(
        choose(&pod("p", &cpu("9")), &mixed, &[]),
        Err("0/3 nodes are available: 1 node(s) had untolerated taint {k: v}, 2 Insufficient cpu.".to_owned())
    );
}

#[test]
fn the_better_node_is_taken() {
    let soft = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]}});
    let zone = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}});
    let plain = node("a", &json!({}));
    // A sibling counts more than free room.
    let two = [plain.clone(), node("b", &json!({}))];
    assert_eq!(
        choose(&pod("p", &owned), &two, &[("a", pod("x", &owned)), ("b", pod("y", &cpu("500m")))]),
        Ok("b".into())
    );
    assert_eq!(choose(&pod("p", &json!({})), &two, &[("a", pod("x", &cpu("1")))]), Ok("b".into()));
    assert_eq!(choose(&pod("p", &json!({})), &[node("b", &soft), plain.clone()], &[]), Ok("a".into()));
    let ssd = node("b", &json!({"metadata": {"labels": {"disk": "ssd"}}}));
    assert_eq!(choose(&pod("p", &zone), &[plain, ssd], &[]), Ok("b".into()));
}

#[test]
fn replicas_spread_evenly() {
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]}});
    let nodes: Vec<Node> = ["a", "b", "c"].iter().map(|name| node(name, &json!({}))).collect();
    let mut snapshot = Snapshot::new(nodes.iter(), std::iter::empty(), Vec::new());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for i in 0..9 {
        let p = pod(&format!("p{i}"), &owned);
        let chosen = decide(&p, &plain(&snapshot), &mut StdRng::seed_from_u64(i)).unwrap();
        snapshot.put(&chosen, Arc::new(p));
        *counts.entry(chosen).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}

fn synced(nodes: Vec<Node>) -> Cluster {
    let mut cluster = Cluster::new("default-scheduler".to_owned());
    for news in [
        News::Pod(Event::Init),
        News::Pod(Event::InitDone),
        News::Service(Event::Init),
        News::Service(Event::InitDone),
        News::Budget(Event::Init),
        News::Budget(Event::InitDone),
    ] {
        cluster.take_in(news);
    }
    assert!(!cluster.synced(), "nodes were not listed yet");
    cluster.take_in(News::Node(Event::Init));
    nodes.into_iter().for_each(|n| cluster.take_in(News::Node(Event::InitApply(n))));
    cluster.take_in(News::Node(Event::InitDone));
    assert!(cluster.synced());
    cluster
}

/// Decides about all that waits; bindings are only assumed.
fn decide_all(cluster: &mut Cluster, seed: u64) -> Vec<String> {
    let mut snapshot = cluster.snapshot();
    let mut placed = Vec::new();
    for (key, p) in cluster.take_active() {
        match decide(&p, &plain(&snapshot), &mut StdRng::seed_from_u64(seed)) {
            Ok(name) => {
                cluster.assume(key, &p, &name);
                snapshot.put(&name, p);
                placed.push(name);
            }
            Err(_) => cluster.park(key),
        }
    }
    placed
}

#[test]
fn what_waits_comes_back_when_room_is_made_or_its_binding_failed() {
    let mut cluster = synced(vec![node("a", &json!({}))]);
    cluster.take_in(News::Pod(Event::Apply(pod("x", &cpu("1500m")))));
    cluster.take_in(News::Pod(Event::Apply(pod("y", &cpu("1500m")))));
    assert_eq!(decide_all(&mut cluster, 1), ["a"]);
    assert!(!cluster.has_active(), "the other one waits");
    let beat = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}});
    cluster.take_in(News::Node(Event::Apply(node("a", &beat))));
    assert!(!cluster.has_active(), "a heartbeat is no news");
    cluster.take_in(News::Node(Event::Apply(node("b", &json!({})))));
    assert_eq!(decide_all(&mut cluster, 1), ["b"]);
    let key = ("default".to_owned(), "x".to_owned());
    assert!(cluster.forget(&key, "uid-x"));
    cluster.activate(key);
    assert_eq!(decide_all(&mut cluster, 1), ["a"]);
    cluster.take_in(News::Pod(Event::Delete(pod("x", &json!({})))));
    assert!(!cluster.forget(&("default".to_owned(), "x".to_owned()), "uid-x"), "gone: nothing to bind");
}

#[test]
fn only_pods_that_are_ours_and_free() {
    let mut cluster = synced(vec![node("a", &json!({}))]);
    for (name, spec) in [
        ("other", json!({"schedulerName": "mine"})),
        ("bound", json!({"nodeName": "a"})),
        ("gated", json!({"schedulingGates": [{"name": "g"}]})),
    ] {
        cluster.take_in(News::Pod(Event::Apply(pod(name, &json!({"spec": spec})))));
    }
    assert!(!cluster.has_active());
}

#[test]
fn a_reason_is_told_once_per_change() {
    let now = Timestamp::UNIX_EPOCH;
    let waiting = refused(&pod("p", &json!({})), "no room", None, now).unwrap();
    assert!(refused(&waiting, "no room", None, now).is_none());
    let changed = refused(&waiting, "no ports", None, now).unwrap();
    let conditions = changed.status.unwrap().conditions.unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0].reason.as_deref(), Some("Unschedulable"));
}

#[test]
fn services_spread_their_pods_too() {
    let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "default"},
        "spec": {"selector": {"app": "web"}}}))
    .unwrap();
    let labelled = json!({"metadata": {"labels": {"app": "web"}}});
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let placed = [("a", Arc::new(pod("x", &labelled))), ("b", Arc::new(pod("y", &cpu("500m"))))];
    let snapshot = Snapshot::new(nodes.iter(), placed.into_iter(), vec![Arc::new(service)]);
    assert_eq!(
        decide(&pod("p", &labelled), &plain(&snapshot), &mut StdRng::seed_from_u64(1)),
        Ok("b".into())
    );
}

proptest! {
    /// However pods come, and before any binding is confirmed, no node is promised more than it has.
    #[test]
    fn never_overcommits(amounts in proptest::collection::vec(1..1500_u32, 1..40), nodes in 1..5_usize, batch in 1..8_usize, seed in any::<u64>()) {
        let mut cluster = synced((0..nodes).map(|i| node(&format!("n{i}"), &json!({}))).collect());
        let mut used: BTreeMap<String, u32> = BTreeMap::new();
        for (b, chunk) in amounts.chunks(batch).enumerate() {
            for (i, amount) in chunk.iter().enumerate() {
                cluster.take_in(News::Pod(Event::Apply(pod(&format!("p{b}-{i}"), &cpu(&format!("{amount}m"))))));
            }
            decide_all(&mut cluster, seed);
        }
        for state in cluster.snapshot().nodes {
            let sum = state.used.get("cpu").copied().unwrap_or(0);
            prop_assert!(sum <= 2000, "{}: {sum}", state.name);
            prop_assert!(state.pods.len() <= 10);
            used.insert(state.name, u32::try_from(sum).unwrap());
        }
        prop_assert_eq!(used.len(), nodes);
    }

    /// The same seed gives the same choice.
    #[test]
    fn deterministic(seed in any::<u64>()) {
        let nodes: Vec<Node> = ["a", "b", "c", "d"].iter().map(|name| node(name, &json!({}))).collect();
        let snapshot = Snapshot::new(nodes.iter(), std::iter::empty(), Vec::new());
        let p = pod("p", &json!({}));
        let first = decide(&p, &plain(&snapshot), &mut StdRng::seed_from_u64(seed));
        prop_assert_eq!(&first, &decide(&p, &plain(&snapshot), &mut StdRng::seed_from_u64(seed)));
    }
}
