//! How much CPU the machine and its containers use: the kernel only counts, so what was counted a while ago is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use runtime::Container;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pods::Node;
use crate::spec::label;

/// How often the counters are read.
const EVERY: Duration = Duration::from_secs(15);
/// Over less time than this a rate says little.
const LEAST: Duration = Duration::from_secs(5);
/// A container that has not run longer was not read before: it began with nothing.
const NEW: Duration = Duration::from_secs(60);
/// The machine, among containers.
const MACHINE: &str = "";

/// The counters at one moment: nanoseconds of CPU time by container id.
struct Look {
    at: Instant,
    counted: HashMap<String, u64>,
}

/// CPU use over a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Billionths of a CPU.
    pub nanocores: u64,
    /// The while.
    pub window: Duration,
}

/// The last two looks at the counters, the newer one last.
#[derive(Default)]
pub struct Meter(Mutex<Vec<Look>>);

impl Meter {
    fn keep(&self, look: Look) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looks.push(look);
        let old = looks.len().saturating_sub(2);
        looks.drain(..old);
    }

    /// The machine's use until now, when its counter stands at this.
    pub fn machine(&self, now: Instant, counted: u64) -> Option<Rate> {
        self.rate(MACHINE, now, counted)
    }

    /// A container's, which has been running for so long.
    pub fn container(&self, id: &str, now: Instant, counted: u64, running: Duration) -> Option<Rate> {
        let whole = || (running < NEW).then(|| rate(counted, running)).flatten();
        self.rate(id, now, counted).or_else(whole)
    }

    fn rate(&self, key: &str, now: Instant, counted: u64) -> Option<Rate> {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = looks.iter().rev().filter_map(|look| {
            let before = look.counted.get(key)?;
            Some((counted.saturating_sub(*before), now.saturating_duration_since(look.at)))
        });
        // The newest that is long enough ago, or else the oldest.
        let mut known = known.collect::<Vec<_>>().into_iter();
        let (more, window) =
            known.clone().find(|(_, window)| *window >= LEAST).or_else(|| known.next_back())?;
        rate(more, window)
    }
}

fn rate(nanos: u64, window: Duration) -> Option<Rate> {
    let per_second = u128::from(nanos).saturating_mul(1_000_000_000).checked_div(window.as_nanos())?;
    Some(Rate { nanocores: u64::try_from(per_second).unwrap_or(u64::MAX), window })
}

/// Reads the counters now and then until shut down.
pub async fn run(node: Arc<Node>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => look(&node).await,
        }
    }
}

async fn look(node: &Node) {
    let at = Instant::now();
    let mut counted = HashMap::from([(MACHINE.to_owned(), busy_nanos())]);
    for container in node.runtime.list().await.into_iter().filter(|c| c.exit.is_none()) {
        if let Ok(usage) = node.runtime.usage(&cgroup(&container)).await {
            counted.insert(container.id, usage.cpu_nanos);
        }
    }
    node.meter.keep(Look { at, counted });
}

/// A container's own group of processes.
pub fn cgroup(container: &Container) -> String {
    let pod = container.labels.get(label::CGROUP).map(String::as_str).unwrap_or_default();
    format!("{pod}/{}", container.id)
}

/// How long a container has been running.
pub fn running(container: &Container) -> Duration {
    let started = container.started_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    let since = started.map(|at| Timestamp::now().duration_since(at));
    since.and_then(|since| Duration::try_from(since).ok()).unwrap_or(Duration::MAX)
}

/// CPU time that the machine spent on anything but idling, by /proc/stat (its ticks are hundredths of a second).
pub fn busy_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks = fields.enumerate().filter(|(index, _)| !matches!(index, 3 | 4) && *index < 8);
    ticks.filter_map(|(_, field)| field.parse::<u64>().ok()).sum::<u64>().saturating_mul(10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn look(at: Instant, nanos: u64) -> Look {
        Look { at, counted: HashMap::from([("c".to_owned(), nanos)]) }
    }

    #[tokio::test]
    async fn a_rate_is_over_the_newest_look_that_is_long_enough_ago() {
        let (meter, start) = (Meter::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        meter.keep(look(start, 0));
        let rate = |now, counted| {
            let rate = meter.container("c", now, counted, Duration::from_secs(600))?;
            Some((rate.nanocores, rate.window.as_secs()))
        };
        // There is only one, and it is better than nothing.
        assert_eq!(rate(after(2), SECOND), Some((SECOND / 2, 2)));
        meter.keep(look(after(15), 15 * SECOND));
        assert_eq!(rate(after(16), 20 * SECOND), Some((20 * SECOND / 16, 16)));
        assert_eq!(rate(after(25), 20 * SECOND), Some((SECOND / 2, 10)));
        meter.keep(look(after(30), 20 * SECOND));
        assert_eq!(rate(after(31), 20 * SECOND), Some((5 * SECOND / 16, 16)));
    }

    #[tokio::test]
    async fn who_has_just_begun_began_with_nothing() {
        let (meter, now) = (Meter::default(), Instant::now());
        let rate = |seconds| meter.container("new", now, SECOND, Duration::from_secs(seconds));
        assert_eq!(rate(4).map(|rate| rate.nanocores), Some(SECOND / 4));
        assert_eq!(rate(600), None, "an agent that has just begun knows nothing of what was before");
        assert_eq!(rate(0), None);
    }
}
