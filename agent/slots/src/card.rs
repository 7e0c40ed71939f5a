//! The state and `config.txt` on a real card.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::prefix::{Switch, switch};
use crate::state::{BLOCK, COPIES, Slot, State, newest};

/// No `config.txt` is longer; a longer one is not read.
const MAX_CONFIG: u64 = 1 << 20;

/// Reads the state from a card (the whole device or an image file).
///
/// # Errors
/// If the card cannot be read; a card without a state is `Ok(None)`.
pub fn read(card: &File) -> io::Result<Option<State>> {
    let mut copies = [[0; BLOCK]; 2];
    for (copy, at) in copies.iter_mut().zip(COPIES) {
        card.read_exact_at(copy, at)?;
    }
    Ok(newest(&copies))
}

/// Writes the state to a card and waits until it is there.
///
/// # Errors
/// If the card cannot be written.
pub fn write(card: &File, state: &State) -> io::Result<()> {
    let (at, block) = state.block();
    card.write_all_at(&block, at)?;
    card.sync_all()
}

/// Makes `config.txt` in the mounted boot partition name `slot`, and waits until it is on the card.
///
/// # Errors
/// If the file cannot be read or written.
pub fn point(boot: &Path, slot: Slot) -> io::Result<()> {
    let path = boot.join("config.txt");
    if fs::metadata(&path)?.len() > MAX_CONFIG {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "config.txt is longer than 1 MiB"));
    }
    match switch(&fs::read(&path)?, slot) {
        Switch::Done => Ok(()),
        Switch::Letters(offsets) => {
            let file = OpenOptions::new().write(true).open(&path)?;
            offsets.iter().try_for_each(|at| file.write_all_at(&[slot.byte()], *at as u64))?;
            file.sync_all()
        }
        Switch::Rewrite(content) => {
            let new = boot.join("config.new");
            let mut file = File::create(&new)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(boot)?.sync_all()
        }
    }
}
