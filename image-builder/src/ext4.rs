//! The data partition's ext4, made by mke2fs with everything fixed that it would choose by chance.

use crate::tools::{run, search_path};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// A folder to make in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Relative to its root; parents come first.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Writes a file system of `size` bytes, laid out as a large one: it is grown to the card.
pub fn write(folders: &[Folder], label: &str, size: u64, uuid: &str, epoch: u32, path: &Path) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", search_path()).env("E2FSPROGS_FAKE_TIME", epoch.to_string());
    // The machine's own mke2fs.conf must not matter.
    mke2fs.env("MKE2FS_CONFIG", "/dev/null").env("SOURCE_DATE_EPOCH", epoch.to_string());
    let features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                    large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
    let extended =
        format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=0,nodiscard");
    mke2fs.args([
        "-q", "-F", "-t", "ext4", "-b", "4096", "-i", "16384", "-I", "256", "-m", "1", "-J", "size=16",
    ]);
    mke2fs.args(["-O", features, "-L", label, "-U", uuid, "-E", &extended]);
    mke2fs.arg(path).arg(format!("{}k", size / 1024));
    run(&mut mke2fs, "e2fsprogs")?;
    if folders.is_empty() {
        return Ok(());
    }
    let scratch = tempfile::NamedTempFile::new()?;
    std::fs::write(scratch.path(), script(folders))?;
    let mut debugfs = Command::new("debugfs");
    debugfs.env("PATH", search_path()).env("E2FSPROGS_FAKE_TIME", epoch.to_string());
    run(debugfs.args(["-w", "-f"]).arg(scratch.path()).arg(path), "e2fsprogs")?;
    Ok(())
}

fn script(folders: &[Folder]) -> String {
    let lines = |f: &Folder| {
        let path = format!("/{}", f.path);
        format!(
            "mkdir \"{path}\"\nsif \"{path}\" mode 04{:04o}\nsif \"{path}\" uid {}\nsif \"{path}\" gid {}\n",
            f.mode, f.uid, f.gid
        )
    };
    folders.iter().map(lines).collect()
}

/// Which bytes of an ext4 mean something: the blocks that its bitmaps call taken.
pub fn used(image: &[u8]) -> Result<Vec<(u64, u64)>> {
    read_used(image).context("no ext4 file system as `write` makes it")
}

fn read_used(image: &[u8]) -> Option<Vec<(u64, u64)>> {
    let field = |at: u64, size: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = image.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let super_block = 1024;
    let block = 1024 << field(super_block + 0x18, 4)?;
    let (blocks, per_group) = (field(super_block + 0x4, 4)?, field(super_block + 0x20, 4)?);
    let descriptor_size = field(super_block + 0xfe, 2)?.max(32);
    if field(super_block + 0x38, 2)? != 0xef53 || block != 4096 || per_group == 0 {
        return None;
    }
    let mut ranges = vec![(0, block)];
    for group in 0..blocks.div_ceil(per_group) {
        let descriptor = block + group * descriptor_size;
        const BLOCK_UNINIT: u64 = 2;
        if field(descriptor + 0x12, 2)? & BLOCK_UNINIT != 0 {
            continue;
        }
        let bitmap = field(descriptor, 4)? * block;
        for bit in 0..per_group.min(blocks - group * per_group) {
            if field(bitmap + bit / 8, 1)? >> (bit % 8) & 1 == 1 {
                ranges.push(((group * per_group + bit) * block, block));
            }
        }
    }
    Some(ranges)
}
