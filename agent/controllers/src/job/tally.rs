//! How a job's pods have fared.

use std::collections::HashSet;

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec, UncountedTerminatedPods},
    core::v1::Pod,
};

use super::{
    Indexes, finish, index_of, is_indexed, is_tracked,
    policy::{self, Verdict},
    waits_for_failure,
};
use crate::pod;

/// Most pods noted in a status at a time; the others wait for their turn.
const NOTED: usize = 500;

/// See the module.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    /// Those that ended well, counted or not.
    pub(super) succeeded: usize,
    pub(super) failed: usize,
    /// What the status says in numbers: pods that have been let go.
    pub(super) counted_succeeded: usize,
    pub(super) counted_failed: usize,
    /// The numbers that are done, of an Indexed job.
    pub(super) completed: Indexes,
    /// Pods noted and not let go yet.
    pub(super) uncounted: UncountedTerminatedPods,
    /// Why the failure of one of them is the job's.
    pub(super) ends_it: Option<String>,
    /// Pods to be let go once the status has been written.
    pub(super) release: Vec<&'a Pod>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(job: &Job, spec: &JobSpec, pods: &[&'a Pod]) -> Self {
        let mut tally = Self::counted(job, spec, pods);
        let noted: HashSet<String> = tally.noted().cloned().collect();
        let below = spec.completions.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let indexed = is_indexed(spec);
        // The time of a job that failed is over: what was still running counts as failed when it is deleted.
        let strict = waits_for_failure(spec) && !finish::has_failed(job);
        for p in pods.iter().filter(|p| is_tracked(p)) {
            let uid = p.metadata.uid.clone().unwrap_or_default();
            if noted.contains(&uid) {
                tally.release.push(p);
            } else if tally.release.len() >= NOTED {
                continue;
            } else if pod::phase(p) == "Succeeded" {
                tally.release.push(p);
                if !indexed {
                    tally.uncounted.succeeded.get_or_insert_default().push(uid);
                } else if let Some(index) = index_of(p).filter(|i| *i < below) {
                    tally.completed.insert(index, index);
                }
            } else if is_failed(p, strict) {
                tally.release.push(p);
                match policy::judge(spec, p) {
                    // Let go without having been noted, it is as if it had not been.
                    Verdict::Ignore => continue,
                    Verdict::Fail(why) => {
                        tally.ends_it.get_or_insert(why);
                    }
                    Verdict::Count => {}
                }
                tally.uncounted.failed.get_or_insert_default().push(uid);
            }
        }
        let waiting = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        if indexed {
            tally.counted_succeeded = tally.completed.len();
        }
        tally.succeeded = tally.counted_succeeded + waiting(&tally.uncounted.succeeded);
        tally.failed = tally.counted_failed + waiting(&tally.uncounted.failed);
        tally
    }

    /// What the status says, with the pods that have been let go meanwhile counted.
    fn counted(job: &Job, spec: &JobSpec, pods: &[&Pod]) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let held: HashSet<&str> =
            pods.iter().filter(|p| is_tracked(p)).filter_map(|p| p.metadata.uid.as_deref()).collect();
        let part = |list: Option<Vec<String>>| {
            let (held, gone): (Vec<_>, Vec<_>) =
                list.unwrap_or_default().into_iter().partition(|uid| held.contains(uid.as_str()));
            (Some(held).filter(|list| !list.is_empty()), gone.len())
        };
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        let (succeeded, more_succeeded) = part(uncounted.succeeded);
        let (failed, more_failed) = part(uncounted.failed);
        let of = |count: Option<i32>| usize::try_from(count.unwrap_or(0)).unwrap_or(0);
        let below = spec.completions.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        Self {
            succeeded: 0,
            failed: 0,
            counted_succeeded: of(status.succeeded) + more_succeeded,
            counted_failed: of(status.failed) + more_failed,
            completed: Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), below),
            uncounted: UncountedTerminatedPods { failed, succeeded },
            ends_it: None,
            release: Vec::new(),
        }
    }

    fn noted(&self) -> impl Iterator<Item = &String> {
        self.uncounted.succeeded.iter().chain(&self.uncounted.failed).flatten()
    }

    /// Every pod that ended has been counted.
    pub(super) fn is_settled(&self) -> bool {
        self.release.is_empty() && self.noted().next().is_none()
    }
}

/// Whether a pod counts as failed. One that is being deleted does at once, unless its end is to be awaited; its end
/// has come when nothing but finalizers holds it.
fn is_failed(p: &Pod, strict: bool) -> bool {
    match pod::phase(p) {
        "Failed" => true,
        "Succeeded" => false,
        _ if p.metadata.deletion_timestamp.is_none() => false,
        _ => !strict || p.metadata.deletion_grace_period_seconds == Some(0),
    }
}
