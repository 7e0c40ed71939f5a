//! The partition table of a card.

use crate::state::Slot;

/// A range of bytes on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first byte.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

/// The partitions of a card: four in an MBR, which is all that the firmware of a Pi 2 or 3 reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Boot files and settings (FAT32).
    pub boot: Range,
    /// Root of slot A (squashfs).
    pub root_a: Range,
    /// Root of slot B.
    pub root_b: Range,
    /// All that is written (ext4).
    pub data: Range,
}

/// Where the first partition of a card of ours begins at the earliest: the boot state is before it.
const FIRST: u64 = 1 << 20;

impl Table {
    /// Reads a card's first sector; `None` if it is not the table of a Bramble card.
    #[must_use]
    pub fn parse(sector: &[u8; 512]) -> Option<Self> {
        if sector[510..] != [0x55, 0xaa] {
            return None;
        }
        let entry = |number: usize| {
            let entry = &sector[446 + 16 * (number - 1)..446 + 16 * number];
            let word = |at: usize| entry[at..at + 4].try_into().map(u32::from_le_bytes).ok().map(u64::from);
            let range = Range { start: word(8)? * 512, len: word(12)? * 512 };
            (range.start >= FIRST && range.len > 0).then_some((entry[4], range))
        };
        let [(fat, boot), (a, root_a), (b, root_b), (d, data)] = [entry(1)?, entry(2)?, entry(3)?, entry(4)?];
        let kinds = matches!(fat, 0x0b | 0x0c) && [a, b, d].iter().all(|kind| *kind == 0x83);
        let apart =
            [boot, root_a, root_b, data].windows(2).all(|two| two[0].start + two[0].len <= two[1].start);
        (kinds && apart).then_some(Self { boot, root_a, root_b, data })
    }

    /// The root partition of a slot.
    #[must_use]
    pub fn root(&self, slot: Slot) -> Range {
        match slot {
            Slot::A => self.root_a,
            Slot::B => self.root_b,
        }
    }
}
