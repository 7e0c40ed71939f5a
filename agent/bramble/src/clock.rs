//! A Pi has no clock of its own: until a time server answers, a node that joins takes the master's time.

use std::path::Path;

use rustix::time::{ClockId, Timespec};

/// Made by systemd-timesyncd once it has the time from a server.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";
/// Seconds that do not matter: certificates are back-dated by far more.
const CLOSE: i64 = 60;

/// Takes over the master's time (seconds since the epoch), if it is better than this machine's.
pub fn take(master: i64) {
    let own = jiff::Timestamp::now().as_second();
    let Some(seconds) = better(own, master, Path::new(SYNCHRONIZED).exists()) else { return };
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    match rustix::time::clock_settime(ClockId::Realtime, time) {
        Ok(()) => tracing::info!(behind = seconds - own, "took the master's time"),
        Err(error) => tracing::warn!(%error, "this machine's clock is wrong and cannot be set"),
    }
}

/// A clock without a battery is behind, never ahead; so the later one is right, and a master whose own is behind
/// cannot harm a node.
fn better(own: i64, master: i64, synchronized: bool) -> Option<i64> {
    (!synchronized && master > own.saturating_add(CLOSE)).then_some(master)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_forward_and_only_when_it_matters() {
        assert_eq!(better(1_000, 500_000, false), Some(500_000));
        assert_eq!(better(1_000, 500_000, true), None);
        assert_eq!(better(500_000, 1_000, false), None);
        assert_eq!(better(1_000, 1_030, false), None);
        assert_eq!(better(i64::MAX, 0, false), None);
    }
}
