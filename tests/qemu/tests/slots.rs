//! A system on trial: kept when it is healthy, left when it is not.

use anyhow::{Result, ensure};
use qemu::checks::{MINUTE, healthy_system};
use qemu::{Guest, Machine, Net};
use slots::{Slot, Spare, State};

/// A machine whose slot B was staged by an update.
fn staged(name: &str) -> Result<Guest> {
    let guest = Guest::new(name, "rpi-3", Machine::Virt, Net::User)?;
    guest.card.copy_slot()?;
    guest.card.set_state(&State::new(Slot::A).stage())?;
    let config = String::from_utf8(guest.card.read("config.txt")?)?;
    ensure!(config.contains("os_prefix=slot-a/"), "{config}");
    guest.card.write("config.txt", config.replace("os_prefix=slot-a/", "os_prefix=slot-b/").as_bytes())?;
    Ok(guest)
}

/// Three tries, each of which ends by itself, the repair, and the good system.
fn falls_back(mut guest: Guest) -> Result<()> {
    for left in [2, 1, 0] {
        guest.power_on()?;
        guest.wait_off()?;
        let state = guest.card.state()?;
        let spare = state.map(|state| state.spare);
        ensure!(spare == Some(Spare::Trial { tries_left: left }), "after a try: {state:?}");
    }
    guest.power_on()?;
    guest.said("going back to slot a", 2 * MINUTE)?;
    guest.wait_off()?;
    guest.power_on()?;
    guest.shell()?;
    guest.ok("grep bramble.slot=a /proc/cmdline", MINUTE)?;
    healthy_system(&mut guest)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn a_healthy_system_on_trial_stays() -> Result<()> {
    let mut guest = staged("trial-good")?;
    guest.power_on()?;
    guest.shell()?;
    guest.ok("grep bramble.slot=b /proc/cmdline", MINUTE)?;
    guest.until("systemctl is-active bramble-commit.service", "active", 4 * MINUTE)?;
    healthy_system(&mut guest)?;
    guest.power_off();
    let state = guest.card.state()?.unwrap_or(State::new(Slot::A));
    assert_eq!((state.good, state.spare), (Slot::B, Spare::Whole));
    Ok(())
}

#[test]
#[ignore = "slow: hack/test --full"]
fn a_system_whose_root_is_broken_is_left_after_three_tries() -> Result<()> {
    let guest = staged("trial-broken")?;
    guest.card.break_root(Slot::B)?;
    falls_back(guest)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn a_system_that_hangs_is_left_after_three_tries() -> Result<()> {
    let guest = staged("trial-hang")?;
    let line = String::from_utf8(guest.card.read("slot-b/cmdline.txt")?)?;
    // It waits for the keyboard for ever, and nobody feeds the watchdog.
    guest.card.write("slot-b/cmdline.txt", format!("{} init=/usr/bin/cat\n", line.trim()).as_bytes())?;
    falls_back(guest)
}
