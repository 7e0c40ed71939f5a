//! Keeps what the container library says about an error: its error values name the step, its log names the cause.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Longest detail passed on.
const MAX_DETAIL: usize = 512;

/// Writes error events to what was standard error at first; the container's own takes its place later.
struct Errors(OwnedFd);

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
pub(crate) fn keep() -> io::Result<()> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    tracing::subscriber::set_global_default(Errors(stderr)).map_err(io::Error::other)
}

/// An error text with the first cause that was kept in a helper's log from `mark` on.
pub(crate) fn explain(why: String, log: &Path, mark: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(mark))?;
        let mut bytes = Vec::new();
        file.take(MAX_DETAIL as u64).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read().ok().as_deref().and_then(|text| text.lines().next()).map(str::trim) {
        Some(detail) if !detail.is_empty() && !why.contains(detail) => format!("{why} ({detail})"),
        _ => why,
    }
}
