//! ReplicaSets and ReplicationControllers: the same controller, over one view of both.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{
            Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
            ReplicationControllerStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};

use crate::{
    hash::random_name,
    kind::Typed,
    owned::{self, BURST, namespace_ends, number, owner_reference, positive, seconds},
    pod,
    reconcile::Context,
    selector,
    write::{Outcome, Write},
};

/// What both kinds have in common.
struct Replicas<'a> {
    component: &'static str,
    meta: &'a ObjectMeta,
    owner: OwnerReference,
    selector: LabelSelector,
    template: Option<&'a PodTemplateSpec>,
    want: usize,
    min_ready: Duration,
}

/// What both statuses have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    replicas: i32,
    fully_labeled: i32,
    ready: i32,
    available: i32,
    terminating: i32,
}

/// Reconciles one ReplicaSet.
pub(crate) fn reconcile_replica_set(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(set) = cx.world.replica_sets.get(namespace, name) else { return Outcome::default() };
    let Some(spec) = &set.spec else { return Outcome::default() };
    let view = Replicas {
        component: "replicaset-controller",
        meta: &set.metadata,
        owner: owner_reference(set),
        selector: spec.selector.clone(),
        template: spec.template.as_ref(),
        want: usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0),
        min_ready: seconds(spec.min_ready_seconds),
    };
    let (mut outcome, counts) = reconcile(&view, set, cx);
    if let Some(counts) = counts {
        let old = set.status.clone().unwrap_or_default();
        let failure = cx.failure.map(|f| ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(f.reason.clone()),
            message: Some(f.message.clone()),
            last_transition_time: Some(cx.time()),
        });
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: positive(counts.fully_labeled),
            ready_replicas: positive(counts.ready),
            available_replicas: positive(counts.available),
            terminating_replicas: positive(counts.terminating),
            observed_generation: set.metadata.generation,
            conditions: with_condition(
                old.conditions.as_deref(),
                failure,
                |c| &c.type_,
                |a, b| (&a.reason, &a.message) == (&b.reason, &b.message),
            ),
        };
        if set.status.as_ref() != Some(&status) {
            outcome
                .writes
                .insert(0, Write::update_status(ReplicaSet { status: Some(status), ..set.clone() }));
        }
    }
    outcome
}

/// Reconciles one ReplicationController.
pub(crate) fn reconcile_replication_controller(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(rc) = cx.world.replication_controllers.get(namespace, name) else { return Outcome::default() };
    let Some(spec) = &rc.spec else { return Outcome::default() };
    let labels = spec.template.as_ref().and_then(|t| t.metadata.as_ref()?.labels.clone());
    let view = Replicas {
        component: "replication-controller",
        meta: &rc.metadata,
        owner: owner_reference(rc),
        selector: LabelSelector {
            match_labels: spec.selector.clone().filter(|s| !s.is_empty()).or(labels),
            match_expressions: None,
        },
        template: spec.template.as_ref(),
        want: usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0),
        min_ready: seconds(spec.min_ready_seconds),
    };
    let (mut outcome, counts) = reconcile(&view, rc, cx);
    if let Some(counts) = counts {
        let old = rc.status.clone().unwrap_or_default();
        let failure = cx.failure.map(|f| ReplicationControllerCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(f.reason.clone()),
            message: Some(f.message.clone()),
            last_transition_time: Some(cx.time()),
        });
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: positive(counts.fully_labeled),
            ready_replicas: positive(counts.ready),
            available_replicas: positive(counts.available),
            observed_generation: rc.metadata.generation,
            conditions: with_condition(
                old.conditions.as_deref(),
                failure,
                |c| &c.type_,
                |a, b| (&a.reason, &a.message) == (&b.reason, &b.message),
            ),
        };
        if rc.status.as_ref() != Some(&status) {
            outcome.writes.insert(
                0,
                Write::update_status(ReplicationController { status: Some(status), ..rc.clone() }),
            );
        }
    }
    outcome
}

/// The shared part. Counts are given only when the status may be written: after the pods are right, or when they
/// cannot be made so.
fn reconcile<K: Typed>(view: &Replicas<'_>, object: &K, cx: &mut Context<'_>) -> (Outcome, Option<Counts>) {
    let namespace = view.meta.namespace.as_deref().unwrap_or_default();
    let deleting = view.meta.deletion_timestamp.is_some();
    if !deleting {
        let pods = cx.world.pods.in_namespace(namespace);
        let claims = owned::claim(pods, &view.selector, &view.owner, pod::is_active);
        if !claims.is_empty() {
            return (Outcome::new(claims), None);
        }
    }
    let owned: Vec<&Pod> = cx
        .world
        .pods
        .in_namespace(namespace)
        .filter(|p| owned::is_owned(&p.metadata, &view.owner.uid))
        .collect();
    let active: Vec<&Pod> = owned.iter().copied().filter(|p| pod::is_active(p)).collect();
    let mut outcome = Outcome::default();
    let counts = count(view, &owned, &active, cx, &mut outcome);
    if deleting || namespace_ends(cx.world, namespace) {
        return (outcome, Some(counts));
    }
    if active.len() < view.want {
        let missing = (view.want - active.len()).min(BURST);
        outcome.writes = (0..missing).filter_map(|_| create(view, object, cx)).collect();
    } else if active.len() > view.want {
        let surplus = (active.len() - view.want).min(BURST);
        outcome.writes = victims(active, surplus, cx).into_iter().map(|p| delete(view, object, p)).collect();
    }
    // What fails is said (first, as a failure ends the writes) before it is tried once more.
    let settled = outcome.writes.is_empty() || cx.failure.is_some();
    (outcome, settled.then_some(counts))
}

fn count(
    view: &Replicas<'_>,
    owned: &[&Pod],
    active: &[&Pod],
    cx: &Context<'_>,
    outcome: &mut Outcome,
) -> Counts {
    let template = view.template.and_then(|t| t.metadata.as_ref()?.labels.as_ref());
    let mut counts = Counts { replicas: number(active.len()), ..Counts::default() };
    counts.terminating = number(
        owned.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !pod::is_finished(p)).count(),
    );
    for p in active {
        if template.is_none() || selector::matches_map(template, p.metadata.labels.as_ref()) {
            counts.fully_labeled += 1;
        }
        if !pod::is_ready(p) {
            continue;
        }
        counts.ready += 1;
        match owned::available_in(p, view.min_ready, cx) {
            Duration::ZERO => counts.available += 1,
            wait => outcome.look_again(wait),
        }
    }
    counts
}

fn create<K: Typed>(view: &Replicas<'_>, object: &K, cx: &mut Context<'_>) -> Option<Write> {
    let base = format!("{}-", view.meta.name.as_deref()?);
    let mut pod = owned::pod(object, view.template?, random_name(&base, cx.rng));
    pod.metadata.generate_name = Some(base);
    Some(owned::create(view.component, object, pod))
}

fn delete<K: Typed>(view: &Replicas<'_>, object: &K, p: &Pod) -> Write {
    owned::delete(view.component, object, p)
}

/// Which pods go first: what serves least is missed least.
pub(crate) fn victims<'a>(mut active: Vec<&'a Pod>, surplus: usize, cx: &Context<'_>) -> Vec<&'a Pod> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for p in &active {
        if let Some(node) = pod::node(p) {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let crowd = |p: &Pod| pod::node(p).and_then(|node| per_node.get(node)).copied().unwrap_or(0);
    active.sort_by(|a, b| compare(a, b, crowd(a), crowd(b), cx));
    active.truncate(surplus);
    active
}

fn compare(a: &Pod, b: &Pod, crowd_a: usize, crowd_b: usize, cx: &Context<'_>) -> Ordering {
    let phase = |p: &Pod| match pod::phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let since = |p: &Pod| p.metadata.uid.as_ref().and_then(|uid| cx.world.ready_since.get(uid)).copied();
    pod::node(a)
        .is_some()
        .cmp(&pod::node(b).is_some())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pod::is_ready(a).cmp(&pod::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a))
        .then_with(|| since(b).cmp(&since(a)))
        .then_with(|| pod::restarts(b).cmp(&pod::restarts(a)))
        .then_with(|| b.metadata.creation_timestamp.cmp(&a.metadata.creation_timestamp))
        .then_with(|| a.metadata.name.cmp(&b.metadata.name))
}

fn deletion_cost(p: &Pod) -> i32 {
    let annotations = p.metadata.annotations.as_ref();
    annotations
        .and_then(|map| map.get("controller.kubernetes.io/pod-deletion-cost")?.parse().ok())
        .unwrap_or(0)
}

/// Replaces, adds or removes (by its type) the one condition these kinds have, keeping its time while it says the same.
fn with_condition<C: Clone>(
    old: Option<&[C]>,
    new: Option<C>,
    kind: impl Fn(&C) -> &String,
    same: impl Fn(&C, &C) -> bool,
) -> Option<Vec<C>> {
    let mut list: Vec<C> =
        old.unwrap_or_default().iter().filter(|c| kind(c) != "ReplicaFailure").cloned().collect();
    if let Some(new) = new {
        let before = old.unwrap_or_default().iter().find(|c| kind(c) == kind(&new) && same(c, &new));
        list.push(before.cloned().unwrap_or(new));
    }
    Some(list).filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests;
