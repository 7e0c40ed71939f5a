//! `kube-config first-boot`: a node set up by a file on its card, without a keyboard.
//!
//! `bramble.toml` on the FAT partition is read ([`document`]), checked ([`settings`]; every mistake is told at once,
//! with its line), turned into files ([`plan`], pure) and carried out ([`apply`]). Once: a marker remembers it, with
//! the text that was read, its secrets blanked. Then the secrets are blanked on the card too, in place.
//!
//! The order is what makes a power cut harmless: the files, what is left to do, the marker, the card. Until the marker
//! is there the next boot does it all again; after it, the next boot only blanks what is left to blank.
//!
//! The role needs the agent, so a second unit runs `first-boot --finish` later: it loads the container images that
//! are on the card and makes the node what the file says, until it worked.

mod apply;
mod document;
mod plan;
mod settings;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::wire::{self, EnableMaster, EnableWorker, Info, Load};
use plan::Setup;
use settings::{Reading, Role, Settings};

const STATE: &str = "var/lib/bramble-first-boot";
const MARKER: &str = "applied.toml";
const SETUP: &str = "setup.json";
const DEFAULTS: &str = "usr/share/bramble/defaults.toml";
const IMAGES: &str = "usr/share/bramble/images";
const ZONES: &str = "usr/share/zoneinfo";

/// What `first-boot` takes.
#[derive(Debug, Args)]
pub(crate) struct FirstBoot {
    /// Only say what is wrong with a file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["again", "finish"])]
    pub(crate) check: Option<PathBuf>,
    /// Read bramble.toml although it was read before.
    #[arg(long)]
    again: bool,
    /// Load the card's images and take the role (systemd does it, once the agent runs).
    #[arg(long, conflicts_with = "again")]
    finish: bool,
    /// The boot partition.
    #[arg(long, default_value = "/boot", hide = true)]
    boot: PathBuf,
    /// The system.
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
}

/// Runs it.
pub(crate) async fn run(args: &FirstBoot, socket: &Path) -> Result<()> {
    if let Some(file) = &args.check {
        return check(file, &args.root);
    }
    if args.finish {
        return finish(args, socket).await;
    }
    let hostname = match read_once(&args.boot, &args.root, args.again)? {
        Some(hostname) => hostname,
        None => return Ok(()),
    };
    if args.root == Path::new("/") {
        rustix::system::sethostname(hostname.as_bytes()).context("setting the hostname")?;
    }
    println!("This node is {hostname}.");
    Ok(())
}

fn check(file: &Path, root: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let reading = read(&text, root);
    if reading.problems.is_empty() {
        println!("{}: nothing is wrong", file.display());
        return Ok(());
    }
    bail!("{}", listed(&file.display().to_string(), &reading))
}

fn read(text: &str, root: &Path) -> Reading {
    let zones = root.join(ZONES);
    // A machine without the data cannot tell.
    settings::read(text, &|zone| !zones.is_dir() || zones.join(zone).is_file())
}

fn listed(name: &str, reading: &Reading) -> String {
    let lines: Vec<String> = reading.problems.iter().map(|problem| format!("  {problem}")).collect();
    format!("{name} has mistakes; nothing was changed:\n{}", lines.join("\n"))
}

/// The whole of the first part. Gives the hostname when something was done.
fn read_once(boot: &Path, root: &Path, again: bool) -> Result<Option<String>> {
    let marker = root.join(STATE).join(MARKER);
    let applied = match std::fs::read_to_string(&marker) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| marker.display().to_string()),
    };
    let text = match apply::read_file(boot) {
        Ok(text) => text.unwrap_or_default(),
        Err(problem) if applied.is_none() || again => return Err(tell(boot, &problem)),
        // It was read once; how it looks now is nobody's business.
        Err(_) => return Ok(None),
    };
    let reading = read(&text, root);
    let blank = document::without_secrets(&text, &reading.secrets);
    if let Some(applied) = applied.filter(|_| !again) {
        return settled(boot, &text, &blank, &applied).map(|()| None);
    }
    if !reading.problems.is_empty() {
        return Err(tell(boot, &listed(apply::FILE, &reading)));
    }
    let settings = reading.settings.or(defaults(root)?);
    let plan = plan::plan(&settings, &unique(root)).context("the agent's settings")?;
    apply::apply(root, &plan)?;
    let state = root.join(STATE);
    let setup = serde_json::to_vec(&plan.setup)?;
    apply::write(&state.join(SETUP), &setup, 0o600)?;
    apply::write(&marker, blank.as_bytes(), 0o600)?;
    on_card(boot, &text, &blank, None)?;
    Ok(Some(plan.hostname))
}

/// A boot after the first one.
fn settled(boot: &Path, text: &str, blank: &str, applied: &str) -> Result<()> {
    let changed = format!(
        "{} was changed after it had been read; it is read once.\nTo have it read again: kube-config first-boot --again\n",
        apply::FILE
    );
    let news = (blank != applied).then_some(changed.as_str());
    if text == blank && news.is_none() {
        return Ok(());
    }
    on_card(boot, text, blank, news)
}

/// Blanks the secrets on the card and tells what is to be told.
fn on_card(boot: &Path, text: &str, blank: &str, news: Option<&str>) -> Result<()> {
    let idle = text == blank && news.is_none() && !boot.join(apply::ERRORS).exists();
    if idle {
        return Ok(());
    }
    apply::writable(boot, || {
        apply::overwrite(boot, text, blank)?;
        apply::report(boot, news)
    })
}

/// Puts a problem on the card; gives it as the error to end with.
fn tell(boot: &Path, problem: &str) -> anyhow::Error {
    let error = anyhow::anyhow!("{problem}");
    match apply::writable(boot, || apply::report(boot, Some(&format!("{problem}\n")))) {
        Ok(()) => error,
        Err(second) => error.context(format!("{}: {second:#}", apply::ERRORS)),
    }
}

/// What the image's own layers set.
fn defaults(root: &Path) -> Result<Settings> {
    let path = root.join(DEFAULTS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Settings::default()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let reading = read(&text, root);
    if !reading.problems.is_empty() {
        bail!("{}", listed(&path.display().to_string(), &reading));
    }
    Ok(reading.settings)
}

/// Six digits that no other card has.
fn unique(root: &Path) -> String {
    let id = std::fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(6).collect();
    if digits.len() == 6 { digits } else { "node".to_owned() }
}

async fn finish(args: &FirstBoot, socket: &Path) -> Result<()> {
    let path = args.root.join(STATE).join(SETUP);
    let setup: Setup = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    match set_up(&setup, &args.root.join(IMAGES), socket).await {
        Ok(()) => {
            apply::remove(&path)?;
            if args.boot.join(apply::ERRORS).exists() {
                apply::writable(&args.boot, || apply::report(&args.boot, None))?;
            }
            Ok(())
        }
        Err(error) => Err(tell(&args.boot, &format!("{error:#}\n(This is tried again until it works.)"))),
    }
}

async fn set_up(setup: &Setup, images: &Path, socket: &Path) -> Result<()> {
    let mut archives: Vec<PathBuf> = match std::fs::read_dir(images) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    archives.sort();
    for path in archives {
        let name = path.display().to_string();
        post(socket, "/load", &Load { path }).await.with_context(|| format!("loading {name}"))?;
    }
    let Some(role) = setup.role else { return Ok(()) };
    let info = wire::call(socket, "GET", "/info", &(), |_| {}).await?;
    let info: Info = serde_json::from_value(info)?;
    // A power cut after the node was enabled and before that was written down.
    if info.role != "none" {
        return Ok(());
    }
    match role {
        Role::Master => post(socket, "/enable-master", &EnableMaster { address: None }).await.context("role"),
        Role::Worker(master) => {
            let ask = EnableWorker { master, token: setup.token.clone(), no_vote: false, address: None };
            post(socket, "/enable-worker", &ask).await.with_context(|| format!("role = \"worker {master}\""))
        }
    }
}

async fn post(socket: &Path, path: &str, body: &impl serde::Serialize) -> Result<()> {
    wire::call(socket, "POST", path, body, |line| println!("{line}")).await?;
    Ok(())
}
