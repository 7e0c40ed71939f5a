use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    pod,
    reconcile::Controller,
    testing::Stage,
    write::{Propagation, Target},
};

const SETS: &[Controller] = &[Controller::StatefulSet];

fn set(more: Value) -> Value {
    let mut set = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": 2, "serviceName": "svc", "podManagementPolicy": "OrderedReady",
            "selector": {"matchLabels": {"app": "web"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "1"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    });
    for (key, value) in more.as_object().unwrap() {
        set["spec"][key] = value.clone();
    }
    set
}

fn stage(more: Value) -> Stage {
    let mut stage = Stage::new(SETS);
    stage.sim.add::<StatefulSet>(set(more));
    stage.settle();
    stage
}

fn image(p: &Pod) -> String {
    p.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

/// Names and images of the pods that are there.
fn pods(stage: &Stage) -> Vec<String> {
    let active = stage.sim.all::<Pod>().into_iter().filter(pod::is_active);
    active.map(|p| format!("{}:{}", p.metadata.name.as_deref().unwrap(), image(&p))).collect()
}

fn claims(stage: &Stage) -> Vec<String> {
    stage.sim.all::<PersistentVolumeClaim>().into_iter().filter_map(|c| c.metadata.name).collect()
}

fn status(stage: &Stage) -> StatefulSetStatus {
    stage.sim.get::<StatefulSet>("default", "web").unwrap().status.unwrap()
}

fn edit(stage: &mut Stage, field: &str, value: Value) {
    stage.sim.edit::<StatefulSet>("default", "web", |v| v["spec"][field] = value);
    stage.settle();
}

fn set_image(stage: &mut Stage, image: &str) {
    stage.sim.edit::<StatefulSet>("default", "web", |v| {
        v["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    });
    stage.settle();
}

fn ready(stage: &mut Stage, names: &[&str]) {
    names.iter().for_each(|name| stage.ready(name));
    stage.settle();
}

/// A pod's kubelet has the last word; this is it.
fn delete(stage: &mut Stage, name: &str) {
    let target = Target::of(&stage.sim.get::<Pod>("default", name).unwrap());
    stage.sim.delete(&target, None, Propagation::Background).unwrap();
    stage.settle();
}

#[test]
fn pods_come_one_after_the_other_and_go_in_the_opposite_order() {
    let mut stage = stage(json!({}));
    assert_eq!(pods(&stage), ["web-0:1"]);
    let p = stage.sim.get::<Pod>("default", "web-0").unwrap();
    let spec = p.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-0"), Some("svc")));
    let volume = &spec.volumes.as_ref().unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-web-0");
    let labels = p.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-0");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "0");
    assert_eq!(Some(&labels["controller-revision-hash"]), status(&stage).update_revision.as_ref());
    ready(&mut stage, &["web-0"]);
    assert_eq!(pods(&stage), ["web-0:1", "web-1:1"]);
    ready(&mut stage, &["web-1"]);
    assert_eq!(claims(&stage), ["data-web-0", "data-web-1"]);
    let now = status(&stage);
    assert_eq!((now.replicas, now.ready_replicas, now.available_replicas), (2, Some(2), Some(2)));
    assert_eq!((now.current_replicas, now.updated_replicas), (Some(2), Some(2)));
    assert!(stage.told.contains(&"SuccessfulCreate: create Pod web-1 in StatefulSet web successful".into()));
    edit(&mut stage, "replicas", json!(1));
    assert_eq!(pods(&stage), ["web-0:1"]);
    assert_eq!(claims(&stage).len(), 2, "disks stay");
    edit(&mut stage, "ordinals", json!({"start": 5}));
    // The new ones first; the old ones are beyond the range.
    assert_eq!(pods(&stage), ["web-0:1", "web-5:1"]);
    ready(&mut stage, &["web-5"]);
    assert_eq!(pods(&stage), ["web-5:1"]);
}

#[test]
fn in_parallel_nobody_waits() {
    let mut stage = stage(json!({"podManagementPolicy": "Parallel", "replicas": 3}));
    assert_eq!(pods(&stage), ["web-0:1", "web-1:1", "web-2:1"]);
    edit(&mut stage, "replicas", json!(0));
    assert_eq!(pods(&stage).len(), 0);
}

#[test]
fn an_update_starts_with_the_last_and_keeps_those_below_the_partition() {
    let mut stage = stage(json!({"podManagementPolicy": "Parallel", "replicas": 3}));
    let all = ["web-0", "web-1", "web-2"];
    ready(&mut stage, &all);
    let partition = |n: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": n}});
    edit(&mut stage, "updateStrategy", partition(2));
    set_image(&mut stage, "2");
    assert_eq!(pods(&stage), ["web-0:1", "web-1:1", "web-2:2"]);
    ready(&mut stage, &["web-2"]);
    let now = status(&stage);
    assert_eq!((now.current_replicas, now.updated_replicas), (Some(2), Some(1)));
    assert_ne!(now.current_revision, now.update_revision);
    // One below comes back as it was.
    delete(&mut stage, "web-0");
    assert_eq!(pods(&stage)[0], "web-0:1");
    ready(&mut stage, &["web-0"]);
    edit(&mut stage, "updateStrategy", partition(0));
    assert_eq!(pods(&stage), ["web-0:1", "web-1:2", "web-2:2"]);
    ready(&mut stage, &["web-1"]);
    assert_eq!(pods(&stage), ["web-0:2", "web-1:2", "web-2:2"]);
    ready(&mut stage, &["web-0"]);
    let now = status(&stage);
    assert_eq!((now.current_replicas, &now.current_revision), (Some(3), &now.update_revision));
    // A broken update does not go on, and undoing it puts the broken one right.
    set_image(&mut stage, "3");
    assert_eq!(pods(&stage), ["web-0:2", "web-1:2", "web-2:3"]);
    set_image(&mut stage, "2");
    assert_eq!(pods(&stage), ["web-0:2", "web-1:2", "web-2:2"]);
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let mut stage = stage(json!({"podManagementPolicy": "Parallel", "updateStrategy": {"type": "OnDelete"}}));
    ready(&mut stage, &["web-0", "web-1"]);
    set_image(&mut stage, "2");
    assert_eq!(pods(&stage), ["web-0:1", "web-1:1"]);
    delete(&mut stage, "web-0");
    assert_eq!(pods(&stage), ["web-0:2", "web-1:1"]);
}

#[test]
fn what_failed_is_made_again_under_its_name() {
    let mut stage = stage(json!({}));
    let before = stage.sim.get::<Pod>("default", "web-0").unwrap().metadata.uid;
    stage.end("web-0", "Failed");
    stage.settle();
    assert_eq!(pods(&stage), ["web-0:1"]);
    assert_ne!(stage.sim.get::<Pod>("default", "web-0").unwrap().metadata.uid, before);
    assert!(stage.told.iter().any(|t| t.starts_with("RecreatingFailedPod: ")));
}

#[test]
fn disks_go_with_what_they_are_for_if_so_wanted() {
    let policy = |deleted: &str, scaled: &str| json!({"whenDeleted": deleted, "whenScaled": scaled});
    let mut stage = stage(json!({
        "podManagementPolicy": "Parallel", "persistentVolumeClaimRetentionPolicy": policy("Delete", "Delete")}));
    let owner = |stage: &Stage, name: &str| {
        let claim = stage.sim.get::<PersistentVolumeClaim>("default", name).unwrap();
        let owners = claim.metadata.owner_references.unwrap_or_default();
        owners.into_iter().map(|o| o.kind).collect::<Vec<_>>()
    };
    assert_eq!(owner(&stage, "data-web-1"), ["StatefulSet"]);
    stage.sim.edit::<Pod>("default", "web-1", |p| p["spec"]["nodeName"] = json!("n1"));
    edit(&mut stage, "replicas", json!(1));
    assert_eq!(owner(&stage, "data-web-1"), ["Pod"]);
    assert_eq!(owner(&stage, "data-web-0"), ["StatefulSet"]);
    edit(&mut stage, "persistentVolumeClaimRetentionPolicy", policy("Retain", "Retain"));
    assert_eq!(owner(&stage, "data-web-0").len(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Turn(usize),
    Deliver(usize),
    Ready(usize),
    Fail(usize),
    Delete(usize),
    Scale(i32),
    Image(u8),
    Partition(i32),
    NewLeader,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop_oneof![Just(usize::MAX), 1..4_usize].prop_map(Step::Turn),
        5 => (0..6_usize).prop_map(Step::Deliver),
        4 => (0..8_usize).prop_map(Step::Ready),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (0..8_usize).prop_map(Step::Delete),
        1 => (0..5_i32).prop_map(Step::Scale),
        1 => (1..4_u8).prop_map(Step::Image),
        1 => (0..3_i32).prop_map(Step::Partition),
        1 => Just(Step::NewLeader),
    ];
    proptest::collection::vec(step, 1..60)
}

fn act(stage: &mut Stage, step: &Step) {
    let nth = |stage: &Stage, i: usize| {
        let all: Vec<Pod> = stage.sim.all::<Pod>().into_iter().filter(pod::is_active).collect();
        (!all.is_empty()).then(|| all[i % all.len()].clone())
    };
    let name = |p: &Pod| p.metadata.name.clone().unwrap();
    let edit = |stage: &mut Stage, pointer: &str, value: Value| {
        stage.sim.edit::<StatefulSet>("default", "web", |v| *v.pointer_mut(pointer).unwrap() = value);
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
        Step::Scale(n) => edit(stage, "/spec/replicas", json!(n)),
        Step::Image(n) => edit(stage, "/spec/template/spec/containers/0/image", json!(n.to_string())),
        Step::Partition(n) => edit(stage, "/spec/updateStrategy/rollingUpdate/partition", json!(n)),
        Step::NewLeader => stage.restart(),
    }
}

proptest! {
    /// However late the news: never more pods than were ever wanted, each new one only when those before it are up,
    /// and in the end those wanted, of today's template above the partition.
    #[test]
    fn all_are_there_in_the_end(steps in steps(), parallel in any::<bool>()) {
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        let mut stage = stage(json!({"podManagementPolicy": policy}));
        let mut most = 2;
        for step in &steps {
            let before = pods(&stage).len();
            act(&mut stage, step);
            if let Step::Scale(n) = step {
                most = most.max(usize::try_from(*n).unwrap());
            }
            prop_assert!(pods(&stage).len() <= most);
            if !parallel && matches!(step, Step::Turn(_)) && pods(&stage).len() > before {
                prop_assert_eq!(pods(&stage).len(), before + 1);
            }
        }
        for _ in 0..20 {
            stage.pass(Duration::from_secs(60));
            for p in stage.sim.all::<Pod>().iter().filter(|p| pod::is_active(p)) {
                stage.ready(p.metadata.name.as_ref().unwrap());
            }
        }
        stage.settle();
        let set = stage.sim.get::<StatefulSet>("default", "web").unwrap().spec.unwrap();
        let want = usize::try_from(set.replicas.unwrap()).unwrap();
        let partition = set.update_strategy.unwrap().rolling_update.unwrap().partition.unwrap();
        let today = set.template.spec.unwrap().containers[0].image.clone().unwrap();
        let found = pods(&stage);
        prop_assert_eq!(found.len(), want);
        for (i, text) in found.iter().enumerate() {
            let (name, image) = text.split_once(':').unwrap();
            prop_assert_eq!(name, format!("web-{i}"));
            prop_assert!(i < usize::try_from(partition).unwrap() || image == today, "{text} {partition}");
        }
        prop_assert_eq!(status(&stage).available_replicas, Some(set.replicas.unwrap()));
    }
}
