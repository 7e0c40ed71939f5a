//! Who goes, by tables and by chance.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Plan, may_preempt, preempt, priority};
use crate::{
    cluster::{Cluster, News},
    filter::{Wish, reasons},
    snapshot::Snapshot,
    tests::{cpu, node, overlay, pod},
};

fn important(name: &str, priority: i32, milli: u32, extra: &Value) -> Pod {
    let mut value = cpu(&format!("{milli}m"));
    value["spec"]["priority"] = priority.into();
    overlay(&mut value, extra);
    pod(name, &value)
}

fn placed(nodes: &[&str], pods: &[(&str, Pod)]) -> Snapshot {
    let nodes: Vec<_> = nodes.iter().map(|name| node(name, &json!({}))).collect();
    Snapshot::new(nodes.iter(), pods.iter().map(|(node, pod)| (*node, Arc::new(pod.clone()))), Vec::new())
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.victims.iter().filter_map(|v| v.metadata.name.as_deref()).collect()
}

fn budget(app: &str, allowed: i32) -> Arc<PodDisruptionBudget> {
    let value = json!({"metadata": {"name": app, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    Arc::new(serde_json::from_value(value).unwrap())
}

#[test]
fn the_least_that_makes_room_goes() {
    let none = json!({});
    let old = json!({"status": {"startTime": "2026-01-01T00:00:00Z"}});
    let new = json!({"status": {"startTime": "2026-02-01T00:00:00Z"}});
    let snapshot = placed(
        &["a"],
        &[
            ("a", important("least", 1, 300, &none)),
            ("a", important("more", 5, 900, &none)),
            ("a", important("old", 2, 400, &old)),
            ("a", important("new", 2, 400, &new)),
        ],
    );
    let wants =
        |milli| preempt(&important("p", 10, milli, &none), &snapshot, &[]).map(|p| names(&p).join(","));
    assert_eq!(wants(300), Ok("least".into()));
    // Of equal ones the younger goes; the small one stays as it is in nobody's way.
    assert_eq!(wants(400), Ok("new".into()));
    assert_eq!(wants(2000), Ok("more,old,new,least".into()));
    let why = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(wants(2001), Err(why.into()));
    let equal = preempt(&important("p", 1, 300, &none), &snapshot, &[]);
    assert_eq!(equal.unwrap_err(), why);
}

#[test]
fn nothing_goes_where_it_would_not_help() {
    let nodes = [
        node("a", &json!({"spec": {"unschedulable": true}})),
        node("b", &json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})),
        node("c", &json!({})),
    ];
    let low = |name: &str| Arc::new(important(name, 0, 2000, &json!({})));
    let snapshot = Snapshot::new(nodes.iter(), [("a", low("x")), ("b", low("y"))].into_iter(), Vec::new());
    let why = preempt(&important("p", 1, 3000, &json!({})), &snapshot, &[]).unwrap_err();
    assert_eq!(
        why,
        "preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
         2 Preemption is not helpful for scheduling."
    );
    assert!(!may_preempt(&pod("p", &json!({"spec": {"preemptionPolicy": "Never"}}))));
    assert!(may_preempt(&pod("p", &json!({}))));
}

#[test]
fn budgets_and_the_less_important_decide_between_nodes() {
    let none = json!({});
    let app = |app: &str| json!({"metadata": {"labels": {"app": app}}});
    let incoming = important("p", 100, 1500, &none);
    let on = |pods: &[(&str, Pod)], budgets: &[Arc<PodDisruptionBudget>]| {
        let plan = preempt(&incoming, &placed(&["a", "b"], pods), budgets).unwrap();
        (plan.node, plan.violations)
    };
    let web = ("a", important("web", 1, 2000, &app("web")));
    let dear = ("b", important("dear", 50, 2000, &none));
    assert_eq!(on(&[web.clone(), dear.clone()], &[]), ("a".into(), 0));
    assert_eq!(on(&[web.clone(), dear.clone()], &[budget("web", 1)]), ("a".into(), 0));
    assert_eq!(on(&[web.clone(), dear.clone()], &[budget("web", 0)]), ("b".into(), 0));
    // Where all would be against a budget, it is done all the same.
    let held = ("b", important("dear", 50, 2000, &app("web")));
    assert_eq!(on(&[web.clone(), held], &[budget("web", 0)]), ("a".into(), 1));
    // One rather than two of the same importance.
    let two = [important("one", 1, 1000, &none), important("two", 1, 1000, &none)].map(|pod| ("b", pod));
    let [one, other] = two;
    assert_eq!(on(&[one, other, ("a", important("big", 1, 2000, &none))], &[]), ("a".into(), 0));
}

#[test]
fn room_is_kept_for_whom_it_is_made() {
    let mut cluster = Cluster::new("default-scheduler".to_owned());
    let key = |name: &str| ("default".to_owned(), name.to_owned());
    let high = important("high", 10, 1500, &json!({}));
    let mut low = important("low", 0, 2000, &json!({"spec": {"nodeName": "a"}}));
    for pod in [&high, &low] {
        cluster.take_in(News::Pod(Event::Apply(pod.clone())));
    }
    cluster.nominate(&key("high"), Some("a".into()));
    assert!(!cluster.is_made_room_for(&key("high"), &high));
    cluster.leave(&low, true);
    assert!(cluster.is_made_room_for(&key("high"), &high));
    cluster.leave(&low, false);
    low.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    cluster.take_in(News::Pod(Event::Apply(low.clone())));
    assert!(cluster.is_made_room_for(&key("high"), &high));
    // The less important see it there, the more important do not, nor does it itself.
    let expected = |name: &str, priority| {
        cluster.expected(&key(name), &important(name, priority, 100, &json!({}))).len()
    };
    assert_eq!((expected("other", 10), expected("other", 11), expected("high", 10)), (1, 0, 0));
    let mut bound = high.clone();
    bound.spec.as_mut().unwrap().node_name = Some("a".into());
    cluster.take_in(News::Pod(Event::Apply(bound)));
    assert_eq!(cluster.nominated(&key("high")), None);
}

proptest! {
    /// Whatever is there: who goes is less important, the pod fits then, and nobody goes in vain.
    #[test]
    fn nobody_goes_in_vain(
        pods in proptest::collection::vec((0..4_usize, 0..6_i32, 1..1500_u32, any::<bool>()), 0..24),
        own in 0..6_i32,
        wants in 1..2500_u32,
        allowed in 0..3_i32,
    ) {
        let names = ["a", "b", "c", "d"];
        let mut used: BTreeMap<usize, u32> = BTreeMap::new();
        let mut there = Vec::new();
        for (i, (at, priority, milli, guarded)) in pods.into_iter().enumerate() {
            let sum = used.entry(at).or_default();
            if *sum + milli <= 2000 {
                *sum += milli;
                let labels = if guarded { json!({"metadata": {"labels": {"app": "web"}}}) } else { json!({}) };
                there.push((names[at], important(&format!("p{i}"), priority, milli, &labels)));
            }
        }
        let snapshot = placed(&names, &there);
        let incoming = important("incoming", own, wants, &json!({}));
        let fits = |snapshot: &Snapshot, at: usize| {
            reasons(&Wish::new(&incoming, &snapshot.nodes), &snapshot.nodes[at]).is_empty()
        };
        let Ok(plan) = preempt(&incoming, &snapshot, &[budget("web", allowed)]) else {
            // Then even without all less important pods it fits nowhere, or somewhere nobody has to go.
            for at in 0..names.len() {
                let mut emptied = snapshot.clone();
                emptied.nodes[at].retain(|p| priority(p) >= own);
                prop_assert!(!fits(&emptied, at) || emptied.nodes[at].pods.len() == snapshot.nodes[at].pods.len());
            }
            return Ok(());
        };
        let at = names.iter().position(|name| *name == plan.node).unwrap();
        prop_assert!(plan.victims.iter().all(|v| priority(v) < own));
        let gone = |victims: &[Arc<Pod>]| {
            let mut after = snapshot.clone();
            after.nodes[at].retain(|p| !victims.iter().any(|v| v.metadata.name == p.metadata.name));
            after
        };
        prop_assert!(fits(&gone(&plan.victims), at));
        for kept in 0..plan.victims.len() {
            let mut fewer = plan.victims.clone();
            fewer.remove(kept);
            prop_assert!(!fits(&gone(&fewer), at), "{} went in vain", plan.victims[kept].metadata.name.as_deref().unwrap());
        }
        prop_assert!(plan.violations <= plan.victims.len());
    }
}
