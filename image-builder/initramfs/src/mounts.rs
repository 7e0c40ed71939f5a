//! The root file system: the slot's squashfs, and what is writable in it.
//!
//! `/etc` is an overlay, so that an update brings new defaults and keeps what was set here. `/var` and the homes are
//! plain folders of the data partition: the agent puts overlays of its own in `/var`, and an overlay cannot carry
//! another's upper layer. What `/var` must have, systemd-tmpfiles makes.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::log;
use crate::watchdog::Watchdog;

/// Where the root is put together.
pub const ROOT: &str = "/sysroot";
/// Folders of the data partition that are laid over the root's, and how they are made.
const BOUND: [(&str, u32); 4] = [("var", 0o755), ("root", 0o700), ("home", 0o755), ("srv", 0o755)];
/// Its modification time is the last known time (`bramble-clock.service`).
const CLOCK: &str = "clock";
/// A file system check that takes longer hangs.
const CHECK_LIMIT: Duration = Duration::from_secs(900);

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// `/proc`, `/sys`, `/dev` and `/run`.
pub fn kernel_file_systems() -> Result<()> {
    let all = [
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
        ("proc", "/proc", PLAIN, c""),
        ("sysfs", "/sys", PLAIN, c""),
        ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=755"),
    ];
    for (kind, place, flags, options) in all {
        make_folder(Path::new(place), 0o755)?;
        match mount(kind, place, kind, flags, options) {
            // The kernel mounts /dev by itself where it was built to.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => bail!("mounting {place}: {error}"),
        }
    }
    Ok(())
}

/// The slot's root, read-only, at [`ROOT`].
pub fn root(device: &Path) -> Result<()> {
    make_folder(Path::new(ROOT), 0o755)?;
    mount(device, ROOT, "squashfs", MountFlags::RDONLY, None)
        .with_context(|| format!("mounting the root file system {}", device.display()))
}

/// Checks the data partition with the root's own e2fsck: repairs what is safe, then what it takes.
pub fn check_data(device: &Path, watchdog: &Watchdog) -> Result<()> {
    let dev = Path::new(ROOT).join("dev");
    mount_bind("/dev", &dev).context("/dev in the root")?;
    let checked = e2fsck(device, watchdog);
    rustix::mount::unmount(&dev, rustix::mount::UnmountFlags::empty()).context("/dev in the root")?;
    checked
}

fn e2fsck(device: &Path, watchdog: &Watchdog) -> Result<()> {
    let mut code = 0;
    for how in ["-p", "-y"] {
        code = in_root(&["/usr/sbin/e2fsck", how, &device.to_string_lossy()], watchdog)?;
        // 1: repaired. 2: repaired, and a mounted one would need a reboot.
        if code < 4 {
            return Ok(());
        }
        log::complain(&format!("e2fsck {how} says {code} about the data partition"));
    }
    bail!("the data partition {} cannot be repaired (e2fsck says {code})", device.display())
}

/// Runs a program of the root, through this very program (`--chroot`), and feeds the watchdog meanwhile.
fn in_root(command: &[&str], watchdog: &Watchdog) -> Result<i32> {
    let name = command.join(" ");
    let mut child = Command::new("/proc/self/exe")
        .args(["--chroot", ROOT])
        .args(command)
        .spawn()
        .with_context(|| format!("running {name}"))?;
    let deadline = Instant::now() + CHECK_LIMIT;
    loop {
        watchdog.feed();
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for {name}"))? {
            return status.code().with_context(|| format!("{name} was killed"));
        }
        if Instant::now() > deadline {
            bail!("{name} does not end");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Mounts the data partition at `/data` of the root, grown to `blocks` if given.
pub fn data(device: &Path, blocks: Option<u64>) -> Result<()> {
    let data = Path::new(ROOT).join("data");
    mount(device, &data, "ext4", MountFlags::NOATIME.union(MountFlags::NODEV), None)
        .with_context(|| format!("mounting the data partition {}", device.display()))?;
    if let Some(blocks) = blocks {
        // What is there is usable; the next boot tries again.
        match fs::File::open(&data).and_then(|f| Ok(rustix::fs::ext4_ioc_resize_fs(&f, blocks)?)) {
            Ok(()) => log::say("the data file system has grown"),
            Err(error) => log::complain(&format!("the data file system does not grow: {error}")),
        }
    }
    Ok(())
}

/// Makes the writable places of a root that has its data partition mounted.
pub fn writable(root: &Path) -> Result<()> {
    let data = root.join("data");
    for (name, mode) in BOUND {
        let source = data.join(name);
        make_folder(&source, mode)?;
        mount_bind(&source, root.join(name)).with_context(|| format!("/{name} on the data partition"))?;
    }
    let (upper, work) = (data.join("etc/upper"), data.join("etc/work"));
    for folder in [&upper, &work] {
        make_folder(folder, 0o755)?;
    }
    let etc = root.join("etc");
    // Nothing that would tie the upper layer to one lower layer: an update changes that one.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,redirect_dir=off,metacopy=off",
        etc.display(),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).context("a path with a zero byte")?;
    mount("overlay", &etc, "overlay", MountFlags::empty(), options.as_c_str()).context("/etc")
}

/// The boot partition, read-only, at `/boot` of the root. Not worth failing a boot.
pub fn boot_partition(device: &Path) {
    let boot = Path::new(ROOT).join("boot");
    if let Err(error) = mount(device, &boot, "vfat", MountFlags::RDONLY | PLAIN, c"umask=0077") {
        log::complain(&format!("the boot partition cannot be mounted: {error}"));
    }
}

/// Puts the clock forward to the last known time: a Pi has none that runs without power.
pub fn clock() {
    let known = fs::metadata(Path::new(ROOT).join("data").join(CLOCK)).and_then(|file| file.modified());
    let Some(known) = known.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()) else { return };
    let Ok(seconds) = i64::try_from(known.as_secs()) else { return };
    if seconds > clock_gettime(ClockId::Realtime).tv_sec {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        if let Err(error) = clock_settime(ClockId::Realtime, time) {
            log::complain(&format!("the clock cannot be set: {error}"));
        }
    }
}

/// Leaves the initramfs for the root: everything in memory is deleted, the mounts move, and `/` is the root.
pub fn switch() -> Result<()> {
    for place in ["dev", "proc", "sys", "run"] {
        mount_move(Path::new("/").join(place), Path::new(ROOT).join(place))
            .with_context(|| format!("moving /{place}"))?;
    }
    let memory = fs::metadata("/").context("/")?.dev();
    empty(Path::new("/"), memory);
    std::env::set_current_dir(ROOT).context("entering the root")?;
    mount_move(".", "/").context("moving the root")?;
    rustix::process::chroot(".").context("changing the root")?;
    std::env::set_current_dir("/").context("entering the root")
}

/// Deletes what is on one file system below a folder; what cannot be deleted costs its memory, no more.
fn empty(folder: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.dev() != device => {}
            Ok(found) if found.is_dir() => {
                empty(&path, device);
                let _ = fs::remove_dir(&path);
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
}

/// Makes a folder with its parents. One that is there keeps its mode, but not a wider one than asked.
pub fn make_folder(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("making {}", path.display()))?;
    let found = fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o7777;
    if found & !mode != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(found & mode))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_never_wider_than_asked() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("a/b");
        make_folder(&folder, 0o755).unwrap();
        make_folder(&folder, 0o700).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
        make_folder(&folder, 0o755).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn emptying_stays_on_its_file_system() {
        let temp = tempfile::tempdir().unwrap();
        let (inside, other) = (temp.path().join("x/y"), temp.path().join("keep"));
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("link")).unwrap();
        fs::create_dir(&other).unwrap();
        let device = fs::metadata(temp.path()).unwrap().dev();
        empty(temp.path(), device + 1);
        assert!(inside.join("file").exists(), "another file system is left alone");
        empty(temp.path(), device);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        assert!(Path::new("/etc").exists());
    }
}
