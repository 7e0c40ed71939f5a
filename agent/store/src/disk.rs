//! The store's folder: `log`, `snapshot`, `snapshot.prev` and `lock`.
//!
//! `log` is a header and frames. One frame is one append: it is written at once and synced before the next, so after
//! a power cut only the last frame can be torn, and a damaged frame with a sound one behind it is damage, not a torn
//! write. A log begins at its base; a new one with a later base replaces it by a rename.
//!
//! Snapshots are replaced by a rename too. The one before stays, and the log reaches back to it, so that one rotten
//! snapshot loses nothing.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::memlog::{Position, Saved};
use crate::wire::{self, Batch};

const LOG_MAGIC: &[u8; 8] = b"BRAMLOG1";
const SNAPSHOT_MAGIC: &[u8; 8] = b"BRAMSNP1";
const LOG_HEADER: usize = 36;
const FRAME_HEADER: usize = 16;
const SNAPSHOT_HEADER: usize = 20;
/// No file of the store is larger; what claims to be is damaged.
const FILE_LIMIT: u64 = 1 << 30;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("cannot use {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process uses the folder.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// Saved state is damaged. Going on could lose what this node has promised, so it does not.
    #[error(
        "{path} is damaged at byte {offset}: {what}. If other nodes hold the cluster's state, remove this node from \
         the cluster, delete the folder and join again under a new id; if not, restore a backup"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),
}

/// What the disk is asked to do; for tests that make it fail.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writing bytes.
    Write,
    /// Waiting until they are on the medium.
    Sync,
}

/// Called before each operation on the disk; an error is taken for the disk's own.
#[doc(hidden)]
pub type Fault = Arc<dyn Fn(Operation) -> io::Result<()> + Send + Sync>;

/// The open folder.
pub(crate) struct Disk {
    dir: PathBuf,
    fault: Option<Fault>,
    log: Option<LogFile>,
    hard_state: HardState,
    /// Held as long as the folder is in use.
    _lock: File,
}

struct LogFile {
    file: File,
    salt: u64,
    /// The next frame's number and place.
    sequence: u32,
    end: u64,
    /// First entry and place of each frame that has entries.
    frames: VecDeque<(u64, u64)>,
}

impl Disk {
    /// Opens the folder, making it if need be, and reads what is there.
    pub(crate) fn open(dir: &Path, fault: Option<Fault>) -> Result<(Self, Saved), OpenError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let lock = lock(dir)?;
        let snapshot = load_snapshot(dir)?;
        let path = dir.join("log");
        let loaded = match read_limited(&path) {
            Ok(bytes) => Some(parse_log(&path, &bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        let mut disk =
            Self { dir: dir.to_owned(), fault, log: None, hard_state: HardState::default(), _lock: lock };
        let mut saved = Saved { snapshot, ..Saved::default() };
        if let Some(loaded) = loaded {
            let file = File::options().read(true).write(true).open(&path).map_err(io_error(&path))?;
            if loaded.torn {
                tracing::warn!(path = %path.display(), at = loaded.log.end, "cut off a torn write");
                file.set_len(loaded.log.end).and_then(|()| file.sync_all()).map_err(io_error(&path))?;
            }
            saved.hard_state = loaded.hard_state;
            saved.base = loaded.base;
            saved.entries = loaded.entries;
            let ParsedLog { salt, sequence, end, frames } = loaded.log;
            disk.log = Some(LogFile { file, salt, sequence, end, frames });
        }
        disk.reconcile(&mut saved, &path)?;
        disk.hard_state = saved.hard_state.clone();
        Ok((disk, saved))
    }

    /// Makes log and snapshot fit: a snapshot taken from the leader counts, even when the power went before the log
    /// was begun anew.
    fn reconcile(&mut self, saved: &mut Saved, path: &Path) -> Result<(), OpenError> {
        let last = saved.base.index + saved.entries.len() as u64;
        let at = saved.snapshot.as_ref().map_or(Position::default(), position);
        if saved.base.index > at.index {
            let what = format!("begins after entry {}, the snapshot ends at {}", saved.base.index, at.index);
            return Err(OpenError::Damaged { path: path.to_owned(), offset: 0, what });
        }
        let term = match at.index - saved.base.index {
            0 => Some(saved.base.term),
            n => saved.entries.get(n as usize - 1).map(|e| e.term),
        };
        saved.hard_state.term = saved.hard_state.term.max(at.term);
        saved.hard_state.commit = saved.hard_state.commit.max(at.index);
        if term != Some(at.term) {
            saved.entries.clear();
            saved.base = at;
            saved.hard_state.commit = at.index;
            self.replace_log(at, &saved.hard_state, &[])
                .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        } else {
            saved.hard_state.commit = saved.hard_state.commit.min(last.max(at.index));
        }
        Ok(())
    }

    fn check(&self, operation: Operation) -> io::Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault(operation))
    }

    /// Appends a frame and waits until it is on the medium. After a failure nothing has changed and it may be tried
    /// again.
    pub(crate) fn append(&mut self, hard_state: &HardState, entries: &[Entry]) -> io::Result<()> {
        if self.log.is_none() {
            self.replace_log(Position::default(), &HardState::default(), &[])?;
        }
        self.check(Operation::Write)?;
        let payload = batch(hard_state, entries);
        let sync = self.check(Operation::Sync);
        let Some(log) = &mut self.log else { return Err(io::Error::other("no log")) };
        let frame = frame(log.salt, log.sequence, &payload)?;
        // Written again as a whole on each try: after a failed sync the kernel may believe old pages to be clean.
        let done = log.file.write_all_at(&frame, log.end).and(sync).and_then(|()| log.file.sync_data());
        if let Err(error) = done {
            let _ = log.file.set_len(log.end);
            return Err(error);
        }
        if let Some(first) = entries.first() {
            while log.frames.back().is_some_and(|(index, _)| *index >= first.index) {
                log.frames.pop_back();
            }
            log.frames.push_back((first.index, log.end));
        }
        log.end += frame.len() as u64;
        log.sequence += 1;
        self.hard_state = hard_state.clone();
        Ok(())
    }

    /// Writes the own state, then cuts the log up to `base`, the end of the snapshot before.
    pub(crate) fn snapshot(&mut self, snapshot: &Snapshot, base: Position) -> io::Result<()> {
        self.write_snapshot(snapshot, true)?;
        let kept = self.frames_after(base.index)?;
        let hard_state = self.hard_state.clone();
        self.replace_log(base, &hard_state, &kept)
    }

    /// Takes the leader's snapshot in place of everything.
    pub(crate) fn install(&mut self, snapshot: &Snapshot, hard_state: &HardState) -> io::Result<()> {
        self.write_snapshot(snapshot, false)?;
        self.replace_log(position(snapshot), hard_state, &[])?;
        self.hard_state = hard_state.clone();
        Ok(())
    }

    fn write_snapshot(&self, snapshot: &Snapshot, keep_previous: bool) -> io::Result<()> {
        let payload = wire::encode_snapshot(snapshot);
        let mut header = Vec::with_capacity(SNAPSHOT_HEADER);
        header.extend_from_slice(SNAPSHOT_MAGIC);
        header.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        self.write_temporary("snapshot.tmp", &[&header, &payload])?;
        let current = self.dir.join("snapshot");
        let previous = self.dir.join("snapshot.prev");
        if keep_previous && current.exists() {
            fs::rename(&current, &previous)?;
        }
        fs::rename(self.dir.join("snapshot.tmp"), &current)?;
        self.sync_dir()?;
        if !keep_previous {
            remove_if_there(&previous)?;
        }
        Ok(())
    }

    /// The frames that hold the entries after `index`, each as its payload.
    fn frames_after(&self, index: u64) -> io::Result<Vec<Vec<u8>>> {
        let Some(log) = &self.log else { return Ok(Vec::new()) };
        let at = log.frames.partition_point(|(first, _)| *first <= index + 1);
        let Some((_, mut offset)) = log.frames.get(at.saturating_sub(1)).copied() else {
            return Ok(Vec::new());
        };
        let mut payloads = Vec::new();
        while offset < log.end {
            let mut header = [0; FRAME_HEADER];
            log.file.read_exact_at(&mut header, offset)?;
            let mut payload = vec![0; u32_at(&header, 0) as usize];
            log.file.read_exact_at(&mut payload, offset + FRAME_HEADER as u64)?;
            if crc32fast::hash(&payload) != u32_at(&header, 8) {
                return Err(io::Error::other(format!("the log is damaged at byte {offset}")));
            }
            offset += (FRAME_HEADER + payload.len()) as u64;
            payloads.push(payload);
        }
        Ok(payloads)
    }

    /// Begins a new log with these frames and puts it in the place of the old one.
    fn replace_log(
        &mut self,
        base: Position,
        hard_state: &HardState,
        payloads: &[Vec<u8>],
    ) -> io::Result<()> {
        let salt = RandomState::new().hash_one(base.index);
        let mut bytes = log_header(salt, base);
        let mut frames = VecDeque::new();
        let mut sequence = 0;
        let state = batch(hard_state, &[]);
        for payload in payloads.iter().chain([&state]) {
            if let Some(first) = first_index(payload)? {
                while frames.back().is_some_and(|(index, _)| *index >= first) {
                    frames.pop_back();
                }
                frames.push_back((first, bytes.len() as u64));
            }
            bytes.extend_from_slice(&frame(salt, sequence, payload)?);
            sequence += 1;
        }
        let file = self.write_temporary("log.tmp", &[&bytes])?;
        fs::rename(self.dir.join("log.tmp"), self.dir.join("log"))?;
        // From here on the new file is the log, whether or not the folder's sync succeeds.
        self.log = Some(LogFile { file, salt, sequence, end: bytes.len() as u64, frames });
        self.sync_dir()
    }

    fn write_temporary(&self, name: &str, parts: &[&[u8]]) -> io::Result<File> {
        let path = self.dir.join(name);
        let write = || {
            self.check(Operation::Write)?;
            let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            for part in parts {
                file.write_all(part)?;
            }
            self.check(Operation::Sync)?;
            file.sync_all()?;
            Ok(file)
        };
        write().inspect_err(|_| {
            // Gives the room back to the log.
            let _ = fs::remove_file(&path);
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.check(Operation::Sync)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| OpenError::Io { path: path.clone(), source })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(dir.to_owned())),
        Err(error) => Err(OpenError::Io { path, source: error.into() }),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn position(snapshot: &Snapshot) -> Position {
    let metadata = snapshot.get_metadata();
    Position { index: metadata.index, term: metadata.term }
}

fn load_snapshot(dir: &Path) -> Result<Option<Snapshot>, OpenError> {
    let mut damage = None;
    for name in ["snapshot", "snapshot.prev"] {
        let path = dir.join(name);
        match read_limited(&path) {
            Ok(bytes) => match parse_snapshot(&bytes) {
                Ok(snapshot) => {
                    if name == "snapshot.prev" {
                        // It is the newest sound one now, and must not make way for a damaged one.
                        fs::rename(&path, dir.join("snapshot"))
                            .map_err(|source| OpenError::Io { path, source })?;
                    }
                    return Ok(Some(snapshot));
                }
                Err(what) => {
                    tracing::error!(path = %path.display(), what, "a snapshot is damaged");
                    damage.get_or_insert(OpenError::Damaged { path, offset: 0, what });
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(OpenError::Io { path, source }),
        }
    }
    damage.map_or(Ok(None), Err)
}

fn parse_snapshot(bytes: &[u8]) -> Result<Snapshot, String> {
    if bytes.len() < SNAPSHOT_HEADER || &bytes[..8] != SNAPSHOT_MAGIC {
        return Err("not a snapshot".into());
    }
    let payload = &bytes[SNAPSHOT_HEADER..];
    if u64_at(bytes, 8) != payload.len() as u64 {
        return Err("wrong length".into());
    }
    if crc32fast::hash(payload) != u32_at(bytes, 16) {
        return Err("wrong checksum".into());
    }
    wire::decode_snapshot(payload).map_err(|e| e.to_string())
}

struct Loaded {
    log: ParsedLog,
    base: Position,
    hard_state: HardState,
    entries: Vec<Entry>,
    torn: bool,
}

struct ParsedLog {
    salt: u64,
    sequence: u32,
    end: u64,
    frames: VecDeque<(u64, u64)>,
}

fn parse_log(path: &Path, bytes: &[u8]) -> Result<Loaded, OpenError> {
    let damaged = |offset: usize, what: String| OpenError::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        what,
    };
    if bytes.len() < LOG_HEADER
        || &bytes[..8] != LOG_MAGIC
        || crc32fast::hash(&bytes[..32]) != u32_at(bytes, 32)
    {
        return Err(damaged(0, "the header is wrong".into()));
    }
    let salt = u64_at(bytes, 8);
    let base = Position { index: u64_at(bytes, 16), term: u64_at(bytes, 24) };
    let mut loaded = Loaded {
        log: ParsedLog { salt, sequence: 0, end: LOG_HEADER as u64, frames: VecDeque::new() },
        base,
        hard_state: HardState::default(),
        entries: Vec::new(),
        torn: false,
    };
    let mut offset = LOG_HEADER;
    while offset < bytes.len() {
        let Some(payload) = sound_frame(salt, &bytes[offset..], |n| n == loaded.log.sequence) else {
            let later = |at: &usize| sound_frame(salt, &bytes[*at..], |n| n > loaded.log.sequence).is_some();
            if let Some(at) = (offset + 1..bytes.len()).find(later) {
                return Err(damaged(offset, format!("a frame is wrong, a sound one follows at byte {at}")));
            }
            loaded.torn = true;
            break;
        };
        loaded.take(payload, offset as u64).map_err(|what| damaged(offset, what))?;
        offset += FRAME_HEADER + payload.len();
        loaded.log.end = offset as u64;
        loaded.log.sequence += 1;
    }
    Ok(loaded)
}

impl Loaded {
    fn take(&mut self, payload: &[u8], offset: u64) -> Result<(), String> {
        let batch = Batch::decode(payload).map_err(|e| e.to_string())?;
        self.hard_state = HardState { term: batch.term, vote: batch.vote, commit: batch.commit };
        for (i, bytes) in batch.entries.iter().enumerate() {
            let entry = wire::decode_entry(bytes).map_err(|e| e.to_string())?;
            if i == 0 {
                while self.log.frames.back().is_some_and(|(index, _)| *index >= entry.index) {
                    self.log.frames.pop_back();
                }
                self.log.frames.push_back((entry.index, offset));
            }
            let Some(place) = entry.index.checked_sub(self.base.index + 1) else { continue };
            if place > self.entries.len() as u64 {
                return Err(format!("entry {} is missing", self.base.index + 1 + self.entries.len() as u64));
            }
            self.entries.truncate(place as usize);
            self.entries.push(entry);
        }
        Ok(())
    }
}

/// The payload of the frame that `bytes` begin with, if it is whole, of this log, and its number is wanted.
fn sound_frame(salt: u64, bytes: &[u8], wanted: impl Fn(u32) -> bool) -> Option<&[u8]> {
    let header = bytes.get(..FRAME_HEADER)?;
    if header_checksum(salt, &header[..12]) != u32_at(header, 12) || !wanted(u32_at(header, 4)) {
        return None;
    }
    let payload = bytes.get(FRAME_HEADER..)?.get(..u32_at(header, 0) as usize)?;
    (crc32fast::hash(payload) == u32_at(header, 8)).then_some(payload)
}

fn header_checksum(salt: u64, header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(header);
    hasher.finalize()
}

fn frame(salt: u64, sequence: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(FRAME_HEADER + payload.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = header_checksum(salt, &frame);
    frame.extend_from_slice(&checksum.to_le_bytes());
    frame.extend_from_slice(payload);
    Ok(frame)
}

fn log_header(salt: u64, base: Position) -> Vec<u8> {
    let mut header = Vec::with_capacity(LOG_HEADER);
    header.extend_from_slice(LOG_MAGIC);
    for number in [salt, base.index, base.term] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    header
}

fn batch(hard_state: &HardState, entries: &[Entry]) -> Vec<u8> {
    let entries: Vec<Bytes> = entries.iter().map(wire::encode_entry).collect();
    Batch { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit, entries }.encode_to_vec()
}

fn first_index(payload: &[u8]) -> io::Result<Option<u64>> {
    let batch = Batch::decode(payload).map_err(io::Error::other)?;
    let first = batch.entries.first().map(|bytes| wire::decode_entry(bytes));
    Ok(first.transpose().map_err(io::Error::other)?.map(|entry| entry.index))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests;
