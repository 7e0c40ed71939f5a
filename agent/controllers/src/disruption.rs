//! Disruption budgets: how many of their pods may be taken away just now.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, LabelSelector, Time},
        util::intstr::IntOrString,
    },
};

use crate::{
    owned::{number, share},
    pod,
    reconcile::Context,
    selector,
    world::World,
    write::{Outcome, Write},
};

/// An eviction that has not become a deletion after this long will not.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// Whether a budget is for a pod with these labels. An empty selector is for all.
pub(crate) fn is_for(budget: &PodDisruptionBudget, labels: Option<&BTreeMap<String, String>>) -> bool {
    let empty = |s: &LabelSelector| {
        s.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && s.match_expressions.as_ref().is_none_or(Vec::is_empty)
    };
    let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    wanted.is_some_and(|s| empty(s) || selector::matches(s, labels))
}

/// Reconciles one budget.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(budget) = cx.world.budgets.get(namespace, name) else { return Outcome::default() };
    if budget.metadata.deletion_timestamp.is_some() {
        return Outcome::default();
    }
    let pods: Vec<&Pod> = cx
        .world
        .pods
        .in_namespace(namespace)
        .filter(|p| pod::is_active(p) && is_for(budget, p.metadata.labels.as_ref()))
        .collect();
    let disrupted = disrupted(budget, &pods, cx);
    let waits = !disrupted.is_empty();
    let wanted = status(budget, &pods, disrupted, cx);
    let mut outcome = Outcome::default();
    if budget.status.as_ref() != Some(&wanted) {
        outcome
            .writes
            .push(Write::update_status(PodDisruptionBudget { status: Some(wanted), ..budget.clone() }));
    }
    if waits {
        outcome.look_again(FORGOTTEN);
    }
    outcome
}

/// Evictions of pods that are still there and not being deleted yet.
fn disrupted(budget: &PodDisruptionBudget, pods: &[&Pod], cx: &Context<'_>) -> BTreeMap<String, Time> {
    let known = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let there = |name: &String| pods.iter().any(|p| p.metadata.name.as_ref() == Some(name));
    let recent =
        |at: &Time| cx.wall.duration_since(at.0) < FORGOTTEN.try_into().unwrap_or(jiff::SignedDuration::MAX);
    known.into_iter().filter(|(name, at)| there(name) && recent(at)).collect()
}

fn status(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    disrupted: BTreeMap<String, Time>,
    cx: &Context<'_>,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.clone().unwrap_or_default();
    let expected_by_scale = || expected(cx.world, pods);
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = expected_by_scale();
            (expected, (expected - share(most, expected, true)).max(0))
        }
        (None, Some(least @ IntOrString::String(_))) => {
            let expected = expected_by_scale();
            (expected, share(least, expected, true))
        }
        (None, Some(IntOrString::Int(least))) => (number(pods.len()), *least),
        // Upstream's default.
        (None, None) => (number(pods.len()), 1),
    };
    let is_healthy = |p: &&&Pod| {
        pod::is_ready(p) && !p.metadata.name.as_ref().is_some_and(|name| disrupted.contains_key(name))
    };
    let healthy = number(pods.iter().filter(is_healthy).count());
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    PodDisruptionBudgetStatus {
        conditions: Some(vec![condition(budget, allowed, cx)]),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|map| !map.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    }
}

/// How many pods their controllers want, each controller once; a pod without one counts for itself.
fn expected(world: &World, pods: &[&Pod]) -> i32 {
    let mut scales: BTreeMap<&str, i32> = BTreeMap::new();
    let mut alone = 0;
    for p in pods {
        let namespace = p.metadata.namespace.as_deref().unwrap_or_default();
        match pod::controller_of(&p.metadata) {
            Some(owner) => {
                scales.insert(&owner.uid, scale(world, namespace, &owner.kind, &owner.name).unwrap_or(0));
            }
            None => alone += 1,
        }
    }
    scales.values().sum::<i32>() + alone
}

fn scale(world: &World, namespace: &str, kind: &str, name: &str) -> Option<i32> {
    match kind {
        "ReplicaSet" => {
            let set = world.replica_sets.get(namespace, name)?;
            // While a deployment rolls, its replica sets share its scale.
            let above = pod::controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
            let above = above.and_then(|owner| world.deployments.get(namespace, &owner.name));
            above.map_or_else(|| set.spec.as_ref()?.replicas, |d| d.spec.as_ref()?.replicas)
        }
        "ReplicationController" => {
            world.replication_controllers.get(namespace, name)?.spec.as_ref()?.replicas
        }
        "StatefulSet" => world.stateful_sets.get(namespace, name)?.spec.as_ref()?.replicas,
        _ => None,
    }
}

fn condition(budget: &PodDisruptionBudget, allowed: i32, cx: &Context<'_>) -> Condition {
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let old = budget
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "DisruptionAllowed"));
    let since = old.filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    Condition {
        last_transition_time: since.unwrap_or_else(|| cx.time()),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: "DisruptionAllowed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::{Controller, Key};
    use crate::testing::{Sim, config, run};
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    fn sim(spec: &Value, ready: usize) -> Sim {
        let mut sim = Sim::new();
        let set: ReplicaSet = sim.add(json!({"metadata": {"name": "web", "namespace": "d"},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}}}}));
        for i in 0..4 {
            let status = if i < ready { "True" } else { "False" };
            sim.add::<Pod>(json!({"metadata": {"name": format!("p{i}"), "namespace": "d", "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "controller": true,
                    "uid": set.metadata.uid}]},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}));
        }
        let mut spec = spec.clone();
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        sim.add::<PodDisruptionBudget>(json!({"metadata": {"name": "b", "namespace": "d"}, "spec": spec}));
        sim
    }

    fn settled(sim: &Sim) -> Option<PodDisruptionBudgetStatus> {
        let (key, now) = (Key::new(Controller::Disruption, "d", "b"), Instant::now());
        let outcome = run(&sim.world(now), &key, &config(), now, 1);
        let json = outcome.writes.first().map(|write| match write {
            Write::UpdateStatus { object } => object.to_json().unwrap(),
            other => panic!("{other:?}"),
        });
        json.map(|json| serde_json::from_value(json["status"].clone()).unwrap())
    }

    #[test]
    fn what_may_go_follows_from_what_is_healthy() {
        for (spec, ready, expect) in [
            (json!({"minAvailable": 2}), 4, (2, 2)),
            (json!({"minAvailable": 2}), 2, (2, 0)),
            (json!({"minAvailable": "50%"}), 3, (2, 1)),
            (json!({"maxUnavailable": 1}), 4, (3, 1)),
            (json!({"maxUnavailable": 1}), 3, (3, 0)),
            (json!({"maxUnavailable": "100%"}), 1, (0, 1)),
        ] {
            let status = settled(&sim(&spec, ready)).unwrap();
            let found = (status.desired_healthy.unwrap(), status.disruptions_allowed.unwrap());
            assert_eq!(found, expect, "{spec} {ready}");
            assert_eq!(status.observed_generation, Some(1));
        }
    }

    #[test]
    fn a_pod_that_is_about_to_go_is_not_counted_twice() {
        let mut sim = sim(&json!({"minAvailable": 2}), 4);
        let status = settled(&sim).unwrap();
        sim.edit::<PodDisruptionBudget>("d", "b", |b| b["status"] = serde_json::to_value(&status).unwrap());
        assert!(settled(&sim).is_none(), "nothing is new");
        sim.edit::<PodDisruptionBudget>("d", "b", |b| {
            b["status"]["disruptedPods"] =
                json!({"p0": "1970-01-01T00:00:00Z", "gone": "1970-01-01T00:00:00Z"});
            b["status"]["disruptionsAllowed"] = json!(1);
        });
        let status = settled(&sim).unwrap();
        assert_eq!(status.disruptions_allowed, Some(1));
        assert_eq!(status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["p0"]);
    }
}
