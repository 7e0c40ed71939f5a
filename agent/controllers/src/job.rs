//! Jobs: pods that run until enough of them have succeeded.
//!
//! Every pod carries a finalizer until it has been counted. A pod that ended is first noted in the status by its uid,
//! then let go, then counted: whatever breaks off in between, it is neither lost nor counted twice.

mod finish;
mod indexes;
mod manage;
mod policy;
mod tally;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use crate::{
    owned::{self, namespace_ends, number, owner_reference, positive},
    pod,
    reconcile::Context,
    selector,
    write::{Outcome, Propagation, Target, Write},
};
use indexes::Indexes;
use tally::Tally;

const COMPONENT: &str = "job-controller";
/// On a pod that has not been counted.
pub(crate) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Who looks after a job unless it names somebody else.
const MANAGER: &str = "kubernetes.io/job-controller";

/// A job with its pods, and how they have fared.
struct View<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: Vec<&'a Pod>,
    active: Vec<&'a Pod>,
    /// Being deleted, and not at their end.
    terminating: usize,
    tally: Tally<'a>,
}

impl View<'_> {
    fn suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn parallelism(&self) -> usize {
        usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0)
    }

    /// How many must succeed; `None` where it is up to them.
    fn completions(&self) -> Option<usize> {
        self.spec.completions.map(|n| usize::try_from(n).unwrap_or(0))
    }
}

/// Whether a pod waits to be counted.
pub(crate) fn is_tracked(p: &Pod) -> bool {
    p.metadata.finalizers.as_ref().is_some_and(|list| list.iter().any(|f| f == TRACKING))
}

/// Whether each pod stands for one of the job's numbers.
fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// A pod is replaced only when it has failed, not already when it is being deleted.
fn waits_for_failure(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// The number a pod stands for.
fn index_of(p: &Pod) -> Option<u32> {
    p.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Whether a job that ended did so well; `None` while it has not ended.
pub(crate) fn result(job: &Job) -> Option<bool> {
    finish::result(job)
}

/// Reconciles one job.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(job) = cx.world.jobs.get(namespace, name) else { return Outcome::default() };
    let Some(spec) = &job.spec else { return Outcome::default() };
    if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER) {
        return Outcome::default();
    }
    if finish::ended_at(job).is_some() {
        return after_the_end(job, spec, cx);
    }
    let deleting = job.metadata.deletion_timestamp.is_some() || namespace_ends(cx.world, namespace);
    if !deleting {
        let claims = claim(job, spec, cx);
        if !claims.is_empty() {
            return Outcome::new(claims);
        }
    }
    let mut outcome = Outcome::default();
    let view = view(job, spec, cx);
    let mut target = finish::failure(&view, cx, &mut outcome);
    let mut after = Vec::new();
    if deleting {
        // Nothing new is made; those that end are still counted and let go.
    } else if target.is_some() {
        after.extend(view.active.iter().map(|p| owned::delete(COMPONENT, job, p)));
    } else {
        let writes = manage::pods(&view, cx, &mut outcome);
        // What fails is said before it is tried once more.
        if cx.failure.is_some() {
            after = writes;
        } else if !writes.is_empty() {
            return Outcome { writes, ..outcome };
        }
        target = finish::success(&view);
    }
    outcome.writes = sync(&view, target, cx);
    outcome.writes.extend(after);
    outcome
}

fn view<'a>(job: &'a Job, spec: &'a JobSpec, cx: &Context<'a>) -> View<'a> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let all = cx.world.pods.all().filter(|p| p.metadata.namespace.as_deref() == Some(namespace));
    let pods: Vec<&Pod> = all.filter(|p| owned::is_owned(&p.metadata, uid)).collect();
    let active = pods.iter().copied().filter(|p| pod::is_active(p)).collect();
    let terminating =
        pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !pod::is_finished(p)).count();
    let tally = Tally::new(job, spec, &pods);
    View { job, spec, pods, active, terminating, tally }
}

/// Adopts what matches (with a finalizer, so that it is counted) and lets go of what no longer does.
fn claim(job: &Job, spec: &JobSpec, cx: &Context<'_>) -> Vec<Write> {
    let Some(selector) = &spec.selector else { return Vec::new() };
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let reference = owner_reference(job);
    let pods = || cx.world.pods.in_namespace(namespace);
    let own: Vec<&Pod> = pods().filter(|p| owned::is_owned(&p.metadata, &reference.uid)).collect();
    let mut writes = owned::claim(own.into_iter(), selector, &reference, |_| false);
    let orphans = pods()
        .filter(|p| pod::controller_of(&p.metadata).is_none() && pod::is_active(p))
        .filter(|p| selector::matches(selector, p.metadata.labels.as_ref()));
    writes.extend(orphans.map(|p| {
        let mut owners = p.metadata.owner_references.clone().unwrap_or_default();
        owners.push(reference.clone());
        let mut finalizers = p.metadata.finalizers.clone().unwrap_or_default();
        if !is_tracked(p) {
            finalizers.push(TRACKING.to_owned());
        }
        let patch = json!({ "ownerReferences": owners, "finalizers": finalizers });
        Write::patch_meta(Target::of(p), p.metadata.resource_version.as_deref(), patch)
    }));
    writes
}

/// Takes the finalizer off a pod.
fn release(p: &Pod) -> Write {
    let mut finalizers = p.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|f| f != TRACKING);
    let finalizers = Some(finalizers).filter(|list| !list.is_empty());
    let version = p.metadata.resource_version.as_deref();
    Write::patch_meta(Target::of(p), version, json!({ "finalizers": finalizers }))
}

/// The status as it is now, then the pods it has taken note of let go.
fn sync(view: &View<'_>, target: Option<finish::End>, cx: &Context<'_>) -> Vec<Write> {
    let (job, tally) = (view.job, &view.tally);
    let ready = view.active.iter().filter(|p| pod::is_ready(p)).count();
    let completed = is_indexed(view.spec).then(|| tally.completed.to_string());
    let mut status = JobStatus {
        active: positive(number(view.active.len())),
        ready: Some(number(ready)),
        terminating: Some(number(view.terminating)),
        succeeded: positive(number(tally.counted_succeeded)),
        failed: positive(number(tally.counted_failed)),
        completed_indexes: completed.filter(|text| !text.is_empty()),
        uncounted_terminated_pods: Some(tally.uncounted.clone()),
        ..job.status.clone().unwrap_or_default()
    };
    let mut tells = Vec::new();
    finish::suspend(view, &mut status, &mut tells, cx);
    if status.start_time.is_none() && !view.suspended() {
        status.start_time = Some(cx.time());
    }
    if let Some(end) = target {
        let settled = tally.is_settled() && view.active.is_empty() && view.terminating == 0;
        finish::put(job, end, settled, &mut status, &mut tells, cx);
    }
    let mut writes = Vec::new();
    if job.status.as_ref() != Some(&status) {
        writes.push(Write::update_status(Job { status: Some(status), ..job.clone() }));
    }
    writes.extend(tally.release.iter().map(|p| release(p)));
    writes.extend(tells.into_iter().map(Write::Tell));
    writes
}

/// A job that ended: its last pods are let go, and after a while it goes itself, where that is wanted.
fn after_the_end(job: &Job, spec: &JobSpec, cx: &Context<'_>) -> Outcome {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let own = cx.world.pods.in_namespace(namespace).filter(|p| owned::is_owned(&p.metadata, uid));
    let mut outcome = Outcome::new(own.filter(|p| is_tracked(p)).map(release).collect());
    let Some((ttl, ended)) = spec.ttl_seconds_after_finished.zip(finish::ended_at(job)) else {
        return outcome;
    };
    if job.metadata.deletion_timestamp.is_some() {
        return outcome;
    }
    let left = ended.as_second().saturating_add(i64::from(ttl)).saturating_sub(cx.wall.as_second());
    match u64::try_from(left).ok().filter(|left| *left > 0) {
        Some(left) => outcome.look_again(Duration::from_secs(left)),
        None => outcome.writes.push(Write::Delete {
            target: Target::of(job),
            grace: None,
            propagation: Propagation::Foreground,
            done: None,
            failed: None,
        }),
    }
    outcome
}

/// Reconciles one pod that waits to be counted by a job that may be gone.
pub(crate) fn reconcile_orphan(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(p) = cx.world.pods.get(namespace, name).filter(|p| is_tracked(p)) else {
        return Outcome::default();
    };
    let Some(owner) = pod::controller_of(&p.metadata) else { return Outcome::new(vec![release(p)]) };
    if owner.kind != "Job" {
        return Outcome::new(vec![release(p)]);
    }
    let known = cx.world.jobs.get(namespace, &owner.name);
    if known.is_some_and(|job| job.metadata.uid.as_deref() == Some(owner.uid.as_str())) {
        return Outcome::default();
    }
    let target = Target {
        kind: <Job as crate::kind::Typed>::KIND,
        namespace: namespace.to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
    };
    Outcome::new(vec![Write::RequireAbsent { target }, release(p)])
}

/// Whether a selector of a job is for these labels; a job that has no selector has no pods to find.
pub(crate) fn selects(job: &Job, meta: &ObjectMeta) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, meta.labels.as_ref()))
}
