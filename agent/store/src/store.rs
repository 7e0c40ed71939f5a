//! The handle to a running store.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::change::{Change, ChangeError};
use crate::core::{Core, CoreConfig};
use crate::disk::{Disk, Fault, OpenError};
use crate::kv::{CommitError, Compacted, Kv, Page, Record, Revision, Txn, Watch};
use crate::shell::{Command, DiskState, Proposal, Requests, Shell};
use crate::space::{Limits, Space};
use crate::status::{Role, Status};
use crate::wire;
use crate::writer::Writer;

/// Largest message taken that is no snapshot. Appends under way to one peer can be merged into one message.
const MESSAGE_LIMIT: usize = 16 << 20;
/// The largest message that [`Store::receive`] takes: a snapshot of the whole state.
pub const MAX_MESSAGE: usize = 128 << 20;
/// Bytes of messages that may wait for the store's thread.
const QUEUE_LIMIT: usize = 160 << 20;
/// Commits that may be under way.
const COMMITS: usize = 1024;
/// Bytes of commits that may be under way, in units of 1 KiB.
const COMMIT_UNITS: usize = 8 << 10;

/// Carries messages to other members.
pub trait Transport: Send + Sync + 'static {
    /// Sends a message; never blocks, may drop it. The message must reach [`Store::receive`] of node `to`.
    fn send(&self, to: u64, message: Bytes);
}

/// Whether a message given to [`Transport::send`] is a snapshot, whose fate [`Store::snapshot_sent`] wants to know.
pub fn is_snapshot(message: &[u8]) -> bool {
    // The kind comes first in a message: 7 is a snapshot.
    message.starts_with(&[8, 7])
}

/// How a store runs.
#[derive(Clone)]
pub struct Config {
    /// The folder for its state; nothing else may be in it.
    pub dir: PathBuf,
    /// This node's id. Never zero, and never used again after the folder was lost.
    pub id: u64,
    /// The unit of Raft's time.
    pub tick: Duration,
    /// A leader that is silent for this many ticks, up to twice as many, is replaced.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Events kept for watches that start in the past.
    pub history: usize,
    /// Bytes of events kept.
    pub history_bytes: usize,
    /// Events that may wait for one watcher before it is dropped.
    pub watch_queue: usize,
    /// Entries after which a snapshot is written and the log cut.
    pub snapshot_entries: u64,
    /// Bytes of log after which a snapshot is written and the log cut.
    pub snapshot_bytes: usize,
    /// Bytes that one transaction may have.
    pub entry_limit: usize,
    /// Makes the disk fail, for tests.
    #[doc(hidden)]
    pub fault: Option<Fault>,
}

impl Config {
    /// The usual settings: a dead leader is replaced within 0.6 to 1.2 seconds.
    pub fn new(dir: impl Into<PathBuf>, id: u64) -> Self {
        Self {
            dir: dir.into(),
            id,
            tick: Duration::from_millis(100),
            election_ticks: 6,
            heartbeat_ticks: 2,
            history: 10_000,
            history_bytes: 8 << 20,
            watch_queue: 4096,
            snapshot_entries: 10_000,
            snapshot_bytes: 4 << 20,
            entry_limit: 2 << 20,
            fault: None,
        }
    }
}

/// Why a node did not found a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// It belongs to a cluster, or was contacted by one.
    #[error("this node has state already")]
    HasState,
    /// The first snapshot could not be written.
    #[error("the disk does not take writes: {0}")]
    Disk(String),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// It is larger than any correct member sends.
    #[error("a message of {0} bytes is too large")]
    TooLarge(usize),
    /// It is no Raft message.
    #[error("{0}")]
    Undecodable(String),
    /// It is for another node: the sender has an old address.
    #[error("the message is for node {0}")]
    NotForUs(u64),
    /// It speaks for another node than the one it came from.
    #[error("the message speaks for node {0}, which did not send it")]
    Impostor(u64),
    /// Too much waits already; Raft sends again.
    #[error("too many messages wait")]
    Busy,
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// A replicated, revisioned key-value space. Clones are handles to the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    entry_limit: usize,
    election: Duration,
    commands: Sender<Command>,
    space: Arc<Space>,
    /// What every member understands.
    format: AtomicU32,
    status: watch::Receiver<Status>,
    commits: Arc<Semaphore>,
    commit_units: Arc<Semaphore>,
    queued: Arc<AtomicUsize>,
    closing: Arc<AtomicBool>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    shell: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in `config.dir` and starts it. Without state there it is dormant: it answers a leader that
    /// adds it, and waits for that or for [`Store::bootstrap`].
    pub async fn open(config: Config, transport: Arc<dyn Transport>) -> Result<Store, OpenError> {
        let (dir, fault) = (config.dir.clone(), config.fault.clone());
        let opened = tokio::task::spawn_blocking(move || Disk::open(&dir, fault)).await;
        let (disk, saved) = opened.map_err(|e| OpenError::Config(e.to_string()))??;
        let limits =
            Limits { events: config.history, bytes: config.history_bytes, queue: config.watch_queue };
        let space = Space::new(0, limits);
        let core_config = CoreConfig {
            id: config.id,
            election_ticks: config.election_ticks,
            heartbeat_ticks: config.heartbeat_ticks,
            snapshot_entries: config.snapshot_entries.max(1),
            snapshot_bytes: config.snapshot_bytes.max(1),
            election_seed: None,
            format: wire::FORMAT,
        };
        if config.id == 0 {
            return Err(OpenError::Config("0 is not a node id".into()));
        }
        let core = Core::new(core_config.clone(), saved, Arc::clone(&space))
            .map_err(|e| OpenError::Config(e.to_string()))?;
        Self::start(config, core_config, disk, core, space, transport)
    }

    fn start(
        config: Config,
        core_config: CoreConfig,
        disk: Disk,
        core: Core,
        space: Arc<Space>,
        transport: Arc<dyn Transport>,
    ) -> Result<Store, OpenError> {
        let (commands, command_queue) = mpsc::channel();
        let (work, work_queue) = mpsc::channel();
        let (status_sender, status) = watch::channel(core.status());
        let queued = Arc::new(AtomicUsize::new(0));
        let closing = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            disk,
            work: work_queue,
            shell: commands.clone(),
            closing: Arc::clone(&closing),
            failed: false,
        };
        let shell = Shell {
            config: core_config,
            tick: config.tick,
            core,
            space: Arc::clone(&space),
            commands: command_queue,
            writer: work,
            transport,
            status: status_sender,
            queued: Arc::clone(&queued),
            requests: Requests::default(),
            disk: DiskState::default(),
        };
        let threads = Threads {
            writer: Some(spawn("store-writer", || writer.run(), &config.dir)?),
            shell: Some(spawn("store-raft", || shell.run(), &config.dir)?),
        };
        let inner = Inner {
            id: config.id,
            entry_limit: config.entry_limit,
            election: config.tick * 2 * u32::try_from(config.election_ticks).unwrap_or(u32::MAX),
            commands,
            space,
            format: AtomicU32::new(0),
            status,
            commits: Arc::new(Semaphore::new(COMMITS)),
            commit_units: Arc::new(Semaphore::new(COMMIT_UNITS)),
            queued,
            closing,
            threads: Mutex::new(threads),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Founds a cluster whose only voter is this node. Refused when there is state. Either it happened or it did
    /// not, whenever the power goes.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Bootstrap(reply)).map_err(|_| BootstrapError::Closed)?;
        answer.await.unwrap_or(Err(BootstrapError::Closed))
    }

    /// Takes a message that another member's transport was given for this node. Never blocks. `from` is the member
    /// whose stream it came on, where that is known.
    pub fn receive(&self, message: Bytes, from: Option<u64>) -> Result<(), ReceiveError> {
        let size = message.len();
        let limit = if is_snapshot(&message) { MAX_MESSAGE } else { MESSAGE_LIMIT };
        if size > limit {
            return Err(ReceiveError::TooLarge(size));
        }
        if self.inner.queued.load(Ordering::Relaxed) + size > QUEUE_LIMIT {
            return Err(ReceiveError::Busy);
        }
        let message = wire::decode_message(&message).map_err(|e| ReceiveError::Undecodable(e.to_string()))?;
        if message.to != self.inner.id {
            return Err(ReceiveError::NotForUs(message.to));
        }
        if from.is_some_and(|from| from != message.from) {
            return Err(ReceiveError::Impostor(message.from));
        }
        self.inner.queued.fetch_add(size, Ordering::Relaxed);
        self.tell(Command::Receive(Box::new(message), size)).map_err(|_| ReceiveError::Closed)
    }

    /// The transport could not reach a member.
    pub fn unreachable(&self, peer: u64) {
        let _ = self.tell(Command::Unreachable(peer));
    }

    /// The transport has sent a snapshot ([`is_snapshot`]) to a member, or could not. Without this report a lost
    /// snapshot is sent again after ten seconds.
    pub fn snapshot_sent(&self, peer: u64, ok: bool) {
        let _ = self.tell(Command::SnapshotSent(peer, ok));
    }

    /// What this node knows of itself; see [`Status`].
    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// Says which format of log entries every member understands, so that this node, when it leads, writes no newer ones.
    /// Until then it is the oldest.
    pub fn understood(&self, format: u32) {
        self.inner.format.store(format.min(wire::FORMAT), Ordering::Relaxed);
    }

    /// Changes who is a member; resolves when the change is applied.
    pub async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Change(change, reply)).map_err(|_| ChangeError::Closed)?;
        answer.await.unwrap_or(Err(ChangeError::Closed))
    }

    /// Hands leadership to another voter. Resolves when this node leads no longer, or after an election timeout.
    pub async fn transfer(&self, to: u64) {
        if self.tell(Command::Transfer(to)).is_ok() {
            let mut status = self.status();
            let gone = status.wait_for(|status| status.role != Role::Leader);
            let _ = tokio::time::timeout(self.inner.election, gone).await;
        }
    }

    /// Stops the store. What was acknowledged is on disk; what waits fails with `Closed`; watches end.
    pub async fn close(self) {
        let inner = Arc::clone(&self.inner);
        drop(self);
        // Only fails when the runtime shuts down, and then nobody waits.
        let _ = tokio::task::spawn_blocking(move || inner.stop()).await;
    }

    fn tell(&self, command: Command) -> Result<(), mpsc::SendError<Command>> {
        self.inner.commands.send(command)
    }
}

fn spawn(
    name: &str,
    run: impl FnOnce() + Send + 'static,
    dir: &std::path::Path,
) -> Result<JoinHandle<()>, OpenError> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
    spawned.map_err(|source| OpenError::Io { path: dir.to_owned(), source })
}

impl Inner {
    fn stop(&self) {
        self.closing.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Close);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(shell) = threads.shell {
            let _ = shell.join();
        }
        if let Some(writer) = threads.writer {
            writer.thread().unpark();
            let _ = writer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The threads end by themselves; nobody waits for them here.
        self.closing.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Close);
    }
}

#[async_trait::async_trait]
impl Kv for Store {
    fn get(&self, key: &str) -> Option<Record> {
        self.inner.space.get(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        self.inner.space.list(prefix, after, limit)
    }

    fn list_at(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Page, Compacted> {
        self.inner.space.list_at(prefix, after, limit, at)
    }

    fn revision(&self) -> Revision {
        self.inner.space.revision()
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let inner = &self.inner;
        let (size, limit) = (wire::txn_size(&txn), inner.entry_limit);
        if size > limit {
            return Err(CommitError::TooLarge { size, limit });
        }
        {
            let status = inner.status.borrow();
            if status.role != Role::Leader {
                return Err(CommitError::NotLeader);
            }
            if let Some(error) = &status.disk_error {
                return Err(CommitError::Disk(error.clone()));
            }
        }
        let txn = if inner.format.load(Ordering::Relaxed) < txn.needs() {
            txn.for_format_0(|key| inner.space.get(key))?
        } else {
            txn
        };
        let units = (size / 1024 + 1).min(COMMIT_UNITS) as u32;
        let closed = |_| CommitError::Closed;
        let permits = [
            Arc::clone(&inner.commits).acquire_owned().await.map_err(closed)?,
            Arc::clone(&inner.commit_units).acquire_many_owned(units).await.map_err(closed)?,
        ];
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { data: wire::encode_txn(txn), reply, permits };
        self.tell(Command::Propose(proposal)).map_err(|_| CommitError::Closed)?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Compacted> {
        self.inner.space.watch(prefix, after)
    }
}
