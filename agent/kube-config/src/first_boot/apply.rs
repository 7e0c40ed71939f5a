//! Doing it: files below a root, each whole or not at all, and the boot partition.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, mount_remount};

use super::plan::Plan;
use super::settings::MAX_FILE;

/// What a person edits, and where its mistakes are told.
pub const FILE: &str = "bramble.toml";
/// See [`FILE`].
pub const ERRORS: &str = "bramble-errors.txt";
/// What editors that hide endings make of it.
const MISNAMED: [&str; 3] = ["bramble.toml.txt", "bramble.txt", "bramble.toml.toml"];

/// Makes the plan's files. Doing it twice does no harm, so a power cut at any moment is mended by the next boot.
pub fn apply(root: &Path, plan: &Plan) -> Result<()> {
    for file in &plan.files {
        let path = root.join(file.path);
        match &file.content {
            Some(content) => write(&path, content.as_bytes(), file.mode)?,
            None => remove(&path)?,
        }
    }
    let localtime = root.join("etc/localtime");
    let new = root.join("etc/.localtime.new");
    remove(&new)?;
    symlink(&plan.localtime, &new).and_then(|()| fs::rename(&new, &localtime)).context("/etc/localtime")
}

/// Writes a file: whole, on the disk, or not at all.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    let name = path.file_name().context("a file needs a name")?.to_string_lossy();
    let new = folder.join(format!(".{name}.new"));
    let done = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    done().with_context(|| format!("writing {}", path.display()))
}

/// Removes a file that may not be there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The boot partition's text, as far as it is text.
pub fn read_file(boot: &Path) -> Result<Option<String>, String> {
    let path = boot.join(FILE);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| format!("{FILE}: {error}"))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match MISNAMED.iter().find(|name| boot.join(name).exists()) {
                Some(name) => Err(format!("there is a {name} but no {FILE}: rename it")),
                None => Ok(None),
            };
        }
        Err(error) => return Err(format!("{FILE} cannot be read: {error}")),
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{FILE} is longer than {} KiB", MAX_FILE / 1024));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(format!(
            "{FILE} is saved as UTF-16: save it as UTF-8 (\"Encoding\" in the editor's Save As)"
        ));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("{FILE}, line {line}: a character that is not UTF-8: save the file as UTF-8")
    })
}

/// Overwrites the file where it is: the new text is as long as the old one, so no block of it is given back.
pub fn overwrite(boot: &Path, old: &str, new: &str) -> Result<()> {
    if old == new {
        return Ok(());
    }
    if old.len() != new.len() {
        bail!("the secrets cannot be taken out of {FILE} where they are");
    }
    let path = boot.join(FILE);
    let done = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(new.as_bytes(), 0)?;
        file.sync_all()
    };
    done().with_context(|| format!("taking the secrets out of {}", path.display()))
}

/// Tells about mistakes on the card; nothing to tell removes what was told before.
pub fn report(boot: &Path, text: Option<&str>) -> Result<()> {
    let path = boot.join(ERRORS);
    // Lines as every editor knows them.
    let text = text.map(|text| text.replace('\n', "\r\n"));
    match text {
        Some(text) if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) => Ok(()),
        Some(text) => {
            let written = File::create(&path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
            written.with_context(|| format!("writing {}", path.display()))
        }
        None => remove(&path),
    }
}

/// Makes the boot partition writable for as long as the work takes.
pub fn writable<T>(boot: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let state = rustix::fs::statvfs(boot).with_context(|| boot.display().to_string())?;
    if !state.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return work();
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(boot, flags, c"").context("making the boot partition writable")?;
    let result = work();
    // What stays open longer than it should is closed by the next boot.
    if let Err(error) = mount_remount(boot, flags | MountFlags::RDONLY, c"") {
        eprintln!("warning: {} stays writable: {error}", boot.display());
    }
    result
}
