//! `image-builder flash`: an image onto a card.
//!
//! [`devices`] says what there is to write to and what must not be touched, [`bmap`] which blocks of the image matter,
//! [`image`] reads it (compressed or not), [`write`] puts it on the card and reads it back, [`settings`] gives the card
//! its own name and role. The image is checked whole before the card is touched. The card's first block is written
//! last: a card that was pulled out half way has no partition table and boots nowhere.

mod bmap;
mod devices;
mod image;
mod settings;
#[cfg(test)]
mod tests;
mod write;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use bmap::Map;
use devices::{Device, Machine};
use image::Image;
use settings::Settings;
use write::Phase;

/// `O_EXCL` on a block device: the kernel refuses while anything has it mounted or in use.
const EXCLUSIVE: i32 = 0o200;

/// What `flash` takes.
#[derive(Debug, Args)]
pub struct Flash {
    /// The image: .img, or .img.zst; a .bmap beside it is used.
    #[arg(required_unless_present = "list")]
    image: Option<PathBuf>,
    /// The card (sdb, /dev/mmcblk0), or a file. Without it you are shown what there is and asked.
    target: Option<String>,
    /// Show the cards that could be written.
    #[arg(long)]
    list: bool,
    /// The node's name.
    #[arg(long, value_parser = settings::hostname)]
    hostname: Option<String>,
    /// What the node becomes at first boot: `master`, or `worker ADDRESS`.
    #[arg(long, value_parser = settings::role)]
    role: Option<String>,
    /// File with the secret that all cards of a batch share, so that a worker needs no token: made if it is not there.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Allow disks that are not removable, or larger than 256 GB.
    #[arg(long)]
    force: bool,
    /// For scripts: the target's name, instead of typing it.
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

/// Runs it.
///
/// # Errors
/// If nothing could be written, or what was written is not what the image holds.
pub fn run(args: &Flash) -> Result<()> {
    let machine = Machine::read(Path::new("/sys"))?;
    let devices = machine.disks()?;
    if args.list {
        return list(&devices, args.force);
    }
    let image = args.image.as_deref().context("no image was given")?;
    let secret = args.secret_file.as_deref().map(settings::secret).transpose()?;
    let path = image;
    let mut image = Image::open(path).with_context(|| path.display().to_string())?;
    image.is_of_a_card().with_context(|| path.display().to_string())?;
    let map = Map::beside(image.path())?;
    let target = match &args.target {
        Some(target) => target.clone(),
        None => choose(&devices, args.force)?,
    };
    let target = Target::find(&target, &devices, args.force)?;
    ensure!(!image.is(&target.path), "{} is the image itself: nothing was written", target.name);
    confirm(&target, args.confirm.as_deref())?;
    let bar = Bar::default();
    let map = image
        .check(map, &mut |phase, done, total| bar.show(phase, done, total))
        .with_context(|| format!("{}: nothing was written", path.display()))?;
    target.takes(map.image_size)?;
    let mut card = target.open(map.image_size)?;
    write::put(&mut image, &map, &mut card, &mut |phase, done, total| bar.show(phase, done, total))?;
    let settings = Settings { hostname: args.hostname.clone(), role: args.role.clone(), secret };
    settings.put(&card).context("setting the card's own name and role")?;
    drop(card);
    println!("{} is written and verified; you can take it out.", target.name);
    Ok(())
}

/// Where the image goes.
#[derive(Debug)]
struct Target {
    /// What is typed to confirm.
    name: String,
    path: PathBuf,
    /// What there is now, in words; nothing for a file that is not there yet.
    content: Option<String>,
    /// Bytes, where that is fixed.
    size: Option<u64>,
}

impl Target {
    fn find(text: &str, devices: &[Device], force: bool) -> Result<Self> {
        // /dev/disk/by-id/... is a link to the disk's own name.
        let real = if text.starts_with("/dev/") { fs::canonicalize(text).ok() } else { None };
        let named = real.as_ref().and_then(|path| path.to_str()).unwrap_or(text);
        let short = named.strip_prefix("/dev/").unwrap_or(named);
        if let Some(device) = devices.iter().find(|device| device.name == short) {
            if let Some(why) = device.refusal(force) {
                bail!("{short}: {why}");
            }
            let content = Some(device.to_string());
            let path = Path::new("/dev").join(short);
            return Ok(Self { name: short.to_owned(), path, content, size: Some(device.size) });
        }
        let path = PathBuf::from(text);
        let name = path.file_name().context("no such card or file")?.to_string_lossy().into_owned();
        let (content, size) = match fs::metadata(&path) {
            Ok(about) if about.is_file() => (Some(format!("a file of {}", HumanBytes(about.len()))), None),
            Ok(about) if about.file_type().is_block_device() => {
                bail!(
                    "{text}: not a whole card: give the disk's name (`image-builder flash --list` shows them)"
                )
            }
            Ok(_) => bail!("{text}: neither a card nor a file"),
            Err(error) if error.kind() == io::ErrorKind::NotFound && text.contains('/') => (None, None),
            // A mistyped name of a card must not become a file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "{text}: no such card (`image-builder flash --list` shows them); a file is written ./{text}"
                )
            }
            Err(error) => return Err(error).context(text.to_owned()),
        };
        Ok(Self { name, path, content, size })
    }

    fn takes(&self, need: u64) -> Result<()> {
        match self.size {
            Some(size) if size < need => {
                bail!("{}: {} is too small for an image of {}", self.name, HumanBytes(size), HumanBytes(need))
            }
            _ => Ok(()),
        }
    }

    fn open(&self, size: u64) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match self.size {
            Some(_) => options.custom_flags(EXCLUSIVE).open(&self.path),
            None => options.create(true).truncate(true).open(&self.path),
        };
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => anyhow::anyhow!(
                "{}: permission denied: run it with sudo (or be in the group `disk`)",
                self.path.display()
            ),
            io::ErrorKind::ResourceBusy => {
                anyhow::anyhow!("{}: something has it mounted or open; unmount it first", self.path.display())
            }
            _ => anyhow::Error::from(error).context(self.path.display().to_string()),
        })?;
        if self.size.is_none() {
            file.set_len(size).with_context(|| self.path.display().to_string())?;
        }
        Ok(file)
    }
}

fn list(devices: &[Device], force: bool) -> Result<()> {
    let fit: Vec<&Device> = devices.iter().filter(|device| device.refusal(force).is_none()).collect();
    fit.iter().for_each(|device| println!("{device}"));
    if fit.is_empty() {
        println!("No card is in. What there is, and why it will not be written:");
        for device in devices {
            println!("{device}: {}", device.refusal(force).unwrap_or_default());
        }
    }
    Ok(())
}

fn choose(devices: &[Device], force: bool) -> Result<String> {
    list(devices, force)?;
    if devices.iter().all(|device| device.refusal(force).is_some()) {
        bail!("put a card in and try again");
    }
    ask("Which one? Type its name: ")?.context("nothing was chosen, nothing was written")
}

/// What exists is only overwritten when its name was typed: Enter never wipes.
fn confirm(target: &Target, given: Option<&str>) -> Result<()> {
    let Some(content) = &target.content else { return Ok(()) };
    let answer = match given {
        Some(name) => Some(name.to_owned()),
        None => {
            println!("All that is on {content} will be lost.");
            ask(&format!("Type {} to write it: ", target.name))?
        }
    };
    if answer.as_deref() != Some(&target.name) {
        bail!("{:?} is not {:?}: nothing was written", answer.unwrap_or_default(), target.name);
    }
    Ok(())
}

/// One line from the terminal; nothing for an empty one.
fn ask(question: &str) -> Result<Option<String>> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask on; give the card's name and `--confirm NAME`");
    }
    print!("{question}");
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(Some(line.trim().to_owned()).filter(|line| !line.is_empty()))
}

/// The bar of the phase that runs.
#[derive(Debug, Default)]
struct Bar(std::cell::RefCell<Option<(Phase, ProgressBar)>>);

impl Bar {
    fn show(&self, phase: Phase, done: u64, total: u64) {
        let mut current = self.0.borrow_mut();
        let fresh = current.as_ref().is_none_or(|(shown, _)| *shown != phase);
        if fresh {
            let bar = ProgressBar::new(total);
            let style = "{msg:9} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            // A template that cannot be read leaves the plain bar.
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_message(phase.to_string());
            *current = Some((phase, bar));
        }
        if let Some((_, bar)) = &*current {
            bar.set_position(done);
            if done >= total {
                bar.finish();
            }
        }
    }
}
