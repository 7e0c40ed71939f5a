//! The partition table of a card.

/// A range of bytes on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// The partitions that an update writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) root_a: Range,
    pub(crate) root_b: Range,
}

/// Where the first partition of a card of ours begins at the earliest: the boot state is before it.
const FIRST: u64 = 1 << 20;

impl Table {
    /// Reads the first sector; `None` if it is not the table of a Bramble card.
    pub(crate) fn parse(sector: &[u8; 512]) -> Option<Self> {
        if sector[510..] != [0x55, 0xaa] {
            return None;
        }
        let entry = |number: usize| {
            let entry = &sector[446 + 16 * (number - 1)..446 + 16 * number];
            let word = |at: usize| entry[at..at + 4].try_into().map(u32::from_le_bytes).ok().map(u64::from);
            let range = Range { start: word(8)? * 512, len: word(12)? * 512 };
            (range.start >= FIRST && range.len > 0).then_some((entry[4], range))
        };
        let [(boot, p1), (a, p2), (b, p3), (data, p4)] = [entry(1)?, entry(2)?, entry(3)?, entry(4)?];
        let fat = matches!(boot, 0x0b | 0x0c);
        let linux = [a, b, data].iter().all(|kind| *kind == 0x83);
        let apart = [p1, p2, p3, p4].windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start);
        (fat && linux && apart).then_some(Self { root_a: p2, root_b: p3 })
    }
}
