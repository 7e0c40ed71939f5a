//! What a machine wrote to its card, write by write, and the cards that a power cut in between would leave.
//!
//! QEMU's `blklogwrites` notes every write and every flush in the format of Linux's dm-log-writes. What was written
//! before a flush is on the card; of what came after it, a real card may have kept any part. So one recorded run gives
//! as many power cuts as one likes, harsher than killing QEMU, whose writes the host's cache would all keep.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::Rng;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// No write of a virtio disk is longer.
const LONGEST: u64 = 1 << 30;

/// One thing that was asked of the card.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Bytes of the card.
    range: Range<u64>,
    flags: u64,
    /// Where its data is in the log.
    data: u64,
}

/// A recorded run.
#[derive(Debug)]
pub struct Writes {
    log: File,
    entries: Vec<Entry>,
}

/// What a power cut leaves of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The entry before which the power went.
    pub at: usize,
    /// Writes since the last flush,
    pub unflushed: usize,
    /// and how many of them reached the card all the same.
    pub kept: usize,
}

impl Writes {
    /// Reads a log; one that ends in the middle of an entry (its machine was switched off) ends before it.
    pub fn read(path: &Path) -> Result<Self> {
        let log = File::open(path).with_context(|| path.display().to_string())?;
        let size = log.metadata()?.len();
        let word = |at: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            log.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        ensure!(word(0)? == MAGIC, "{} is no log of writes", path.display());
        let sector = word(24)? & 0xffff_ffff;
        ensure!(sector.is_power_of_two() && sector >= 512, "odd sectors of {sector} bytes");
        let (mut entries, mut at) = (Vec::new(), sector);
        while at + sector <= size {
            let (start, count, flags) = (word(at)?, word(at + 8)?, word(at + 16)?);
            let bytes = count.saturating_mul(sector);
            ensure!(bytes <= LONGEST, "entry {} writes {bytes} bytes", entries.len());
            let data = at + sector;
            let end = data + if flags & DISCARD == 0 { bytes } else { 0 };
            if end > size {
                break;
            }
            let start = start * sector;
            entries.push(Entry { range: start..start + bytes, flags, data });
            at = end;
        }
        Ok(Self { log, entries })
    }

    /// How much was asked of the card.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first entry that was noted when the log had this many bytes.
    pub fn since(&self, bytes: u64) -> usize {
        self.entries.partition_point(|entry| entry.data <= bytes)
    }

    /// The entries among these that write to some bytes of the card.
    pub fn touching(&self, among: Range<usize>, card: &Range<u64>) -> Vec<usize> {
        let touches =
            |i: &usize| self.entries[*i].range.start < card.end && card.start < self.entries[*i].range.end;
        among.filter(|i| touches(i)).collect()
    }

    /// Makes a card that is as it was when the run began what a power cut before entry `at` leaves.
    pub fn cut(&self, card: &File, at: usize, rng: &mut impl Rng) -> Result<Cut> {
        let flushed =
            self.entries[..at].iter().rposition(|e| e.flags & FLUSH != 0).map_or(0, |last| last + 1);
        let mut cut = Cut { at, unflushed: 0, kept: 0 };
        for (i, entry) in self.entries[..at].iter().enumerate() {
            if entry.range.is_empty() || entry.flags & DISCARD != 0 {
                continue;
            }
            if i >= flushed && entry.flags & FUA == 0 {
                cut.unflushed += 1;
                if rng.random_bool(0.5) {
                    continue;
                }
                cut.kept += 1;
            }
            self.apply(entry, card)?;
        }
        Ok(cut)
    }

    fn apply(&self, entry: &Entry, card: &File) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let (mut from, mut to) = (entry.data, entry.range.start);
        while to < entry.range.end {
            let step = buffer.len().min(usize::try_from(entry.range.end - to)?);
            self.log.read_exact_at(&mut buffer[..step], from)?;
            card.write_all_at(&buffer[..step], to)?;
            (from, to) = (from + step as u64, to + step as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn log(entries: &[(u64, u64, &[u8])]) -> Writes {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let mut sector = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(512, 0);
            log.write_all(&bytes).unwrap();
        };
        sector(&[MAGIC, 1, 0, 512]);
        for (at, flags, data) in entries {
            sector(&[*at, data.len() as u64, *flags]);
            for byte in *data {
                sector(&[u64::from_le_bytes([*byte; 8]); 64]);
            }
        }
        Writes::read(log.path()).unwrap()
    }

    fn card(writes: &Writes, at: usize, seed: u64) -> (Vec<u8>, Cut) {
        let card = tempfile::tempfile().unwrap();
        card.set_len(4 * 512).unwrap();
        let cut = writes.cut(&card, at, &mut StdRng::seed_from_u64(seed)).unwrap();
        let sectors = (0..4).map(|i| {
            let mut byte = [0];
            card.read_exact_at(&mut byte, i * 512 + 511).unwrap();
            byte[0]
        });
        (sectors.collect(), cut)
    }

    #[test]
    fn flushed_writes_stay_and_others_may() {
        let writes = log(&[(0, 0, b"ab"), (0, FLUSH, b""), (1, 0, b"c"), (2, FUA, b"d"), (3, DISCARD, b"")]);
        assert_eq!(writes.len(), 5);
        assert_eq!(writes.touching(0..5, &(512..513)), [0, 2]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let (sectors, cut) = card(&writes, 5, seed);
            assert_eq!((cut.unflushed, sectors[0], sectors[2]), (1, b'a', b'd'));
            seen.insert((sectors[1], cut.kept));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(b'b', 0), (b'c', 1)]);
        let all: std::collections::BTreeSet<_> = (0..50).map(|seed| card(&writes, 1, seed).0).collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [vec![0; 4], b"ab\0\0".to_vec()]);
        assert_eq!(writes.since(0), 0);
        // Superblock, then the first entry with its two sectors of data.
        assert_eq!(writes.since(4 * 512), 1);
    }
}
