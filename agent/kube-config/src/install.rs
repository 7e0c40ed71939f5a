//! `kube-config install`: what an existing Debian or Raspberry Pi OS needs before it can be a node.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where Raspberry Pi OS has the kernel's command line, today and before.
const CMDLINES: [&str; 2] = ["boot/firmware/cmdline.txt", "boot/cmdline.txt"];
/// What makes the kernel of Raspberry Pi OS count memory.
const WORDS: [&str; 2] = ["cgroup_enable=memory", "cgroup_memory=1"];
/// Which of them were not there before, so that a removed package takes back what it did.
const ADDED: &str = "var/lib/bramble/cmdline-added";

/// Prepares this system and starts the agent.
pub(crate) fn run() -> Result<()> {
    let root = Path::new("/");
    if !root.join("run/systemd/system").exists() {
        bail!("this system does not run systemd, which the agent needs");
    }
    let reboot = prepare(root)?;
    let status = Command::new("systemctl").args(["enable", "--now", "bramble.service"]).status();
    if !status.context("systemctl")?.success() {
        bail!("the agent does not start; see journalctl -u bramble");
    }
    println!("The agent runs, and starts at every boot.");
    if let Some(cmdline) = reboot {
        println!("Memory limits were switched on in {}: reboot before you go on.", cmdline.display());
    }
    println!("Next: kube-config enable-master, or kube-config enable-worker ADDRESS.");
    Ok(())
}

/// Takes back what [`run`] changed; the service is the package manager's to stop.
pub(crate) fn undo() -> Result<()> {
    if let Some(path) = take_back(Path::new("/"))? {
        println!("Memory limits are no longer switched on in {}.", path.display());
    }
    Ok(())
}

/// Switches the memory controller on where it is off; gives the file that was changed.
fn prepare(root: &Path) -> Result<Option<PathBuf>> {
    if has_memory_controller(root) {
        return Ok(None);
    }
    let Some(path) = CMDLINES.iter().map(|name| root.join(name)).find(|path| path.exists()) else {
        bail!(
            "the kernel has no memory controller for cgroups, and this is no Raspberry Pi OS whose cmdline.txt could \
             be changed: add `{}` to the kernel's command line and reboot",
            WORDS.join(" ")
        );
    };
    let named = || path.display().to_string();
    let text = fs::read_to_string(&path).with_context(named)?;
    let missing = missing(&text);
    if !missing.is_empty() {
        let added = root.join(ADDED);
        fs::create_dir_all(root.join("var/lib/bramble"))?;
        // First: a power cut between leaves words to take back that are not there, which is no harm.
        replace(&added, &missing.join(" ")).with_context(|| added.display().to_string())?;
        // A second line would be ignored by the firmware.
        let changed = format!("{} {}\n", text.trim_end(), missing.join(" "));
        replace(&path, &changed).with_context(named)?;
    }
    Ok(Some(path))
}

/// Removes the words that were added; gives the file that was changed.
fn take_back(root: &Path) -> Result<Option<PathBuf>> {
    let record = root.join(ADDED);
    let Ok(added) = fs::read_to_string(&record) else { return Ok(None) };
    let mut undone = None;
    for path in CMDLINES.iter().map(|name| root.join(name)).filter(|path| path.exists()) {
        let named = || path.display().to_string();
        let text = fs::read_to_string(&path).with_context(named)?;
        let ours = |word: &&str| WORDS.contains(word) && added.split_ascii_whitespace().any(|a| a == *word);
        if text.split_ascii_whitespace().any(|word| ours(&word)) {
            let kept: Vec<&str> = text.split_ascii_whitespace().filter(|word| !ours(word)).collect();
            replace(&path, &format!("{}\n", kept.join(" "))).with_context(named)?;
            undone = Some(path);
        }
    }
    fs::remove_file(&record).with_context(|| record.display().to_string())?;
    Ok(undone)
}

fn has_memory_controller(root: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    // Version 2, and the table that version 1 has: name, hierarchy, groups, enabled.
    read("sys/fs/cgroup/cgroup.controllers").split_ascii_whitespace().any(|word| word == "memory")
        || read("proc/cgroups").lines().any(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            matches!(fields.as_slice(), ["memory", .., "1"])
        })
}

/// Those of the words that the line does not have.
fn missing(text: &str) -> Vec<&'static str> {
    WORDS.into_iter().filter(|word| !text.split_ascii_whitespace().any(|w| w == *word)).collect()
}

/// Whole or not at all: a system whose cmdline.txt is cut short does not boot.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all())?;
    fs::rename(&new, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(controllers: &str, cgroups: &str, cmdline: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["sys/fs/cgroup", "proc", "boot/firmware"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("sys/fs/cgroup/cgroup.controllers"), controllers).unwrap();
        fs::write(root.path().join("proc/cgroups"), cgroups).unwrap();
        if let Some(text) = cmdline {
            fs::write(root.path().join("boot/firmware/cmdline.txt"), text).unwrap();
        }
        root
    }

    #[test]
    fn a_system_that_counts_memory_is_left_alone() {
        let root = system("cpu memory pids\n", "", Some("quiet\n"));
        assert_eq!(prepare(root.path()).unwrap(), None);
        let old = system("", "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t5\t80\t1\n", None);
        assert_eq!(prepare(old.path()).unwrap(), None);
    }

    #[test]
    fn memory_is_switched_on_once() {
        let root = system("cpu pids\n", "memory\t0\t80\t0\n", Some("console=tty1 root=x rootwait\n"));
        let path = prepare(root.path()).unwrap().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "console=tty1 root=x rootwait cgroup_enable=memory cgroup_memory=1\n");
        prepare(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_was_added_is_taken_back() {
        let before = "console=tty1 cgroup_memory=1 root=x rootwait\n";
        let root = system("cpu pids\n", "", Some(before));
        let path = prepare(root.path()).unwrap().unwrap();
        prepare(root.path()).unwrap();
        assert_ne!(fs::read_to_string(&path).unwrap(), before);
        assert_eq!(take_back(root.path()).unwrap().as_deref(), Some(path.as_path()));
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        assert!(!root.path().join(ADDED).exists());
        assert_eq!(take_back(root.path()).unwrap(), None);
    }

    #[test]
    fn elsewhere_it_says_what_to_do() {
        let root = system("cpu\n", "", None);
        assert!(prepare(root.path()).unwrap_err().to_string().contains("cgroup_memory=1"));
    }
}
