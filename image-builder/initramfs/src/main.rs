//! `/init` of the initramfs: from the kernel's hand-over to systemd on the right root.
//!
//! It finds the card, decides from the boot state (crate `slots`) whether this slot is to run at all, puts the root
//! together out of the slot's squashfs and the data partition, and becomes systemd. The data flows one way: kernel
//! command line and card -> decision -> mounts -> exec.
//!
//! What it leaves behind: the squashfs at `/`, the data partition at `/data` (checked, grown to the card), `/etc` as an
//! overlay and `/var`, `/root`, `/home`, `/srv` as folders on it, the boot partition read-only at `/boot`.
//!
//! Nobody watches: what fails is said on every console, and after a while the machine reboots and tries again. On
//! trial that is a failed try; after three the slot before boots. Nothing here is written but the boot state, one
//! letter of `config.txt` and the size of the last partition, each so that a power cut at any moment does no harm.

mod card;
mod cmdline;
mod disk;
mod ioctl;
mod log;
mod modules;
mod mounts;
mod watchdog;

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, reboot};
use slots::{Slot, Then};

use cmdline::Cmdline;
use disk::Card;
use watchdog::Watchdog;

const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// Tells the system that it is on trial.
const TRIAL: &str = "/run/bramble-trial";
/// Time to read the last words on the screen.
const LAST_WORDS: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, chroot, root, program, arguments @ ..] = args.as_slice()
        && chroot == "--chroot"
    {
        return run_in(root, program, arguments);
    }
    if std::process::id() != 1 {
        eprintln!("bramble-init is /init of a Bramble card: it does nothing anywhere else");
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|info| give_up(&format!("this is a bug: {info}"))));
    match boot() {
        Ok(never) => match never {},
        Err(error) => give_up(&format!("{error:#}")),
    }
}

/// Becomes a program of another root.
fn run_in(root: &str, program: &str, arguments: &[String]) -> ExitCode {
    let entered = rustix::process::chroot(root).and_then(|()| rustix::process::chdir("/"));
    let error = match entered {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error.into(),
    };
    eprintln!("{program} in {root}: {error}");
    ExitCode::from(127)
}

fn boot() -> Result<Infallible> {
    mounts::kernel_file_systems()?;
    modules::load();
    let cmdline = Cmdline::parse(&fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?);
    let mut card = Card::find(cmdline.card.as_deref())?;
    let (slot, watchdog) = decide(&card, cmdline.slot)?;
    log::say(&format!("booting slot {slot}"));
    mounts::root(&card.partition(slot.partition()))?;
    watchdog.feed();
    data_partition(&mut card, &watchdog)?;
    mounts::clock();
    mounts::writable(Path::new(mounts::ROOT))?;
    mounts::boot_partition(&card.partition(card::BOOT));
    drop(card);
    mounts::switch()?;
    watchdog.feed();
    drop(watchdog);
    let init = cmdline.init.as_deref().unwrap_or(SYSTEMD);
    Err(Command::new(init).exec()).with_context(|| format!("running {init}"))
}

/// Asks the boot state what to do with this boot, and does it. Comes back with the slot to boot.
fn decide(card: &Card, booted: Option<Slot>) -> Result<(Slot, Watchdog)> {
    let state = slots::card::read(&card.file).context("reading the boot state")?;
    // A command line that somebody edited may have lost the word.
    let running = booted.or(state.map(|state| state.good)).unwrap_or(Slot::A);
    let decision = slots::on_boot(state, running);
    if let Some(state) = decision.write {
        slots::card::write(&card.file, &state).context("writing the boot state")?;
    }
    match decision.then {
        Then::Boot { watchdog: false } => Ok((running, Watchdog::default())),
        Then::Boot { watchdog: true } => {
            log::say(&format!("slot {running} is on trial"));
            // bramble-commit.service keeps it once the agent is healthy.
            fs::write(TRIAL, "").context(TRIAL)?;
            Ok((running, Watchdog::start()))
        }
        Then::Repair(good) => {
            log::complain(&format!("slot {running} is not to be booted: going back to slot {good}"));
            match repair(card, good) {
                Ok(()) => restart(),
                Err(error) => {
                    log::complain(&format!(
                        "config.txt cannot be changed: {error:#}; booting slot {running}"
                    ));
                    Ok((running, Watchdog::default()))
                }
            }
        }
    }
}

/// Makes `config.txt` name the good slot.
fn repair(card: &Card, good: Slot) -> Result<()> {
    let folder = Path::new("/run/bramble-boot");
    mounts::make_folder(folder, 0o700)?;
    mount(card.partition(card::BOOT), folder, "vfat", MountFlags::NOEXEC | MountFlags::NODEV, None)
        .context("mounting the boot partition")?;
    let pointed = slots::card::point(folder, good).context("config.txt");
    unmount(folder, UnmountFlags::empty()).context("unmounting the boot partition")?;
    pointed
}

fn data_partition(card: &mut Card, watchdog: &Watchdog) -> Result<()> {
    // Without more room all else works: a card that refuses is no reason to stay down.
    if let Err(error) = card.grow() {
        log::complain(&format!("the data partition does not grow: {error:#}"));
    }
    let device = card.partition(card::DATA);
    mounts::check_data(&device, watchdog)?;
    watchdog.feed();
    mounts::data(&device, card.data_blocks())?;
    watchdog.feed();
    Ok(())
}

/// The end of a boot that did not work.
fn give_up(why: &str) -> ! {
    log::complain(&format!("cannot boot: {why}"));
    log::complain(&format!("trying again in {} seconds", LAST_WORDS.as_secs()));
    std::thread::sleep(LAST_WORDS);
    restart()
}

fn restart() -> ! {
    rustix::fs::sync();
    // It only comes back if it was refused; the kernel's panic time-out reboots as well.
    let refused = reboot(RebootCommand::Restart);
    log::complain(&format!("the machine does not reboot: {refused:?}"));
    std::process::exit(1)
}
