//! The card's image: an MBR, the boot state, and the partitions' file systems at their places; and the block map that
//! says which of it must be written to a card.

use crate::schema::{Layout, Partition, Role};
use crate::{ext4, fat, hash};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use slots::{Slot, State};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: u64 = 512;
/// Block size of block maps: bmaptool's own choice.
const BLOCK: u64 = 4096;
const MIB: u64 = 1024 * 1024;
/// How much is copied at a time.
const CHUNK: usize = 1024 * 1024;

/// The file systems.
#[derive(Debug)]
pub struct Parts<'a> {
    /// FAT32.
    pub boot: &'a Path,
    /// Slot A.
    pub root: &'a Path,
    /// ext4.
    pub data: &'a Path,
}

impl Parts<'_> {
    fn of(&self, role: Role) -> Option<&Path> {
        match role {
            Role::Boot => Some(self.boot),
            Role::RootA => Some(self.root),
            Role::RootB => None,
            Role::Data => Some(self.data),
        }
    }
}

/// Writes the image. Returns the byte ranges that mean something, in order.
pub fn write(layout: &Layout, disk_id: u32, parts: &Parts<'_>, path: &Path) -> Result<Vec<(u64, u64)>> {
    let card = File::create(path).with_context(|| path.display().to_string())?;
    card.set_len(size(layout))?;
    card.write_all_at(&mbr(layout, disk_id), 0)?;
    // An old copy left on a card could be newer: the second copy is written too, as what it is, nothing.
    let (at, block) = State::new(Slot::A).block();
    card.write_all_at(&block, at)?;
    let first = layout.partitions.iter().map(start).min().unwrap_or(MIB);
    let mut ranges = vec![(0, first.min(MIB))];
    for partition in &layout.partitions {
        let role = *partition.role.get_ref();
        let Some(source) = parts.of(role) else { continue };
        let room = u64::from(*partition.size_mib.get_ref()) * MIB;
        let length = std::fs::metadata(source)?.len();
        if length > room {
            bail!("the {role:?} file system has {length} bytes, its partition in the layout only {room}");
        }
        copy(source, &card, start(partition)).with_context(|| source.display().to_string())?;
        let used = match role {
            Role::Boot => fat::used(&std::fs::read(source)?)?,
            Role::Data => ext4::used(&std::fs::read(source)?)?,
            Role::RootA | Role::RootB => vec![(0, length)],
        };
        ranges.extend(used.into_iter().map(|(at, length)| (start(partition) + at, length)));
    }
    card.sync_all()?;
    Ok(ranges)
}

fn start(partition: &Partition) -> u64 {
    u64::from(*partition.start_mib.get_ref()) * MIB
}

/// Bytes of the whole image.
pub fn size(layout: &Layout) -> u64 {
    layout.partitions.iter().map(|p| start(p) + u64::from(*p.size_mib.get_ref()) * MIB).max().unwrap_or(0)
}

/// Zeros stay holes: the file takes only what is in it.
fn copy(source: &Path, card: &File, at: u64) -> Result<()> {
    let mut source = File::open(source)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = at;
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].iter().any(|b| *b != 0) {
            card.write_all_at(&buffer[..count], at)?;
        }
        at += count as u64;
    }
}

fn mbr(layout: &Layout, disk_id: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&disk_id.to_le_bytes());
    for (partition, entry) in layout.partitions.iter().zip(sector[446..510].chunks_exact_mut(16)) {
        let is_boot = *partition.role.get_ref() == Role::Boot;
        entry[0] = if is_boot { 0x80 } else { 0 };
        // Cylinders, heads and sectors: the value that says "see the numbers below".
        entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[4] = if is_boot { 0x0c } else { 0x83 };
        entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
        let sectors = |mib: u32| mib * u32::try_from(MIB / SECTOR).unwrap_or(2048);
        entry[8..12].copy_from_slice(&sectors(*partition.start_mib.get_ref()).to_le_bytes());
        entry[12..16].copy_from_slice(&sectors(*partition.size_mib.get_ref()).to_le_bytes());
    }
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// The block map (bmap 2.0, as bmaptool reads it) of an image.
pub fn block_map(image: &Path, ranges: &[(u64, u64)]) -> Result<String> {
    let mut file = File::open(image)?;
    let size = file.metadata()?.len();
    let blocks = block_ranges(ranges, size.div_ceil(BLOCK));
    let mut map = String::new();
    for (first, last) in &blocks {
        file.seek(SeekFrom::Start(first * BLOCK))?;
        let (sum, _) = hash::sha256_reader((&file).take((last - first + 1) * BLOCK))?;
        let numbers = if first == last { first.to_string() } else { format!("{first}-{last}") };
        map += &format!("        <Range chksum=\"{sum}\"> {numbers} </Range>\n");
    }
    let mapped: u64 = blocks.iter().map(|(first, last)| last - first + 1).sum();
    let zeros = "0".repeat(64);
    let text = format!(
        "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    <ImageSize> {size} </ImageSize>\n    <BlockSize> {BLOCK} \
         </BlockSize>\n    <BlocksCount> {} </BlocksCount>\n    <MappedBlocksCount> {mapped} </MappedBlocksCount>\n    \
         <ChecksumType> sha256 </ChecksumType>\n    <BmapFileChecksum> {zeros} </BmapFileChecksum>\n    \
         <BlockMap>\n{map}    </BlockMap>\n</bmap>\n",
        size.div_ceil(BLOCK)
    );
    // The file's own checksum is that of the file with zeros in the checksum's place.
    let sum = hash::sha256(text.as_bytes());
    Ok(text.replacen(&zeros, &sum, 1))
}

/// Byte ranges as runs of blocks, joined.
fn block_ranges(ranges: &[(u64, u64)], blocks: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut sorted: Vec<(u64, u64)> = ranges
        .iter()
        .filter(|(_, length)| *length > 0)
        .map(|(at, length)| (at / BLOCK, ((at + length - 1) / BLOCK).min(blocks.saturating_sub(1))))
        .collect();
    sorted.sort_unstable();
    for (first, last) in sorted {
        match runs.last_mut() {
            Some(run) if first <= run.1 + 1 => run.1 = run.1.max(last),
            _ => runs.push((first, last)),
        }
    }
    runs
}

/// Compresses a file.
pub fn compress(source: &Path, target: &Path, level: i32, bar: &ProgressBar) -> Result<()> {
    let output = File::create(target).with_context(|| target.display().to_string())?;
    let mut encoder = zstd::stream::write::Encoder::new(output, level)?;
    let input = File::open(source)?;
    encoder.set_pledged_src_size(Some(input.metadata()?.len()))?;
    encoder.include_contentsize(true)?;
    encoder.include_checksum(true)?;
    // The number of threads does not change what they write, as long as there are any.
    encoder.multithread(
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
    )?;
    std::io::copy(&mut bar.wrap_read(input), &mut encoder)?;
    encoder.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_just_the_blocks_of_the_ranges(ranges in proptest::collection::vec((0u64..40_000, 0u64..9000), 0..12)) {
            let runs = block_ranges(&ranges, 100);
            let in_runs = |block| runs.iter().any(|(first, last)| (*first..=*last).contains(&block));
            for block in 0..100 {
                let (start, end) = (block * BLOCK, (block + 1) * BLOCK);
                let touched = ranges.iter().any(|(at, length)| *length > 0 && *at < end && at + length > start);
                prop_assert_eq!(in_runs(block), touched, "block {}", block);
            }
            prop_assert!(runs.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }
}
