//! StatefulSets: pods with names, and disks, of their own, in order.

mod claims;
mod status;
mod step;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec},
    core::v1::{Pod, PodTemplateSpec},
};

use crate::{
    owned::{self, namespace_ends, owner_reference, seconds},
    pod,
    reconcile::Context,
    revision::{self, History, Keeper, Step, name_of},
    write::{Outcome, Write},
};

const COMPONENT: &str = "statefulset-controller";
/// Where its revisions keep their hash; its pods name the whole revision.
const REVISION_HASH: &str = "controller.kubernetes.io/hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A stateful set and its pods.
struct View<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    /// The first number.
    start: i64,
    /// How many there are to be.
    want: i64,
    /// The revision from which an update comes, and what it was.
    current: &'a str,
    current_template: PodTemplateSpec,
    /// Today's revision.
    update: &'a str,
    /// By number.
    pods: BTreeMap<i64, &'a Pod>,
    min_ready: Duration,
}

impl View<'_> {
    fn name(&self) -> &str {
        self.set.metadata.name.as_deref().unwrap_or_default()
    }

    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn rolls(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    /// Pods below this number keep the old revision.
    fn partition(&self) -> i64 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        self.start.saturating_add(i64::from(rolling.and_then(|r| r.partition).unwrap_or(0)))
    }

    fn wants(&self, number: i64) -> bool {
        (self.start..self.start.saturating_add(self.want)).contains(&number)
    }

    fn is_available(&self, p: &Pod, cx: &Context<'_>) -> bool {
        is_up(p) && owned::available_in(p, self.min_ready, cx).is_zero()
    }
}

/// Runs and is ready.
fn is_up(p: &Pod) -> bool {
    pod::phase(p) == "Running" && pod::is_ready(p)
}

fn is_leaving(p: &Pod) -> bool {
    p.metadata.deletion_timestamp.is_some()
}

/// The number in a pod's name.
fn number_of(set: &str, p: &Pod) -> Option<i64> {
    let text = p.metadata.name.as_deref()?.strip_prefix(set)?.strip_prefix('-')?;
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(i64::from(number))
}

/// Reconciles one stateful set.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(set) = cx.world.stateful_sets.get(namespace, name) else { return Outcome::default() };
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
        hash_label: REVISION_HASH,
    };
    let pods = cx.world.pods.in_namespace(namespace);
    let adopts = |p: &Pod| number_of(name, p).is_some() && pod::is_active(p);
    let mut claims = owned::claim(pods, &spec.selector, &owner_reference(set), adopts);
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
    let Some(today) = history.current else { return Outcome::default() };
    let view = view(set, spec, &history, today, cx);
    decide(&view, &keeper, &history, cx)
}

fn decide(
    view: &View<'_>,
    keeper: &Keeper<'_, StatefulSet>,
    history: &History<'_>,
    cx: &Context<'_>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut writes = step::step(view, cx);
    if writes.is_empty() {
        let live = |r: &ControllerRevision| {
            let of = |p: &&Pod| revision::label(&p.metadata) == Some(name_of(r));
            name_of(r) == view.current || view.pods.values().any(of)
        };
        writes = keeper.clean_up(history, &live);
    }
    // Which revision is which is noted before anything is done about it.
    let status = status::status(view, cx);
    let before = view.set.status.as_ref();
    let turned = before.is_none_or(|s| {
        (&s.current_revision, &s.update_revision) != (&status.current_revision, &status.update_revision)
    });
    let settled = writes.is_empty() || cx.failure.is_some() || turned;
    if settled && before != Some(&status) {
        let set = StatefulSet { status: Some(status), ..view.set.clone() };
        outcome.writes.push(Write::update_status(set));
    }
    outcome.writes.extend(writes);
    let up = view.pods.values().filter(|p| is_up(p));
    let waits = up.map(|p| owned::available_in(p, view.min_ready, cx)).filter(|wait| !wait.is_zero());
    if let Some(wait) = waits.min() {
        outcome.look_again(wait);
    }
    outcome
}

/// Another one's revision has the name ours would get: the next name is another.
fn collided(set: &StatefulSet) -> Write {
    let mut set = set.clone();
    let status = set.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
    Write::update_status(set)
}

fn view<'a>(
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    history: &History<'a>,
    today: &'a ControllerRevision,
    cx: &Context<'a>,
) -> View<'a> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let all = cx.world.pods.all().filter(|p| p.metadata.namespace == set.metadata.namespace);
    let own = all.filter(|p| owned::is_owned(&p.metadata, uid));
    let noted = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
    let current = noted.and_then(|noted| history.all.iter().copied().find(|r| name_of(r) == noted));
    let current = current.unwrap_or(today);
    View {
        set,
        spec,
        start: i64::from(spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)),
        want: i64::from(spec.replicas.unwrap_or(1).max(0)),
        current: name_of(current),
        current_template: revision::template(current).unwrap_or_else(|| spec.template.clone()),
        update: name_of(today),
        pods: own.filter_map(|p| Some((number_of(name, p)?, p))).collect(),
        min_ready: seconds(spec.min_ready_seconds),
    }
}
