//! What a node keeps about itself on disk, besides the store's own files.

use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use cluster::join::ClusterSettings;
use cluster::ledger;
use cluster::members::Member;
use cluster::pki::Pair;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

/// `node.json`: this node belongs to a cluster. Written last when joining, removed first when leaving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeState {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node's own record.
    pub member: Member,
    /// What all nodes share.
    pub settings: ClusterSettings,
    /// Everybody, as last heard: how to find the cluster after a reboot.
    pub members: Vec<Member>,
    /// This node's pods' range, once it has been given one: pods need no master to start again.
    pub pod_cidr: Option<ipnet::Ipv4Net>,
    /// Whether the cluster was made here.
    pub first: bool,
}

impl NodeState {
    /// The address others reach this node at.
    pub fn address(&self) -> Result<IpAddr> {
        self.member.addresses.first().copied().context("node.json has no address")
    }
}

/// The files of one node.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
    turn: Arc<Mutex<()>>,
}

impl Files {
    /// Below the data folder.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), turn: Arc::default() }
    }

    /// The store's folder.
    pub fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    /// Kubeconfig of the administrator, on the node where the cluster was made.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    fn node(&self) -> PathBuf {
        self.root.join("node.json")
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(name)
    }

    /// The node's state, if it belongs to a cluster.
    pub fn load(&self) -> Result<Option<NodeState>> {
        Ok(ledger::load(&self.node())?)
    }

    /// Writes `node.json`.
    pub fn save(&self, state: &NodeState) -> Result<()> {
        Ok(ledger::save(&self.node(), state, 0o600)?)
    }

    /// Changes `node.json`, if it is there; the new state. Several tasks do: one after the other.
    pub fn update(&self, change: impl FnOnce(&mut NodeState)) -> Result<Option<NodeState>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = self.load()? else { return Ok(None) };
        let mut new = old.clone();
        change(&mut new);
        if new != old {
            self.save(&new)?;
        }
        Ok(Some(new))
    }

    /// The node's key and certificate, and the CA's certificate.
    pub fn load_pki(&self) -> Result<(Pair, String)> {
        let read = |name| {
            let path = self.pki(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok((Pair { certificate: read("node.crt")?, key: read("node.key")? }, read("ca.crt")?))
    }

    /// Writes them.
    pub fn save_pki(&self, node: &Pair, ca: &str) -> Result<()> {
        ledger::write(&self.pki("node.key"), node.key.as_bytes(), 0o600)?;
        ledger::write(&self.pki("node.crt"), node.certificate.as_bytes(), 0o644)?;
        Ok(ledger::write(&self.pki("ca.crt"), ca.as_bytes(), 0o644)?)
    }

    /// Forgets the cluster: `node.json` first, so that a power cut in between leaves a node that is in none.
    pub fn wipe(&self) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for file in [self.node(), self.kubeconfig()] {
            absent(std::fs::remove_file(&file)).with_context(|| file.display().to_string())?;
        }
        for name in ["raft", "pki", "pods", "network"] {
            let folder = self.root.join(name);
            unmount_below(&folder).with_context(|| folder.display().to_string())?;
            absent(std::fs::remove_dir_all(&folder)).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    }
}

/// Takes off what is mounted below a folder: volumes in memory, and folders of the host that pods were given parts of.
/// Were the folder removed before, the host's files would go with it.
fn unmount_below(folder: &Path) -> std::io::Result<()> {
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    // Later mounts may lie on earlier ones.
    for place in table.lines().rev().filter_map(mount_point).filter(|place| place.starts_with(&folder)) {
        rustix::mount::unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// The fifth word of a line (proc_pid_mountinfo(5)); blanks and the like are written as a backslash and octal digits.
fn mount_point(line: &str) -> Option<PathBuf> {
    let word = line.split(' ').nth(4)?.as_bytes();
    let mut path = Vec::with_capacity(word.len());
    let mut at = 0;
    while let Some(byte) = word.get(at) {
        let escaped = (*byte == b'\\').then(|| word.get(at + 1..at + 4)).flatten();
        let code = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(code.unwrap_or(*byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

fn absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A kubeconfig with a client certificate.
pub fn kubeconfig(server: &str, ca: &str, client: &Pair) -> String {
    use base64::Engine;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: bramble\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: bramble\n  context:\n    cluster: bramble\n    user: kubernetes-admin\n\
         current-context: bramble\n",
        b64(ca),
        b64(&client.certificate),
        b64(&client.key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    use rustix::thread::UnshareFlags;

    /// Runs in a mount namespace of its own, so that nothing is left behind whatever happens.
    fn apart(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            // SAFETY: NEWNS does not touch descriptors, and only this thread is moved.
            #[allow(unsafe_code)]
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            test();
        });
        thread.join().unwrap();
    }

    #[test]
    fn what_pods_saw_of_the_host_outlives_the_cluster() {
        apart(|| {
            let dir = tempfile::tempdir().unwrap();
            let (root, host) = (dir.path().join("with blank"), dir.path().join("host"));
            let seen = root.join("pods/uid/subpaths/web-0");
            std::fs::create_dir_all(&seen).unwrap();
            std::fs::create_dir(&host).unwrap();
            std::fs::write(host.join("precious"), "").unwrap();
            // Twice, one on the other.
            mount_bind(&host, &seen).unwrap();
            mount_bind(&host, &seen).unwrap();
            Files::new(&root).wipe().unwrap();
            assert!(host.join("precious").exists());
            assert!(!root.join("pods").exists());
        });
    }

    #[test]
    fn mount_points_are_read() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/mnt 2\")));
        assert_eq!(mount_point("36 35"), None);
    }
}
