//! Lines for the kernel's log, which is on every console and later in the journal.

use std::fs::OpenOptions;
use std::io::Write;

/// Says one line.
pub fn say(text: &str) {
    write(5, text);
}

/// Says what went wrong.
pub fn complain(text: &str) {
    write(3, text);
}

fn write(level: u8, text: &str) {
    // Nothing to be done where there is no log.
    match OpenOptions::new().write(true).open("/dev/kmsg") {
        Ok(mut log) => drop(log.write_all(format!("<{level}>bramble-init: {text}\n").as_bytes())),
        Err(_) => eprintln!("bramble-init: {text}"),
    }
}
