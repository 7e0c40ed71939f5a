use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Node, Pod},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::eligible::node_of;
use crate::{
    kind::Typed,
    owned, pod,
    reconcile::Controller,
    revision,
    testing::Stage,
    write::{Propagation, Target},
};

const SETS: &[Controller] = &[Controller::DaemonSet];

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"disk": "ssd", "kubernetes.io/hostname": name}}, "spec": {}})
}

fn set(strategy: Value) -> Value {
    json!({
        "metadata": {"name": "log", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "log"}},
            "updateStrategy": strategy,
            "revisionHistoryLimit": 1,
            "template": {"metadata": {"labels": {"app": "log"}}, "spec": {"containers": [{"name": "c", "image": "1"}]}},
        },
    })
}

fn rolling(unavailable: i32, surge: i32) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}})
}

fn stage(nodes: &[&str], strategy: Value) -> Stage {
    let mut stage = Stage::new(SETS);
    for name in nodes {
        stage.sim.add::<Node>(node(name));
    }
    stage.sim.add::<DaemonSet>(set(strategy));
    stage.settle();
    stage
}

fn active(stage: &Stage) -> Vec<Pod> {
    stage.sim.all::<Pod>().into_iter().filter(pod::is_active).collect()
}

fn name(p: &Pod) -> String {
    p.metadata.name.clone().unwrap()
}

fn image(p: &Pod) -> String {
    p.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

/// Node and image of each, by node.
fn places(stage: &Stage) -> Vec<(String, String)> {
    let mut all: Vec<_> = active(stage).iter().map(|p| (node_of(p).unwrap().to_owned(), image(p))).collect();
    all.sort();
    all
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn status(stage: &Stage) -> DaemonSetStatus {
    stage.sim.get::<DaemonSet>("default", "log").unwrap().status.unwrap()
}

fn set_image(stage: &mut Stage, image: &str) {
    stage.sim.edit::<DaemonSet>("default", "log", |v| {
        v["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    });
}

fn all_ready(stage: &mut Stage) {
    for p in active(stage) {
        stage.ready(&name(&p));
    }
    stage.settle();
}

#[test]
fn every_node_that_may_have_one_has_one() {
    let mut stage = stage(&["a", "b"], rolling(1, 0));
    assert_eq!(places(&stage), pairs(&[("a", "1"), ("b", "1")]));
    let p = &active(&stage)[0];
    let tolerations = p.spec.as_ref().unwrap().tolerations.as_ref().unwrap();
    assert_eq!(tolerations.len(), 6);
    all_ready(&mut stage);
    let now = status(&stage);
    assert_eq!((now.desired_number_scheduled, now.current_number_scheduled, now.number_ready), (2, 2, 2));
    assert_eq!((now.updated_number_scheduled, now.number_available), (Some(2), Some(2)));
    assert_eq!((now.number_unavailable, now.observed_generation), (None, Some(1)));
    stage.sim.add::<Node>(node("c"));
    stage.settle();
    assert_eq!(places(&stage).len(), 3);
    // No longer allowed: away. Merely not preferred: it stays.
    let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect}]);
    stage.sim.edit::<Node>("", "a", |n| n["spec"]["taints"] = taint("NoExecute"));
    stage.sim.edit::<Node>("", "b", |n| n["spec"]["taints"] = taint("NoSchedule"));
    stage.settle();
    assert_eq!(places(&stage), pairs(&[("b", "1"), ("c", "1")]));
    let now = status(&stage);
    assert_eq!((now.desired_number_scheduled, now.number_misscheduled), (1, 1));
    // Selected by label.
    stage.sim.edit::<Node>("", "b", |n| n["spec"]["taints"] = json!([]));
    stage.sim.edit::<Node>("", "c", |n| n["metadata"]["labels"] = json!({"disk": "hdd"}));
    stage.sim.edit::<DaemonSet>("default", "log", |v| {
        v["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]}}});
    });
    stage.settle();
    assert!(places(&stage).iter().all(|(node, _)| node == "b"), "{:?}", places(&stage));
}

#[test]
fn a_rolling_update_goes_node_by_node_and_back() {
    let mut stage = stage(&["a", "b", "c"], rolling(1, 0));
    all_ready(&mut stage);
    set_image(&mut stage, "2");
    stage.settle();
    for step in 1..=3 {
        let new = places(&stage).iter().filter(|(_, image)| image == "2").count();
        assert_eq!((new, places(&stage).len()), (step, 3), "one at a time");
        all_ready(&mut stage);
    }
    assert_eq!(status(&stage).updated_number_scheduled, Some(3));
    let revisions = stage.sim.all::<ControllerRevision>();
    assert_eq!(revisions.len(), 2);
    let hashes: Vec<_> = revisions.iter().map(|r| revision::label(&r.metadata).unwrap()).collect();
    assert!(active(&stage).iter().all(|p| hashes.contains(&revision::label(&p.metadata).unwrap())));
    // Undo is the old template put back: its revision becomes the newest, no further one is made.
    set_image(&mut stage, "1");
    for _ in 0..3 {
        stage.settle();
        all_ready(&mut stage);
    }
    assert_eq!(places(&stage), pairs(&[("a", "1"), ("b", "1"), ("c", "1")]));
    let mut numbers: Vec<_> = stage
        .sim
        .all::<ControllerRevision>()
        .iter()
        .map(|r| (r.revision, r.data.clone().unwrap().0))
        .collect();
    numbers.sort_by_key(|(number, _)| *number);
    assert_eq!(numbers.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(numbers[1].1.pointer("/spec/template/$patch"), Some(&json!("replace")));
    assert_eq!(numbers[1].1.pointer("/spec/template/spec/containers/0/image"), Some(&json!("1")));
    // Beyond the limit the oldest goes.
    for image in ["3", "4"] {
        set_image(&mut stage, image);
        for _ in 0..4 {
            stage.settle();
            all_ready(&mut stage);
        }
    }
    assert_eq!(stage.sim.all::<ControllerRevision>().len(), 2);
}

#[test]
fn with_surge_the_new_one_comes_first() {
    let mut stage = stage(&["a", "b"], rolling(0, 1));
    all_ready(&mut stage);
    set_image(&mut stage, "2");
    stage.settle();
    assert_eq!(places(&stage).len(), 3);
    all_ready(&mut stage);
    assert_eq!(places(&stage).len(), 3, "the next one");
    all_ready(&mut stage);
    assert_eq!(places(&stage), pairs(&[("a", "2"), ("b", "2")]));
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let mut stage = stage(&["a", "b"], json!({"type": "OnDelete"}));
    all_ready(&mut stage);
    set_image(&mut stage, "2");
    stage.settle();
    assert_eq!(places(&stage), pairs(&[("a", "1"), ("b", "1")]));
    let target = Target::of(&active(&stage).into_iter().find(|p| node_of(p) == Some("a")).unwrap());
    stage.sim.delete(&target, None, Propagation::Background).unwrap();
    stage.settle();
    assert_eq!(places(&stage), pairs(&[("a", "2"), ("b", "1")]));
}

#[test]
fn a_failed_one_is_replaced_after_a_wait_that_doubles() {
    let mut stage = stage(&["a"], rolling(1, 0));
    for wait in [1, 2, 4] {
        let p = active(&stage).remove(0);
        // The scheduler has bound it; nothing but its kubelet ends it, and that has.
        stage.sim.edit::<Pod>("default", &name(&p), |p| p["spec"]["nodeName"] = json!("a"));
        stage.end(&name(&p), "Failed");
        stage.pass(Duration::from_secs(wait) - Duration::from_millis(1));
        assert_eq!(active(&stage).len(), 0, "{wait}");
        assert!(stage.sim.get::<Pod>("default", &name(&p)).unwrap().metadata.deletion_timestamp.is_none());
        stage.pass(Duration::from_millis(1));
        stage.sim.remove(&(Pod::KIND, "default".into(), name(&p)));
        stage.settle();
        assert_eq!(active(&stage).len(), 1, "{wait}");
    }
    let told =
        stage.told.iter().filter(|t| t.starts_with("FailedDaemonPod: Found failed daemon pod default/log-"));
    assert_eq!(told.count(), 3);
}

#[derive(Clone, Debug)]
enum Step {
    Turn(usize),
    Deliver(usize),
    Ready(usize),
    Fail(usize),
    Delete(usize),
    Image(u8),
    Node(u8),
    NodeGone(u8),
    Taint(u8, bool),
    NewLeader,
    Later,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop_oneof![Just(usize::MAX), 1..4_usize].prop_map(Step::Turn),
        5 => (0..6_usize).prop_map(Step::Deliver),
        3 => (0..8_usize).prop_map(Step::Ready),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (0..8_usize).prop_map(Step::Delete),
        1 => (0..3_u8).prop_map(Step::Image),
        1 => (0..4_u8).prop_map(Step::Node),
        1 => (0..4_u8).prop_map(Step::NodeGone),
        1 => (0..4_u8, any::<bool>()).prop_map(|(n, on)| Step::Taint(n, on)),
        1 => Just(Step::NewLeader),
        1 => Just(Step::Later),
    ];
    proptest::collection::vec(step, 1..60)
}

fn act(stage: &mut Stage, step: &Step) {
    let known = |stage: &Stage, n: u8| stage.sim.get::<Node>("", &format!("n{n}")).is_some();
    let nth = |stage: &Stage, i: usize| {
        let all = active(stage);
        (!all.is_empty()).then(|| all[i % all.len()].clone())
    };
    match step {
        Step::Turn(writes) => {
            stage.turn(*writes);
        }
        Step::Deliver(count) => stage.deliver(*count),
        Step::Ready(i) => nth(stage, *i).iter().for_each(|p| stage.ready(&name(p))),
        Step::Fail(i) => nth(stage, *i).iter().for_each(|p| stage.end(&name(p), "Failed")),
        Step::Delete(i) => nth(stage, *i).iter().for_each(|p| {
            let _ = stage.sim.delete(&Target::of(p), None, Propagation::Background);
        }),
        Step::Image(n) => set_image(stage, &n.to_string()),
        Step::Node(n) if !known(stage, *n) => {
            stage.sim.add::<Node>(node(&format!("n{n}")));
        }
        Step::NodeGone(n) => stage.sim.remove(&(Node::KIND, String::new(), format!("n{n}"))),
        Step::Taint(n, on) if known(stage, *n) => stage.sim.edit::<Node>("", &format!("n{n}"), |v| {
            v["spec"]["taints"] = if *on { json!([{"key": "k", "effect": "NoExecute"}]) } else { json!([]) };
        }),
        Step::Node(_) | Step::Taint(..) => {}
        Step::NewLeader => stage.restart(),
        Step::Later => stage.now += Duration::from_secs(60),
    }
}

proptest! {
    /// However late the news: never two of one template on a node, and in the end one of today's on each that may
    /// have one and none elsewhere.
    #[test]
    fn each_node_has_its_one_in_the_end(steps in steps(), surge in any::<bool>()) {
        let strategy = if surge { rolling(0, 1) } else { rolling(1, 0) };
        let mut stage = stage(&["n0", "n1"], strategy);
        for step in &steps {
            act(&mut stage, step);
            for p in active(&stage) {
                let same = |o: &Pod| node_of(o) == node_of(&p) && image(o) == image(&p);
                prop_assert!(active(&stage).iter().filter(|o| same(o)).count() <= 1, "{:?}", places(&stage));
            }
        }
        for _ in 0..20 {
            stage.pass(Duration::from_secs(1000));
            all_ready(&mut stage);
        }
        let set = stage.sim.get::<DaemonSet>("default", "log").unwrap();
        let image = set.spec.unwrap().template.spec.unwrap().containers[0].image.clone().unwrap();
        let may = |n: &Node| n.spec.as_ref().is_none_or(|s| s.taints.as_ref().is_none_or(Vec::is_empty));
        let nodes = stage.sim.all::<Node>().into_iter().filter(may);
        let want: Vec<_> = nodes.map(|n| (n.metadata.name.unwrap(), image.clone())).collect();
        prop_assert_eq!(status(&stage).number_available.unwrap_or(0), owned::number(want.len()));
        prop_assert_eq!(places(&stage), want);
        prop_assert!(stage.sim.all::<ControllerRevision>().len() <= 2);
    }
}
