//! This machine: the card that it runs from, and the system on it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use slots::Slot;

use super::card::DiskCard;
use super::install::Here;

/// The partition that carries boot files, by number and volume label.
const BOOT_PARTITION: &str = "1";
const LABEL: &[u8; 11] = b"BRAMBLE    ";
const DATA_PARTITION: &str = "4";
/// Longest wait for udev to be done with the card.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the boot partition is mounted while it is not mounted elsewhere.
const MOUNT: &str = "/run/bramble/boot";

/// Where the card is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) disk: PathBuf,
    /// The boot partition's device.
    boot: PathBuf,
}

/// Which slot runs.
pub(crate) fn running() -> Result<Slot> {
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    Slot::from_cmdline(&cmdline).ok_or_else(|| {
        anyhow!(
            "this system was not booted from a Bramble card, so it has no second slot to update; \
             where Bramble came as a Debian package, install the next version's package"
        )
    })
}

/// What runs, from `os-release` (`VARIANT_ID` is the board, `IMAGE_VERSION` the version).
pub(crate) fn here(running: Slot, allow_older: bool) -> Result<Here> {
    let path = ["/etc/os-release", "/usr/lib/os-release"].into_iter().find(|path| Path::new(path).exists());
    let text =
        fs::read_to_string(path.context("there is no os-release file")?).context("reading os-release")?;
    let field = |name| os_release(&text, name).with_context(|| format!("os-release has no {name}"));
    Ok(Here {
        running,
        board: field("VARIANT_ID")?,
        version: field("IMAGE_VERSION")?,
        arch: debian_arch(std::env::consts::ARCH).to_owned(),
        allow_older,
    })
}

fn os_release(text: &str, name: &str) -> Option<String> {
    let value = text.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| *key == name)?.1;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

fn debian_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "armhf",
        other => other,
    }
}

/// Finds the card that runs: the disk that a mounted root or data partition is on. Another Bramble card in a reader is
/// not it.
pub(crate) fn place(sys: &Path, running: Slot) -> Result<Place> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let root = running.partition().to_string();
    let mut disks: Vec<OsString> = mounted_devices(&mounts)
        .filter_map(|device| partition(sys, device))
        .filter(|(_, number)| *number == root || number == DATA_PARTITION)
        .map(|(disk, _)| disk)
        .collect();
    disks.sort();
    disks.dedup();
    let mut found = Vec::new();
    for disk in disks {
        let Some(boot) = boot_partition(sys, &disk) else { continue };
        let place = Place { disk: Path::new("/dev").join(&disk), boot: Path::new("/dev").join(boot) };
        if has_label(&place.boot) {
            found.push(place);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => bail!(
            "the card that this system runs from was not found (no mounted partition of a Bramble card)"
        ),
        _ => bail!("two Bramble cards are in use by this system; take the other one out"),
    }
}

/// `major:minor` of what is mounted.
fn mounted_devices(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(2))
}

/// The disk's name and the partition's number of a device that is a partition.
fn partition(sys: &Path, device: &str) -> Option<(OsString, String)> {
    let folder = fs::canonicalize(sys.join("dev/block").join(device)).ok()?;
    let number = fs::read_to_string(folder.join("partition")).ok()?;
    Some((folder.parent()?.file_name()?.to_owned(), number.trim().to_owned()))
}

/// The name of a disk's first partition.
fn boot_partition(sys: &Path, disk: &OsString) -> Option<OsString> {
    let folders = fs::read_dir(sys.join("class/block").join(disk)).ok()?;
    folders.flatten().find_map(|entry| {
        let number = fs::read_to_string(entry.path().join("partition")).ok()?;
        (number.trim() == BOOT_PARTITION).then(|| entry.file_name())
    })
}

/// Whether a device has a FAT32 of our name.
fn has_label(device: &Path) -> bool {
    let mut sector = [0; 512];
    File::open(device).and_then(|file| file.read_exact_at(&mut sector, 0)).is_ok()
        && sector[510..] == [0x55, 0xaa]
        && sector[71..82] == *LABEL
}

/// The card with its boot partition mounted for writing; put back as it was when dropped.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) card: DiskCard,
    undo: Undo,
}

#[derive(Debug)]
enum Undo {
    Nothing,
    Unmount(PathBuf),
    ReadOnly(PathBuf),
}

impl Opened {
    pub(crate) fn new(place: &Place) -> Result<Self> {
        let undo = writable(&place.boot).context("mounting the boot partition for writing")?;
        let boot = match &undo {
            Undo::Unmount(path) | Undo::ReadOnly(path) => path.clone(),
            Undo::Nothing => mount_of(&place.boot)?.context("the boot partition went away")?.0,
        };
        match DiskCard::open(&place.disk, &boot, PATIENCE).with_context(|| place.disk.display().to_string()) {
            Ok(card) => Ok(Self { card, undo }),
            Err(error) => {
                undo.run();
                Err(error)
            }
        }
    }

    /// Puts the mount back as it was.
    pub(crate) fn close(self) {
        drop(self.card);
        self.undo.run();
    }
}

impl Undo {
    /// What fails here leaves a mount that is too open, until the next boot: said, and not worth failing an update.
    fn run(&self) {
        let result = match self {
            Self::Nothing => Ok(()),
            Self::Unmount(path) => unmount(path, UnmountFlags::empty()),
            Self::ReadOnly(path) => mount_remount(path, MountFlags::RDONLY, ""),
        };
        if let Err(error) = result {
            eprintln!("warning: the boot partition stays mounted for writing: {error}");
        }
    }
}

/// Where a device is mounted, and whether it is read-only there.
fn mount_of(device: &Path) -> Result<Option<(PathBuf, bool)>> {
    use std::os::unix::fs::MetadataExt;
    let number = fs::metadata(device).with_context(|| device.display().to_string())?.rdev();
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(find_mount(&mounts, &number))
}

fn find_mount(mountinfo: &str, device: &str) -> Option<(PathBuf, bool)> {
    mountinfo.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (number, path, options) = (fields.get(2)?, fields.get(4)?, fields.last()?);
        let mount_options = fields.get(5)?;
        let read_only = [options, mount_options].iter().any(|list| list.split(',').any(|word| word == "ro"));
        (*number == device).then(|| (PathBuf::from(path.replace("\\040", " ")), read_only))
    })
}

fn writable(device: &Path) -> Result<Undo> {
    match mount_of(device)? {
        Some((_, false)) => Ok(Undo::Nothing),
        Some((path, true)) => {
            mount_remount(&path, MountFlags::empty(), "")?;
            Ok(Undo::ReadOnly(path))
        }
        None => {
            let path = PathBuf::from(MOUNT);
            fs::create_dir_all(&path)?;
            mount(device, &path, "vfat", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
            // Nobody else's business: containers must not get a copy of it.
            mount_change(&path, MountPropagationFlags::PRIVATE)?;
            Ok(Undo::Unmount(path))
        }
    }
}

/// Reboots through systemd, so that the agent and the containers stop in order.
///
/// # Errors
/// If systemd does not take it.
pub fn reboot() -> Result<()> {
    let status = Command::new("systemctl").arg("reboot").status().context("systemctl reboot")?;
    if !status.success() {
        bail!("`systemctl reboot` failed; the update is in place, reboot by hand");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_names_itself() {
        let text = "NAME=\"Bramble\"\nIMAGE_VERSION='0.2.0'\nVARIANT_ID=rpi-3\n";
        assert_eq!(os_release(text, "VARIANT_ID").as_deref(), Some("rpi-3"));
        assert_eq!(os_release(text, "IMAGE_VERSION").as_deref(), Some("0.2.0"));
        assert_eq!(os_release(text, "ID"), None);
    }

    #[test]
    fn mounts_are_found_by_device() {
        let text = "24 1 179:2 / / ro,relatime - squashfs /dev/root ro\n\
                    31 24 179:1 / /boot\\040x rw,relatime shared:1 - vfat /dev/mmcblk0p1 ro,fmask=0022\n\
                    32 24 179:4 / /data rw - ext4 /dev/mmcblk0p4 rw\n";
        assert_eq!(mounted_devices(text).collect::<Vec<_>>(), ["179:2", "179:1", "179:4"]);
        assert_eq!(find_mount(text, "179:1"), Some((PathBuf::from("/boot x"), true)));
        assert_eq!(find_mount(text, "179:4"), Some((PathBuf::from("/data"), false)));
        assert_eq!(find_mount(text, "8:1"), None);
    }

    #[test]
    fn partitions_by_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        let disk = sys.join("devices/mmc/block/mmcblk0");
        for (name, number) in [("mmcblk0p1", "1\n"), ("mmcblk0p2", "2\n")] {
            fs::create_dir_all(disk.join(name)).unwrap();
            fs::write(disk.join(name).join("partition"), number).unwrap();
        }
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        fs::create_dir_all(sys.join("class/block")).unwrap();
        std::os::unix::fs::symlink(disk.join("mmcblk0p2"), sys.join("dev/block/179:2")).unwrap();
        std::os::unix::fs::symlink(&disk, sys.join("class/block/mmcblk0")).unwrap();
        let (disk, number) = partition(sys, "179:2").unwrap();
        assert_eq!((disk.to_str().unwrap(), number.as_str()), ("mmcblk0", "2"));
        assert_eq!(boot_partition(sys, &disk).unwrap(), "mmcblk0p1");
        assert_eq!(partition(sys, "179:9"), None);
    }
}
