//! The thread around the core: it owns the core, gives it time, messages and requests, and carries out what the core
//! asks for. It never waits for a disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use raft::eraftpb::{HardState, Message};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::change::{Change, ChangeError};
use crate::core::{Core, CoreConfig, Job, Output, Token, first_snapshot};
use crate::kv::{CommitError, Revision};
use crate::memlog::Saved;
use crate::space::Space;
use crate::status::{Role, Status};
use crate::store::{BootstrapError, Transport};
use crate::wire;
use crate::writer::{Report, Work};

/// Commands handled before Raft is asked what to do: the bound of a group commit.
const COMMANDS_AT_ONCE: usize = 1024;
/// Ticks between two reports of log positions.
const POSITION_TICKS: u32 = 5;
/// A disk that takes longer than this for one write is one to lead no longer with.
const DISK_PATIENCE: Duration = Duration::from_secs(3);

/// What the thread is told.
pub(crate) enum Command {
    Propose(Proposal),
    Receive(Box<Message>, usize),
    Unreachable(u64),
    SnapshotSent(u64, bool),
    Change(Change, oneshot::Sender<Result<(), ChangeError>>),
    Transfer(u64),
    Bootstrap(oneshot::Sender<Result<(), BootstrapError>>),
    Report(Report),
    Close,
}

pub(crate) struct Proposal {
    pub data: Vec<u8>,
    pub reply: oneshot::Sender<Result<Revision, CommitError>>,
    /// Held until the answer, so that what is under way is bounded.
    pub permits: [OwnedSemaphorePermit; 2],
}

struct Waiting {
    reply: oneshot::Sender<Result<Revision, CommitError>>,
    _permits: [OwnedSemaphorePermit; 2],
}

pub(crate) struct Shell {
    pub config: CoreConfig,
    pub tick: Duration,
    pub core: Core,
    pub space: Arc<Space>,
    pub commands: Receiver<Command>,
    pub writer: Sender<Work>,
    pub transport: Arc<dyn Transport>,
    pub status: watch::Sender<Status>,
    /// Bytes of received messages that wait in `commands`.
    pub queued: Arc<AtomicUsize>,
    pub requests: Requests,
    pub disk: DiskState,
}

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Requests {
    next: Token,
    proposals: Vec<(Token, Vec<u8>)>,
    commits: HashMap<Token, Waiting>,
    changes: HashMap<Token, oneshot::Sender<Result<(), ChangeError>>>,
    bootstrap: Option<oneshot::Sender<Result<(), BootstrapError>>>,
    status_age: u32,
}

#[derive(Default)]
pub(crate) struct DiskState {
    error: Option<String>,
    /// The newest number given to the writer and the newest done.
    given: u64,
    done: u64,
    since: Option<Instant>,
}

impl DiskState {
    fn gave(&mut self, number: u64) {
        self.given = number;
        self.since.get_or_insert_with(Instant::now);
    }

    fn finished(&mut self, number: u64) {
        self.done = number;
        self.since = (self.done < self.given).then(Instant::now);
    }

    fn fails(&self) -> bool {
        self.error.is_some() || self.since.is_some_and(|since| since.elapsed() > DISK_PATIENCE)
    }
}

impl Shell {
    /// Runs until told to close.
    pub(crate) fn run(mut self) {
        self.core.campaign_if_alone();
        let mut due = Instant::now() + self.tick;
        let mut open = true;
        while open {
            open = self.take_commands(due);
            let now = Instant::now();
            if now >= due {
                self.on_tick();
                // After a suspended machine or a starved thread, lost ticks are lost.
                due = (due + self.tick).max(now);
            }
            let proposals = std::mem::take(&mut self.requests.proposals);
            self.core.propose(proposals);
            let output = self.core.poll();
            self.carry_out(output);
            self.publish();
        }
        self.end();
    }

    fn take_commands(&mut self, due: Instant) -> bool {
        let mut wait = due.saturating_duration_since(Instant::now());
        for _ in 0..COMMANDS_AT_ONCE {
            match self.commands.recv_timeout(wait) {
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => break,
            }
            wait = Duration::ZERO;
        }
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Propose(proposal) => {
                let token = self.requests.token();
                self.requests.proposals.push((token, proposal.data));
                let waiting = Waiting { reply: proposal.reply, _permits: proposal.permits };
                self.requests.commits.insert(token, waiting);
            }
            Command::Receive(message, size) => {
                self.queued.fetch_sub(size, Ordering::Relaxed);
                // While the first snapshot is being written this node is about to found a cluster of its own.
                if self.requests.bootstrap.is_none() {
                    self.core.step(*message);
                }
            }
            Command::Unreachable(peer) => self.core.unreachable(peer),
            Command::SnapshotSent(peer, ok) => self.core.snapshot_sent(peer, ok),
            Command::Change(change, reply) => {
                let token = self.requests.token();
                self.requests.changes.insert(token, reply);
                self.core.change(token, &change);
            }
            Command::Transfer(to) => self.core.transfer(to),
            Command::Bootstrap(reply) => self.bootstrap(reply),
            Command::Report(report) => self.take_report(report),
            // Handled by the caller.
            Command::Close => {}
        }
    }

    fn take_report(&mut self, report: Report) {
        match report {
            Report::Persisted(number) => {
                self.disk.finished(number);
                self.core.persisted(number);
            }
            Report::Snapshotted(at) => self.core.snapshotted(at),
            Report::Bootstrapped(result) => self.bootstrapped(result),
            Report::Disk(error) => {
                if let Some(error) = error.clone().filter(|_| self.core.is_alone()) {
                    self.core.fail_pending(&CommitError::Disk(error));
                }
                self.disk.error = error;
            }
        }
    }

    fn bootstrap(&mut self, reply: oneshot::Sender<Result<(), BootstrapError>>) {
        if !self.core.is_pristine() || self.requests.bootstrap.is_some() {
            let _ = reply.send(Err(BootstrapError::HasState));
        } else if self.writer.send(Work::Bootstrap(first_snapshot(self.config.id))).is_err() {
            let _ = reply.send(Err(BootstrapError::Closed));
        } else {
            self.requests.bootstrap = Some(reply);
        }
    }

    fn bootstrapped(&mut self, result: Result<(), String>) {
        let Some(reply) = self.requests.bootstrap.take() else { return };
        let result = result.map_err(BootstrapError::Disk).and_then(|()| {
            let snapshot = first_snapshot(self.config.id);
            let base = crate::disk::position(&snapshot);
            let hard_state = HardState { term: 1, vote: 0, commit: 1 };
            let saved = Saved { hard_state, base, snapshot: Some(snapshot), ..Saved::default() };
            let core = Core::new(self.config.clone(), saved, Arc::clone(&self.space));
            self.core = core.map_err(|e| BootstrapError::Disk(e.to_string()))?;
            self.core.campaign_if_alone();
            Ok(())
        });
        let _ = reply.send(result);
    }

    fn on_tick(&mut self) {
        self.core.tick();
        self.requests.status_age += 1;
        if self.disk.fails() {
            self.core.step_aside();
        }
    }

    fn carry_out(&mut self, output: Output) {
        for job in output.jobs {
            if let Job::Append { number, .. } | Job::Install { number, .. } = &job {
                self.disk.gave(*number);
            }
            // The writer only ends when this thread does.
            let _ = self.writer.send(Work::Job(job));
        }
        for message in output.messages {
            self.transport.send(message.to, wire::encode_message(&message));
        }
        for (token, result) in output.committed {
            if let Some(waiting) = self.requests.commits.remove(&token) {
                let _ = waiting.reply.send(result);
            }
        }
        for (token, result) in output.changed {
            if let Some(reply) = self.requests.changes.remove(&token) {
                let _ = reply.send(result);
            }
        }
    }

    fn publish(&mut self) {
        let mut status = self.core.status();
        status.disk_error.clone_from(&self.disk.error);
        let old_enough = self.requests.status_age >= POSITION_TICKS;
        let published = self.status.send_if_modified(|current| {
            let publish = current.differs_in_kind(&status) || (old_enough && *current != status);
            if publish {
                *current = status;
            }
            publish
        });
        if published {
            self.requests.status_age = 0;
        }
    }

    fn end(&mut self) {
        for (_, waiting) in self.requests.commits.drain() {
            let _ = waiting.reply.send(Err(CommitError::Closed));
        }
        for (_, reply) in self.requests.changes.drain() {
            let _ = reply.send(Err(ChangeError::Closed));
        }
        self.space.end_watches();
        self.status.send_modify(|status| {
            status.leading = false;
            status.leader = None;
            if status.role == Role::Leader {
                status.role = Role::Follower;
            }
        });
    }
}

impl Requests {
    fn token(&mut self) -> Token {
        self.next += 1;
        self.next
    }
}
