//! How a card of ours looks on the disk, and how far its last partition may grow. Pure.

/// Bytes in a sector, everywhere in this crate.
pub const SECTOR: u64 = 512;
/// The data partition ends on a multiple of this many sectors (1 MiB).
const ALIGN: u32 = 2048;
/// Where an ext4's superblock begins in its partition.
pub const SUPERBLOCK_AT: u64 = 1024;

const FAT_LABEL: &[u8; 11] = b"BRAMBLE    ";
const DATA_LABEL: &[u8; 16] = b"bramble-data\0\0\0\0";

/// Numbers of the partitions that a slot does not name.
pub const BOOT: u8 = 1;
/// See [`BOOT`].
pub const DATA: u8 = 4;

/// One entry of the partition table, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The first one.
    pub start: u32,
    /// How many.
    pub sectors: u32,
}

impl Entry {
    /// The sector after the last one.
    pub fn end(self) -> u64 {
        u64::from(self.start) + u64::from(self.sectors)
    }
}

/// A master boot record with four partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    raw: [u8; 512],
    entries: [Entry; 4],
}

impl Table {
    /// Reads a disk's first sector. `None`: not a table with four partitions in order.
    pub fn read(raw: &[u8; 512]) -> Option<Self> {
        if raw[510..] != [0x55, 0xaa] {
            return None;
        }
        let mut entries = [Entry::default(); 4];
        let mut free_from = 1;
        for (index, entry) in entries.iter_mut().enumerate() {
            let at = entry_at(index);
            *entry = Entry { start: word(raw, at + 8)?, sectors: word(raw, at + 12)? };
            if raw[at + 4] == 0 || entry.sectors == 0 || u64::from(entry.start) < free_from {
                return None;
            }
            free_from = entry.end();
        }
        Some(Self { raw: *raw, entries })
    }

    /// A partition, by its number from 1 to 4.
    pub fn entry(&self, number: u8) -> Entry {
        self.entries[usize::from(number.clamp(1, 4)) - 1]
    }

    /// The table with its last partition grown to the end of a disk of `sectors`; `None` when there is nothing to
    /// gain.
    pub fn grown(&self, sectors: u64) -> Option<Self> {
        let data = self.entry(DATA);
        let room = sectors.saturating_sub(u64::from(data.start));
        let size = u32::try_from(room).unwrap_or(u32::MAX) / ALIGN * ALIGN;
        if size <= data.sectors {
            return None;
        }
        let mut grown = self.clone();
        let at = entry_at(usize::from(DATA) - 1);
        grown.raw[at + 12..at + 16].copy_from_slice(&size.to_le_bytes());
        grown.entries[usize::from(DATA) - 1].sectors = size;
        Some(grown)
    }

    /// The sector to write.
    pub fn raw(&self) -> &[u8; 512] {
        &self.raw
    }
}

fn entry_at(index: usize) -> usize {
    446 + 16 * index
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Whether the first sector of partition 1 and the superblock of partition 4 are those of a card of ours. The data
/// partition's label is left out of it when that one cannot be read: a damaged one is to be repaired, not overlooked.
pub fn is_ours(boot_sector: &[u8; 512], data: Option<&Superblock>) -> bool {
    boot_sector[71..82] == *FAT_LABEL && data.is_none_or(|data| data.label == *DATA_LABEL)
}

/// What is of use in an ext4's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes in a block.
    pub block: u64,
    /// How many blocks.
    pub blocks: u64,
    label: [u8; 16],
}

impl Superblock {
    /// Reads the superblock; `None` when it is none.
    pub fn read(raw: &[u8; 1024]) -> Option<Self> {
        const WIDE: u32 = 0x80;
        let log = word(raw, 24)?;
        if raw[56..58] != [0x53, 0xef] || log > 6 {
            return None;
        }
        let high = if word(raw, 96)? & WIDE == 0 { 0 } else { u64::from(word(raw, 0x150)?) };
        Some(Self {
            block: 1024 << log,
            blocks: high << 32 | u64::from(word(raw, 4)?),
            label: raw[120..136].try_into().ok()?,
        })
    }

    /// How many blocks fit a partition, when that is more than there are.
    pub fn grown(&self, partition: u64) -> Option<u64> {
        let fits = partition / self.block;
        (fits > self.blocks).then_some(fits)
    }
}

/// The device of a partition: `mmcblk0` and `nvme0n1` have a `p` before the number, `sda` and `vda` have not.
pub fn partition_name(disk: &str, number: u8) -> String {
    let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{separator}{number}")
}

/// In which order disks are looked at: the card slot first, then the rest by name, so that a second Bramble card in a
/// reader is not taken for the one that was booted from.
pub fn order(mut disks: Vec<String>) -> Vec<String> {
    disks.sort_by_key(|name| (!name.starts_with("mmcblk"), name.clone()));
    disks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mbr(entries: [(u32, u32); 4]) -> [u8; 512] {
        let mut raw = [0; 512];
        for (index, (start, sectors)) in entries.iter().enumerate() {
            let at = entry_at(index);
            raw[at + 4] = 0x83;
            raw[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            raw[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        raw[510..].copy_from_slice(&[0x55, 0xaa]);
        raw
    }

    const CARD: [(u32, u32); 4] = [(8192, 1000), (10_000, 1000), (20_000, 1000), (30_720, 4096)];

    #[test]
    fn a_table_needs_four_partitions_in_order() {
        let table = Table::read(&mbr(CARD)).unwrap();
        assert_eq!(table.entry(DATA), Entry { start: 30_720, sectors: 4096 });
        assert_eq!(Table::read(&[0; 512]), None);
        let mut overlapping = CARD;
        overlapping[2].0 = 10_999;
        assert_eq!(Table::read(&mbr(overlapping)), None);
        let mut missing = CARD;
        missing[3].1 = 0;
        assert_eq!(Table::read(&mbr(missing)), None);
    }

    #[test]
    fn the_last_partition_grows_to_the_end_and_nothing_else_changes() {
        let table = Table::read(&mbr(CARD)).unwrap();
        let grown = table.grown(30_720 + 10_000).unwrap();
        assert_eq!(grown.entry(DATA), Entry { start: 30_720, sectors: 8192 });
        assert_eq!(Table::read(grown.raw()).as_ref(), Some(&grown));
        let changed: Vec<usize> = (0..512).filter(|at| table.raw()[*at] != grown.raw()[*at]).collect();
        assert!(changed.iter().all(|at| (506..510).contains(at)), "{changed:?}");
        assert_eq!(grown.grown(30_720 + 10_000), None, "once is enough");
    }

    #[test]
    fn a_card_that_is_too_small_or_too_large_is_no_harm() {
        let table = Table::read(&mbr(CARD)).unwrap();
        for sectors in [0, 30_720, 30_720 + 4096, 30_720 + 4096 + 2047] {
            assert_eq!(table.grown(sectors), None, "{sectors}");
        }
        let grown = table.grown(u64::MAX).unwrap();
        assert_eq!(grown.entry(DATA).sectors, u32::MAX / ALIGN * ALIGN);
    }

    fn superblock(log: u32, low: u32, high: u32, wide: bool, label: &[u8]) -> [u8; 1024] {
        let mut raw = [0; 1024];
        raw[4..8].copy_from_slice(&low.to_le_bytes());
        raw[24..28].copy_from_slice(&log.to_le_bytes());
        raw[56..58].copy_from_slice(&[0x53, 0xef]);
        raw[96..100].copy_from_slice(&(if wide { 0x80_u32 } else { 0 }).to_le_bytes());
        raw[120..120 + label.len()].copy_from_slice(label);
        raw[0x150..0x154].copy_from_slice(&high.to_le_bytes());
        raw
    }

    #[test]
    fn a_superblock_says_how_large_the_file_system_is() {
        let read = |raw: [u8; 1024]| Superblock::read(&raw);
        let small = read(superblock(2, 1000, 9, false, b"x")).unwrap();
        assert_eq!((small.block, small.blocks), (4096, 1000));
        assert_eq!(small.grown(4096 * 1000 + 4095), None);
        assert_eq!(small.grown(4096 * 1001), Some(1001));
        assert_eq!(read(superblock(0, 5, 1, true, b"x")).unwrap().blocks, (1 << 32) + 5);
        assert_eq!(read([0; 1024]), None);
        assert_eq!(read(superblock(7, 5, 0, false, b"x")), None);
    }

    #[test]
    fn a_card_is_known_by_its_labels() {
        let mut fat = [0; 512];
        fat[71..82].copy_from_slice(FAT_LABEL);
        let data = Superblock::read(&superblock(2, 1, 0, false, b"bramble-data"));
        let other = Superblock::read(&superblock(2, 1, 0, false, b"bramble-data2"));
        assert!(is_ours(&fat, data.as_ref()));
        assert!(is_ours(&fat, None));
        assert!(!is_ours(&fat, other.as_ref()));
        assert!(!is_ours(&[0; 512], data.as_ref()));
    }

    #[test]
    fn devices_have_the_kernels_names() {
        assert_eq!(partition_name("mmcblk0", 2), "mmcblk0p2");
        assert_eq!(partition_name("vda", 4), "vda4");
        let disks = ["sda", "mmcblk1", "vda", "mmcblk0"].map(str::to_owned).to_vec();
        assert_eq!(order(disks), ["mmcblk0", "mmcblk1", "sda", "vda"]);
    }
}
