use std::collections::BTreeSet;

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use proptest::prelude::*;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    kind::{KindId, Typed},
    pod,
    reconcile::{Controller, Failure, Key},
    testing::{Sim, config, news, run, run_after},
    world::World,
    write::Write,
};

fn replica_set(replicas: i32) -> serde_json::Value {
    json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    })
}

fn key() -> Key {
    Key::new(Controller::ReplicaSet, "default", "web")
}

/// What may happen around the controller.
#[derive(Clone, Debug)]
enum Step {
    Reconcile,
    /// Some of the waiting watch events arrive.
    Deliver(usize),
    Scale(i32),
    DeletePod(usize),
    Ready(usize),
    Finish(usize),
    Relabel(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Reconcile),
        4 => (0..6_usize).prop_map(Step::Deliver),
        1 => (0..8_i32).prop_map(Step::Scale),
        1 => (0..8_usize).prop_map(Step::DeletePod),
        2 => (0..8_usize).prop_map(Step::Ready),
        1 => (0..8_usize).prop_map(Step::Finish),
        1 => (0..8_usize).prop_map(Step::Relabel),
    ];
    proptest::collection::vec(step, 1..60)
}

fn nth_pod(sim: &Sim, index: usize) -> Option<(KindId, String, String)> {
    let pods: Vec<_> = sim.objects.keys().filter(|place| place.0 == Pod::KIND).collect();
    (!pods.is_empty()).then(|| pods[index % pods.len()].clone())
}

fn owned_active(sim: &Sim) -> usize {
    let uid = sim.get::<ReplicaSet>("default", "web").unwrap().metadata.uid.unwrap();
    let is_own = |p: &Pod| pod::controller_of(&p.metadata).is_some_and(|o| o.uid == uid);
    sim.all::<Pod>().iter().filter(|p| is_own(p) && pod::is_active(p)).count()
}

fn outside(sim: &mut Sim, step: &Step) {
    match step {
        Step::Scale(to) => sim.edit::<ReplicaSet>("default", "web", |v| v["spec"]["replicas"] = json!(to)),
        Step::DeletePod(i) => {
            if let Some(place) = nth_pod(sim, *i) {
                sim.remove(&place);
            }
        }
        Step::Ready(i) => {
            if let Some((_, ns, name)) = nth_pod(sim, *i) {
                // What has finished stays so.
                sim.edit::<Pod>(&ns, &name, |v| {
                    if v["status"]["phase"] != json!("Failed") {
                        v["status"] =
                            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
                    }
                });
            }
        }
        Step::Finish(i) => {
            if let Some((_, ns, name)) = nth_pod(sim, *i) {
                sim.edit::<Pod>(&ns, &name, |v| v["status"] = json!({"phase": "Failed"}));
            }
        }
        Step::Relabel(i) => {
            if let Some((_, ns, name)) = nth_pod(sim, *i) {
                sim.edit::<Pod>(&ns, &name, |v| v["metadata"]["labels"] = json!({"app": "other"}));
            }
        }
        Step::Reconcile | Step::Deliver(_) => {}
    }
}

/// One reconcile with its writes; gives how many pods it made.
fn turn(sim: &mut Sim, world: &mut World, now: Instant, seed: u64) -> (usize, bool) {
    let outcome = run(world, &key(), &config(), now, seed);
    let idle = outcome.writes.is_empty();
    let made = outcome.writes.iter().filter(|w| matches!(w, Write::Create { .. })).count();
    let (changes, _) = sim.execute(outcome.writes);
    for change in changes {
        world.apply(change, now);
    }
    (made, idle)
}

proptest! {
    /// However late the watch is, whatever others do: no pod too many is ever made, and in the end all is as wanted.
    #[test]
    fn converges_and_never_overshoots(steps in steps(), replicas in 0..6_i32) {
        let now = Instant::now();
        let mut sim = Sim::new();
        sim.add::<ReplicaSet>(replica_set(replicas));
        let mut world = sim.world(now);
        let mut seen = sim.log.len();
        let mut most_wanted = usize::try_from(replicas).unwrap();
        for (seed, step) in steps.iter().enumerate() {
            outside(&mut sim, step);
            if let Step::Scale(to) = step {
                most_wanted = most_wanted.max(usize::try_from(*to).unwrap());
            }
            match step {
                Step::Deliver(count) => {
                    for (kind, verb, value) in sim.log.iter().skip(seen).take(*count).cloned().collect::<Vec<_>>() {
                        world.apply(news(kind, verb, &value), now);
                        seen += 1;
                    }
                }
                Step::Reconcile => {
                    let (made, _) = turn(&mut sim, &mut world, now, seed as u64);
                    prop_assert!(made == 0 || owned_active(&sim) <= most_wanted, "{} active", owned_active(&sim));
                }
                _ => {}
            }
        }
        let mut settled = false;
        for seed in 1000..1100 {
            for (kind, verb, value) in sim.log[seen..].iter().cloned() {
                world.apply(news(kind, verb, &value), now);
            }
            seen = sim.log.len();
            let (_, idle) = turn(&mut sim, &mut world, now, seed);
            if idle && seen == sim.log.len() {
                settled = true;
                break;
            }
        }
        prop_assert!(settled);
        let set = sim.get::<ReplicaSet>("default", "web").unwrap();
        let want = usize::try_from(set.spec.unwrap().replicas.unwrap()).unwrap();
        prop_assert_eq!(owned_active(&sim), want);
        prop_assert_eq!(usize::try_from(set.status.unwrap().replicas).unwrap(), want);
    }
}

#[test]
fn pods_that_serve_least_go_first() {
    let now = Instant::now();
    let mut sim = Sim::new();
    let set = sim.add::<ReplicaSet>(replica_set(2));
    for (name, node, phase, ready) in [
        ("unbound", None, "Pending", "False"),
        ("starting", Some("n1"), "Pending", "False"),
        ("broken", Some("n2"), "Running", "False"),
        ("good", Some("n1"), "Running", "True"),
        ("fine", Some("n2"), "Running", "True"),
    ] {
        sim.add::<Pod>(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": set.metadata.uid, "controller": true}]},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        }));
    }
    let outcome = run(&sim.world(now), &key(), &config(), now, 1);
    let gone: BTreeSet<&str> = outcome
        .writes
        .iter()
        .filter_map(|w| match w {
            Write::Delete { target, .. } => Some(target.name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(gone, BTreeSet::from(["unbound", "starting", "broken"]));
}

#[test]
fn a_failure_is_reported_before_the_next_try_and_cleared_after() {
    let now = Instant::now();
    let mut sim = Sim::new();
    sim.add::<ReplicaSet>(replica_set(1));
    let mut world = sim.world(now);
    let failure = Failure { reason: "FailedCreate".into(), message: "quota".into() };
    let outcome = run_after(&world, &key(), &config(), now, 1, Some(&failure));
    assert!(matches!(outcome.writes[0], Write::UpdateStatus { .. }));
    assert!(matches!(outcome.writes[1], Write::Create { .. }));
    for change in sim.execute(outcome.writes).0 {
        world.apply(change, now);
    }
    let conditions = |sim: &Sim| sim.get::<ReplicaSet>("default", "web").unwrap().status.unwrap().conditions;
    assert_eq!(conditions(&sim).unwrap()[0].message.as_deref(), Some("quota"));
    turn(&mut sim, &mut world, now, 2);
    assert_eq!(conditions(&sim), None);
}

#[test]
fn a_matching_orphan_is_adopted_instead_of_a_new_pod() {
    let now = Instant::now();
    let mut sim = Sim::new();
    sim.add::<ReplicaSet>(replica_set(1));
    sim.add::<Pod>(json!({
        "metadata": {"name": "bare", "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": []},
    }));
    let mut world = sim.world(now);
    assert_eq!(turn(&mut sim, &mut world, now, 1).0, 0);
    assert_eq!(owned_active(&sim), 1);
}
