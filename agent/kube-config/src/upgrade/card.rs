//! A card as an update sees it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bundle::Entry;
use slots::{Range, Slot, State, Table};

/// What an update does to a card. Each step that says so is on the card when it returns.
pub(crate) trait Card {
    /// The boot state.
    fn state(&mut self) -> io::Result<Option<State>>;
    /// Writes the boot state, synced.
    fn put_state(&mut self, state: &State) -> io::Result<()>;
    /// Makes `config.txt` name a slot, synced.
    fn point(&mut self, slot: Slot) -> io::Result<()>;
    /// Bytes that fit into a slot: its root partition, and its boot folder once what is in it is gone.
    fn room(&mut self, slot: Slot) -> io::Result<Room>;
    /// Empties a slot's boot folder.
    fn clear_boot(&mut self, slot: Slot) -> io::Result<()>;
    /// Writes a piece of a boot file; the first piece (at 0) makes the file.
    fn write_boot(&mut self, slot: Slot, path: &str, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes a piece of a slot's root.
    fn write_root(&mut self, slot: Slot, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// All that was written to a slot is on the card.
    fn sync(&mut self, slot: Slot) -> io::Result<()>;
    /// Describes a file as it is on the card, not as it is in memory.
    fn read_back(&mut self, slot: Slot, file: &Entry) -> io::Result<Entry>;
}

/// What fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) root: u64,
    pub(crate) boot: u64,
}

/// A card's device (or image file) and its mounted boot partition.
#[derive(Debug)]
pub(crate) struct DiskCard {
    disk: File,
    table: Table,
    boot: PathBuf,
    /// Boot files and folders written since the last sync.
    unsynced: Vec<PathBuf>,
}

impl DiskCard {
    /// Opens a card and keeps others (another update, udev's probing) off it, waiting so long for them to let go.
    pub(crate) fn open(disk: &Path, boot: &Path, patience: Duration) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(disk)?;
        lock(&file, patience)?;
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, 0)?;
        let table = Table::parse(&sector).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "it has no partition table of a Bramble card")
        })?;
        Ok(Self { disk: file, table, boot: boot.to_owned(), unsynced: Vec::new() })
    }

    fn folder(&self, slot: Slot) -> PathBuf {
        self.boot.join(slot.folder())
    }
}

impl Card for DiskCard {
    fn state(&mut self) -> io::Result<Option<State>> {
        slots::card::read(&self.disk)
    }

    fn put_state(&mut self, state: &State) -> io::Result<()> {
        slots::card::write(&self.disk, state)
    }

    fn point(&mut self, slot: Slot) -> io::Result<()> {
        slots::card::point(&self.boot, slot)
    }

    fn room(&mut self, slot: Slot) -> io::Result<Room> {
        let disk = rustix::fs::statvfs(&self.boot)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let folder = self.folder(slot);
        let boot = free + if folder.exists() { size_of_folder(&folder, 0)? } else { 0 };
        Ok(Room { root: self.table.root(slot).len, boot })
    }

    fn clear_boot(&mut self, slot: Slot) -> io::Result<()> {
        let folder = self.folder(slot);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&folder)?,
        }
        self.unsynced = vec![folder, self.boot.clone()];
        Ok(())
    }

    fn write_boot(&mut self, slot: Slot, path: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.folder(slot).join(path);
        if at == 0 {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
                self.unsynced.push(parent.to_owned());
            }
            File::create(&path)?.write_all_at(bytes, 0)?;
            self.unsynced.push(path);
            return Ok(());
        }
        OpenOptions::new().write(true).open(&path)?.write_all_at(bytes, at)
    }

    fn write_root(&mut self, slot: Slot, at: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.table.root(slot);
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > range.len) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "beyond the end of the root partition"));
        }
        self.disk.write_all_at(bytes, range.start + at)?;
        // Written out as it comes, not in one long stall at the end; what others have cached stays.
        if (range.start + at) / WRITE_OUT != (range.start + at + bytes.len() as u64) / WRITE_OUT {
            self.disk.sync_data()?;
        }
        Ok(())
    }

    fn sync(&mut self, _: Slot) -> io::Result<()> {
        self.disk.sync_all()?;
        self.unsynced.sort();
        self.unsynced.dedup();
        self.unsynced.drain(..).try_for_each(|path| File::open(path)?.sync_all())
    }

    fn read_back(&mut self, slot: Slot, file: &Entry) -> io::Result<Entry> {
        match file.boot_path() {
            Some(path) => {
                let from = File::open(self.folder(slot).join(path))?;
                forget(&from, Range { start: 0, len: 0 })?;
                bundle::measure(&file.name, from)
            }
            None => {
                let range = Range { len: file.size, ..self.table.root(slot) };
                forget(&self.disk, range)?;
                (&self.disk).seek(SeekFrom::Start(range.start))?;
                bundle::measure(&file.name, (&self.disk).take(range.len))
            }
        }
    }
}

/// Locks a card for this process alone. udev holds a lock for a moment whenever somebody who could write has closed the
/// device, so a refusal is not yet another update.
fn lock(disk: &File, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(disk, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_AGAIN),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let what = "another update is running, or something else has it locked";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A lock with a time limit can only be tried again.
const LOCK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes between two waits for the card.
const WRITE_OUT: u64 = 8 << 20;

/// Drops what the page cache has of a range (all of the file, for a length of 0), so that the card itself is read.
fn forget(file: &File, range: Range) -> io::Result<()> {
    let len = std::num::NonZeroU64::new(range.len);
    Ok(rustix::fs::fadvise(file, range.start, len, rustix::fs::Advice::DontNeed)?)
}

fn size_of_folder(folder: &Path, depth: usize) -> io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        size +=
            if about.is_dir() && depth < 8 { size_of_folder(&entry.path(), depth + 1)? } else { about.len() };
    }
    Ok(size)
}
