//! Writing the spare slot from a bundle, in the order that a power cut cannot hurt (see the `slots` crate).

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail};
use bundle::{Entry, Manifest, Sink, TrustedKeys};
use slots::{Slot, State};

use super::card::Card;

/// The system that an update is for.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    pub(crate) running: Slot,
    pub(crate) board: String,
    pub(crate) arch: String,
    pub(crate) version: String,
    /// Take an update that is older than what runs.
    pub(crate) allow_older: bool,
}

/// Why an update is not for this system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("this update is for {theirs}, this is {ours}: get the bundle made for {ours}")]
    Other { theirs: String, ours: String },
    #[error(
        "this update is version {theirs}, older than {ours} which runs; \
         `kube-config upgrade --allow-older` takes it all the same"
    )]
    Older { theirs: String, ours: String },
    #[error("this update does not fit: its {what} is {need} MiB and the card has room for {room} MiB")]
    Large { what: &'static str, need: u64, room: u64 },
}

impl Here {
    /// Whether an update is for this system.
    pub(crate) fn wants(&self, update: &Manifest) -> Result<(), Unfit> {
        if update.board != self.board {
            return Err(Unfit::Other { theirs: update.board.clone(), ours: self.board.clone() });
        }
        if update.arch != self.arch {
            return Err(Unfit::Other { theirs: update.arch.clone(), ours: self.arch.clone() });
        }
        if numbers(&update.version) < numbers(&self.version) && !self.allow_older {
            return Err(Unfit::Older { theirs: update.version.clone(), ours: self.version.clone() });
        }
        Ok(())
    }
}

/// The numbers that a version begins with: `1.10.0-rc1` is 1, 10, 0.
fn numbers(version: &str) -> Vec<u64> {
    let dotted = version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    dotted.split('.').map_while(|number| number.parse().ok()).collect()
}

/// Writes an update to the slot that does not run, checks what arrived on the card, and makes it the next to boot.
/// `progress` hears how many of how many bytes are on the card. On any error the running system stays the one that
/// boots.
pub(crate) fn install(
    from: impl Read,
    keys: &TrustedKeys,
    here: &Here,
    card: &mut impl Card,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Manifest> {
    let state = card.state().context("reading the boot state")?;
    let state = state.unwrap_or(State::new(here.running));
    let mut installer = Installer { card, here, state, cmdline: Vec::new(), done: 0, total: 0, progress };
    let update = bundle::read(from, keys, &mut installer)?;
    installer.activate(&update)?;
    Ok(update)
}

/// Reads a bundle's manifest and no more, if this system would take it.
pub(crate) fn peek(from: impl Read, keys: &TrustedKeys, here: &Here) -> Result<Manifest> {
    let mut peek = Peek { here, found: None };
    match (bundle::read(from, keys, &mut peek), peek.found) {
        // It stopped itself.
        (_, Some(manifest)) => Ok(manifest),
        (Err(error), None) => Err(error),
        (Ok(manifest), None) => Ok(manifest),
    }
}

struct Peek<'a> {
    here: &'a Here,
    found: Option<Manifest>,
}

impl Sink for Peek<'_> {
    type Error = anyhow::Error;

    fn accept(&mut self, update: &Manifest) -> Result<()> {
        self.here.wants(update)?;
        self.found = Some(update.clone());
        bail!("no more is needed")
    }

    fn chunk(&mut self, _: &Entry, _: u64, _: &[u8]) -> Result<()> {
        bail!("no more is needed")
    }

    fn complete(&mut self, _: &Entry) -> Result<()> {
        bail!("no more is needed")
    }
}

struct Installer<'a, C> {
    card: &'a mut C,
    here: &'a Here,
    state: State,
    cmdline: Vec<u8>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

/// The kernel takes no longer command line.
const MAX_CMDLINE: u64 = 2048;

impl<C: Card> Installer<'_, C> {
    fn spare(&self) -> Slot {
        self.here.running.other()
    }

    fn fits(&mut self, update: &Manifest) -> Result<()> {
        let room = self.card.room(self.spare()).context("looking at the card")?;
        let root = update.root().map_or(0, |file| file.size);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        for (what, need, room) in
            [("root filesystem", root, room.root), ("boot files", update.boot_size(), room.boot)]
        {
            if need > room {
                bail!(Unfit::Large { what, need: mib(need), room: room >> 20 });
            }
        }
        Ok(())
    }

    fn activate(&mut self, update: &Manifest) -> Result<()> {
        let spare = self.spare();
        self.card.sync(spare).context("writing the update to the card")?;
        for file in update.files.iter().filter(|file| !is_cmdline(file)) {
            let found = self.card.read_back(spare, file).context("reading the update back from the card")?;
            if found != *file {
                bail!(
                    "the card does not hold what was written to it ({}): it is wearing out or not genuine; \
                     replace it. The running system was not touched",
                    file.name
                );
            }
        }
        self.card.put_state(&self.state.stage()).context("writing the boot state")?;
        self.card.point(spare).context("switching config.txt to the new system")
    }
}

fn is_cmdline(file: &Entry) -> bool {
    file.boot_path() == Some("cmdline.txt")
}

impl<C: Card> Sink for Installer<'_, C> {
    type Error = anyhow::Error;

    fn accept(&mut self, update: &Manifest) -> Result<()> {
        self.here.wants(update)?;
        self.fits(update)?;
        self.total = update.size();
        let begun = self.state.begin(self.here.running)?;
        self.card.point(self.here.running).context("writing config.txt")?;
        self.card.put_state(&begun).context("writing the boot state")?;
        self.state = begun;
        self.card.clear_boot(self.spare()).context("clearing the boot files of the other slot")
    }

    fn chunk(&mut self, file: &Entry, at: u64, bytes: &[u8]) -> Result<()> {
        let spare = self.spare();
        match file.boot_path() {
            Some(_) if is_cmdline(file) => {
                if file.size > MAX_CMDLINE {
                    bail!("the update's kernel command line is too long");
                }
                self.cmdline.extend_from_slice(bytes);
            }
            Some(path) => {
                self.card
                    .write_boot(spare, path, at, bytes)
                    .with_context(|| format!("writing {path} to the card"))?;
            }
            None => {
                self.card.write_root(spare, at, bytes).context("writing the root filesystem to the card")?
            }
        }
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(())
    }

    fn complete(&mut self, file: &Entry) -> Result<()> {
        if !is_cmdline(file) {
            return Ok(());
        }
        let cmdline = cmdline_for(&self.cmdline, self.spare())
            .ok_or_else(|| anyhow!("the update's kernel command line has no bramble.slot="))?;
        self.card
            .write_boot(self.spare(), "cmdline.txt", 0, cmdline.as_bytes())
            .context("writing cmdline.txt")
    }
}

/// A bundle is made without knowing into which slot it goes.
fn cmdline_for(cmdline: &[u8], slot: Slot) -> Option<String> {
    let text = std::str::from_utf8(cmdline).ok()?;
    let mut found = false;
    let words = text.split_ascii_whitespace().map(|word| {
        if word.starts_with("bramble.slot=") {
            found = true;
            return format!("bramble.slot={slot}");
        }
        word.to_owned()
    });
    let line = words.collect::<Vec<_>>().join(" ") + "\n";
    found.then_some(line)
}

/// Leaves the running system for the other one; says what happens next.
pub(crate) fn fall_back(card: &mut impl Card, running: Slot) -> Result<Slot> {
    let state = known(card)?;
    let (slot, next) = state.fall_back(running)?;
    // From a trial config.txt goes first, so that a power cut between leaves the trial pending; from the good slot the
    // state does, so that the firmware is never sent where the state knows of no trial.
    if running != state.good {
        card.point(slot).and_then(|()| card.put_state(&next))
    } else {
        card.put_state(&next).and_then(|()| card.point(slot))
    }
    .context("writing the boot state")?;
    Ok(slot)
}

/// The running system is healthy: whether that was news.
pub(crate) fn commit(card: &mut impl Card, running: Slot) -> Result<bool> {
    let Some(next) = known(card)?.commit(running) else { return Ok(false) };
    card.put_state(&next).context("writing the boot state")?;
    Ok(true)
}

/// The boot state, which the initramfs has written anew if it was lost.
pub(crate) fn known(card: &mut impl Card) -> Result<State> {
    found(card.state().context("reading the boot state")?)
}

/// The boot state that was found, or what to do without one.
pub(crate) fn found(state: Option<State>) -> Result<State> {
    state.ok_or_else(|| {
        anyhow!("the card's boot state is lost; reboot, and the running system becomes the good one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(numbers("0.9.1") < numbers("0.10"));
        assert!(numbers("1.0") < numbers("1.0.1-rc2"));
        assert_eq!(numbers("1.2-3-gabc"), [1, 2]);
        assert_eq!(numbers("v1"), [] as [u64; 0]);
    }

    #[test]
    fn the_command_line_names_its_slot() {
        let line = cmdline_for(b"console=tty0 bramble.slot=a rootwait", Slot::B).unwrap();
        assert_eq!(line, "console=tty0 bramble.slot=b rootwait\n");
        assert_eq!(cmdline_for(b"quiet", Slot::B), None);
    }
}
