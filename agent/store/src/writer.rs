//! The thread that writes. It alone touches the disk, so a card that stalls for seconds stalls nothing else. Appends
//! that wait are written together, with one sync. What the disk refuses is tried again until it succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Duration;

use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::core::Job;
use crate::disk::{Disk, position};
use crate::memlog::Position;
use crate::shell::Command;
use crate::wire;

/// Between two attempts to write what the disk refused.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of entries written with one sync.
const BATCH_BYTES: usize = 8 << 20;

/// Work for the thread.
pub(crate) enum Work {
    Job(Job),
    /// Write the first snapshot of a new cluster.
    Bootstrap(Snapshot),
}

/// What the thread reports.
pub(crate) enum Report {
    Persisted(u64),
    Snapshotted(Option<Position>),
    Bootstrapped(Result<(), String>),
    /// The disk's state changed.
    Disk(Option<String>),
}

pub(crate) struct Writer {
    pub disk: Disk,
    pub work: Receiver<Work>,
    pub shell: Sender<Command>,
    /// Set when the store closes: what the disk refuses is given up. The thread must be unparked then.
    pub closing: Arc<AtomicBool>,
    pub failed: bool,
}

/// Appends to be written together.
#[derive(Default)]
struct Group {
    number: u64,
    hard_state: HardState,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Group {
    fn add(&mut self, number: u64, hard_state: HardState, entries: Vec<Entry>) {
        self.number = number;
        self.hard_state = hard_state;
        if let Some(first) = entries.first() {
            // Later entries replace earlier ones of the same index.
            self.entries.truncate(self.entries.partition_point(|e| e.index < first.index));
        }
        self.bytes += entries.iter().map(|e| e.data.len()).sum::<usize>();
        self.entries.extend(entries);
    }
}

impl Writer {
    /// Works until the shell hangs up or the store closes.
    pub(crate) fn run(mut self) {
        let mut next = self.work.recv().ok();
        while let Some(work) = next {
            next = match work {
                Work::Job(Job::Append { number, hard_state, entries }) => {
                    let mut group = Group::default();
                    group.add(number, hard_state, entries);
                    let rest = self.gather(&mut group);
                    if !self.persist(group.number, |disk| disk.append(&group.hard_state, &group.entries)) {
                        return;
                    }
                    rest.or_else(|| self.work.recv().ok())
                }
                other => {
                    if !self.perform(other) {
                        return;
                    }
                    self.work.recv().ok()
                }
            };
        }
    }

    /// Adds the appends that wait; returns the first work that is none.
    fn gather(&self, group: &mut Group) -> Option<Work> {
        while group.bytes < BATCH_BYTES {
            match self.work.try_recv() {
                Ok(Work::Job(Job::Append { number, hard_state, entries })) => {
                    group.add(number, hard_state, entries);
                }
                Ok(other) => return Some(other),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            }
        }
        None
    }

    fn perform(&mut self, work: Work) -> bool {
        match work {
            Work::Job(Job::Append { number, hard_state, entries }) => {
                self.persist(number, |disk| disk.append(&hard_state, &entries))
            }
            Work::Job(Job::Install { number, hard_state, snapshot }) => {
                self.persist(number, |disk| disk.install(&snapshot, &hard_state))
            }
            Work::Job(Job::Snapshot { conf_state, at, base, image }) => {
                let mut snapshot = Snapshot { data: wire::encode_image(image), ..Snapshot::default() };
                let metadata = snapshot.mut_metadata();
                metadata.index = at.index;
                metadata.term = at.term;
                metadata.set_conf_state(conf_state);
                let result = self.disk.snapshot(&snapshot, base);
                self.note(result.as_ref().err());
                self.report(Report::Snapshotted(result.is_ok().then(|| position(&snapshot))))
            }
            Work::Bootstrap(snapshot) => {
                let hard_state = HardState { term: 1, vote: 0, commit: 1 };
                let result = self.disk.install(&snapshot, &hard_state).map_err(|e| e.to_string());
                self.report(Report::Bootstrapped(result))
            }
        }
    }

    /// Tries until it succeeds; false when the store closes first.
    fn persist(&mut self, number: u64, mut write: impl FnMut(&mut Disk) -> std::io::Result<()>) -> bool {
        loop {
            let result = write(&mut self.disk);
            self.note(result.as_ref().err());
            if result.is_ok() {
                return self.report(Report::Persisted(number));
            }
            if self.closing.load(Ordering::Acquire) {
                return false;
            }
            std::thread::park_timeout(RETRY);
        }
    }

    fn note(&mut self, error: Option<&std::io::Error>) {
        if let Some(error) = error {
            tracing::warn!(%error, "the disk does not take writes");
            self.failed = true;
            self.report(Report::Disk(Some(error.to_string())));
        } else if self.failed {
            tracing::info!("the disk takes writes again");
            self.failed = false;
            self.report(Report::Disk(None));
        }
    }

    fn report(&self, report: Report) -> bool {
        self.shell.send(Command::Report(report)).is_ok()
    }
}
