//! How long owners wait before they make a new pod for one that failed.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::{job, pod};

/// A daemon that has not failed for this long starts from the first wait again.
const FORGET: Duration = Duration::from_secs(30 * 60);

/// Pods that failed one after the other, by this machine's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Since the last success.
    pub(crate) count: u32,
    /// When the last one was seen.
    pub(crate) last: Instant,
}

/// How a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End<'a> {
    /// The uid of whose pod it was.
    pub(crate) owner: &'a str,
    /// The node, where each node has failures of its own.
    pub(crate) place: &'a str,
    pub(crate) success: bool,
}

impl Failures {
    /// These and one more.
    pub(crate) fn one_more(before: Option<&Self>, end: &End<'_>, now: Instant) -> Self {
        let forgotten = |f: &&Self| !end.place.is_empty() && now.saturating_duration_since(f.last) > FORGET;
        let count = before.filter(|f| !forgotten(f)).map_or(0, |f| f.count);
        Self { count: count.saturating_add(1), last: now }
    }

    /// How much is left of a wait that doubles from `first` to `longest`.
    pub(crate) fn left(&self, first: Duration, longest: Duration, now: Instant) -> Duration {
        let doublings = self.count.saturating_sub(1).min(16);
        let wait = first.saturating_mul(1 << doublings).min(longest);
        wait.saturating_sub(now.saturating_duration_since(self.last))
    }
}

/// How a pod ended, if its owner counts that.
pub(crate) fn end(p: &Pod) -> Option<End<'_>> {
    let owner = pod::controller_of(&p.metadata)?;
    let phase = pod::phase(p);
    match owner.kind.as_str() {
        "Job" if job::is_tracked(p) => {
            let deleted = p.metadata.deletion_timestamp.is_some();
            (pod::is_finished(p) || deleted).then_some(End {
                owner: &owner.uid,
                place: "",
                success: phase == "Succeeded",
            })
        }
        "DaemonSet" if phase == "Failed" => {
            Some(End { owner: &owner.uid, place: pod::node(p)?, success: false })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_run_from_the_last_failure() {
        let now = Instant::now();
        let (first, longest) = (Duration::from_secs(10), Duration::from_secs(600));
        let left = |count, after| {
            Failures { count, last: now }.left(first, longest, now + Duration::from_secs(after)).as_secs()
        };
        assert_eq!([left(1, 0), left(2, 0), left(6, 0), left(7, 0), left(999, 0)], [10, 20, 320, 600, 600]);
        assert_eq!([left(1, 4), left(1, 11)], [6, 0]);
        let node = End { owner: "u", place: "n1", success: false };
        let job = End { place: "", ..node };
        let old = Failures { count: 5, last: now };
        let later = now + FORGET + Duration::from_secs(1);
        assert_eq!(Failures::one_more(Some(&old), &node, later).count, 1);
        assert_eq!(Failures::one_more(Some(&old), &job, later).count, 6);
    }
}
