//! Debian packages as tools of the build machine: a list pinned by hand (`image-builder/toolchain/*.toml`), unpacked into
//! a folder of its own.

use crate::cache::{Cache, Dropped};
use crate::deb;
use crate::lock::{LockedDeb, check_debs};
use crate::net::Client;
use crate::schema::Document;
use crate::tree::{Kind, Tree};
use anyhow::{Context, Result};
use indicatif::MultiProgress;
use serde::Deserialize;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Says which list a folder was unpacked from.
const STAMP: &str = ".unpacked-from";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    /// Where packages are that their archive has dropped; `@ARCHIVE@` is the last part of its URI.
    fallback: Option<String>,
    deb: Vec<LockedDeb>,
}

/// Fetches and unpacks a list. Returns false when the folder has it already.
pub fn unpack(list: &Path, into: &Path, cache: &Cache, progress: &MultiProgress) -> Result<bool> {
    let text = fs::read(list).with_context(|| list.display().to_string())?;
    let sum = crate::hash::sha256(&text);
    if fs::read_to_string(into.join(STAMP)).is_ok_and(|stamp| stamp == sum) {
        return Ok(false);
    }
    let pinned: List = Document::read(list)?.parse()?;
    let debs = &pinned.deb;
    check_debs(debs).with_context(|| list.display().to_string())?;
    let dropped = Dropped {
        elsewhere: &|deb| deb.url_in(pinned.fallback.as_deref()?),
        remedy: &format!("put today's version into {}: name, version, size, sha256, path", list.display()),
    };
    cache.fetch(&Client::default(), &debs.iter().collect::<Vec<_>>(), &dropped, progress)?;
    let mut tree = Tree::default();
    for one in debs {
        deb::unpack(&cache.read(one)?, &mut tree).with_context(|| one.file_name())?;
    }
    let parent = into.parent().context("--into names no folder")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let scratch = tempfile::Builder::new().prefix(".unpack-").tempdir_in(parent)?;
    write(&tree, scratch.path())?;
    fs::write(scratch.path().join(STAMP), sum)?;
    if into.exists() {
        fs::remove_dir_all(into).with_context(|| into.display().to_string())?;
    }
    fs::rename(scratch.keep(), into).with_context(|| into.display().to_string())?;
    Ok(true)
}

/// A tree's folders are never links, so nothing is written outside of the (fresh) folder.
fn write(tree: &Tree, folder: &Path) -> Result<()> {
    for (path, node) in tree.iter() {
        let place = folder.join(path);
        match &node.kind {
            Kind::Directory => fs::create_dir_all(&place)?,
            Kind::Symlink(target) => symlink(target, &place)?,
            Kind::File(bytes) => {
                fs::write(&place, bytes)?;
                fs::set_permissions(&place, Permissions::from_mode(u32::from(node.mode & 0o755)))?;
            }
        }
    }
    Ok(())
}
