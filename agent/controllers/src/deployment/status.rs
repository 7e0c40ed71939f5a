//! What a deployment reports.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::{Rollout, available, size};
use crate::{
    owned::positive,
    reconcile::Context,
    write::{Outcome, Write},
};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const DEADLINE: &str = "ProgressDeadlineExceeded";
const COMPLETE: &str = "NewReplicaSetAvailable";

/// Writes the status if it changed, and comes back at the progress deadline.
pub(super) fn sync(rollout: &Rollout<'_>, cx: &Context<'_>, outcome: &mut Outcome) {
    let old = rollout.deployment.status.clone().unwrap_or_default();
    let mut status = counts(rollout, &old);
    status.conditions = old.conditions.clone();
    let available = available_condition(rollout, &status);
    set(&mut status, available, cx);
    if let Some(condition) = progressing(rollout, &old, &status, cx, outcome) {
        set(&mut status, condition, cx);
    }
    if rollout.deployment.status.as_ref() != Some(&status) {
        let deployment = Deployment { status: Some(status), ..rollout.deployment.clone() };
        outcome.writes.insert(0, Write::update_status(deployment));
    }
}

fn counts(rollout: &Rollout<'_>, old: &DeploymentStatus) -> DeploymentStatus {
    let sum = |f: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        rollout.all().filter_map(|rs| rs.status.as_ref()).map(f).sum()
    };
    let serving: i32 = rollout.all().map(available).sum();
    let total: i32 = rollout.all().map(size).sum();
    DeploymentStatus {
        observed_generation: rollout.deployment.metadata.generation,
        replicas: positive(sum(|s| s.replicas)),
        updated_replicas: positive(
            rollout.current.and_then(|rs| rs.status.as_ref()).map_or(0, |s| s.replicas),
        ),
        ready_replicas: positive(sum(|s| s.ready_replicas.unwrap_or(0))),
        available_replicas: positive(serving),
        unavailable_replicas: positive(total - serving),
        terminating_replicas: positive(sum(|s| s.terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: None,
    }
}

fn condition(type_: &str, status: bool, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..DeploymentCondition::default()
    }
}

fn available_condition(rollout: &Rollout<'_>, status: &DeploymentStatus) -> DeploymentCondition {
    if status.available_replicas.unwrap_or(0) >= rollout.minimum() {
        let message = "Deployment has minimum availability.".to_owned();
        condition(AVAILABLE, true, "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        condition(AVAILABLE, false, "MinimumReplicasUnavailable", message)
    }
}

fn is_complete(rollout: &Rollout<'_>, status: &DeploymentStatus) -> bool {
    let want = rollout.want;
    status.updated_replicas.unwrap_or(0) == want
        && status.replicas.unwrap_or(0) == want
        && status.available_replicas.unwrap_or(0) == want
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    new.updated_replicas > old.updated_replicas
        || outdated(new) < outdated(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

/// The Progressing condition, if it is to change.
fn progressing(
    rollout: &Rollout<'_>,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    cx: &Context<'_>,
    outcome: &mut Outcome,
) -> Option<DeploymentCondition> {
    let deadline = rollout.spec.progress_deadline_seconds.unwrap_or(600);
    if deadline == i32::MAX {
        return None;
    }
    let current = find(old, PROGRESSING);
    let reason = current.and_then(|c| c.reason.as_deref()).unwrap_or_default();
    if let Some(failure) = cx.failure.filter(|_| rollout.current.is_none()) {
        return Some(condition(PROGRESSING, false, "ReplicaSetCreateError", failure.message.clone()));
    }
    if rollout.spec.paused == Some(true) {
        return Some(condition(PROGRESSING, true, "DeploymentPaused", "Deployment is paused".to_owned()));
    }
    let name = rollout.current.and_then(|rs| rs.metadata.name.as_deref()).unwrap_or_default();
    let subject = format!("ReplicaSet {name:?}");
    if is_complete(rollout, new) {
        return Some(condition(
            PROGRESSING,
            true,
            COMPLETE,
            format!("{subject} has successfully progressed."),
        ));
    }
    if reason == "DeploymentPaused" {
        return Some(condition(PROGRESSING, true, "DeploymentResumed", "Deployment is resumed".to_owned()));
    }
    // A new template after a finished rollout starts the clock anew; losing a pod afterwards does not.
    let new_template =
        reason == COMPLETE && !current.and_then(|c| c.message.as_ref()).is_some_and(|m| m.contains(name));
    if current.is_none() || new_template || has_progressed(old, new) {
        outcome.look_again(Duration::from_secs(u64::try_from(deadline).unwrap_or(0)));
        return Some(condition(PROGRESSING, true, "ReplicaSetUpdated", format!("{subject} is progressing.")));
    }
    if matches!(reason, COMPLETE | DEADLINE) {
        return None;
    }
    overdue(current, deadline, cx, outcome)
        .then(|| condition(PROGRESSING, false, DEADLINE, format!("{subject} has timed out progressing.")))
}

/// Whether the deadline has passed; if not, comes back when it does.
fn overdue(
    current: Option<&DeploymentCondition>,
    deadline: i32,
    cx: &Context<'_>,
    outcome: &mut Outcome,
) -> bool {
    let since = current.and_then(|c| c.last_update_time.as_ref()).map_or(cx.wall, |time| time.0);
    let left = since.as_second() + i64::from(deadline) - Timestamp::as_second(cx.wall);
    if left <= 0 {
        return true;
    }
    outcome.look_again(Duration::from_secs(u64::try_from(left).unwrap_or(1)));
    false
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Puts a condition in. The update time moves when anything is different or there is progress to note.
fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition, cx: &Context<'_>) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|c| c.type_ == new.type_).map(|i| conditions.remove(i));
    let same_status = old.as_ref().filter(|c| c.status == new.status);
    new.last_transition_time =
        same_status.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(cx.time()));
    let same = same_status.filter(|c| {
        c.reason == new.reason
            && c.message == new.message
            && new.reason.as_deref() != Some("ReplicaSetUpdated")
    });
    new.last_update_time = same.and_then(|c| c.last_update_time.clone()).or_else(|| Some(cx.time()));
    conditions.push(new);
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}
