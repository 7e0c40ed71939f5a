//! The plug is pulled while a card is upgraded.
//!
//! One upgrade runs whole, and what it writes to the card is recorded ([`qemu::Writes`]). Then cards are made as power
//! cuts at random points would have left them, each is examined as the firmware and `/init` would, and booted. A seed
//! replays the choice of cuts (`BRAMBLE_SEED`).

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use qemu::checks::{MINUTE, online};
use qemu::{Card, Guest, Machine, Net, Server, Writes};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use slots::{Slot, Spare, Then};

/// Cuts while the new system is written and chosen, and while it is on trial.
const WHILE_WRITTEN: usize = 16;
const ON_TRIAL: usize = 4;
/// Every so many, the system is awaited up to its shell; the others up to systemd on the right root.
const WHOLE_BOOTS: usize = 7;

/// A part of a run: where it began from, what was written, and which of it is of interest.
struct Run {
    before: Card,
    writes: Writes,
    part: Range<usize>,
}

/// Upgrades, and goes down to reboot.
fn upgrade(guest: &mut Guest) -> Result<Run> {
    let server = Server::start(guest.card.bundle()?)?;
    let before = guest.card.duplicate()?;
    let log = before.folder().join("writes");
    guest.record(Some(log.clone()))?;
    guest.power_on()?;
    guest.shell()?;
    online(guest)?;
    let begun = log.metadata()?.len();
    let command = format!("kube-config upgrade {} --no-reboot", server.url("10.0.2.2"));
    guest.ok(&command, 15 * MINUTE)?;
    guest.down()?;
    let writes = Writes::read(&log)?;
    let part = writes.since(begun)..writes.len();
    Ok(Run { before, writes, part })
}

/// Boots the new system, until it is kept.
fn trial(guest: &mut Guest) -> Result<Run> {
    let before = guest.card.duplicate()?;
    let log = before.folder().join("writes");
    guest.record(Some(log.clone()))?;
    guest.power_on()?;
    guest.shell()?;
    guest.until("kube-config upgrade --status", "slot b (running): good", 15 * MINUTE)?;
    guest.power_off();
    let writes = Writes::read(&log)?;
    let part = 0..writes.len();
    Ok(Run { before, writes, part })
}

/// Every other cut is anywhere; the others are next to a write of the boot state or the boot partition.
fn choose(run: &Run, count: usize, rng: &mut StdRng) -> Result<Vec<usize>> {
    let state = slots::COPIES[0]..slots::COPIES[1] + slots::BLOCK as u64;
    let mut close = run.writes.touching(run.part.clone(), &state);
    close.extend(run.writes.touching(run.part.clone(), &run.before.partition(1)?));
    ensure!(!close.is_empty(), "the upgrade wrote neither the boot state nor the boot partition");
    let mut cuts: Vec<usize> = (0..count)
        .map(|i| match i % 2 {
            0 => rng.random_range(run.part.clone()),
            _ => close[rng.random_range(0..close.len())] + rng.random_range(0..2),
        })
        .collect();
    cuts.sort_unstable();
    Ok(cuts)
}

/// Looks at a card as the firmware and `/init` do: what would be booted must be there, whole. Gives the slots that are
/// booted, one after the other.
fn examine(card: &Card, old: &Card, new: &Card) -> Result<Vec<Slot>> {
    let state = card.state()?.context("no boot state can be read")?;
    let config = card.read("config.txt")?;
    let named = slots::named(&config).context("config.txt names no slot")?;
    let whole = |slot| -> Result<()> {
        let like = if slot == Slot::A { old } else { new };
        ensure!(
            card.same_slot(like, slot)?,
            "{state:?}, config.txt names {named}, but slot {slot} is not whole"
        );
        Ok(())
    };
    whole(named)?;
    whole(state.good)?;
    if state.spare != Spare::Empty {
        whole(state.good.other())?;
    }
    match slots::on_boot(Some(state), named).then {
        Then::Boot { .. } => Ok(vec![named]),
        Then::Repair(good) => Ok(vec![named, good]),
    }
}

/// Boots a card that a cut has left, up to systemd or to the shell.
fn boots(guest: &mut Guest, slots: &[Slot], to_the_shell: bool) -> Result<()> {
    guest.power_on()?;
    if let [_, good] = slots {
        guest.said(&format!("going back to slot {good}"), 5 * MINUTE)?;
        guest.wait_off()?;
        guest.power_on()?;
    }
    let slot = slots.last().context("a slot")?;
    guest.said(&format!("booting slot {slot}"), 5 * MINUTE)?;
    guest.said("Welcome to", 5 * MINUTE)?;
    if to_the_shell {
        guest.shell()?;
        guest.ok(&format!("grep bramble.slot={slot} /proc/cmdline"), MINUTE)?;
    }
    guest.power_off();
    Ok(())
}

#[test]
#[ignore = "slow: hack/test --full"]
fn a_plug_pulled_during_an_upgrade_leaves_a_system_that_boots() -> Result<()> {
    let seed = std::env::var("BRAMBLE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("BRAMBLE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut guest = Guest::new("upgrade-plug", "rpi-3", Machine::Virt, Net::User)?;
    let runs = [(upgrade(&mut guest)?, WHILE_WRITTEN), (trial(&mut guest)?, ON_TRIAL)];
    guest.record(None)?;
    let (old, new) = (&runs[0].0.before, &runs[1].0.before);
    ensure!(examine(new, old, new)? == [Slot::B], "the upgrade chose nothing");
    let mut number = 0;
    let mut booted = Vec::new();
    for (run, count) in &runs {
        println!("{} writes and flushes from {} on", run.part.len(), run.part.start);
        for at in choose(run, *count, &mut rng)? {
            let card = run.before.duplicate()?;
            let cut = run.writes.cut(&card.open()?, at, &mut rng)?;
            let slots = examine(&card, old, new).with_context(|| format!("{cut:?}"))?;
            println!("cut {number}: {cut:?}: boots {slots:?}");
            guest.card = card;
            boots(&mut guest, &slots, number % WHOLE_BOOTS == 0).with_context(|| format!("{cut:?}"))?;
            booted.extend(slots.last().copied());
            number += 1;
        }
    }
    ensure!(booted.contains(&Slot::A) && booted.contains(&Slot::B), "all cuts were on one side: {booted:?}");
    Ok(())
}
