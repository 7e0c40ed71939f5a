//! DaemonSets: one pod on every node that may have one.
//!
//! The pods are bound by the scheduler, like all others: each asks for its node by name.

mod eligible;
mod manage;
mod rolling;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus},
    core::v1::Pod,
};

use crate::{
    owned::{self, namespace_ends, number, owner_reference, positive, seconds},
    pod,
    reconcile::Context,
    revision::{self, HASH_LABEL, Keeper, Step},
    write::{Outcome, Write},
};
use eligible::Verdict;

const COMPONENT: &str = "daemonset-controller";

/// A daemon set, its nodes and what is on them.
struct View<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    /// The hash of today's template.
    hash: &'a str,
    nodes: BTreeMap<&'a str, Site<'a>>,
    /// Pods for nodes that are not there.
    strays: Vec<&'a Pod>,
    min_ready: Duration,
}

/// One node.
struct Site<'a> {
    verdict: Verdict,
    /// The oldest first.
    pods: Vec<&'a Pod>,
}

impl<'a> Site<'a> {
    /// Neither ended nor being deleted.
    fn running(&self) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().copied().filter(|p| pod::is_active(p))
    }
}

impl View<'_> {
    fn is_new(&self, p: &Pod) -> bool {
        revision::label(&p.metadata) == Some(self.hash)
    }

    fn is_available(&self, p: &Pod, cx: &Context<'_>) -> bool {
        pod::is_ready(p) && owned::available_in(p, self.min_ready, cx).is_zero()
    }

    fn wanted(&self) -> usize {
        self.nodes.values().filter(|site| site.verdict == Verdict::Run).count()
    }
}

/// Reconciles one daemon set.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(set) = cx.world.daemon_sets.get(namespace, name) else { return Outcome::default() };
    let Some(spec) = &set.spec else { return Outcome::default() };
    if set.metadata.deletion_timestamp.is_some() || namespace_ends(cx.world, namespace) {
        return Outcome::default();
    }
    let keeper = Keeper {
        object: set,
        template: &spec.template,
        selector: &spec.selector,
        collisions: set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0),
        limit: spec.revision_history_limit,
        hash_label: HASH_LABEL,
    };
    let pods = cx.world.pods.in_namespace(namespace);
    let mut claims = owned::claim(pods, &spec.selector, &owner_reference(set), pod::is_active);
    claims.extend(keeper.claim(cx.world));
    if !claims.is_empty() {
        return Outcome::new(claims);
    }
    let history = keeper.history(cx.world);
    match keeper.step(&history, cx.world) {
        Step::Keep => {}
        Step::Write(write) => return Outcome::new(vec![*write]),
        Step::Collision => return Outcome::new(vec![collided(set)]),
    }
    let Some(current) = history.current else { return Outcome::default() };
    let hash = revision::label(&current.metadata).unwrap_or_default();
    let view = view(set, spec, hash, cx);
    let mut outcome = Outcome::default();
    let mut writes = manage::pods(&view, cx, &mut outcome);
    let rolls = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    if writes.is_empty() && rolls {
        writes = rolling::roll(&view, cx);
    }
    if writes.is_empty() {
        let pods = || view.nodes.values().flat_map(|s| &s.pods);
        let live = |hash: &str| pods().any(|p| revision::label(&p.metadata) == Some(hash));
        writes = keeper.clean_up(&history, &|r| revision::label(&r.metadata).is_some_and(live));
    }
    // The status follows what is done; what fails is said before it is tried once more.
    if writes.is_empty() || cx.failure.is_some() {
        outcome.writes.extend(sync(&view, cx));
    }
    outcome.writes.extend(writes);
    if let Some(wait) = settles_in(&view, cx) {
        outcome.look_again(wait);
    }
    outcome
}

/// When the next ready pod counts as available.
fn settles_in(view: &View<'_>, cx: &Context<'_>) -> Option<Duration> {
    let ready = view.nodes.values().flat_map(|s| s.running()).filter(|p| pod::is_ready(p));
    ready.map(|p| owned::available_in(p, view.min_ready, cx)).filter(|wait| !wait.is_zero()).min()
}

/// Another one's revision has the name ours would get: the next name is another.
fn collided(set: &DaemonSet) -> Write {
    let mut set = set.clone();
    let status = set.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
    Write::update_status(set)
}

fn view<'a>(set: &'a DaemonSet, spec: &'a DaemonSetSpec, hash: &'a str, cx: &Context<'a>) -> View<'a> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref();
    let mut nodes: BTreeMap<&str, Site<'_>> = BTreeMap::new();
    for node in cx.world.nodes.all() {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        nodes.insert(name, Site { verdict: eligible::judge(spec, node), pods: Vec::new() });
    }
    let mut own: Vec<&Pod> = cx
        .world
        .pods
        .all()
        .filter(|p| p.metadata.namespace.as_deref() == namespace)
        .filter(|p| owned::is_owned(&p.metadata, uid))
        .collect();
    own.sort_by_key(|p| (p.metadata.creation_timestamp.clone(), p.metadata.name.clone()));
    let mut strays = Vec::new();
    for p in own {
        match eligible::node_of(p).and_then(|name| nodes.get_mut(name)) {
            Some(site) => site.pods.push(p),
            None => strays.push(p),
        }
    }
    View { set, spec, hash, nodes, strays, min_ready: seconds(spec.min_ready_seconds) }
}

/// Writes the status if it changed.
fn sync(view: &View<'_>, cx: &Context<'_>) -> Option<Write> {
    let before = view.set.status.as_ref();
    let (mut current, mut ready, mut available, mut updated, mut astray) = (0, 0, 0, 0, 0);
    for site in view.nodes.values().filter(|site| !site.pods.is_empty()) {
        if site.verdict != Verdict::Run {
            astray += 1;
            continue;
        }
        current += 1;
        // While two are there the older one is what the node has.
        let Some(p) = site.running().next().or(site.pods.first().copied()) else { continue };
        updated += i32::from(view.is_new(p));
        if p.metadata.deletion_timestamp.is_none() {
            ready += i32::from(pod::is_ready(p));
            available += i32::from(view.is_available(p, cx));
        }
    }
    let desired = number(view.wanted());
    let status = DaemonSetStatus {
        collision_count: before.and_then(|s| s.collision_count),
        conditions: before.and_then(|s| s.conditions.clone()),
        current_number_scheduled: current,
        desired_number_scheduled: desired,
        number_available: positive(available),
        number_misscheduled: astray,
        number_ready: ready,
        number_unavailable: positive(desired - available),
        observed_generation: view.set.metadata.generation,
        updated_number_scheduled: positive(updated),
    };
    (before != Some(&status))
        .then(|| Write::update_status(DaemonSet { status: Some(status), ..view.set.clone() }))
}
