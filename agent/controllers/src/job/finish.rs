//! How a job ends: what decides it, and what its conditions say.

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobStatus},
    core::v1::Pod,
};

use super::{COMPONENT, View};
use crate::{event::Event, pod, reconcile::Context, write::Outcome};

const SUCCESS_TARGET: &str = "SuccessCriteriaMet";
const FAILURE_TARGET: &str = "FailureTarget";
const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";
const SUSPENDED: &str = "Suspended";

/// An end that has been decided. Its pods may still be running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    success: bool,
    reason: &'static str,
    message: Cow<'static, str>,
}

const REACHED: End = End {
    success: true,
    reason: "CompletionsReached",
    message: Cow::Borrowed("Reached expected number of succeeded pods"),
};
const BACK_OFF: End = End {
    success: false,
    reason: "BackoffLimitExceeded",
    message: Cow::Borrowed("Job has reached the specified backoff limit"),
};
const DEADLINE: End = End {
    success: false,
    reason: "DeadlineExceeded",
    message: Cow::Borrowed("Job was active longer than specified deadline"),
};

/// The condition that says that a job ended for good.
fn last(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|c| matches!(c.type_.as_str(), COMPLETE | FAILED) && c.status == "True")
}

/// The reason when a pod's failure is the job's.
const POLICY: &str = "PodFailurePolicy";

/// When a job ended for good.
pub(super) fn ended_at(job: &Job) -> Option<Timestamp> {
    last(job).map(|c| c.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Whether a job that ended did so well.
pub(super) fn result(job: &Job) -> Option<bool> {
    last(job).map(|c| c.type_ == COMPLETE)
}

/// Whether it has been decided that the job failed.
pub(super) fn has_failed(job: &Job) -> bool {
    is_true(job.status.as_ref(), FAILURE_TARGET)
}

fn is_true(status: Option<&JobStatus>, kind: &str) -> bool {
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

/// Whether the job has failed. Comes back at its deadline.
pub(super) fn failure(view: &View<'_>, cx: &Context<'_>, outcome: &mut Outcome) -> Option<End> {
    let status = view.job.status.as_ref();
    if is_true(status, SUCCESS_TARGET) {
        return None;
    }
    if let Some(decided) = decided(status) {
        return Some(decided);
    }
    if let Some(why) = view.tally.ends_it.clone() {
        return Some(End { success: false, reason: POLICY, message: Cow::Owned(why) });
    }
    let limit = usize::try_from(view.spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
    if view.tally.failed > limit || restarts_exceed(view, limit) {
        return Some(BACK_OFF);
    }
    let (deadline, start) = view.spec.active_deadline_seconds.zip(status?.start_time.as_ref())?;
    if view.suspended() {
        return None;
    }
    let left = start.0.as_second().saturating_add(deadline).saturating_sub(cx.wall.as_second());
    match u64::try_from(left).ok().filter(|left| *left > 0) {
        Some(left) => {
            outcome.look_again(Duration::from_secs(left));
            None
        }
        None => Some(DEADLINE),
    }
}

/// What was decided before.
fn decided(status: Option<&JobStatus>) -> Option<End> {
    let conditions = status?.conditions.as_deref()?;
    let condition = conditions.iter().find(|c| c.type_ == FAILURE_TARGET && c.status == "True")?;
    let same = |reason: &&&'static str| Some(**reason) == condition.reason.as_deref();
    let reason = [BACK_OFF.reason, DEADLINE.reason, POLICY].iter().find(same).copied();
    let message = Cow::Owned(condition.message.clone().unwrap_or_default());
    Some(End { success: false, reason: reason.unwrap_or(BACK_OFF.reason), message })
}

/// Containers that are started again in place count as well.
fn restarts_exceed(view: &View<'_>, limit: usize) -> bool {
    let again = view.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if again != Some("OnFailure") {
        return false;
    }
    let restarts: usize = view
        .pods
        .iter()
        .filter(|p| p.status.is_some() && !pod::is_finished(p))
        .map(|p| usize::try_from(all_restarts(p)).unwrap_or(0))
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn all_restarts(p: &Pod) -> i32 {
    let init = p.status.as_ref().and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    pod::restarts(p) + init.iter().map(|s| s.restart_count).sum::<i32>()
}

/// Whether enough pods have succeeded.
pub(super) fn success(view: &View<'_>) -> Option<End> {
    let done = view.tally.succeeded;
    let enough = match view.completions() {
        _ if is_true(view.job.status.as_ref(), SUCCESS_TARGET) => true,
        Some(completions) => done >= completions,
        None => done > 0 && view.active.is_empty(),
    };
    enough.then_some(REACHED)
}

/// Notes an end; the job has ended once it is `settled`.
pub(super) fn put(
    job: &Job,
    end: End,
    settled: bool,
    status: &mut JobStatus,
    tells: &mut Vec<Event>,
    cx: &Context<'_>,
) {
    let (target, last) = if end.success { (SUCCESS_TARGET, COMPLETE) } else { (FAILURE_TARGET, FAILED) };
    set(status, target, true, end.reason, &end.message, cx);
    if !settled {
        return;
    }
    set(status, last, true, end.reason, &end.message, cx);
    tells.push(if end.success {
        status.completion_time = Some(cx.time());
        Event::normal(COMPONENT, job, "Completed", "Job completed".to_owned())
    } else {
        Event::warning(COMPONENT, job, end.reason, end.message.into_owned())
    });
}

/// Says whether the job is suspended. Its time starts anew when it is resumed.
pub(super) fn suspend(view: &View<'_>, status: &mut JobStatus, tells: &mut Vec<Event>, cx: &Context<'_>) {
    let before = is_true(Some(status), SUSPENDED);
    match (before, view.suspended()) {
        (false, true) => {
            set(status, SUSPENDED, true, "JobSuspended", "Job suspended", cx);
            tells.push(Event::normal(COMPONENT, view.job, "Suspended", "Job suspended".to_owned()));
        }
        (true, false) => {
            set(status, SUSPENDED, false, "JobResumed", "Job resumed", cx);
            status.start_time = Some(cx.time());
            tells.push(Event::normal(COMPONENT, view.job, "Resumed", "Job resumed".to_owned()));
        }
        _ => {}
    }
}

fn set(status: &mut JobStatus, kind: &str, on: bool, reason: &str, message: &str, cx: &Context<'_>) {
    let word = if on { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    if conditions.iter().any(|c| c.type_ == kind && c.status == word) {
        return;
    }
    let new = JobCondition {
        type_: kind.to_owned(),
        status: word.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(cx.time()),
        last_transition_time: Some(cx.time()),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}
