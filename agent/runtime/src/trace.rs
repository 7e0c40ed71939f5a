//! Keeps what the container library says about an error: its error values name the step, its log names the cause.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Longest detail passed on.
const MAX_DETAIL: usize = 512;

/// Writes error events to a file in memory, also from the processes that the library makes.
struct Errors(OwnedFd);

/// What was kept.
pub(crate) struct Kept(OwnedFd);

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        line.0.push('\n');
        // There is nowhere else to say that this failed.
        let _ = rustix::io::write(&self.0, line.0.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}

/// Starts keeping errors; for helpers only, which have one thread and one job.
pub(crate) fn keep() -> io::Result<Kept> {
    let file = rustix::fs::memfd_create("errors", MemfdFlags::CLOEXEC)?;
    let kept = Kept(file.try_clone()?);
    tracing::subscriber::set_global_default(Errors(file)).map_err(io::Error::other)?;
    Ok(kept)
}

impl Kept {
    /// An error text with the first cause that was kept.
    pub(crate) fn explain(&self, why: String) -> String {
        let mut bytes = [0; MAX_DETAIL];
        let n = rustix::io::pread(&self.0, &mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..n]);
        match text.lines().next().map(str::trim) {
            // Our own last steps say all there is to say.
            Some(detail) if detail.is_empty() || detail.starts_with("failed to execute payload") => why,
            Some(detail) => format!("{why} ({detail})"),
            None => why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_is_told() {
        let file = rustix::fs::memfd_create("errors", MemfdFlags::CLOEXEC).unwrap();
        let kept = Kept(file.try_clone().unwrap());
        tracing::subscriber::with_default(Errors(file), || {
            tracing::info!("not this");
            tracing::error!(path = "/x", "cannot mount");
            tracing::error!("nor this");
        });
        assert_eq!(kept.explain("failed".into()), "failed (cannot mount path=\"/x\")");
    }
}
