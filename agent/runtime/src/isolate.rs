//! What every helper that calls the library does first: no inherited descriptors, mounts of its own, and a program
//! file that a container cannot write to through `/proc/<pid>/exe`.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

const OWN_PROGRAM: &str = "/proc/self/exe";

/// Closes every descriptor from 3 up: a container's init would hold each of them until its exec.
pub(crate) fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The folder that was read is among them and closed by now.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Enters a mount namespace of its own. Unless the program file is read-only already, it is mounted so at `spot` and
/// run again from there with the same arguments: then this does not come back, and the next call has nothing to do.
pub(crate) fn enter(spot: &Path, args: &[OsString]) -> io::Result<()> {
    let read_only = rustix::fs::statvfs(OWN_PROGRAM)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    if read_only {
        return own_mounts();
    }
    let cwd = rustix::fs::CWD;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let program = rustix::mount::open_tree(cwd, OWN_PROGRAM, flags)?;
    own_mounts()?;
    if !spot.exists() {
        File::create(spot)?;
    }
    rustix::mount::move_mount(program.as_fd(), c"", cwd, spot, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::mount::mount_remount(spot, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    drop(program);
    let path = CString::new(spot.as_os_str().as_bytes())?;
    let args = args.iter().map(|a| CString::new(a.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let Err(errno) = nix::unistd::execv(&path, &args);
    Err(errno.into())
}

/// What happens to mounts here stays here; what is unmounted on the host goes away here too.
#[allow(unsafe_code)]
fn own_mounts() -> io::Result<()> {
    // SAFETY: NEWNS does not touch descriptors, and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// Reads a file of a container's root, with links resolved inside that root; a missing one is empty.
pub(crate) fn read_in_root(root: &Path, path: &str, limit: u64) -> io::Result<String> {
    use std::io::Read;
    let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // NONBLOCK: an image may put a fifo there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&dir, path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(e.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes a folder below a root, with links resolved inside that root.
pub(crate) fn make_dir_in_root(root: &Path, path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let mut here = std::path::PathBuf::new();
    let mut parent = rustix::io::dup(&root)?;
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        here.push(name);
        parent = match rustix::fs::openat2(&root, &here, flags, Mode::empty(), resolve) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                rustix::fs::openat2(&root, &here, flags, Mode::empty(), resolve)?
            }
            Err(e) => return Err(e.into()),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_lead_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("secret"), "no").unwrap();
        fs::write(root.join("inside"), "yes").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("a")).unwrap();
        std::os::unix::fs::symlink("/inside", root.join("b")).unwrap();
        std::os::unix::fs::symlink("/", root.join("up")).unwrap();
        assert_eq!(read_in_root(&root, "a", 10).unwrap(), "");
        assert_eq!(read_in_root(&root, "b", 10).unwrap(), "yes");
        make_dir_in_root(&root, Path::new("/up/x/../y/z")).unwrap();
        assert!(root.join("x").is_dir() || root.join("y/z").is_dir());
        assert!(!dir.path().join("y").exists());
    }
}
