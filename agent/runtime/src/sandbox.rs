//! What a pod's containers share: namespaces kept alive by bind mounts, and a /dev/shm. No pause process.
//!
//! Namespaces are made by threads that end right after, never by a thread of the async runtime.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::api::{Error, Sandbox, SandboxSpec};

const SHM_SIZE: &std::ffi::CStr = c"mode=1777,size=67108864";
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The folder of all sandboxes.
#[derive(Clone, Debug)]
pub(crate) struct Sandboxes {
    dir: PathBuf,
}

impl Sandboxes {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&dir).map_err(|e| Error::Node(format!("make {}: {e}", dir.display())))?;
        Ok(Self { dir })
    }

    pub(crate) async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, Error> {
        let this = self.clone();
        let uid = spec.pod_uid.clone();
        on_thread(move || this.create_blocking(&spec))
            .await
            .map_err(|e| Error::Node(format!("make the sandbox of pod {uid}: {e}")))
    }

    fn place(&self, pod_uid: &str) -> io::Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        if pod_uid.is_empty()
            || pod_uid.len() > 128
            || pod_uid.starts_with('.')
            || !pod_uid.chars().all(plain)
        {
            return Err(io::Error::other(format!("{pod_uid:?} is no pod uid")));
        }
        Ok(self.dir.join(pod_uid))
    }

    /// Runs on a thread of its own, which takes the new namespaces with it.
    fn create_blocking(&self, spec: &SandboxSpec) -> io::Result<Sandbox> {
        let place = self.place(&spec.pod_uid)?;
        let wanted = |name: &str, want: bool| want.then(|| place.join(name));
        let sandbox = Sandbox {
            net: wanted("net", !spec.host_network),
            ipc: wanted("ipc", !spec.host_ipc),
            uts: wanted("uts", !spec.host_network),
            shm: wanted("shm", !spec.host_ipc),
        };
        // Written last, so a sandbox that has it is whole.
        let done = place.join("done");
        if done.exists()
            && [&sandbox.net, &sandbox.ipc, &sandbox.uts].into_iter().flatten().all(|p| is_mounted(p))
        {
            return Ok(sandbox);
        }
        self.remove_blocking(&spec.pod_uid)?;
        self.make_shared()?;
        fs::create_dir_all(&place)?;
        make_namespaces(&sandbox, &spec.hostname)?;
        if let Some(shm) = &sandbox.shm {
            fs::create_dir(shm)?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("shm", shm, "tmpfs", flags, SHM_SIZE)?;
        }
        File::create(done)?;
        Ok(sandbox)
    }

    /// Sees to it that what is unmounted here goes away in every shim's mount namespace too; there, it would keep the
    /// pod's namespaces alive. Where the folder's own file system is shared already, nothing is to be done.
    fn make_shared(&self) -> io::Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        if propagates(&table, &fs::canonicalize(&self.dir)?) {
            return Ok(());
        }
        rustix::mount::mount_bind(&self.dir, &self.dir)?;
        Ok(rustix::mount::mount_change(&self.dir, MountPropagationFlags::SHARED)?)
    }

    pub(crate) async fn remove(&self, pod_uid: &str) -> Result<(), Error> {
        let (this, uid) = (self.clone(), pod_uid.to_owned());
        on_thread(move || this.remove_blocking(&uid))
            .await
            .map_err(|e| Error::Node(format!("remove the sandbox of pod {pod_uid}: {e}")))
    }

    fn remove_blocking(&self, pod_uid: &str) -> io::Result<()> {
        let place = self.place(pod_uid)?;
        for name in ["net", "ipc", "uts", "shm"] {
            unmount(&place.join(name))?;
        }
        match fs::remove_dir_all(&place) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        if fs::read_dir(&self.dir)?.next().is_none() {
            // Our own bind mount, if there was need of one.
            unmount(&self.dir)?;
        }
        Ok(())
    }

    pub(crate) fn list(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Unmounts all that is mounted at a path.
fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing (more) mounted there, or nothing there at all.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

#[allow(unsafe_code)]
fn make_namespaces(sandbox: &Sandbox, hostname: &str) -> io::Result<()> {
    let kinds = [
        (&sandbox.net, UnshareFlags::NEWNET),
        (&sandbox.ipc, UnshareFlags::NEWIPC),
        (&sandbox.uts, UnshareFlags::NEWUTS),
    ];
    let flags =
        kinds.iter().filter(|(path, _)| path.is_some()).fold(UnshareFlags::empty(), |all, (_, f)| all | *f);
    if flags.is_empty() {
        return Ok(());
    }
    // SAFETY: none of these flags touches the descriptor table.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    if sandbox.uts.is_some() {
        nix::unistd::sethostname(hostname)?;
    }
    for path in kinds.iter().filter_map(|(path, _)| path.as_ref()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        File::create(path)?;
        rustix::mount::mount_bind(format!("/proc/thread-self/ns/{name}"), path)?;
    }
    Ok(())
}

/// Whether a namespace is mounted at a path: then it lies on another file system than its folder.
fn is_mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(path).is_some() && device(path) != device(parent))
}

/// Whether the mount that a path lies on passes changes on. Pure.
fn propagates(mountinfo: &str, path: &Path) -> bool {
    let covering = mountinfo.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let at = Path::new(fields.get(4)?);
        let shared = fields.iter().skip(6).take_while(|f| **f != "-").any(|f| f.starts_with("shared:"));
        path.starts_with(at).then_some((at.components().count(), shared))
    });
    // The last of several mounts on one place is the one on top.
    covering.max_by_key(|(depth, _)| *depth).is_some_and(|(_, shared)| shared)
}

/// Runs something on a thread that nothing else uses, neither before nor after.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("namespaces".into()).spawn(move || drop(sender.send(work())))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread was lost")))
}

/// Connects from inside a network namespace.
pub(crate) async fn dial(
    netns: Option<PathBuf>,
    address: IpAddr,
    port: u16,
) -> Result<tokio::net::TcpStream, Error> {
    let to = SocketAddr::new(address, port);
    let connected = on_thread(move || {
        if let Some(path) = netns {
            let file = File::open(path)?;
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )?;
        }
        let stream = TcpStream::connect_timeout(&to, DIAL_TIMEOUT)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    connected
        .await
        .and_then(tokio::net::TcpStream::from_std)
        .map_err(|e| Error::Node(format!("connect to {to}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mounts_are_known() {
        let table =
            "21 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n30 21 0:5 / /run rw master:3 - tmpfs t rw\n";
        assert!(propagates(table, Path::new("/var/x")));
        assert!(!propagates(table, Path::new("/run/x")));
        assert!(!propagates("", Path::new("/")));
    }
}
