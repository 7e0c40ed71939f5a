use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Namespace, Node, Pod},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    kind::Typed,
    reconcile::{Controller, Key},
    testing::{Sim, config, news, run},
    write::{Propagation, Target},
};

/// A deployment `web`, its replica set and that one's pod.
fn family() -> Sim {
    let mut sim = Sim::new();
    let owner = |kind: &str, name: &str, uid: &Option<String>| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {}});
    let top = sim.add::<Deployment>(json!({"metadata": {"name": "web", "namespace": "d"}, "spec": spec}));
    let middle = sim.add::<ReplicaSet>(json!({"metadata": {"name": "web-1", "namespace": "d",
        "ownerReferences": owner("Deployment", "web", &top.metadata.uid)}, "spec": spec}));
    sim.add::<Pod>(json!({"metadata": {"name": "web-1-x", "namespace": "d",
        "ownerReferences": owner("ReplicaSet", "web-1", &middle.metadata.uid)}, "spec": {"containers": []}}));
    sim
}

/// Collects until nothing is left to do.
fn collect(sim: &mut Sim) {
    let now = Instant::now();
    for _ in 0..20 {
        let world = sim.world(now);
        let uids: Vec<String> = sim.objects.values().map(uid).collect();
        let mut idle = true;
        for uid in uids {
            let writes = run(&world, &Key::new(Controller::Garbage, "", &uid), &config(), now, 1).writes;
            idle &= writes.is_empty();
            let _ = sim.execute(writes);
        }
        if idle {
            return;
        }
    }
    panic!("does not come to rest");
}

fn uid(value: &Value) -> String {
    value["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn delete(sim: &mut Sim, propagation: Propagation) {
    let target = Target::of(&sim.get::<Deployment>("d", "web").unwrap());
    sim.delete(&target, None, propagation).unwrap();
}

#[test]
fn background_takes_all_dependents() {
    let mut sim = family();
    collect(&mut sim);
    assert_eq!(sim.objects.len(), 3, "nobody is deleted: nobody goes");
    delete(&mut sim, Propagation::Background);
    collect(&mut sim);
    assert!(sim.objects.is_empty());
}

#[test]
fn foreground_takes_the_owner_last() {
    let mut sim = family();
    delete(&mut sim, Propagation::Foreground);
    assert_eq!(sim.objects.len(), 3);
    collect(&mut sim);
    assert!(sim.objects.is_empty());
    let ends: Vec<&str> = sim
        .log
        .iter()
        .filter(|(_, verb, _)| *verb == "DELETED")
        .map(|(_, _, v)| v["kind"].as_str().unwrap())
        .collect();
    assert_eq!(ends, ["Pod", "ReplicaSet", "Deployment"]);
}

#[test]
fn orphaned_dependents_stay() {
    let mut sim = family();
    delete(&mut sim, Propagation::Orphan);
    collect(&mut sim);
    assert!(sim.get::<Deployment>("d", "web").is_none());
    let set = sim.get::<ReplicaSet>("d", "web-1").unwrap();
    assert_eq!(set.metadata.owner_references.unwrap_or_default(), vec![]);
    assert!(sim.get::<Pod>("d", "web-1-x").is_some());
}

#[test]
fn an_owner_unseen_but_present_is_no_reason_to_delete() {
    let mut sim = family();
    let now = Instant::now();
    let mut world = sim.world(now);
    // The watch of deployments is wrong or late: the API is asked before anything is deleted.
    let gone = sim.objects[&(Deployment::KIND, "d".into(), "web".into())].clone();
    world.apply(news(Deployment::KIND, "DELETED", &gone), now);
    let set = sim.get::<ReplicaSet>("d", "web-1").unwrap();
    let key = Key::new(Controller::Garbage, "", &set.metadata.uid.unwrap());
    let writes = run(&world, &key, &config(), now, 1).writes;
    assert_eq!(writes.len(), 2);
    assert_eq!(sim.execute(writes).1, Err((409, "Present")));
    assert!(sim.get::<ReplicaSet>("d", "web-1").unwrap().metadata.deletion_timestamp.is_none());
}

#[test]
fn a_namespace_ends_when_it_is_empty_and_not_before() {
    let mut sim = family();
    sim.add::<Namespace>(json!({"metadata": {"name": "d"}, "spec": {"finalizers": ["kubernetes"]}}));
    let now = Instant::now();
    let key = Key::new(Controller::Namespace, "", "d");
    assert!(run(&sim.world(now), &key, &config(), now, 1).writes.is_empty());
    sim.edit::<Namespace>("", "d", |v| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z"));
    sim.execute(run(&sim.world(now), &key, &config(), now, 1).writes).1.unwrap();
    assert!(sim.objects.keys().all(|(_, ns, _)| ns != "d"));
    assert!(sim.get::<Namespace>("", "d").is_some());
    sim.execute(run(&sim.world(now), &key, &config(), now, 1).writes).1.unwrap();
    assert!(sim.get::<Namespace>("", "d").is_none());
}

#[test]
fn pods_of_a_node_that_is_gone_are_taken_once_the_api_says_so() {
    let mut sim = Sim::new();
    sim.add::<Pod>(
        json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [], "nodeName": "n1"}}),
    );
    let now = Instant::now();
    let world = sim.world(now);
    let key = Key::new(Controller::PodGarbage, "d", "p");
    sim.add::<Node>(json!({"metadata": {"name": "n1"}}));
    let writes = run(&world, &key, &config(), now, 1).writes;
    assert_eq!(sim.execute(writes.clone()).1, Err((409, "Present")));
    sim.remove(&(Node::KIND, String::new(), "n1".into()));
    sim.execute(writes).1.unwrap();
    assert!(sim.get::<Pod>("d", "p").is_none());
}
