use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    kind::Typed,
    reconcile::{Controller, Key},
    testing::{Sim, config, news, run},
};

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Leave(u8),
    Reconcile,
    /// The write happens, but its answer is lost.
    ReconcileUnheard,
    Deliver(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..8_u8).prop_map(Step::Join),
        1 => (0..8_u8).prop_map(Step::Leave),
        2 => Just(Step::Reconcile),
        2 => Just(Step::ReconcileUnheard),
        3 => (0..4_usize).prop_map(Step::Deliver),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// No two nodes ever have the same CIDR, however late watches are and whichever answers are lost.
    #[test]
    fn no_cidr_is_given_twice(steps in steps()) {
        let now = Instant::now();
        let mut sim = Sim::new();
        let mut world = sim.world(now);
        let mut seen = 0;
        let key = Key::new(Controller::NodeCidr, "", "");
        for step in steps {
            match step {
                Step::Join(i) => {
                    let _ = sim.create(Node::KIND, json!({"metadata": {"name": format!("n{i}")}, "spec": {}}));
                }
                Step::Leave(i) => sim.remove(&(Node::KIND, String::new(), format!("n{i}"))),
                Step::Deliver(count) => {
                    for (kind, verb, value) in sim.log.iter().skip(seen).take(count).cloned().collect::<Vec<_>>() {
                        world.apply(news(kind, verb, &value), now);
                        seen += 1;
                    }
                }
                Step::Reconcile | Step::ReconcileUnheard => {
                    let outcome = run(&world, &key, &config(), now, 1);
                    world.cidr_claims.extend(outcome.claims);
                    let (changes, _) = sim.execute(outcome.writes);
                    if matches!(step, Step::Reconcile) {
                        changes.into_iter().for_each(|c| { world.apply(c, now); });
                    }
                }
            }
            let given: Vec<String> = sim.all::<Node>().into_iter().filter_map(|n| n.spec?.pod_cidr).collect();
            let distinct: BTreeSet<&String> = given.iter().collect();
            prop_assert_eq!(distinct.len(), given.len(), "{:?}", given);
        }
    }
}

#[test]
fn lowest_free_first_and_an_event_when_none_is_left() {
    let now = Instant::now();
    let mut sim = Sim::new();
    sim.add::<Node>(json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.1.0.0/24"}}));
    sim.add::<Node>(json!({"metadata": {"name": "b"}, "spec": {}}));
    sim.add::<Node>(json!({"metadata": {"name": "c"}, "spec": {}}));
    let mut small = config();
    small.cluster_cidr = "10.1.0.0/23".parse().unwrap();
    let outcome = run(&sim.world(now), &Key::new(Controller::NodeCidr, "", ""), &small, now, 1);
    assert_eq!(outcome.claims, vec![("b".to_owned(), "10.1.1.0/24".parse().unwrap())]);
    assert!(matches!(&outcome.writes[1], crate::write::Write::Tell(e) if e.reason == "CIDRNotAvailable"));
}
