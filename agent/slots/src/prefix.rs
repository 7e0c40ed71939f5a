//! The `os_prefix` line of `config.txt`.
//!
//! People edit the file on any computer, so it is bytes (whatever the encoding of their comments), with either line
//! ending, and may have lost the line or have it in several sections.

use crate::state::Slot;

/// How to make `config.txt` name a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It does already.
    Done,
    /// Overwrite the bytes at these offsets with the slot's letter.
    Letters(Vec<usize>),
    /// The file has no line of ours to change: replace it by this.
    Rewrite(Vec<u8>),
}

/// The slot that the file names: its last such line counts, as for the firmware.
#[must_use]
pub fn named(config: &[u8]) -> Option<Slot> {
    lines(config).filter_map(|line| Prefix::read(&line)).last().and_then(|p| p.slot)
}

/// What must be done for the file to name `slot`.
#[must_use]
pub fn switch(config: &[u8], slot: Slot) -> Switch {
    let prefixes: Vec<Prefix> = lines(config).filter_map(|line| Prefix::read(&line)).collect();
    if prefixes.is_empty() || prefixes.iter().any(|p| p.slot.is_none()) {
        return Switch::Rewrite(rewritten(config, slot));
    }
    let wrong: Vec<usize> =
        prefixes.iter().filter(|p| p.slot != Some(slot)).map(|p| p.value + "slot-".len()).collect();
    if wrong.is_empty() { Switch::Done } else { Switch::Letters(wrong) }
}

/// A line with the offset of its first byte, its ending included.
struct Line<'a> {
    at: usize,
    text: &'a [u8],
}

fn lines(config: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut at = 0;
    config.split_inclusive(|byte| *byte == b'\n').map(move |text| {
        let line = Line { at, text };
        at += text.len();
        line
    })
}

/// An `os_prefix=` line.
struct Prefix {
    /// Offset of its value.
    value: usize,
    /// The slot, if the value is one of ours.
    slot: Option<Slot>,
}

impl Prefix {
    fn read(line: &Line<'_>) -> Option<Self> {
        let start = line.text.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let value = line.text[start..].strip_prefix(b"os_prefix=")?;
        let slot = [Slot::A, Slot::B]
            .into_iter()
            .find(|slot| value.trim_ascii_end() == format!("{}/", slot.folder()).as_bytes());
        Some(Self { value: line.at + start + b"os_prefix=".len(), slot })
    }
}

/// The file with every prefix line replaced, or with one put first (before any section) if there is none.
fn rewritten(config: &[u8], slot: Slot) -> Vec<u8> {
    let ours = format!("os_prefix={}/\n", slot.folder()).into_bytes();
    let mut found = false;
    let mut out = Vec::with_capacity(config.len() + ours.len());
    for line in lines(config) {
        if Prefix::read(&line).is_some() {
            found = true;
            out.extend_from_slice(&ours);
        } else {
            out.extend_from_slice(line.text);
        }
    }
    if found { out } else { [ours, out].concat() }
}
