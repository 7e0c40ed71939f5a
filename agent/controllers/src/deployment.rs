//! Deployments: which ReplicaSets there should be and how many replicas each may have just now.

mod rolling;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::json;

use crate::{
    event::Event,
    hash::template_hash,
    kind::Typed,
    owned::{self, created, namespace_ends, owner_reference},
    pod,
    reconcile::Context,
    write::{Outcome, Target, Write},
};

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const COMPONENT: &str = "deployment-controller";

/// A deployment and its replica sets, the one of today's template apart.
struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    want: i32,
    surge: i32,
    unavailable: i32,
    current: Option<&'a ReplicaSet>,
    /// Oldest first.
    old: Vec<&'a ReplicaSet>,
}

impl<'a> Rollout<'a> {
    fn recreate(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
    }

    fn all(&self) -> impl Iterator<Item = &'a ReplicaSet> {
        self.old.iter().copied().chain(self.current)
    }

    /// Most pods at a time.
    fn maximum(&self) -> i32 {
        self.want.saturating_add(self.surge)
    }

    /// Fewest available pods at any time.
    fn minimum(&self) -> i32 {
        self.want - self.unavailable
    }
}

/// Reconciles one deployment.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(deployment) = cx.world.deployments.get(namespace, name) else { return Outcome::default() };
    let Some(spec) = &deployment.spec else { return Outcome::default() };
    let deleting = deployment.metadata.deletion_timestamp.is_some() || namespace_ends(cx.world, namespace);
    if !deleting {
        let sets = cx.world.replica_sets.in_namespace(namespace);
        let claims = owned::claim(sets, &spec.selector, &owner_reference(deployment), |_| true);
        if !claims.is_empty() {
            return Outcome::new(claims);
        }
    }
    let rollout = view(deployment, spec, cx);
    let mut outcome = Outcome::default();
    if !deleting {
        outcome.writes = step(&rollout, cx);
        // Statuses are taken from the replica sets, which are about to change: once they have, this runs again.
        if !outcome.writes.is_empty() && cx.failure.is_none() {
            return outcome;
        }
    }
    status::sync(&rollout, cx, &mut outcome);
    outcome
}

/// The replica sets' next sizes.
fn step(rollout: &Rollout<'_>, cx: &Context<'_>) -> Vec<Write> {
    if rollout.spec.paused == Some(true) || is_scaling(rollout) {
        let mut writes = rolling::scale_proportionally(rollout);
        if rollout.spec.paused != Some(true) {
            writes.extend(clean_up(rollout));
        }
        return writes;
    }
    if let Some(write) = name_collision(rollout, cx) {
        return vec![write];
    }
    let mut writes = revisions(rollout);
    writes.extend(if rollout.recreate() { recreate(rollout, cx) } else { rolling::roll(rollout) });
    if writes.is_empty() {
        writes = clean_up(rollout);
    }
    writes
}

fn view<'a>(deployment: &'a Deployment, spec: &'a DeploymentSpec, cx: &Context<'a>) -> Rollout<'a> {
    let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
    let mut sets: Vec<&ReplicaSet> = cx
        .world
        .replica_sets
        .all()
        .filter(|rs| rs.metadata.namespace.as_deref() == Some(namespace))
        .filter(|rs| pod::controller_of(&rs.metadata).is_some_and(|o| o.uid == uid))
        .filter(|rs| rs.metadata.deletion_timestamp.is_none())
        .collect();
    sets.sort_by(|a, b| {
        created(&a.metadata).cmp(&created(&b.metadata)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    let current = sets.iter().position(|rs| same_template(rs, &spec.template)).map(|i| sets.remove(i));
    let want = spec.replicas.unwrap_or(1).max(0);
    let (surge, unavailable) = bounds(spec, want);
    Rollout { deployment, spec, want, surge, unavailable, current, old: sets }
}

/// maxSurge (rounded up) and maxUnavailable (rounded down); never both zero.
fn bounds(spec: &DeploymentSpec, want: i32) -> (i32, i32) {
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, want);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".to_owned());
    let part = |value: Option<&IntOrString>, up| owned::share(value.unwrap_or(&quarter), want, up);
    let surge = part(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let unavailable = part(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(want))
}

/// Same template, the hash label apart: a template that comes back (rollback) finds its old replica set.
fn same_template(rs: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(own) = rs.spec.as_ref().and_then(|spec| spec.template.as_ref()) else { return false };
    own.spec == template.spec && without_hash(own) == without_hash(template)
}

fn without_hash(template: &PodTemplateSpec) -> ObjectMeta {
    let mut meta = template.metadata.clone().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.filter(|map| !map.is_empty());
    meta
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn size(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Available replicas, never more than there should be: a status may lag behind a scale down.
fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0).min(size(rs))
}

/// Whether the deployment's size was changed since the replica sets were last sized.
fn is_scaling(rollout: &Rollout<'_>) -> bool {
    rollout.all().filter(|rs| size(rs) > 0).any(|rs| {
        annotation(&rs.metadata, DESIRED)
            .and_then(|text| text.parse::<i32>().ok())
            .is_some_and(|desired| desired != rollout.want)
    })
}

/// Another replica set already has the name the new one would get: count it, which makes another name.
fn name_collision(rollout: &Rollout<'_>, cx: &Context<'_>) -> Option<Write> {
    if rollout.current.is_some() {
        return None;
    }
    let namespace = rollout.deployment.metadata.namespace.as_deref()?;
    cx.world.replica_sets.get(namespace, &new_name(rollout))?;
    let mut deployment = rollout.deployment.clone();
    let status = deployment.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
    Some(Write::update_status(deployment))
}

fn collisions(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
}

fn new_name(rollout: &Rollout<'_>) -> String {
    let hash = template_hash(&rollout.spec.template, collisions(rollout.deployment));
    format!("{}-{hash}", rollout.deployment.metadata.name.as_deref().unwrap_or_default())
}

/// The replica set for today's template, at this size.
fn new_replica_set(rollout: &Rollout<'_>, replicas: i32) -> Write {
    let (deployment, spec) = (rollout.deployment, rollout.spec);
    let hash = template_hash(&spec.template, collisions(deployment));
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut match_labels = spec.selector.match_labels.clone().unwrap_or_default();
    match_labels.insert(HASH_LABEL.to_owned(), hash);
    let mut annotations = inherited(deployment);
    annotations.insert(REVISION.to_owned(), next_revision(rollout).to_string());
    annotations.extend(sizes(rollout));
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(new_name(rollout)),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector { match_labels: Some(match_labels), ..spec.selector.clone() },
            template: Some(template),
        }),
        status: None,
    };
    let message = format!("Scaled up replica set {} from 0 to {replicas}", new_name(rollout));
    let done = (replicas > 0).then(|| Event::normal(COMPONENT, deployment, "ScalingReplicaSet", message));
    let failed = Event::warning(
        COMPONENT,
        deployment,
        "ReplicaSetCreateError",
        format!("Failed to create new replica set {:?}: ", new_name(rollout)),
    );
    Write::Create { object: set.wrap(), done, failed: Some(failed) }
}

/// Annotations a replica set takes over.
fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let skip =
        [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAXIMUM, "deprecated.deployment.rollback.to"];
    let all = deployment.metadata.annotations.clone().unwrap_or_default();
    all.into_iter().filter(|(key, _)| !skip.contains(&key.as_str())).collect()
}

fn sizes(rollout: &Rollout<'_>) -> [(String, String); 2] {
    [(DESIRED.to_owned(), rollout.want.to_string()), (MAXIMUM.to_owned(), rollout.maximum().to_string())]
}

fn next_revision(rollout: &Rollout<'_>) -> i64 {
    rollout.old.iter().map(|rs| revision(&rs.metadata)).max().unwrap_or(0) + 1
}

/// Keeps the revision numbers of the current replica set and of the deployment.
fn revisions(rollout: &Rollout<'_>) -> Vec<Write> {
    let mut writes = Vec::new();
    let Some(current) = rollout.current else { return writes };
    let mut number = revision(&current.metadata);
    if number < next_revision(rollout) {
        let mut annotations = json!({ REVISION: next_revision(rollout).to_string() });
        if number > 0 {
            let history = annotation(&current.metadata, REVISION_HISTORY).unwrap_or_default();
            let history: Vec<&str> = history.split(',').filter(|s| !s.is_empty()).collect();
            let kept = history.iter().skip(history.len().saturating_sub(20)).copied();
            let number = number.to_string();
            let text = kept.chain([number.as_str()]).collect::<Vec<_>>().join(",");
            annotations[REVISION_HISTORY] = json!(text);
        }
        number = next_revision(rollout);
        let version = current.metadata.resource_version.as_deref();
        writes.push(Write::patch_meta(Target::of(current), version, json!({ "annotations": annotations })));
    }
    if annotation(&rollout.deployment.metadata, REVISION) != Some(number.to_string().as_str()) {
        let version = rollout.deployment.metadata.resource_version.as_deref();
        let patch = json!({ "annotations": { REVISION: number.to_string() } });
        writes.push(Write::patch_meta(Target::of(rollout.deployment), version, patch));
    }
    writes
}

/// Gives a replica set another size.
fn scale(rollout: &Rollout<'_>, rs: &ReplicaSet, to: i32) -> Write {
    let from = size(rs);
    let name = rs.metadata.name.as_deref().unwrap_or_default();
    let [desired, maximum] = sizes(rollout);
    let patch = json!({
        "metadata": {
            "resourceVersion": rs.metadata.resource_version,
            "annotations": { desired.0: desired.1, maximum.0: maximum.1 },
        },
        "spec": { "replicas": to },
    });
    let direction = if to > from { "up" } else { "down" };
    let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
    let done =
        (to != from).then(|| Event::normal(COMPONENT, rollout.deployment, "ScalingReplicaSet", message));
    Write::Patch { target: Target::of(rs), patch, done }
}

/// First none of the old, then all of the new.
fn recreate(rollout: &Rollout<'_>, cx: &Context<'_>) -> Vec<Write> {
    let downs: Vec<Write> =
        rollout.old.iter().filter(|rs| size(rs) > 0).map(|rs| scale(rollout, rs, 0)).collect();
    if !downs.is_empty() {
        return downs;
    }
    let namespace = rollout.deployment.metadata.namespace.as_deref().unwrap_or_default();
    let is_old = |p: &Pod| {
        pod::controller_of(&p.metadata)
            .is_some_and(|o| rollout.old.iter().any(|rs| rs.metadata.uid.as_deref() == Some(o.uid.as_str())))
    };
    if cx.world.pods.in_namespace(namespace).any(|p| is_old(p) && !pod::is_finished(p)) {
        return Vec::new();
    }
    match rollout.current {
        None => vec![new_replica_set(rollout, rollout.want)],
        Some(rs) if size(rs) != rollout.want => vec![scale(rollout, rs, rollout.want)],
        Some(_) => Vec::new(),
    }
}

/// Deletes the oldest replica sets beyond the history limit, when the rollout is complete.
fn clean_up(rollout: &Rollout<'_>) -> Vec<Write> {
    let Some(current) = rollout.current else { return Vec::new() };
    let complete = size(current) == rollout.want && available(current) == rollout.want;
    let limit = rollout.spec.revision_history_limit.unwrap_or(10);
    if !complete || limit == i32::MAX {
        return Vec::new();
    }
    let mut idle: Vec<_> = rollout
        .old
        .iter()
        .filter(|rs| size(rs) == 0 && rs.status.as_ref().is_none_or(|s| s.replicas == 0))
        .filter(|rs| {
            rs.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0)
                >= rs.metadata.generation.unwrap_or(0)
        })
        .collect();
    idle.sort_by_key(|rs| revision(&rs.metadata));
    let surplus = rollout.old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    idle.into_iter().take(surplus).map(|rs| Write::delete(Target::of(*rs))).collect()
}
