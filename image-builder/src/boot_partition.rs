//! The FAT boot partition inside a card or an image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use fatfs::{Dir, FileSystem, FsOptions};
use slots::{Range, Table};

/// Reads the partition table of a card or an image.
pub(crate) fn table(card: &File) -> Result<Table> {
    let mut sector = [0; 512];
    card.read_exact_at(&mut sector, 0)?;
    Table::parse(&sector).context("it has no partition table of a Bramble card")
}

/// The boot partition.
pub(crate) struct BootPartition<'a>(FileSystem<Window<'a>>);

impl<'a> BootPartition<'a> {
    /// Opens it; changes are written when it is dropped.
    pub(crate) fn open(card: &'a File) -> Result<Self> {
        let fat = FileSystem::new(Self::window(card)?, FsOptions::new());
        fat.map(Self).context("the boot partition has no FAT file system")
    }

    /// Its bytes.
    pub(crate) fn window(card: &'a File) -> Result<Window<'a>> {
        Ok(Window { card, range: table(card)?.boot, at: 0 })
    }

    /// Its top folder.
    pub(crate) fn root(&self) -> Dir<'_, Window<'a>> {
        self.0.root_dir()
    }
}

/// A range of a file as a file of its own.
pub(crate) struct Window<'a> {
    card: &'a File,
    range: Range,
    at: u64,
}

impl Window<'_> {
    fn left(&self, want: usize) -> usize {
        usize::try_from(self.range.len.saturating_sub(self.at)).unwrap_or(usize::MAX).min(want)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left(buffer.len());
        let got = self.card.read_at(&mut buffer[..want], self.range.start + self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let want = self.left(buffer.len());
        let put = self.card.write_at(&buffer[..want], self.range.start + self.at)?;
        self.at += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.range.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
