//! Which of a card's two systems boots: the boot state, what is decided from it, and the `os_prefix` line of `config.txt`.
//!
//! A card holds two slots, each a root partition and a folder of boot files. The firmware boots the slot that
//! `config.txt` names; it knows nothing of tries or health. So the slot's own initramfs asks [`on_boot`] what to do with
//! the boot it was given, and an update walks through [`State::begin`], [`State::stage`] and [`State::commit`].
//!
//! The state lives in two sectors before the first partition, written alternately, so a torn write loses one step and
//! never the state ([`newest`], [`State::block`]). `config.txt` is changed by overwriting one letter in place
//! ([`switch`]): on FAT a rename is several writes, one letter is one. What must be true for a card to boot after a
//! power cut at any write is the order of an update:
//!
//! 1. `config.txt` names the good slot (it may not after an earlier update that was staged and never booted)
//! 2. [`State::begin`] on the card: the spare slot holds nothing from here on
//! 3. the spare slot's root and boot files, synced
//! 4. [`State::stage`] on the card
//! 5. `config.txt` names the spare slot; reboot
//!
//! A kernel that dies before its initramfs runs cannot be counted: the firmware of a Pi 2 or 3 has no second try.
//!
//! Everything is pure but [`card`], which the initramfs and `kube-config` share.

pub mod card;
mod decide;
mod prefix;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use decide::{Boot, Refusal, Then, on_boot};
pub use prefix::{Switch, named, switch};
pub use state::{BLOCK, COPIES, Slot, Spare, State, TRIES, newest};
pub use table::{Range, Table};
