//! The boot state and its form on the card.

/// Bytes of one copy on the card: one sector, which a card writes whole or not at all.
pub const BLOCK: usize = 512;
/// Byte offsets of the two copies from the card's start (sectors 64 and 72: different 4 KiB pages, so writing one
/// never rewrites the other).
pub const COPIES: [u64; 2] = [64 * 512, 72 * 512];
/// How often a staged slot may be tried.
pub const TRIES: u8 = 3;

const MAGIC: &[u8; 8] = b"BRAMBLE\x1a";
const VERSION: u8 = 1;
/// Where the checksum of all before it stands.
const CRC_AT: usize = BLOCK - 4;

/// One of the two systems on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Root on the second partition, boot files in `slot-a/`.
    A,
    /// Root on the third partition, boot files in `slot-b/`.
    B,
}

impl Slot {
    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `a` or `b`: as in `bramble.slot=a` on the kernel's command line.
    #[must_use]
    pub fn letter(self) -> char {
        char::from(self.byte())
    }

    /// The slot of a letter.
    #[must_use]
    pub fn from_letter(letter: &str) -> Option<Self> {
        match letter {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            _ => None,
        }
    }

    /// What a kernel command line says about the slot it was booted from.
    #[must_use]
    pub fn from_cmdline(cmdline: &str) -> Option<Self> {
        cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("bramble.slot="))
            .next_back()
            .and_then(Self::from_letter)
    }

    /// The folder of its boot files on the boot partition.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::A => "slot-a",
            Self::B => "slot-b",
        }
    }

    /// The number of its root partition.
    #[must_use]
    pub fn partition(self) -> u8 {
        match self {
            Self::A => 2,
            Self::B => 3,
        }
    }

    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::A => b'a',
            Self::B => b'b',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'a' => Some(Self::A),
            b'b' => Some(Self::B),
            _ => None,
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// What is known of the slot that is not the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spare {
    /// Nothing that boots: never written, or an update was cut short.
    Empty,
    /// A complete system that nobody asked to boot: the one from before the last update, or one that was given up.
    Whole,
    /// A complete system that was asked for and has not been healthy yet.
    Trial {
        /// Boots it may still take; 0 while the last one runs, and when all have failed.
        tries_left: u8,
    },
}

/// The boot state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Grows by one with each write; the higher of the two copies counts.
    pub generation: u64,
    /// The slot that was healthy last.
    pub good: Slot,
    /// What the other one holds.
    pub spare: Spare,
}

impl State {
    /// The state of a fresh card that has one system.
    #[must_use]
    pub fn new(good: Slot) -> Self {
        Self { generation: 1, good, spare: Spare::Empty }
    }

    /// The slot on trial, if there is one.
    #[must_use]
    pub fn trial(&self) -> Option<Slot> {
        matches!(self.spare, Spare::Trial { .. }).then_some(self.good.other())
    }

    /// The next state after this one.
    pub(crate) fn then(self, good: Slot, spare: Spare) -> Self {
        Self { generation: self.generation.saturating_add(1), good, spare }
    }

    /// Where on the card this generation belongs, and its bytes.
    #[must_use]
    pub fn block(&self) -> (u64, [u8; BLOCK]) {
        let mut block = [0; BLOCK];
        let (trial, tries, whole) = match self.spare {
            Spare::Empty => (b'-', 0, 0),
            Spare::Whole => (b'-', 0, 1),
            Spare::Trial { tries_left } => (self.good.other().byte(), tries_left, 1),
        };
        block[..8].copy_from_slice(MAGIC);
        block[8..16].copy_from_slice(&self.generation.to_le_bytes());
        block[16..21].copy_from_slice(&[VERSION, self.good.byte(), trial, tries, whole]);
        let crc = crc32fast::hash(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        (COPIES[usize::from(self.generation % 2 == 1)], block)
    }

    /// Reads one copy; `None` if it was never written, torn or rotten, or of a version unknown here.
    #[must_use]
    pub fn from_block(block: &[u8; BLOCK]) -> Option<Self> {
        let (body, crc) = block.split_at(CRC_AT);
        if &body[..8] != MAGIC || crc32fast::hash(body).to_le_bytes() != crc {
            return None;
        }
        let generation = u64::from_le_bytes(body[8..16].try_into().ok()?);
        let &[VERSION, good, trial, tries_left, whole] = &body[16..21] else { return None };
        let good = Slot::from_byte(good)?;
        let spare = match (Slot::from_byte(trial), whole) {
            (Some(slot), 1) if slot == good.other() && tries_left <= TRIES => Spare::Trial { tries_left },
            (None, 1) => Spare::Whole,
            (None, 0) => Spare::Empty,
            _ => return None,
        };
        Some(Self { generation, good, spare })
    }
}

/// The state that counts, of the two copies.
#[must_use]
pub fn newest(copies: &[[u8; BLOCK]; 2]) -> Option<State> {
    copies.iter().filter_map(State::from_block).max_by_key(|state| state.generation)
}
