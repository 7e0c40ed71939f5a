//! Writing the card, and reading back what it kept.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Result, anyhow, bail};
use indicatif::HumanBytes;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::bmap::{Extent, Map};
use super::image::{CHUNK, Image};

/// Hears of a phase how many of how many bytes are done.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(Phase, u64, u64);

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Checking,
    Writing,
    Verifying,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checking => "checking",
            Self::Writing => "writing",
            Self::Verifying => "verifying",
        })
    }
}

/// A card.
pub(crate) trait Card {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads from the card itself, not from what was kept of it in memory.
    fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Returns when all that was written is on the card.
    fn sync(&mut self) -> io::Result<()>;
}

impl Card for File {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let len = std::num::NonZeroU64::new(bytes.len() as u64);
        rustix::fs::fadvise(&*self, at, len, rustix::fs::Advice::DontNeed)?;
        self.read_exact_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Bytes between two waits for the card, so that the rate shown is the card's and not memory's.
const WRITE_OUT: u64 = 8 << 20;
/// The first block, with the partition table.
const FIRST: usize = 4096;

/// Writes the mapped blocks of an image that was checked, then reads them back.
pub(crate) fn put(image: &mut Image, map: &Map, card: &mut impl Card, progress: Progress<'_>) -> Result<()> {
    let total = map.mapped();
    let mut done = 0;
    // From here until the last write the card has no partition table.
    card.write_at(0, &[0; FIRST])
        .and_then(|()| card.sync())
        .map_err(|e| lost(e, Phase::Writing, 0, total))?;
    let mut first = Vec::new();
    let mut waiting = 0;
    image.each(&map.extents, |_, at, piece| {
        let body = if at < FIRST as u64 {
            let split = piece.len().min(FIRST - at as usize);
            first.push((at, piece[..split].to_vec()));
            &piece[split..]
        } else {
            piece
        };
        let start = at + (piece.len() - body.len()) as u64;
        waiting += body.len() as u64;
        let written = card.write_at(start, body).and_then(|()| {
            if waiting < WRITE_OUT {
                return Ok(());
            }
            waiting = 0;
            card.sync()
        });
        written.map_err(|e| lost(e, Phase::Writing, done, total))?;
        done += piece.len() as u64;
        progress(Phase::Writing, done, total);
        Ok(())
    })?;
    card.sync().map_err(|e| lost(e, Phase::Writing, done, total))?;
    for (at, bytes) in first {
        card.write_at(at, &bytes).map_err(|e| lost(e, Phase::Writing, done, total))?;
    }
    card.sync().map_err(|e| lost(e, Phase::Writing, done, total))?;
    verify(map, card, progress)
}

/// Reads the mapped blocks back from the card.
fn verify(map: &Map, card: &mut impl Card, progress: Progress<'_>) -> Result<()> {
    let total = map.mapped();
    let mut done = 0;
    let mut buffer = vec![0; CHUNK];
    for Extent { start, len, sha256 } in &map.extents {
        let mut sum = Sha256::new();
        let mut at = *start;
        while at < start + len {
            let want = usize::try_from(start + len - at).unwrap_or(usize::MAX).min(CHUNK);
            card.read_at(at, &mut buffer[..want]).map_err(|e| lost(e, Phase::Verifying, done, total))?;
            sum.update(&buffer[..want]);
            at += want as u64;
            done += want as u64;
            progress(Phase::Verifying, done, total);
        }
        if <[u8; 32]>::from(sum.finalize()) != *sha256 {
            bail!(
                "the card does not hold what was written to it (in the {} from {start} on): it is worn out or says \
                 that it is larger than it is; use another",
                HumanBytes(*len)
            );
        }
    }
    Ok(())
}

/// What to tell when the card stops answering.
fn lost(error: io::Error, phase: Phase, done: u64, total: u64) -> anyhow::Error {
    let so_far = format!("{phase} stopped after {} of {}", HumanBytes(done), HumanBytes(total));
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    match code {
        Some(Errno::IO | Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM) => anyhow!(
            "the card was pulled out, or failed: {so_far} ({error}). It boots nowhere as it is: put it back in and \
             flash it again; if that stops too, the card or the reader is broken"
        ),
        _ => anyhow::Error::from(error)
            .context(format!("{so_far}; the card boots nowhere as it is, flash it again")),
    }
}
