//! The boot partition's FAT32, made by mkfs.vfat and mtools.

use crate::tools::run;
use crate::tree::{Kind, Tree};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

/// Writes a file system of `size` bytes.
pub fn write(tree: &Tree, label: &str, size: u64, id: u32, epoch: u32, path: &Path) -> Result<()> {
    let mut mkfs = Command::new("mkfs.vfat");
    mkfs.env("PATH", crate::tools::search_path()).env("SOURCE_DATE_EPOCH", epoch.to_string());
    mkfs.args(["--invariant", "-F", "32", "-S", "512", "-n", label, "-i", &format!("{id:08x}"), "-C"]);
    mkfs.arg(path).arg((size / 1024).to_string());
    run(&mut mkfs, "dosfstools")?;
    let scratch = tempfile::tempdir()?;
    let time = UNIX_EPOCH + Duration::from_secs(epoch.into());
    stage(tree, scratch.path(), time)?;
    // mtools copies a folder in the order in which the host's file system lists it: give it the files one by one.
    for (inside, node) in tree.iter() {
        let target = format!("::/{inside}");
        let mut command = match &node.kind {
            Kind::Directory => Command::new("mmd"),
            Kind::File(_) => Command::new("mcopy"),
            Kind::Symlink(_) => bail!("{inside}: FAT has no links"),
        };
        command.env("SOURCE_DATE_EPOCH", epoch.to_string()).arg("-i").arg(path);
        if let Kind::File(_) = node.kind {
            command.arg("-m").arg(scratch.path().join(inside));
        }
        run(command.arg(target), "mtools").with_context(|| inside.to_owned())?;
    }
    Ok(())
}

fn stage(tree: &Tree, folder: &Path, time: std::time::SystemTime) -> Result<()> {
    for (path, node) in tree.iter() {
        let place = folder.join(path);
        if let Kind::File(bytes) = &node.kind {
            fs::write(&place, bytes)?;
            File::options().write(true).open(&place)?.set_times(FileTimes::new().set_modified(time))?;
        } else {
            fs::create_dir_all(&place)?;
        }
    }
    Ok(())
}

/// Which bytes of a FAT32 mean something, in clusters: what comes before the first cluster, and each that is taken.
pub fn used(image: &[u8]) -> Result<Vec<(u64, u64)>> {
    let field = |at: usize, size: usize| -> Option<u64> {
        let bytes = image.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let read = || -> Option<(u64, u64, u64, u64)> {
        let sector = field(11, 2)?;
        let cluster = field(13, 1)? * sector;
        let table = field(14, 2)? * sector;
        let data = table + field(16, 1)? * field(36, 4)? * sector;
        (sector >= 512 && cluster > 0).then_some((
            cluster,
            table,
            data,
            (image.len() as u64).checked_sub(data)? / cluster,
        ))
    };
    let (cluster, table, data, count) = read().context("no FAT32 file system")?;
    let mut ranges = vec![(0, data)];
    for number in 0..count {
        let at = usize::try_from(table + (number + 2) * 4)?;
        if field(at, 4).context("the FAT is cut short")? & 0x0fff_ffff != 0 {
            ranges.push((data + number * cluster, cluster));
        }
    }
    Ok(ranges)
}
