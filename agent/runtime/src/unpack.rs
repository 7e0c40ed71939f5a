//! Unpacks one layer: the `unpack` helper, a process of its own that locks itself into the layer's folder.
//!
//! Whatever the archive says, every path is resolved by the kernel inside that folder. An entry that cannot be made
//! exactly as asked fails the layer. The folder only gets its final name once all of it is on disk.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tar::{Entry, EntryType};

use crate::decompress::Turns;
use crate::{decompress, manifest};

/// Deeper paths are refused.
const MAX_DEPTH: usize = 256;
/// Memory that the helper may have; a decompressor's window is most of what it needs. What wants more is no layer that
/// a small node should take.
const MAX_MEMORY: u64 = 512 << 20;

/// What to unpack, and where.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Job {
    /// The layer's blob.
    pub(crate) blob: PathBuf,
    /// An empty folder.
    pub(crate) target: PathBuf,
    /// Folders of the layers below, topmost first.
    pub(crate) lowers: Vec<PathBuf>,
    /// Bytes that the layer may unpack to.
    pub(crate) max_bytes: u64,
    /// Files that it may have.
    pub(crate) max_entries: u64,
}

/// What came of it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Outcome {
    /// Done and on disk.
    Done {
        /// sha256 of the uncompressed archive.
        diff_id: String,
        /// Bytes of file content.
        size: u64,
    },
    /// Failed, with the reason.
    Failed(String),
}

/// The helper's main: a job on standard input, an outcome on standard output.
pub(crate) fn main() -> i32 {
    let outcome = match read_job().and_then(|job| run(&job)) {
        Ok(done) => done,
        Err(e) => Outcome::Failed(e.to_string()),
    };
    let text = serde_json::to_vec(&outcome).unwrap_or_default();
    match io::stdout().write_all(&text) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn read_job() -> io::Result<Job> {
    let mut text = String::new();
    io::stdin().take(1 << 20).read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

fn run(job: &Job) -> io::Result<Outcome> {
    let limit = Rlimit { current: Some(MAX_MEMORY), maximum: Some(MAX_MEMORY) };
    rustix::process::setrlimit(Resource::Data, limit)?;
    let blob = File::open(&job.blob)?;
    let lowers = job.lowers.iter().map(|path| open_dir(path)).collect::<io::Result<Vec<_>>>()?;
    rustix::process::chroot(&job.target)?;
    std::env::set_current_dir("/")?;
    rustix::process::umask(Mode::empty());
    let layer = Layer { lowers, dirs: Vec::new(), size: 0, left: job.max_bytes };
    let stream = decompress::Bounded::new(decompress::open(blob)?, job.max_bytes);
    let (diff_id, size) = layer.unpack(stream, job.max_entries)?;
    rustix::fs::syncfs(File::open("/")?)?;
    Ok(Outcome::Done { diff_id, size })
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// A layer in the making; `/` is its folder.
struct Layer {
    lowers: Vec<OwnedFd>,
    /// Folders with their times, set last: making entries in them would change them.
    dirs: Vec<(PathBuf, u64)>,
    size: u64,
    /// Content bytes that may still be written; sparse entries write more than they read.
    left: u64,
}

impl Layer {
    fn unpack(mut self, stream: impl Read, max_entries: u64) -> io::Result<(String, u64)> {
        let (stream, turn) = Turns::new(stream);
        let mut archive = tar::Archive::new(Hashing { inner: stream, hasher: Sha256::new() });
        let mut count = 0;
        let mut entries = archive.entries()?;
        loop {
            turn.headers();
            let Some(entry) = entries.next() else { break };
            turn.content();
            let mut entry = entry?;
            count += 1;
            if count > max_entries {
                return Err(io::Error::other(format!("more than {max_entries} entries")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            self.entry(&mut entry).map_err(|e| io::Error::new(e.kind(), format!("{name:?}: {e}")))?;
            // A sparse file was read to its end, and says itself how many zeros it has.
            if entry.header().entry_type() != EntryType::GNUSparse {
                io::copy(&mut entry, &mut io::sink())?;
            }
        }
        turn.content();
        for (path, mtime) in self.dirs.iter().rev() {
            // Replaced or removed since: its time went with it.
            if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
                set_mtime(path, *mtime)?;
            }
        }
        // What follows the archive's end belongs to the layer's digest.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink())?;
        Ok((manifest::finish(rest.hasher), self.size))
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let path = inside(&entry.path()?)?;
        if let Some(parent) = path.parent() {
            self.make_parents(parent)?;
        }
        match path.file_name() {
            Some(name) if name.as_bytes().starts_with(b".wh.") => return whiteout(&path),
            _ => {}
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => make_dir(&path)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(&path)?;
                self.write_file(&path, entry)?;
            }
            EntryType::Link => {
                let target =
                    inside(&entry.link_name()?.ok_or_else(|| io::Error::other("a link to nowhere"))?)?;
                clear(&path)?;
                // The link shares the target's owner and mode, so there is nothing more to set.
                return fs::hard_link(&target, &path);
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nowhere"))?;
                clear(&path)?;
                std::os::unix::fs::symlink(&target, &path)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => make_node(&path, kind, entry)?,
            EntryType::XGlobalHeader => return Ok(()),
            other => return Err(io::Error::other(format!("entry type {other:?} is not supported"))),
        }
        set_metadata(&path, kind, entry)?;
        if kind == EntryType::Directory {
            self.dirs.push((path, entry.header().mtime()?));
        }
        Ok(())
    }

    fn write_file(&mut self, path: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let written = io::copy(&mut entry.take(self.left.saturating_add(1)), &mut file)?;
        self.left = self
            .left
            .checked_sub(written)
            .ok_or_else(|| io::Error::other("unpacks to more bytes than are allowed"))?;
        self.size += written;
        Ok(())
    }

    /// Makes folders that the archive does not mention; they look as in the layers below, or like `mkdir`'s.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        // `metadata` follows links: all of them end inside this folder, which is our root.
        if fs::metadata(path).is_ok_and(|m| m.is_dir()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_parents(parent)?;
        }
        let hidden = is_whiteout(path);
        if hidden {
            fs::remove_file(path)?;
        }
        fs::create_dir(path)?;
        let (mode, uid, gid) = match self.below(path) {
            Some(found) if !hidden => found,
            _ => (0o755, 0, 0),
        };
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        if hidden { set_opaque(path) } else { Ok(()) }
    }

    fn below(&self, path: &Path) -> Option<(u32, u32, u32)> {
        let relative = path.strip_prefix("/").ok()?;
        for lower in &self.lowers {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let Ok(found) = rustix::fs::openat2(lower, relative, flags, Mode::empty(), resolve) else {
                continue;
            };
            let meta = File::from(found).metadata().ok()?;
            return meta.is_dir().then(|| (meta.mode() & 0o7777, meta.uid(), meta.gid()));
        }
        None
    }
}

/// The absolute path of an entry inside the layer.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::from("/");
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                depth += 1;
                clean.push(name);
            }
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("leads out of the layer"));
            }
        }
    }
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("deeper than {MAX_DEPTH} folders")));
    }
    Ok(clean)
}

/// Translates an image's whiteout into overlayfs' form.
fn whiteout(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().map(OsStrExt::as_bytes)) else {
        return Err(io::Error::other("a whiteout of nothing"));
    };
    if name == b".wh..wh..opq" {
        return set_opaque(parent);
    }
    let hidden = &name[b".wh.".len()..];
    if hidden.starts_with(b".wh.") {
        // Bookkeeping of an old union file system.
        return Ok(());
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(io::Error::other("not a whiteout"));
    }
    let hidden = parent.join(std::ffi::OsStr::from_bytes(hidden));
    match fs::symlink_metadata(&hidden) {
        // The layer itself puts something there: only what is below goes away.
        Ok(m) if m.is_dir() => set_opaque(&hidden),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(rustix::fs::mknodat(CWD, &hidden, FileType::CharacterDevice, Mode::empty(), 0)?)
        }
        Err(e) => Err(e),
    }
}

fn set_opaque(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn make_dir(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        return Ok(());
    }
    let hidden = is_whiteout(path);
    clear(path)?;
    fs::create_dir(path)?;
    if hidden { set_opaque(path) } else { Ok(()) }
}

/// Takes away what an earlier entry of this layer left at a path.
fn clear(path: &Path) -> io::Result<()> {
    if path == Path::new("/") {
        return Err(io::Error::other("the root must be a folder"));
    }
    match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn make_node(path: &Path, kind: EntryType, entry: &Entry<'_, impl Read>) -> io::Result<()> {
    let header = entry.header();
    let (file_type, device) = match kind {
        EntryType::Fifo => (FileType::Fifo, 0),
        other => {
            let number =
                |n: io::Result<Option<u32>>| n?.ok_or_else(|| io::Error::other("a device without a number"));
            let device = rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?);
            let char = other == EntryType::Char;
            (if char { FileType::CharacterDevice } else { FileType::BlockDevice }, device)
        }
    };
    clear(path)?;
    Ok(rustix::fs::mknodat(CWD, path, file_type, Mode::empty(), device)?)
}

fn set_metadata(path: &Path, kind: EntryType, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let header = entry.header();
    let id = |n: io::Result<u64>| u32::try_from(n?).map_err(|_| io::Error::other("owner out of range"));
    let (uid, gid) = (id(header.uid())?, id(header.gid())?);
    let (mode, mtime) = (header.mode()?, header.mtime()?);
    // In this order: changing the owner takes setuid bits and file capabilities away.
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    if kind != EntryType::Symlink {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        set_xattr(path, name, extension.value_bytes())?;
    }
    if kind != EntryType::Directory {
        set_mtime(path, mtime)?;
    }
    Ok(())
}

fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    // overlayfs' own attributes would let an image redirect to other layers; labels are the host's business.
    if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
        return Ok(());
    }
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .map_err(|e| io::Error::other(format!("attribute {}: {e}", String::from_utf8_lossy(name))))
}

fn set_mtime(path: &Path, seconds: u64) -> io::Result<()> {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (given, want) in
            [("./a//b", Some("/a/b")), ("/etc/x", Some("/etc/x")), ("a/../../b", None), (".", Some("/"))]
        {
            assert_eq!(inside(Path::new(given)).ok().as_deref(), want.map(Path::new), "{given}");
        }
        assert!(inside(Path::new(&"a/".repeat(MAX_DEPTH + 1))).is_err());
    }
}
