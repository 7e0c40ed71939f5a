use std::time::Duration;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    reconcile::{Controller, Key},
    testing::{Sim, config, news, run},
    world::World,
    write::Write,
};

/// Two nodes with leases, and pods on the first: one plain, one that bears everything, one that is ending.
struct Rig {
    sim: Sim,
    world: World,
    seen: usize,
    start: Instant,
}

impl Rig {
    fn new() -> Self {
        let mut sim = Sim::new();
        for name in ["n1", "n2"] {
            sim.add::<Node>(json!({"metadata": {"name": name}, "spec": {},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
            sim.add::<Lease>(json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {}}));
        }
        let everything = json!([{"operator": "Exists"}]);
        for (name, tolerations) in [("plain", json!([])), ("daemon", everything), ("ending", json!([]))] {
            sim.add::<Pod>(json!({"metadata": {"name": name, "namespace": "d"},
                "spec": {"nodeName": "n1", "containers": [], "tolerations": tolerations},
                "status": {"phase": "Running", "podIP": "10.1.0.2", "conditions": [{"type": "Ready", "status": "True"}]}}));
        }
        sim.edit::<Pod>("d", "ending", |v| {
            v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z")
        });
        let start = Instant::now();
        let world = sim.world(start);
        let seen = sim.log.len();
        Self { sim, world, seen, start }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn deliver(&mut self, seconds: u64) {
        let now = self.at(seconds);
        for (kind, verb, value) in self.sim.log[self.seen..].iter().cloned() {
            self.world.apply(news(kind, verb, &value), now);
        }
        self.seen = self.sim.log.len();
    }

    fn renew(&mut self, node: &str, seconds: u64) {
        self.sim.edit::<Lease>("kube-node-lease", node, |v| {
            v["spec"]["renewTime"] = json!("1970-01-01T00:00:00.000000Z")
        });
        self.deliver(seconds);
    }

    /// Lets the controller work at a time until it has nothing to do; gives when it wants to look again.
    fn settle(&mut self, seconds: u64) -> Option<Duration> {
        for _ in 0..10 {
            let outcome = run(
                &self.world,
                &Key::new(Controller::NodeLifecycle, "", "n1"),
                &config(),
                self.at(seconds),
                1,
            );
            let idle = outcome.writes.iter().all(|w| matches!(w, Write::Tell(_)));
            let (changes, result) = self.sim.execute(outcome.writes);
            let now = self.at(seconds);
            changes.into_iter().for_each(|c| {
                self.world.apply(c, now);
            });
            self.deliver(seconds);
            if idle {
                result.unwrap();
                return outcome.again;
            }
        }
        panic!("does not come to rest");
    }

    fn ready(&self) -> String {
        let node = self.sim.get::<Node>("", "n1").unwrap();
        super::ready_condition(&node).unwrap().status.clone()
    }

    fn taints(&self) -> Vec<String> {
        let node = self.sim.get::<Node>("", "n1").unwrap();
        node.spec
            .unwrap()
            .taints
            .unwrap_or_default()
            .into_iter()
            .map(|t| format!("{}:{}", t.key, t.effect))
            .collect()
    }

    fn pods(&self) -> Vec<String> {
        self.sim.all::<Pod>().into_iter().map(|p| p.metadata.name.unwrap()).collect()
    }
}

#[test]
fn a_silent_node_is_marked_then_emptied_and_recovers() {
    let mut rig = Rig::new();
    rig.renew("n1", 3);
    assert_eq!(rig.settle(3), Some(Duration::from_secs(10)), "looks again when the grace period ends");
    rig.renew("n2", 9);
    rig.settle(12);
    assert_eq!(rig.ready(), "True");
    rig.renew("n2", 13);
    assert_eq!(rig.settle(13), Some(Duration::from_secs(5)));
    assert_eq!(rig.ready(), "Unknown");
    assert_eq!(
        rig.taints(),
        ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"]
    );
    let plain = rig.sim.get::<Pod>("d", "plain").unwrap();
    assert!(!crate::pod::is_ready(&plain));
    assert_eq!(rig.pods(), ["daemon", "ending", "plain"]);
    rig.renew("n2", 18);
    rig.settle(18);
    assert_eq!(rig.pods(), ["daemon"], "forced: nobody is there to confirm");
    // It is heard again: first only that, then its kubelet says that it is ready.
    rig.renew("n1", 20);
    rig.settle(20);
    assert_eq!(rig.taints().len(), 2);
    rig.sim.edit::<Node>("", "n1", |v| v["status"]["conditions"][0]["status"] = json!("True"));
    rig.deliver(21);
    rig.settle(21);
    assert_eq!(rig.taints(), Vec::<String>::new());
}

#[test]
fn when_all_look_dead_nothing_is_evicted() {
    let mut rig = Rig::new();
    rig.settle(10);
    rig.settle(1000);
    assert_eq!(rig.ready(), "Unknown");
    assert_eq!(rig.pods().len(), 3);
    rig.renew("n2", 1001);
    rig.settle(1001);
    assert_eq!(rig.pods(), ["daemon"], "one is alive: the other really is gone");
}

#[test]
fn a_node_that_says_it_is_not_ready_loses_its_pods_gracefully() {
    let mut rig = Rig::new();
    rig.sim.edit::<Node>("", "n1", |v| v["status"]["conditions"][0]["status"] = json!("False"));
    rig.deliver(1);
    rig.renew("n2", 1);
    rig.settle(1);
    assert_eq!(rig.taints()[1], "node.kubernetes.io/not-ready:NoExecute");
    rig.renew("n1", 6);
    rig.renew("n2", 6);
    rig.settle(6);
    let plain = rig.sim.get::<Pod>("d", "plain").unwrap();
    assert!(plain.metadata.deletion_timestamp.is_some(), "asked to end, its kubelet is alive");
}

#[test]
fn a_heartbeat_in_the_status_counts_as_well() {
    let mut rig = Rig::new();
    rig.sim.edit::<Node>("", "n1", |v| {
        v["status"]["conditions"][0]["lastHeartbeatTime"] = json!("1970-01-01T00:00:07Z");
    });
    rig.deliver(7);
    rig.settle(12);
    assert_eq!(rig.ready(), "True");
    rig.settle(17);
    assert_eq!(rig.ready(), "Unknown");
}
