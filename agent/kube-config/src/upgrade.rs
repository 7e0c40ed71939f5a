//! `kube-config upgrade`: the next system onto this card, without fear.
//!
//! A bundle ([`bundle`]) streams from a file or a server ([`source`]) into the slot that does not run ([`install`],
//! over the narrow door [`card`]); the boot state of the `slots` crate and `config.txt` make it the next to boot. The
//! new system commits itself with `--commit` once its agent is healthy; if it does not, its initramfs goes back to the
//! old one. [`host`] finds the card that this machine runs from.

mod card;
mod cluster;
mod host;
mod install;
mod plan;
mod progress;
mod record;
mod source;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bundle::TrustedKeys;
use clap::Args;
use slots::{Slot, Spare, State};

use host::{Opened, Place};
use install::Here;
use progress::Progress;

pub use host::reboot;
pub use record::{ANSWER, Act, Answer, Here as Boot, Progress as Outcome, REQUEST, Request, decide};

/// Where the image keeps the public keys whose updates are taken.
const KEYS: &str = "/etc/bramble/update-keys";

/// What `upgrade` takes.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// The update bundle: a file, or an http(s) address. `{board}` in it stands for this node's board.
    #[arg(required_unless_present_any = ["status", "commit", "fall_back"])]
    bundle: Option<String>,
    /// Upgrade all nodes of the cluster, one after the other, this one last; stop at the first that fails.
    #[arg(long, requires = "bundle", conflicts_with = "no_reboot")]
    cluster: bool,
    /// Put the new system in place, but leave the reboot to you.
    #[arg(long)]
    no_reboot: bool,
    /// Take an update that is older than the running system.
    #[arg(long)]
    allow_older: bool,
    /// Show the two slots.
    #[arg(long, exclusive = true)]
    status: bool,
    /// Keep the running system (done by itself once the agent is healthy).
    #[arg(long, exclusive = true)]
    commit: bool,
    /// Reboot into the other system.
    #[arg(long, conflicts_with_all = ["bundle", "allow_older"])]
    fall_back: bool,
    /// The public keys.
    #[arg(long, default_value = KEYS, hide = true)]
    keys: PathBuf,
}

/// Runs it.
pub(crate) async fn run(args: &Upgrade, socket: &Path) -> Result<()> {
    let running = host::running()?;
    let place = host::place(Path::new("/sys"), running)?;
    if args.status {
        // Only a look: neither the lock, which an update holds for minutes, nor a boot partition that can be written.
        let state = state_of(&place)?;
        status(&state, running).iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    if args.commit {
        return with_card(&place, |card| {
            if install::commit(card, running)? {
                println!("Slot {running} is healthy and stays.");
            }
            Ok(())
        });
    }
    if args.fall_back {
        let slot = with_card(&place, |card| install::fall_back(card, running))?;
        println!("Slot {slot} boots next.");
    } else {
        let from = args.bundle.as_deref().context("no bundle was given")?;
        let here = host::here(running, args.allow_older)?;
        let own = from.replace("{board}", &here.board);
        if args.cluster {
            let update = peek(&own, &args.keys, here).await?;
            let sum = update.root().map_or("", |file| &file.sha256[..12]);
            return cluster::run(socket, from, format!("{}-{sum}", update.version)).await;
        }
        upgrade(&own, &args.keys, here, place).await?;
    }
    if args.no_reboot {
        println!("Reboot to use it.");
        return Ok(());
    }
    host::reboot()
}

fn with_card<T>(place: &Place, act: impl FnOnce(&mut card::DiskCard) -> Result<T>) -> Result<T> {
    let mut opened = Opened::new(place)?;
    let result = act(&mut opened.card);
    opened.close();
    result
}

async fn upgrade(from: &str, keys: &Path, here: Here, place: Place) -> Result<()> {
    let keys = TrustedKeys::load(keys)?;
    let source = source::open(from).await?;
    let slot = here.running.other();
    let written = tokio::task::spawn_blocking(move || {
        let mut progress = Progress::start();
        with_card(&place, |card| {
            install::install(source, &keys, &here, card, &mut |done, total| progress.show(done, total))
        })
    });
    let update = written.await.context("the update was stopped")??;
    println!("Version {} is in slot {slot}, checked, and boots next.", update.version);
    println!("It stays once its agent is healthy; otherwise this system comes back by itself.");
    Ok(())
}

/// Reads no more of a bundle than says what it is, and whether this node would take it.
async fn peek(from: &str, keys: &Path, here: Here) -> Result<bundle::Manifest> {
    let keys = TrustedKeys::load(keys)?;
    let source = source::open(from).await?;
    tokio::task::spawn_blocking(move || install::peek(source, &keys, &here))
        .await
        .context("reading the update")?
}

/// What runs on this machine's card, for the agent.
///
/// # Errors
/// If it does not run from a card of ours.
pub fn boot() -> Result<Boot> {
    let running = host::running()?;
    let place = host::place(Path::new("/sys"), running)?;
    let state = state_of(&place)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the boot's id")?;
    Ok(Boot { boot: boot.trim().to_owned(), running, state })
}

fn state_of(place: &Place) -> Result<State> {
    let disk = std::fs::File::open(&place.disk).with_context(|| place.disk.display().to_string())?;
    install::found(slots::card::read(&disk).context("reading the boot state")?)
}

/// The two slots in words.
fn status(state: &State, running: Slot) -> Vec<String> {
    let spare = state.good.other();
    let of_spare = match state.spare {
        Spare::Empty => "holds no complete system".to_owned(),
        Spare::Whole => "complete; `kube-config upgrade --fall-back` boots it".to_owned(),
        Spare::Trial { .. } if running == spare => "on trial, kept once its agent is healthy".to_owned(),
        Spare::Trial { tries_left: 0 } => "failed: it never became healthy".to_owned(),
        Spare::Trial { tries_left } => format!("boots next, {tries_left} tries left"),
    };
    let mark = |slot| if slot == running { " (running)" } else { "" };
    let mut lines = vec![
        format!("slot {}{}: good", state.good, mark(state.good)),
        format!("slot {spare}{}: {of_spare}", mark(spare)),
    ];
    lines.sort();
    lines
}
