//! How far an update is, for a terminal or for a log.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Says it at most this often.
const EVERY_MS: u128 = 500;

/// Prints progress.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    shown: Option<Instant>,
    terminal: bool,
    tenth: u64,
}

impl Progress {
    pub(crate) fn start() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { started: Instant::now(), shown: None, terminal, tenth: 0 }
    }

    pub(crate) fn show(&mut self, done: u64, total: u64) {
        let line = line(done, total, self.started.elapsed().as_secs_f64());
        if !self.terminal {
            // A log wants ten lines, not a moving one.
            let tenth = done * 10 / total.max(1);
            if tenth > self.tenth {
                self.tenth = tenth;
                println!("{line}");
            }
            return;
        }
        let now = Instant::now();
        if done < total && self.shown.is_some_and(|then| now.duration_since(then).as_millis() < EVERY_MS) {
            return;
        }
        self.shown = Some(now);
        print!("\r{line:<60}{}", if done >= total { "\n" } else { "" });
        // A terminal that is gone must not stop an update.
        let _ = std::io::stdout().flush();
    }
}

fn line(done: u64, total: u64, seconds: f64) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let rate = mb(done) / seconds.max(0.001);
    let left = if rate > 0.0 { (mb(total.saturating_sub(done)) / rate).ceil() } else { 0.0 };
    format!("{:.0} of {:.0} MB, {rate:.1} MB/s, {left:.0} s left", mb(done), mb(total))
}

#[cfg(test)]
mod tests {
    #[test]
    fn rate_and_time_left() {
        assert_eq!(super::line(30_000_000, 90_000_000, 10.0), "30 of 90 MB, 3.0 MB/s, 20 s left");
        assert_eq!(super::line(0, 0, 0.0), "0 of 0 MB, 0.0 MB/s, 0 s left");
    }
}
