//! What every integration test needs: images made on the spot, a runtime in a corner of its own, and proof that
//! nothing is left behind.

// Not every test binary uses all of it; and a panic is how a test says that something failed.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::{Config, ContainerSpec, Libcontainer, Registries, Resources, Runtime, Sandbox};
use sha2::{Digest, Sha256};

pub const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "ls", "id", "grep", "mkdir", "mount", "dd", "true", "false", "kill",
    "stty", "touch", "stat", "hostname", "nc", "tail", "mknod", "readlink", "wc", "seq", "head", "umask",
    "ps", "env", "test", "trap", "rm",
];

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether the library sees cgroup v2.
pub fn cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A tar in the making.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(1_600_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// An entry whose path is put in as it is, however evil.
    pub fn raw(mut self, path: &str, mut header: tar::Header, content: &[u8]) -> Self {
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        field[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.raw(path, Self::header(tar::EntryType::Regular, mode, content.len() as u64), content)
    }

    pub fn owned(self, path: &str, mode: u32, uid: u64, gid: u64, content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len() as u64);
        header.set_uid(uid);
        header.set_gid(gid);
        self.raw(path, header, content)
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(path, Self::header(tar::EntryType::Directory, mode, 0), b"")
    }

    pub fn link(self, path: &str, target: &str, hard: bool) -> Self {
        let kind = if hard { tar::EntryType::Link } else { tar::EntryType::Symlink };
        let mut header = Self::header(kind, 0o777, 0);
        header.set_link_name_literal(target).unwrap();
        self.raw(path, header, b"")
    }

    pub fn device(self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0o600, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(path, header, b"")
    }

    pub fn xattr(mut self, path: &str, mode: u32, name: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)]).unwrap();
        self.file(path, mode, b"x")
    }

    /// An extended header of the entry that comes next.
    pub fn extended(mut self, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image to be.
#[derive(Clone)]
pub struct TestImage {
    pub architecture: String,
    pub layers: Vec<Vec<u8>>,
    pub config: serde_json::Value,
}

impl TestImage {
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"] });
        Self { architecture: architecture.into(), layers, config }
    }

    pub fn config_json(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|l| format!("sha256:{}", sha256(l))).collect();
        serde_json::json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes()
    }

    pub fn id(&self) -> String {
        format!("sha256:{}", sha256(&self.config_json()))
    }

    /// As `docker save` writes it.
    pub fn docker_save(&self, tag: &str) -> Vec<u8> {
        let config = self.config_json();
        let name = format!("{}.json", sha256(&config));
        let mut tar = Tar::new().file(&name, 0o644, &config);
        let mut layers = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            layers.push(format!("{i}/layer.tar"));
            tar = tar.file(&layers[i], 0o644, layer);
        }
        let manifest = serde_json::json!([{ "Config": name, "RepoTags": [tag], "Layers": layers }]);
        tar.file("manifest.json", 0o644, manifest.to_string().as_bytes()).bytes()
    }
}

/// Busybox and a few users.
pub fn base_layer() -> Vec<u8> {
    let busybox = std::fs::read(BUSYBOX).expect("apt-get install busybox-static");
    let mut tar = Tar::new()
        .dir("bin", 0o755)
        .dir("etc", 0o755)
        .dir("tmp", 0o1777)
        .dir("root", 0o700)
        .file("bin/busybox", 0o755, &busybox)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nweb:x:34:\nmedia:x:44:web\n")
        .device("disk", tar::EntryType::Block, 7, 0)
        .file("private", 0o750, b"#!/bin/sh\necho private\n");
    for applet in APPLETS {
        tar = tar.link(&format!("bin/{applet}"), "busybox", false);
    }
    tar.bytes()
}

/// A runtime with folders and cgroups of its own.
pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: Arc<Libcontainer>,
    pub image: String,
    pub cgroup_root: String,
}

pub fn config(dir: &Path, cgroup_root: &str, registries: Registries) -> Config {
    Config {
        state_dir: dir.join("lib"),
        run_dir: dir.join("run"),
        cgroup_root: cgroup_root.to_owned(),
        helper: PathBuf::from(env!("CARGO_BIN_EXE_runtime-helper")),
        registries,
    }
}

impl World {
    /// A world with the busybox image in it.
    pub async fn new() -> Self {
        let mut world = Self::empty(Registries::default()).await;
        let image = TestImage::new(vec![base_layer()]);
        let archive = world.dir.path().join("base.tar");
        std::fs::write(&archive, image.docker_save("base:1")).unwrap();
        world.image = world.runtime.load(&archive).await.unwrap()[0].id.clone();
        world
    }

    pub async fn empty(registries: Registries) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_owned();
        let cgroup_root = format!("/bramble-test-{name}");
        let runtime = Libcontainer::open(config(dir.path(), &cgroup_root, registries)).await.unwrap();
        Self { dir, runtime, image: String::new(), cgroup_root }
    }

    pub async fn reopen(&mut self) {
        let config = config(self.dir.path(), &self.cgroup_root, Registries::default());
        self.runtime = Libcontainer::open(config).await.unwrap();
    }

    pub fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        spec(self.dir.path(), &self.image, id, script)
    }

    pub fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.dir.path().join("logs").join(id)).unwrap_or_default()
    }

    /// What a container printed, without the log's own fields.
    pub fn output(&self, id: &str) -> String {
        self.log(id).lines().map(|l| format!("{}\n", l.splitn(4, ' ').nth(3).unwrap())).collect()
    }

    /// Starts, waits, and gives exit code and output.
    pub async fn run(&self, spec: ContainerSpec) -> (i32, String) {
        let id = spec.id.clone();
        self.runtime.start(spec).await.unwrap();
        let exit = self.runtime.wait(&id).await.unwrap();
        (exit.code, self.output(&id))
    }

    /// Removes everything and checks that nothing stays.
    pub async fn end(self) {
        for container in self.runtime.list().await {
            self.runtime.kill(&container.id, 9).await.unwrap();
            self.runtime.wait(&container.id).await.unwrap();
            self.runtime.remove(&container.id).await.unwrap();
        }
        for sandbox in self.runtime.sandboxes().await {
            self.runtime.remove_sandbox(&sandbox).await.unwrap();
        }
        self.runtime.remove_cgroup("/pods").await.unwrap();
        let place = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&place), "mounts left: {mounts}");
        for folder in ["lib/containers", "run/shims", "run/sandboxes"] {
            let left: Vec<_> = std::fs::read_dir(self.dir.path().join(folder)).unwrap().collect();
            assert!(left.is_empty(), "left in {folder}: {left:?}");
        }
        let cgroups = cgroups(&self.cgroup_root);
        for dir in &cgroups {
            let below = std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.path().is_dir()).count();
            assert_eq!(below, 0, "cgroups left in {}", dir.display());
            std::fs::remove_dir(dir).unwrap();
        }
    }
}

/// What a failed test leaves is ended too: no process, no cgroup, no mount outlives it.
impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let cgroups = cgroups(&self.cgroup_root);
        for _ in 0..200 {
            cgroups.iter().for_each(|dir| kill_and_remove(dir));
            if cgroups.iter().all(|dir| !dir.exists()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for sandbox in
            std::fs::read_dir(self.dir.path().join("run/sandboxes")).into_iter().flatten().flatten()
        {
            for name in ["net", "ipc", "uts", "shm"] {
                let _ =
                    rustix::mount::unmount(sandbox.path().join(name), rustix::mount::UnmountFlags::DETACH);
            }
        }
        let _ = rustix::mount::unmount(
            self.dir.path().join("run/sandboxes"),
            rustix::mount::UnmountFlags::DETACH,
        );
    }
}

/// The folders of a cgroup root in all hierarchies.
pub fn cgroups(root: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    find(Path::new("/sys/fs/cgroup"), root.trim_start_matches('/'), 4, &mut found);
    found
}

fn kill_and_remove(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            kill_and_remove(&entry.path());
        }
    }
    for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = std::fs::remove_dir(dir);
}

fn find(dir: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(entry.path());
        } else if depth > 1 {
            find(&entry.path(), name, depth - 1, found);
        }
    }
}

pub fn spec(dir: &Path, image: &str, id: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        id: id.into(),
        image: image.into(),
        sandbox: Sandbox { net: None, ipc: None, uts: None, shm: None },
        host_pid: false,
        pid_of: None,
        args: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: vec!["A=b".into()],
        working_dir: String::new(),
        user: String::new(),
        supplemental_groups: vec![],
        mounts: vec![],
        cgroup: format!("/pods/pod1/{id}"),
        resources: Resources::default(),
        privileged: false,
        read_only_root: false,
        no_new_privileges: false,
        add_capabilities: vec![],
        drop_capabilities: vec![],
        seccomp_unconfined: false,
        sysctls: BTreeMap::new(),
        tty: false,
        stdin: false,
        log_path: dir.join("logs").join(id),
        labels: BTreeMap::from([("pod".to_owned(), "p1".to_owned())]),
    }
}

/// Waits until something holds; fails loudly if it never does. For what gives no event to wait for.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..1500 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
