//! The hardware watchdog, while a system is on trial: what hangs before systemd feeds it is a failed try.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;

use crate::{ioctl, log};

/// From here until systemd has read its settings and feeds it: on a slow card, with much to check, that is long. (The
/// Pi's own cannot count further than 15 seconds; the kernel feeds it up to ours, and hangs itself no longer than that.)
const SECONDS: i32 = 60;

/// A watchdog that may be running.
#[derive(Debug, Default)]
pub struct Watchdog(Option<RefCell<File>>);

impl Watchdog {
    /// Starts it. A machine without one boots all the same.
    pub fn start() -> Self {
        let device = match OpenOptions::new().write(true).open("/dev/watchdog") {
            Ok(device) => device,
            Err(error) => {
                log::complain(&format!("no watchdog: {error}; a hang will not be noticed"));
                return Self(None);
            }
        };
        match ioctl::watchdog_timeout(&device, SECONDS) {
            Ok(seconds) => log::say(&format!("the watchdog bites after {seconds} s")),
            Err(error) => log::complain(&format!("the watchdog keeps its own time-out: {error}")),
        }
        Self(Some(RefCell::new(device)))
    }

    /// Says that something is getting on. Dropping the watchdog does not stop it: it is closed without the magic
    /// letter, and systemd takes it over.
    pub fn feed(&self) {
        if let Some(device) = &self.0 {
            // A watchdog that does not take food bites: there is nothing better to do.
            let _ = device.borrow_mut().write_all(b"\n");
        }
    }
}
