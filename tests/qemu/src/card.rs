//! A card: a copy of the image as large as a card, and its boot partition by mtools.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// The smallest card that is sold; a power of two, as QEMU wants it.
const CARD: u64 = 2 << 30;

/// A card in a temporary folder.
#[derive(Debug)]
pub struct Card {
    folder: TempDir,
    /// What it is a copy of.
    image: PathBuf,
    /// Byte at which the boot partition begins.
    boot: u64,
}

impl Card {
    /// A new card with the image of a board: `BRAMBLE_IMAGE`, or the newest of `hack/image BOARD`.
    pub fn new(board: &str) -> Result<Self> {
        let image = match std::env::var_os("BRAMBLE_IMAGE") {
            Some(path) => PathBuf::from(path),
            None => newest(&crate::out(), board)?,
        };
        Self::of(image)
    }

    /// A new card with an image.
    pub fn of(image: PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bramble-card-").tempdir_in(temporary()?)?;
        let path = folder.path().join("card.img");
        copy(&image, &path)?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        ensure!(file.metadata()?.len() <= CARD, "{} is larger than a card of 2 GiB", image.display());
        file.set_len(CARD)?;
        let boot = first_partition(&file).with_context(|| image.display().to_string())?;
        Ok(Self { folder, image, boot })
    }

    /// Another card with the same content.
    pub fn duplicate(&self) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bramble-card-").tempdir_in(temporary()?)?;
        copy(&self.path(), &folder.path().join("card.img"))?;
        Ok(Self { folder, image: self.image.clone(), boot: self.boot })
    }

    /// The card as a file to be written.
    pub fn open(&self) -> Result<File> {
        Ok(OpenOptions::new().read(true).write(true).open(self.path())?)
    }

    /// The bytes of a partition.
    pub fn partition(&self, number: u8) -> Result<std::ops::Range<u64>> {
        let (start, length) = partition(&self.open()?, number.into())?;
        Ok(start..start + length)
    }

    /// Whether a slot holds what it holds on another card: the same root, the same boot files.
    pub fn same_slot(&self, other: &Self, slot: slots::Slot) -> Result<bool> {
        Ok(self.boot_files(slot)? == other.boot_files(slot)? && self.same_root(other, slot)?)
    }

    fn same_root(&self, other: &Self, slot: slots::Slot) -> Result<bool> {
        let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let (a, b, range) = (self.open()?, other.open()?, self.partition(slot.partition())?);
        for at in range.clone().step_by(ours.len()) {
            let step = ours.len().min(usize::try_from(range.end - at)?);
            a.read_exact_at(&mut ours[..step], at)?;
            b.read_exact_at(&mut theirs[..step], at)?;
            if ours[..step] != theirs[..step] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A slot's boot files by name; none of a folder that is missing or cannot be read.
    fn boot_files(&self, slot: slots::Slot) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let to = tempfile::tempdir_in(self.folder.path())?;
        let mut command = Command::new("mcopy");
        command.args(["-s", "-n", "-o", "-i", &self.drive(), &format!("::{}", slot.folder())]).arg(to.path());
        let mut files = BTreeMap::new();
        if mtools(&mut command).is_ok() {
            read_tree(to.path(), Path::new(""), &mut files)?;
        }
        Ok(files)
    }

    /// The image that it is a copy of.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The update bundle that was baked with the image: `BRAMBLE_UPDATE`, or the one beside it.
    pub fn bundle(&self) -> Result<PathBuf> {
        let path = match std::env::var_os("BRAMBLE_UPDATE") {
            Some(path) => PathBuf::from(path),
            None => self.image.with_extension("update"),
        };
        ensure!(path.exists(), "no update bundle {}: hack/image makes it", path.display());
        Ok(path)
    }

    /// The card as a file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("card.img")
    }

    /// A folder beside it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn drive(&self) -> String {
        format!("{}@@{}", self.path().display(), self.boot)
    }

    /// Reads a file of the boot partition.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        mtools(Command::new("mtype").args(["-i", &self.drive(), &format!("::{name}")]))
            .with_context(|| format!("reading {name} from the boot partition"))
    }

    /// Names of the files in a folder of the boot partition, sorted; folders end in `/`.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let out = mtools(Command::new("mdir").args(["-b", "-i", &self.drive(), &format!("::{folder}")]))
            .with_context(|| format!("listing {folder} of the boot partition"))?;
        let text = String::from_utf8_lossy(&out).into_owned();
        let front = if folder.is_empty() { "::/".to_owned() } else { format!("::/{folder}/") };
        let mut names: Vec<String> =
            text.lines().filter_map(|line| line.trim().strip_prefix(&front)).map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Whether the boot partition has a file.
    pub fn has(&self, name: &str) -> bool {
        mtools(Command::new("mdir").args(["-b", "-i", &self.drive(), &format!("::{name}")])).is_ok()
    }

    /// Copies a file of the boot partition.
    pub fn extract(&self, name: &str, to: &Path) -> Result<()> {
        let mut command = Command::new("mcopy");
        command.args(["-n", "-o", "-i", &self.drive(), &format!("::{name}")]).arg(to);
        mtools(&mut command).map(drop).with_context(|| format!("no {name} on the boot partition"))
    }

    /// Writes a file to the boot partition, as somebody with the card in a reader would.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let local = self.folder.path().join("to-write");
        fs::write(&local, content)?;
        let mut command = Command::new("mcopy");
        command.args(["-o", "-i", &self.drive()]).arg(&local).arg(format!("::{name}"));
        mtools(&mut command).map(drop).with_context(|| format!("writing {name} to the boot partition"))
    }

    /// The boot state.
    pub fn state(&self) -> Result<Option<slots::State>> {
        Ok(slots::card::read(&File::open(self.path())?)?)
    }

    /// Sets the boot state.
    pub fn set_state(&self, state: &slots::State) -> Result<()> {
        let card = OpenOptions::new().read(true).write(true).open(self.path())?;
        Ok(slots::card::write(&card, state)?)
    }

    /// Overwrites the beginning of a slot's root.
    pub fn break_root(&self, slot: slots::Slot) -> Result<()> {
        let card = OpenOptions::new().read(true).write(true).open(self.path())?;
        let root = partition(&card, slot.partition().into())?;
        Ok(card.write_all_at(&[0; 4096], root.0)?)
    }

    /// Copies slot A to slot B: the root, and the boot files with the other slot on their command line.
    pub fn copy_slot(&self) -> Result<()> {
        let card = OpenOptions::new().read(true).write(true).open(self.path())?;
        let (from, to) = (partition(&card, 2)?, partition(&card, 3)?);
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < from.1.min(to.1) {
            let step = buffer.len().min(usize::try_from(from.1 - at)?);
            card.read_exact_at(&mut buffer[..step], from.0 + at)?;
            card.write_all_at(&buffer[..step], to.0 + at)?;
            at += step as u64;
        }
        let local = self.folder.path().join("slot-a");
        let mut command = Command::new("mcopy");
        mtools(command.args(["-s", "-n", "-o", "-i", &self.drive(), "::slot-a"]).arg(self.folder.path()))?;
        let line = fs::read_to_string(local.join("cmdline.txt"))?.replace("bramble.slot=a", "bramble.slot=b");
        fs::write(local.join("cmdline.txt"), line)?;
        if !self.has("slot-b") {
            mtools(Command::new("mmd").args(["-i", &self.drive(), "::slot-b"]))?;
        }
        for entry in fs::read_dir(&local)? {
            let path = entry?.path();
            let mut command = Command::new("mcopy");
            mtools(command.args(["-o", "-s", "-i", &self.drive()]).arg(&path).arg("::slot-b/"))?;
        }
        fs::remove_dir_all(&local)?;
        Ok(())
    }
}

/// Cards are large and sparse: beside the image, not in a memory file system.
fn temporary() -> Result<PathBuf> {
    let folder = crate::out().join("qemu");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").args(["--sparse=always"]).arg(from).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

fn read_tree(root: &Path, below: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read_tree(root, &name, files)?;
        } else {
            files.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(())
}

fn newest(out: &Path, board: &str) -> Result<PathBuf> {
    let prefix = format!("bramble-{board}-");
    let images = fs::read_dir(out).into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(&prefix) && name.ends_with(".img")
    });
    let newest = images.max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok());
    newest
        .map(|entry| entry.path())
        .with_context(|| format!("no image of {board} in out/: hack/image {board}"))
}

/// First byte and length of a partition.
fn partition(card: &File, number: u64) -> Result<(u64, u64)> {
    let mut entry = [0; 16];
    card.read_exact_at(&mut entry, 446 + 16 * (number - 1))?;
    let word = |at: usize| -> Result<u64> { Ok(u32::from_le_bytes(entry[at..at + 4].try_into()?).into()) };
    ensure!(entry[4] != 0, "there is no partition {number}");
    Ok((word(8)? * 512, word(12)? * 512))
}

fn first_partition(card: &File) -> Result<u64> {
    Ok(partition(card, 1)?.0)
}

fn mtools(command: &mut Command) -> Result<Vec<u8>> {
    // The images' geometry is nobody's: mtools must not mind.
    let output = command.env("MTOOLS_SKIP_CHECK", "1").output().context("mtools: hack/setup --image")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
