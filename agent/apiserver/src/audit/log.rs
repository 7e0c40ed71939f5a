//! The file that events are written to: it grows to a size, is put aside under a number, and the oldest is deleted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// How much room the log may take: `max_size` once, and as often again as there are backups.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that a file grows to.
    pub max_size: u64,
    /// Files that are kept when they are full.
    pub max_backups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_backups: 1 }
    }
}

/// An open log.
pub(super) struct Log {
    path: PathBuf,
    limits: Limits,
    file: File,
    size: u64,
    /// The last line is not whole.
    torn: bool,
}

impl Log {
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        // Whoever wrote before may have lost power in the middle of a line.
        let torn = size > 0 && last_byte(path)? != b'\n';
        Ok(Self { path: path.to_owned(), limits, file, size, torn })
    }

    /// Appends a line.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.size > 0 && self.size + length > self.limits.max_size {
            self.rotate()?;
        }
        let mut bytes = Vec::with_capacity(line.len() + 2);
        if self.torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes);
        self.torn = written.is_err();
        self.size += bytes.len() as u64;
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.limits.max_backups == 0 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.limits.max_backups).rev() {
                match std::fs::rename(self.backup(number), self.backup(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            std::fs::rename(&self.path, self.backup(1))?;
        }
        *self = Self::open(&self.path, self.limits)?;
        Ok(())
    }

    fn backup(&self, number: usize) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

fn last_byte(path: &Path) -> io::Result<u8> {
    let mut file = File::open(path)?;
    file.seek(io::SeekFrom::End(-1))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Writes what comes until nobody can send any more. What cannot be written is lost, and counted.
pub(super) fn write(mut log: Log, mut lines: mpsc::Receiver<Vec<u8>>, lost: &Arc<AtomicU64>) {
    let mut fails = false;
    while let Some(line) = lines.blocking_recv() {
        match log.append(&line) {
            Ok(()) => fails = false,
            Err(error) => {
                lost.fetch_add(1, Ordering::Relaxed);
                if !fails {
                    tracing::error!(path = %log.path.display(), %error, "the audit log cannot be written");
                }
                fails = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn it_takes_no_more_room_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = Log::open(&path, Limits { max_size: 20, max_backups: 2 }).unwrap();
        for i in 0..9 {
            log.append(format!("line-{i:03}").as_bytes()).unwrap();
        }
        assert_eq!(read(&path), "line-008\n");
        assert_eq!(read(&dir.path().join("audit.log.1")), "line-006\nline-007\n");
        assert_eq!(read(&dir.path().join("audit.log.2")), "line-004\nline-005\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_torn_line_stays_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(&path, "{\"half").unwrap();
        let mut log = Log::open(&path, Limits::default()).unwrap();
        log.append(b"{}").unwrap();
        log.append(b"{}").unwrap();
        drop(log);
        Log::open(&path, Limits::default()).unwrap().append(b"{}").unwrap();
        assert_eq!(read(&path), "{\"half\n{}\n{}\n{}\n");
    }
}
