//! The disks of this machine, and which of them must not be written.
//!
//! All from sysfs and the tables of mounts and swaps, so that tests can make up a machine.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::HumanBytes;

/// Larger than any card one would use, and the size of many a backup disk.
const LARGE: u64 = 256_000_000_000;
/// Mounts that make a disk the system's own.
const SYSTEM: &[&str] =
    &["/", "/boot", "/boot/efi", "/boot/firmware", "/efi", "/home", "/usr", "/var", "/nix", "/data"];
/// Kinds of block devices that are no disks: memory, loops, stacked devices (their disks are listed), CD drives.
const NO_DISKS: &[&str] = &["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtdblock"];

/// What the kernel says about this machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) sys: PathBuf,
    pub(crate) mountinfo: String,
    pub(crate) swaps: String,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) size: u64,
    pub(crate) removable: bool,
    pub(crate) read_only: bool,
    pub(crate) system: bool,
    /// Where something of it is mounted.
    pub(crate) mounts: Vec<String>,
    /// Encryption, volumes or arrays that are open on it.
    pub(crate) stacked: bool,
}

impl Device {
    /// Why it must not be written.
    pub(crate) fn refusal(&self, force: bool) -> Option<String> {
        if self.system {
            return Some("the running system is on it".to_owned());
        }
        if !self.mounts.is_empty() {
            return Some(format!("it is mounted at {}; unmount it first", self.mounts.join(", ")));
        }
        if self.stacked {
            return Some("an encrypted disk, volume or array on it is open; close it first".to_owned());
        }
        if self.size == 0 {
            return Some("no card is in it".to_owned());
        }
        if self.read_only {
            return Some("it is write-protected (the slider at the card's side?)".to_owned());
        }
        if force {
            return None;
        }
        if !self.removable {
            return Some("it is not removable; if it is a card all the same, say --force".to_owned());
        }
        (self.size > LARGE)
            .then(|| "it is larger than 256 GB; if it is a card all the same, say --force".to_owned())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.name, self.model, HumanBytes(self.size))
    }
}

/// What one mount or swap uses.
struct Use {
    /// `/sys/...` folders of its disks.
    disks: BTreeSet<String>,
    at: String,
    stacked: bool,
}

impl Machine {
    /// Reads the running machine's tables.
    pub(crate) fn read(sys: &Path) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
        // A kernel without swap has no such file.
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        Ok(Self { sys: sys.to_owned(), mountinfo, swaps })
    }

    /// All disks, by name.
    pub(crate) fn disks(&self) -> Result<Vec<Device>> {
        let folder = self.sys.join("block");
        let mut names: Vec<String> = fs::read_dir(&folder)
            .with_context(|| folder.display().to_string())?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !NO_DISKS.iter().any(|kind| name.starts_with(kind)))
            // The hidden boot areas of eMMC chips.
            .filter(|name| !(name.starts_with("mmcblk") && name.contains("boot")))
            .collect();
        names.sort();
        let uses = self.uses();
        Ok(names.into_iter().map(|name| self.disk(name, &uses)).collect())
    }

    fn disk(&self, name: String, uses: &[Use]) -> Device {
        let folder = self.sys.join("block").join(&name);
        let text = |file: &str| {
            fs::read_to_string(folder.join(file)).map(|t| t.trim().to_owned()).unwrap_or_default()
        };
        // A card in a reader on the board is not called removable, but an SD card.
        let removable = text("removable") == "1" || text("device/type") == "SD";
        let parts = [text("device/vendor"), text("device/model"), text("device/name")];
        let model =
            parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ");
        let mine: Vec<&Use> = uses.iter().filter(|u| u.disks.contains(&name)).collect();
        Device {
            model: if model.is_empty() { "no model name".to_owned() } else { model },
            size: text("size").parse::<u64>().unwrap_or(0).saturating_mul(512),
            removable,
            read_only: text("ro") == "1",
            system: mine.iter().any(|u| SYSTEM.contains(&u.at.as_str()) || u.at == "swap"),
            mounts: mine.iter().filter(|u| !u.stacked).map(|u| u.at.clone()).collect(),
            stacked: mine.iter().any(|u| u.stacked) || self.has_holders(&folder),
            name,
        }
    }

    /// What is mounted, or swap, and from which disks in the end.
    fn uses(&self) -> Vec<Use> {
        let mounts = self.mountinfo.lines().filter_map(|line| {
            let (fields, rest) = line.split_once(" - ")?;
            let fields: Vec<&str> = fields.split(' ').collect();
            let (number, at) = (fields.get(2)?, fields.get(4)?);
            let source = rest.split(' ').nth(1)?;
            // File systems over several disks (btrfs) have a number of their own: then the source is what counts.
            let folder = self.by_number(number).or_else(|| self.by_path(source))?;
            Some((folder, at.replace("\\040", " ")))
        });
        let swaps = self.swaps.lines().skip(1).filter_map(|line| {
            Some((self.by_path(line.split_ascii_whitespace().next()?)?, "swap".to_owned()))
        });
        mounts
            .chain(swaps)
            .map(|(folder, at)| {
                let mut disks = BTreeSet::new();
                let stacked = under(&folder, &mut disks, 0);
                Use { disks, at, stacked }
            })
            .collect()
    }

    fn by_number(&self, number: &str) -> Option<PathBuf> {
        fs::canonicalize(self.sys.join("dev/block").join(number)).ok()
    }

    fn by_path(&self, path: &str) -> Option<PathBuf> {
        let path = Path::new(path);
        path.starts_with("/dev").then_some(())?;
        // /dev/mapper/x and /dev/disk/by-... are links to the device's own name.
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        fs::canonicalize(self.sys.join("class/block").join(real.file_name()?)).ok()
    }

    /// Whether a device mapper or array device sits on the disk or one of its partitions.
    fn has_holders(&self, disk: &Path) -> bool {
        let held = |folder: &Path| fs::read_dir(folder.join("holders")).is_ok_and(|mut e| e.next().is_some());
        held(disk)
            || fs::read_dir(disk).is_ok_and(|entries| entries.flatten().any(|entry| held(&entry.path())))
    }
}

/// Collects the disks beneath a device; true if there is a layer between.
fn under(folder: &Path, disks: &mut BTreeSet<String>, depth: usize) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    if folder.join("partition").exists() {
        disks.extend(folder.parent().and_then(name));
        return false;
    }
    let below: Vec<PathBuf> = fs::read_dir(folder.join("slaves"))
        .map(|entries| entries.flatten().filter_map(|entry| fs::canonicalize(entry.path()).ok()).collect())
        .unwrap_or_default();
    if below.is_empty() || depth > 8 {
        disks.extend(name(folder));
        return false;
    }
    for folder in below {
        under(&folder, disks, depth + 1);
    }
    true
}
