//! The root file system as a squashfs.

use crate::tree::{Kind, Tree};
use anyhow::{Context, Result};
use backhand::compression::{CompressionOptions, Compressor, Zstd};
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use indicatif::ProgressBar;
use std::fs::File;
use std::io::{BufWriter, Cursor};
use std::path::Path;

/// Beyond this zstd takes minutes for a percent.
const LEVEL: u32 = 15;
const BLOCK: u32 = 128 * 1024;

/// Writes the tree; the bar goes as far as the files are long.
pub fn write(tree: &Tree, epoch: u32, path: &Path, bar: &ProgressBar) -> Result<()> {
    let mut writer = FilesystemWriter::default();
    writer.set_time(epoch);
    writer.set_block_size(BLOCK);
    writer.set_root_mode(0o755);
    writer.set_kib_padding(4);
    let options = CompressionOptions::Zstd(Zstd { compression_level: LEVEL });
    writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, Some(options))?);
    for (path, node) in tree.iter() {
        let header = NodeHeader::new(node.mode, node.uid, node.gid, epoch);
        match &node.kind {
            Kind::Directory => writer.push_dir(path, header),
            Kind::Symlink(target) => writer.push_symlink(target, path, header),
            Kind::File(bytes) => writer.push_file(bar.wrap_read(Cursor::new(&**bytes)), path, header),
        }
        .with_context(|| path.to_owned())?;
    }
    let file = File::create(path).with_context(|| path.display().to_string())?;
    writer.write(BufWriter::new(file)).context("writing the squashfs")?;
    Ok(())
}
