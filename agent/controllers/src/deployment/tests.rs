use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    kind::Typed,
    pod,
    reconcile::{Controller, Key},
    testing::{Sim, config, news, run},
    world::World,
};

fn deployment(replicas: i32, strategy: &Value) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": strategy,
            "template": template(1),
        },
    })
}

fn template(version: i32) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": format!("i:{version}")}]}})
}

fn rolling(surge: i32, unavailable: i32) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// Deployment and replica set controllers over one API whose watch is on time.
struct Rig {
    sim: Sim,
    world: World,
    seen: usize,
    now: Instant,
    seed: u64,
}

impl Rig {
    fn new(object: Value) -> Self {
        let now = Instant::now();
        let mut sim = Sim::new();
        sim.add::<Deployment>(object);
        let world = sim.world(now);
        let seen = sim.log.len();
        Self { sim, world, seen, now, seed: 0 }
    }

    fn deliver(&mut self) {
        for (kind, verb, value) in self.sim.log[self.seen..].iter().cloned() {
            self.world.apply(news(kind, verb, &value), self.now);
        }
        self.seen = self.sim.log.len();
    }

    fn reconcile(&mut self, key: &Key) -> bool {
        self.deliver();
        self.seed += 1;
        let outcome = run(&self.world, key, &config(), self.now, self.seed);
        let idle = outcome.writes.is_empty();
        for change in self.sim.execute(outcome.writes).0 {
            self.world.apply(change, self.now);
        }
        self.deliver();
        idle
    }

    /// Lets all controllers work until none has anything to do.
    fn settle(&mut self) {
        for _ in 0..50 {
            let mut idle = self.reconcile(&Key::new(Controller::Deployment, "default", "web"));
            for set in self.sim.all::<ReplicaSet>() {
                let name = set.metadata.name.unwrap();
                idle &= self.reconcile(&Key::new(Controller::ReplicaSet, "default", &name));
            }
            if idle {
                return;
            }
        }
        panic!("does not come to rest");
    }

    /// One more pod becomes ready; `false` if all are.
    fn start_one(&mut self, pick: usize) -> bool {
        let waiting: Vec<Pod> =
            self.sim.all::<Pod>().into_iter().filter(|p| !pod::is_ready(p) && pod::is_active(p)).collect();
        if waiting.is_empty() {
            return false;
        }
        let name = waiting[pick % waiting.len()].metadata.name.clone().unwrap();
        self.sim.edit::<Pod>("default", &name, |v| {
            v["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        });
        true
    }

    fn counts(&self) -> (i32, i32) {
        let pods = self.sim.all::<Pod>();
        let active = pods.iter().filter(|p| pod::is_active(p)).count();
        let ready = pods.iter().filter(|p| pod::is_active(p) && pod::is_ready(p)).count();
        (i32::try_from(active).unwrap(), i32::try_from(ready).unwrap())
    }

    fn roll_out(&mut self) {
        self.settle();
        while self.start_one(0) {
            self.settle();
        }
    }

    fn get(&self) -> Deployment {
        self.sim.get("default", "web").unwrap()
    }

    fn set_template(&mut self, version: i32) {
        self.sim.edit::<Deployment>("default", "web", |v| v["spec"]["template"] = template(version));
    }
}

proptest! {
    /// During a rolling update there are never more pods than surge allows, nor fewer ready ones than promised, even
    /// when the template or the size changes in the middle.
    #[test]
    fn rolling_update_keeps_its_bounds(
        replicas in 1..6_i32, surge in 0..4_i32, unavailable in 0..4_i32, picks in proptest::collection::vec(0..16_usize, 1..40),
        interrupt in 0..20_usize,
    ) {
        let mut rig = Rig::new(deployment(replicas, &rolling(surge, unavailable)));
        rig.roll_out();
        prop_assert_eq!(rig.counts(), (replicas, replicas));
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(replicas) };
        rig.set_template(2);
        for (i, pick) in picks.iter().cycle().take(200).enumerate() {
            rig.settle();
            let (active, ready) = rig.counts();
            prop_assert!(active <= replicas + surge, "{active} pods");
            prop_assert!(ready >= replicas - unavailable, "{ready} ready");
            if i == interrupt {
                rig.set_template(3);
            } else if !rig.start_one(*pick) {
                break;
            }
        }
        rig.roll_out();
        prop_assert_eq!(rig.counts(), (replicas, replicas));
        let status = rig.get().status.unwrap();
        prop_assert_eq!(status.updated_replicas, Some(replicas));
        prop_assert_eq!(status.unavailable_replicas, None);
    }
}

#[test]
fn the_first_rollout_reports_what_kubectl_waits_for() {
    let mut rig = Rig::new(deployment(3, &rolling(1, 1)));
    rig.settle();
    let condition = |rig: &Rig, kind: &str| {
        let status = rig.get().status.unwrap();
        let found = status.conditions.unwrap().into_iter().find(|c| c.type_ == kind).unwrap();
        (found.status, found.reason.unwrap())
    };
    assert_eq!(condition(&rig, "Available"), ("False".into(), "MinimumReplicasUnavailable".into()));
    assert_eq!(condition(&rig, "Progressing"), ("True".into(), "ReplicaSetUpdated".into()));
    rig.roll_out();
    assert_eq!(condition(&rig, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert_eq!(condition(&rig, "Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    let deployment = rig.get();
    assert_eq!(deployment.status.as_ref().unwrap().observed_generation, deployment.metadata.generation);
    assert_eq!(deployment.metadata.annotations.unwrap()[super::REVISION], "1");
}

#[test]
fn rolling_back_reuses_the_old_replica_set_with_a_new_revision() {
    let mut rig = Rig::new(deployment(2, &rolling(1, 0)));
    rig.roll_out();
    let first = rig.sim.all::<ReplicaSet>()[0].metadata.uid.clone();
    rig.set_template(2);
    rig.roll_out();
    rig.set_template(1);
    rig.roll_out();
    let sets = rig.sim.all::<ReplicaSet>();
    assert_eq!(sets.len(), 2);
    let active: Vec<&ReplicaSet> = sets.iter().filter(|rs| super::size(rs) > 0).collect();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].metadata.uid, first);
    let annotations = active[0].metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[super::REVISION], "3");
    assert_eq!(annotations[super::REVISION_HISTORY], "1");
}

#[test]
fn recreate_never_mixes_templates() {
    let mut rig = Rig::new(deployment(3, &json!({"type": "Recreate"})));
    rig.roll_out();
    for p in rig.sim.all::<Pod>() {
        rig.sim.edit::<Pod>("default", &p.metadata.name.unwrap(), |v| v["spec"]["nodeName"] = json!("n1"));
    }
    rig.set_template(2);
    rig.settle();
    let ending = rig.sim.all::<Pod>();
    assert!(ending.iter().all(|p| p.metadata.deletion_timestamp.is_some()), "old ones end, no new one yet");
    assert_eq!(ending.len(), 3);
    for p in ending {
        rig.sim.remove(&(Pod::KIND, "default".into(), p.metadata.name.unwrap()));
    }
    rig.roll_out();
    let images: Vec<_> =
        rig.sim.all::<Pod>().into_iter().map(|p| p.spec.unwrap().containers[0].image.clone()).collect();
    assert_eq!(images, vec![Some("i:2".to_owned()); 3]);
}

#[test]
fn scaling_pausing_and_history() {
    let mut object = deployment(2, &rolling(1, 0));
    object["spec"]["revisionHistoryLimit"] = json!(1);
    let mut rig = Rig::new(object);
    rig.roll_out();
    rig.sim.edit::<Deployment>("default", "web", |v| v["spec"]["replicas"] = json!(5));
    rig.roll_out();
    assert_eq!(rig.counts(), (5, 5));
    rig.sim.edit::<Deployment>("default", "web", |v| v["spec"]["paused"] = json!(true));
    rig.set_template(2);
    rig.roll_out();
    assert_eq!(rig.sim.all::<ReplicaSet>().len(), 1, "paused: no new replica set");
    rig.sim.edit::<Deployment>("default", "web", |v| v["spec"]["replicas"] = json!(3));
    rig.roll_out();
    assert_eq!(rig.counts(), (3, 3), "paused deployments still scale");
    rig.sim.edit::<Deployment>("default", "web", |v| v["spec"]["paused"] = json!(false));
    rig.roll_out();
    for version in 3..6 {
        rig.set_template(version);
        rig.roll_out();
    }
    assert_eq!(rig.sim.all::<ReplicaSet>().len(), 2, "the current one and one old one");
}

#[test]
fn a_taken_name_makes_another_hash() {
    let mut rig = Rig::new(deployment(1, &rolling(1, 0)));
    rig.settle();
    let taken = rig.sim.all::<ReplicaSet>()[0].metadata.name.clone().unwrap();
    let mut rig = Rig::new(deployment(1, &rolling(1, 0)));
    rig.sim.add::<ReplicaSet>(json!({
        "metadata": {"name": taken, "namespace": "default"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"x": "y"}}},
    }));
    rig.roll_out();
    assert_eq!(rig.get().status.unwrap().collision_count, Some(1));
    assert_eq!(rig.counts(), (1, 1));
}
