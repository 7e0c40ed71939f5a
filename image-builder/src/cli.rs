//! The command line's verbs.

use crate::bake::Bake;
use crate::cache::{Cache, Dropped, Fetched};
use crate::lock::Lock;
use crate::locking::{self, Order};
use crate::net::Client;
use crate::project::{LoadedBoard, Project};
use crate::release::Keyring;
use crate::schema::{Arch, Suite};
use crate::system::Given;
use crate::{deb_package, flash, os_list, update_bundle};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{HumanBytes, MultiProgress};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Builds SD-card images for Raspberry Pis.
#[derive(Debug, Parser)]
#[command(name = "image-builder", version)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Checks all inputs of a board: its config and the recipes of all layers.
    Check(Inputs),
    /// Chooses the Debian packages and writes down exactly which: needed after a recipe's packages changed.
    Lock(LockArgs),
    /// Fetches the locked packages into the cache.
    Fetch(FetchArgs),
    /// Makes the card's image from fetched packages.
    Bake(BakeArgs),
    /// Explains how two images differ; fails where they do.
    Diff {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Fetches a pinned list of packages and unpacks them into a folder: tools that need not be installed.
    Unpack(UnpackArgs),
    /// Prints the crate patches that the recipes ask for, one a line: crate, version, patch file.
    Patches(Inputs),
    /// Writes an image to a card, verifies it, and gives the card its own name and role.
    Flash(flash::Flash),
    /// Makes the signed update bundle of a finished image.
    Bundle(update_bundle::Bundle),
    /// Packs the agent for an existing Debian or Raspberry Pi OS.
    Deb(deb_package::Deb),
    /// Makes the key that update bundles are signed with.
    UpdateKey(update_bundle::UpdateKey),
    /// Writes the list from which Raspberry Pi Imager offers the images.
    OsList(os_list::OsList),
}

/// What nearly every verb takes.
#[derive(Debug, Args)]
pub struct Inputs {
    /// Board name (rpi-3) or path to a board config.
    pub board: String,
    /// A layer of your own, over ours; can be given again.
    #[arg(long = "layer", value_name = "FOLDER")]
    pub layers: Vec<PathBuf>,
    /// Folder with board-configs/ and image-builder/.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub root: PathBuf,
    /// Lock file. Without it: image-builder/locks/SUITE-ARCH.toml, or with your own layer that layer's
    /// locks/SUITE-ARCH.toml.
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
    /// Folder of fetched packages.
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LockArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// Take today's versions even where the lock already fits the recipes.
    #[arg(long)]
    refresh: bool,
}

#[derive(Debug, Args)]
struct FetchArgs {
    #[command(flatten)]
    inputs: Inputs,
}

#[derive(Debug, Args)]
struct BakeArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// The agent, built for the board.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// /init of the initramfs, built for the board, static.
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    /// The image's version.
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    image_version: String,
    /// The time that all files bear, seconds since 1970. Without it: when the locked Debian release was made.
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    epoch: Option<u32>,
    /// Public key whose updates the card takes (`image-builder update-key` makes it); can be given again.
    #[arg(long = "update-key", value_name = "FILE")]
    update_keys: Vec<PathBuf>,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER", default_value = "out")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct UnpackArgs {
    /// The list.
    list: PathBuf,
    /// The folder: replaced when it was unpacked from another list.
    #[arg(long, value_name = "FOLDER")]
    into: PathBuf,
    /// Folder of fetched packages.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
}

impl Inputs {
    /// Reads the inputs.
    pub fn open(&self) -> Result<(Project, LoadedBoard)> {
        let project = Project::open(&self.root, &self.layers)?;
        let board = project.board(&self.board)?;
        Ok((project, board))
    }

    /// The lock's place.
    pub fn lock_path(&self, project: &Project, board: &LoadedBoard) -> PathBuf {
        let (suite, arch) = (&board.board.suite, board.board.arch);
        match (&self.lock, self.layers.last()) {
            (Some(path), _) => path.clone(),
            (None, Some(layer)) => layer.join("locks").join(format!("{suite}-{arch}.toml")),
            (None, None) => project.lock_path(suite, arch),
        }
    }

    /// The lock, which must be for just what the recipes ask for.
    pub fn read_lock(&self, project: &Project, board: &LoadedBoard) -> Result<Lock> {
        let path = self.lock_path(project, board);
        if !path.exists() {
            bail!("{}: is not there: run `image-builder {}`", path.display(), self.lock_command());
        }
        let lock = Lock::read(&path)?;
        if !lock.answers(&board.name, &project.request(board)) {
            bail!(
                "{}: was made for other package lists than {}'s recipes have now: run `image-builder {}`",
                path.display(),
                board.name,
                self.lock_command()
            );
        }
        Ok(lock)
    }

    /// What makes the lock that is missing.
    fn lock_command(&self) -> String {
        let layers = self.layers.iter().map(|layer| format!(" --layer {}", layer.display()));
        let lock = self.lock.iter().map(|lock| format!(" --lock {}", lock.display()));
        format!("lock {}{}", self.board, layers.chain(lock).collect::<String>())
    }

    /// The cache.
    pub fn open_cache(&self) -> Result<Cache> {
        open_cache(self.cache.as_deref())
    }
}

fn open_cache(dir: Option<&Path>) -> Result<Cache> {
    Cache::open(&match dir {
        Some(dir) => dir.to_owned(),
        None => default_cache()?.join("debs"),
    })
}

/// `~/.cache/bramble`.
fn default_cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set: say --cache FOLDER")?;
    Ok(base.join("bramble"))
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<()> {
        match self.verb {
            Verb::Check(inputs) => check(&inputs),
            Verb::Lock(args) => lock(&args),
            Verb::Fetch(args) => fetch(&args),
            Verb::Bake(args) => bake(&args),
            Verb::Diff { first, second } => diff(&first, &second),
            Verb::Unpack(args) => unpack(&args),
            Verb::Patches(inputs) => patches(&inputs),
            Verb::Flash(args) => flash::run(&args),
            Verb::Bundle(args) => update_bundle::run(&args),
            Verb::Deb(args) => deb_package::run(&args),
            Verb::UpdateKey(args) => update_bundle::make_key(&args),
            Verb::OsList(args) => os_list::run(&args),
        }
    }
}

fn check(inputs: &Inputs) -> Result<()> {
    let (project, board) = inputs.open()?;
    project.layout(&board.board.layout)?;
    let (suite, _) = project.suite(&board.board.suite)?;
    let path = inputs.lock_path(&project, &board);
    if path.exists() {
        warn_of_left_out(&Lock::read(&path)?, &suite, &board.name);
    }
    let recipes: Vec<&str> = project.recipes(&board).map(|r| r.name.as_str()).collect();
    println!("{}: {}", board.name, board.board.description);
    println!("recipes: {}", recipes.join(", "));
    Ok(())
}

fn lock(args: &LockArgs) -> Result<()> {
    let inputs = &args.inputs;
    let (project, board) = inputs.open()?;
    let (suite_name, arch) = (board.board.suite.as_str(), board.board.arch);
    let path = inputs.lock_path(&project, &board);
    let mut requests = project.requests(suite_name, arch)?;
    requests.insert(board.name.clone(), project.request(&board));
    let old = match path.exists() {
        // A damaged lock is replaced: that is what the verb is for.
        true => Lock::read(&path).inspect_err(|e| eprintln!("{e:#}")).ok(),
        false => None,
    };
    let fits = |lock: &Lock| {
        let boards: BTreeSet<&str> = lock.board.iter().map(|b| b.name.as_str()).collect();
        boards.len() == requests.len() && requests.iter().all(|(name, request)| lock.answers(name, request))
    };
    if !args.refresh && old.as_ref().is_some_and(fits) {
        println!("{}: fits the recipes (--refresh takes today's versions)", path.display());
        return Ok(());
    }
    let (suite, keyring) = project.suite(suite_name)?;
    let keyring = Keyring::read(&keyring)?;
    let now = jiff::Timestamp::now();
    let previous = old.as_ref();
    let order =
        Order { suite_name, suite: &suite, keyring: &keyring, arch, requests: &requests, previous, now };
    let lock = locking::make_lock(&Client::default(), &order, &mut |note| eprintln!("note: {note}"))?;
    write_lock(&path, &lock)?;
    report_lock(&path, &lock, previous, arch);
    warn_of_left_out(&lock, &suite, &board.name);
    Ok(())
}

/// A system without security updates must not go unnoticed.
fn warn_of_left_out(lock: &Lock, suite: &Suite, board: &str) {
    for source in lock.left_out(suite) {
        eprintln!(
            "warning: nothing of {} {} is in the {} lock: its index of {} was not sound when the lock was made. Once it \
             is: image-builder lock {board} --refresh",
            source.uri.get_ref(),
            source.codename,
            lock.suite,
            lock.arch
        );
    }
}

/// Whole or not at all.
fn write_lock(path: &Path, lock: &Lock) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    std::io::Write::write_all(&mut file, lock.to_text()?.as_bytes())?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}

fn report_lock(path: &Path, lock: &Lock, old: Option<&Lock>, arch: Arch) {
    for release in &lock.release {
        println!("{} {} {} of {}", release.uri, release.suite, release.version, release.date);
    }
    let changes = lock.changes_since(old);
    for line in &changes {
        println!("{line}");
    }
    let count = lock.deb.len();
    println!(
        "{}: {count} packages for {arch}, {}, {} changed",
        path.display(),
        HumanBytes(lock.size()),
        changes.len()
    );
}

fn fetch(args: &FetchArgs) -> Result<()> {
    let (project, board) = args.inputs.open()?;
    let lock = args.inputs.read_lock(&project, &board)?;
    let cache = args.inputs.open_cache()?;
    let fetched = fetch_locked(&args.inputs, &project, &board, &lock, &cache, &MultiProgress::new())?;
    println!("{}: {} packages, {} fetched", board.name, lock.debs_of(&board.name).count(), fetched.count);
    Ok(())
}

/// Fetches what is locked for the board and not in the cache.
fn fetch_locked(
    inputs: &Inputs,
    project: &Project,
    board: &LoadedBoard,
    lock: &Lock,
    cache: &Cache,
    progress: &MultiProgress,
) -> Result<Fetched> {
    let (suite, _) = project.suite(&board.board.suite)?;
    warn_of_left_out(lock, &suite, &board.name);
    let debs: Vec<_> = lock.debs_of(&board.name).collect();
    let dropped = Dropped {
        elsewhere: &|deb| lock.fallback_url(&suite, deb),
        remedy: &format!("run `image-builder {} --refresh` for today's versions", inputs.lock_command()),
    };
    let fetched = cache.fetch(&Client::default(), &debs, &dropped, progress)?;
    if fetched.from_elsewhere > 0 {
        eprintln!(
            "note: {} of the packages were dropped by their archive and came from {}; {}",
            fetched.from_elsewhere,
            suite.fallback.as_ref().map_or("elsewhere", |f| f.get_ref()),
            dropped.remedy
        );
    }
    Ok(fetched)
}

fn bake(args: &BakeArgs) -> Result<()> {
    let (project, board) = args.inputs.open()?;
    let lock = args.inputs.read_lock(&project, &board)?;
    let cache = args.inputs.open_cache()?;
    let progress = MultiProgress::new();
    fetch_locked(&args.inputs, &project, &board, &lock, &cache, &progress)?;
    let version = args.image_version.clone();
    crate::schema::plain_path(&version).map_err(anyhow::Error::msg).context("--image-version")?;
    let epoch = args.epoch.map_or_else(|| lock_time(&lock), Ok)?;
    let given =
        Given { version, epoch, agent: Some(args.agent.clone()), update_keys: args.update_keys.clone() };
    let crates = match args.inputs.root.join("Cargo.lock").exists() {
        true => crate::sbom::crates(&args.inputs.root, &board.board.target)?,
        false => Vec::new(),
    };
    let bake = Bake {
        project: &project,
        board: &board,
        lock: &lock,
        cache: &cache,
        given: &given,
        init: &args.init,
        crates: &crates,
        out: &args.out,
        progress: &progress,
    };
    for (path, size) in bake.run()?.files {
        println!("{:>12}  {}", HumanBytes(size).to_string(), path.display());
    }
    Ok(())
}

/// When the newest of the locked releases was made.
fn lock_time(lock: &Lock) -> Result<u32> {
    let dates = lock.release.iter().map(|r| r.date.parse::<jiff::Timestamp>());
    let newest =
        dates.collect::<Result<Vec<_>, _>>()?.into_iter().max().context("the lock names no release")?;
    Ok(u32::try_from(newest.as_second())?)
}

fn diff(first: &Path, second: &Path) -> Result<()> {
    let lines = crate::inspect::explain(first, second)?;
    for line in &lines {
        println!("{line}");
    }
    if !lines.is_empty() {
        bail!("the images differ");
    }
    println!("the same, byte for byte");
    Ok(())
}

fn unpack(args: &UnpackArgs) -> Result<()> {
    let cache = open_cache(args.cache.as_deref())?;
    if crate::toolchain::unpack(&args.list, &args.into, &cache, &MultiProgress::new())? {
        println!("{}: unpacked", args.into.display());
    }
    Ok(())
}

fn patches(inputs: &Inputs) -> Result<()> {
    let (project, board) = inputs.open()?;
    for recipe in project.recipes(&board) {
        for patch in &recipe.recipe.patches {
            println!("{} {} {}", patch.krate, patch.version, recipe.source(&patch.source)?.display());
        }
    }
    Ok(())
}
