//! Control groups, read and removed directly: the library's statistics fail whole when one file is missing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::{Error, Usage};

const ROOT: &str = "/sys/fs/cgroup";
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Controllers that containers need.
const NEEDED_V1: &[&str] = &["cpu", "cpuacct", "memory", "pids", "devices"];
const NEEDED_V2: &[&str] = &["cpu", "memory", "pids"];
/// Rounds of killing before giving up on a cgroup whose processes do not go.
const KILL_ROUNDS: usize = 200;

/// Where the hierarchies are mounted.
#[derive(Clone, Debug)]
pub(crate) enum Hierarchy {
    /// One mount for each controller (or set of controllers).
    V1(Vec<(Vec<String>, PathBuf)>),
    /// One mount.
    V2(PathBuf),
}

impl Hierarchy {
    pub(crate) fn find() -> io::Result<Self> {
        // The library decides by the same sign.
        let unified = rustix::fs::statfs(ROOT)?.f_type as u64 == CGROUP2_MAGIC;
        Ok(if unified { Self::V2(ROOT.into()) } else { Self::v1(&fs::read_to_string("/proc/self/mounts")?) })
    }

    /// Reads the mount table; other things than v1 hierarchies do not count. Pure.
    fn v1(mounts: &str) -> Self {
        let hierarchies = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup").then(|| (options.split(',').map(str::to_owned).collect(), PathBuf::from(path)))
        });
        Self::V1(hierarchies.collect())
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let relative = path.trim_start_matches('/');
        match self {
            Self::V2(root) => Some(root.join(relative)),
            Self::V1(mounts) => {
                let (_, root) = mounts.iter().find(|(options, _)| options.iter().any(|o| o == controller))?;
                Some(root.join(relative))
            }
        }
    }

    /// The folders of one cgroup in all hierarchies.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let relative = path.trim_start_matches('/');
        match self {
            Self::V2(root) => vec![root.join(relative)],
            Self::V1(mounts) => mounts.iter().map(|(_, root)| root.join(relative)).collect(),
        }
    }

    /// How often the kernel killed something in a cgroup for lack of memory.
    pub(crate) fn oom_kills(&self, path: &str) -> u64 {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        self.dir("memory", path).and_then(|d| value(&d.join(file), "oom_kill")).unwrap_or(0)
    }

    pub(crate) fn usage(&self, path: &str) -> Result<Usage, Error> {
        let missing = || Error::NotFound(format!("cgroup {path}"));
        let dir = |controller| self.dir(controller, path).filter(|d| d.is_dir());
        let (used, inactive, cpu) = if self.is_v2() {
            let dir = dir("").ok_or_else(missing)?;
            let used = number(&dir.join("memory.current"));
            let cpu = value(&dir.join("cpu.stat"), "usage_usec").map(|us| us * 1000);
            (used, value(&dir.join("memory.stat"), "inactive_file"), cpu)
        } else {
            let memory = dir("memory").ok_or_else(missing)?;
            let used = number(&memory.join("memory.usage_in_bytes"));
            let cpu = dir("cpuacct").and_then(|d| number(&d.join("cpuacct.usage")));
            (used, value(&memory.join("memory.stat"), "total_inactive_file"), cpu)
        };
        Ok(Usage {
            cpu_nanos: cpu.unwrap_or(0),
            memory_bytes: used.unwrap_or(0).saturating_sub(inactive.unwrap_or(0)),
            pids: self.pids(path),
        })
    }

    fn pids(&self, path: &str) -> u64 {
        self.dir("pids", path).and_then(|d| number(&d.join("pids.current"))).unwrap_or(0)
    }

    /// Kills every process in a cgroup and below, and waits until they are gone.
    pub(crate) fn kill_all(&self, path: &str) -> io::Result<()> {
        for _ in 0..KILL_ROUNDS {
            let mut alive = false;
            for dir in self.dirs(path) {
                for pid in processes(&dir) {
                    alive = true;
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        // Gone in between is what was wanted.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
            if !alive {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(io::Error::other(format!("processes in cgroup {path} do not end")))
    }

    /// Removes a cgroup and the empty ones below it, everywhere. One that is not there is no error.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        if path.split('/').any(|part| part == "..") || path.trim_matches('/').is_empty() {
            return Err(io::Error::other(format!("{path:?} is no cgroup of ours")));
        }
        self.dirs(path).iter().try_for_each(|dir| remove_tree(dir))
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::other(format!("{}: {e}", dir.display())))
        }
        _ => Ok(()),
    }
}

fn processes(dir: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(dir.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|l| l.parse().ok()).collect())
        .unwrap_or_default();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a key in a file of `key number` lines.
fn value(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Says what a node lacks to run containers, and what to do about it.
pub fn preflight(cgroup_root: &str) -> Result<(), Error> {
    let node = |what: String| Error::Node(what);
    let file_systems =
        fs::read_to_string("/proc/filesystems").map_err(|e| node(format!("/proc/filesystems: {e}")))?;
    if !file_systems.lines().any(|l| l.trim_start_matches("nodev").trim() == "overlay") {
        return Err(node(
            "the kernel has no overlayfs: `modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS".into(),
        ));
    }
    let hierarchy = Hierarchy::find().map_err(|e| node(format!("/proc/self/mounts: {e}")))?;
    let (needed, have): (_, Vec<String>) = match &hierarchy {
        Hierarchy::V1(mounts) => {
            (NEEDED_V1, mounts.iter().flat_map(|(options, _)| options.clone()).collect())
        }
        Hierarchy::V2(root) => {
            let text = fs::read_to_string(root.join("cgroup.controllers"))
                .map_err(|e| node(format!("{}: {e}; is cgroup2 mounted?", root.display())))?;
            (NEEDED_V2, text.split_whitespace().map(str::to_owned).collect())
        }
    };
    let missing: Vec<&str> = needed.iter().copied().filter(|n| !have.iter().any(|h| h == n)).collect();
    if !missing.is_empty() {
        return Err(node(lacking(&missing)));
    }
    for dir in hierarchy.dirs(cgroup_root) {
        fs::create_dir_all(&dir).map_err(|e| node(format!("make cgroup {}: {e}", dir.display())))?;
    }
    Ok(())
}

fn lacking(missing: &[&str]) -> String {
    let mut text = format!("the kernel lacks the cgroup controllers {}", missing.join(", "));
    if missing.contains(&"memory") {
        text.push_str(
            "; add `cgroup_enable=memory cgroup_memory=1` to /boot/firmware/cmdline.txt and reboot",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_in_their_hierarchies() {
        let hybrid = "cgroup /c/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup2 /c/unified cgroup2 rw 0 0\n";
        let found = Hierarchy::v1(hybrid);
        assert!(!found.is_v2());
        assert_eq!(found.dir("cpuacct", "/a/b"), Some("/c/cpu,cpuacct/a/b".into()));
        assert_eq!(found.dir("memory", "/a"), None);
        assert_eq!(Hierarchy::V2(ROOT.into()).dir("memory", "a"), Some("/sys/fs/cgroup/a".into()));
    }

    #[test]
    fn nothing_but_a_named_cgroup_is_removed() {
        let v2 = Hierarchy::V2("/nonexistent".into());
        assert!(v2.remove("/").is_err());
        assert!(v2.remove("/a/../..").is_err());
        assert!(v2.remove("/a/b").is_ok());
    }

    #[test]
    fn a_missing_memory_controller_says_what_to_do() {
        assert!(lacking(&["memory"]).contains("cgroup_enable=memory cgroup_memory=1"));
        assert!(!lacking(&["pids"]).contains("cmdline"));
    }
}
