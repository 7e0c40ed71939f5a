//! CronJobs: a Job at every time of a schedule.
//!
//! Of the times that were missed only the last is made up for. A run's job has a name made of its time, so that none
//! is run twice even when what was noted of it was lost.

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use resources::cron::{self, Schedule};

use crate::{
    event::{Event, reference},
    job,
    kind::Typed,
    owned::{self, namespace_ends, owner_reference},
    reconcile::Context,
    write::{Outcome, Propagation, Target, Write},
};

const COMPONENT: &str = "cronjob-controller";
/// When a run was due, on its job.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// The clock on the wall is looked at this often, as it may have been set meanwhile.
const LOOK: Duration = Duration::from_secs(60);

/// Reconciles one cron job.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(cron) = cx.world.cron_jobs.get(namespace, name) else { return Outcome::default() };
    let spec = &cron.spec;
    if cron.metadata.deletion_timestamp.is_some() || namespace_ends(cx.world, namespace) {
        return Outcome::default();
    }
    let jobs = jobs_of(cron, cx);
    let mut outcome = Outcome::new(forget(cron, spec, &jobs));
    let mut status = observe(cron, &jobs);
    let mut after = Vec::new();
    if spec.suspend != Some(true) {
        match plan(spec) {
            Ok((schedule, zone)) => after = run(cron, &schedule, &zone, &jobs, &mut status, cx, &mut outcome),
            Err(event) => after.push(Write::Tell(Event::warning(COMPONENT, cron, event.0, event.1))),
        }
    }
    // The run is made before it is noted: its name keeps it from being made again.
    outcome.writes.extend(after);
    if cron.status.as_ref() != Some(&status) {
        outcome.writes.push(Write::update_status(CronJob { status: Some(status), ..cron.clone() }));
    }
    outcome
}

/// Its jobs, the oldest first.
fn jobs_of<'a>(cron: &CronJob, cx: &Context<'a>) -> Vec<&'a Job> {
    let uid = cron.metadata.uid.as_deref().unwrap_or_default();
    let all = cx.world.jobs.all().filter(|j| j.metadata.namespace == cron.metadata.namespace);
    let mut jobs: Vec<&Job> = all.filter(|j| owned::is_owned(&j.metadata, uid)).collect();
    jobs.sort_by_key(|j| {
        let start = j.status.as_ref().and_then(|s| s.start_time.clone());
        (start.or_else(|| j.metadata.creation_timestamp.clone()), j.metadata.name.clone())
    });
    jobs
}

/// Deletes the oldest jobs that ended, beyond the limits.
fn forget(cron: &CronJob, spec: &CronJobSpec, jobs: &[&Job]) -> Vec<Write> {
    let limits = [(true, spec.successful_jobs_history_limit), (false, spec.failed_jobs_history_limit)];
    let mut writes = Vec::new();
    for (success, limit) in limits {
        let Some(limit) = limit else { continue };
        let ended: Vec<_> = jobs
            .iter()
            .filter(|j| job::result(j) == Some(success) && j.metadata.deletion_timestamp.is_none())
            .collect();
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        writes.extend(ended.into_iter().take(surplus).map(|j| delete(cron, j)));
    }
    writes
}

fn delete(cron: &CronJob, job: &Job) -> Write {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    Write::Delete {
        target: Target::of(job),
        grace: None,
        propagation: Propagation::Background,
        done: Some(Event::normal(COMPONENT, cron, "SuccessfulDelete", format!("Deleted job {name}"))),
        failed: Some(Event::warning(COMPONENT, cron, "FailedDelete", "Deleted job: ".to_owned())),
    }
}

/// The status by what its jobs are.
fn observe(cron: &CronJob, jobs: &[&Job]) -> CronJobStatus {
    let before = cron.status.clone().unwrap_or_default();
    let active: Vec<_> = jobs.iter().filter(|j| is_active(j)).map(|j| reference(*j)).collect();
    let done = jobs.iter().filter(|j| job::result(j) == Some(true));
    let newest = done.filter_map(|j| j.status.as_ref()?.completion_time.clone()).max();
    CronJobStatus {
        active: Some(active).filter(|list| !list.is_empty()),
        last_schedule_time: before.last_schedule_time,
        last_successful_time: newest.max(before.last_successful_time),
    }
}

fn is_active(job: &Job) -> bool {
    job::result(job).is_none() && job.metadata.deletion_timestamp.is_none()
}

/// The schedule and its time zone, or what to tell of them.
fn plan(spec: &CronJobSpec) -> Result<(Schedule, TimeZone), (&'static str, String)> {
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => cron::zone(name)
            .ok_or_else(|| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown")))?,
    };
    let schedule = Schedule::parse(&spec.schedule).map_err(|fault| {
        ("UnparseableSchedule", format!("unparseable schedule {:?}: {fault}", spec.schedule))
    })?;
    Ok((schedule, zone))
}

/// Makes the run that is due.
fn run(
    cron: &CronJob,
    schedule: &Schedule,
    zone: &TimeZone,
    jobs: &[&Job],
    status: &mut CronJobStatus,
    cx: &Context<'_>,
    outcome: &mut Outcome,
) -> Vec<Write> {
    let spec = &cron.spec;
    let next = schedule.next(cx.wall, zone).map(|next| next.duration_since(cx.wall));
    outcome.look_again(next.and_then(|d| Duration::try_from(d).ok()).map_or(LOOK, |d| d.min(LOOK)));
    let Some(due) = due(cron, spec, schedule, zone, cx.wall) else { return Vec::new() };
    let minutes = due.as_second().div_euclid(60);
    let name = format!("{}-{minutes}", cron.metadata.name.as_deref().unwrap_or_default());
    let namespace = cron.metadata.namespace.as_deref().unwrap_or_default();
    if cx.world.jobs.get(namespace, &name).is_some() {
        status.last_schedule_time = Some(Time(due));
        return Vec::new();
    }
    let active: Vec<&&Job> = jobs.iter().filter(|j| is_active(j)).collect();
    let mut writes = Vec::new();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            let event = Event::normal(COMPONENT, cron, "JobAlreadyActive", message.to_owned());
            return vec![Write::Tell(event)];
        }
        Some("Replace") => writes.extend(active.into_iter().map(|j| delete(cron, j))),
        _ => {}
    }
    writes.push(create(cron, spec, name, due, zone));
    status.last_schedule_time = Some(Time(due));
    writes
}

/// The last time that was to be and has not been noted.
fn due(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) -> Option<Timestamp> {
    let noted = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let from = noted.or(cron.metadata.creation_timestamp.as_ref())?.0;
    // What is later than its deadline is not run at all.
    let deadline = spec.starting_deadline_seconds.and_then(|seconds| {
        now.checked_sub(SignedDuration::from_secs(seconds))
            .ok()?
            .checked_sub(SignedDuration::from_nanos(1))
            .ok()
    });
    schedule.last(deadline.map_or(from, |d| d.max(from)), now, zone)
}

fn create(cron: &CronJob, spec: &CronJobSpec, name: String, due: Timestamp, zone: &TimeZone) -> Write {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let shown = due.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations.insert(SCHEDULED.to_owned(), shown.replace("+00:00", "Z"));
    let job = Job {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    };
    let done = Event::normal(COMPONENT, cron, "SuccessfulCreate", format!("Created job {name}"));
    let failed = Event::warning(COMPONENT, cron, "FailedCreate", "Error creating job: ".to_owned());
    Write::Create { object: job.wrap(), done: Some(done), failed: Some(failed) }
}
