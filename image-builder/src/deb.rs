//! Unpacks a `.deb` into a tree: an ar archive whose `data.tar.*` is what the package installs. Its scripts are never
//! run; what they would have done and matters is done by `system`.

use crate::schema::plain_path;
use crate::tree::{Node, Tree};
use anyhow::{Context, Result, bail};
use std::io::Read;
use tar::EntryType;

/// More than the largest package (a kernel with all its modules) unpacks to.
const MAX_UNPACKED: u64 = 2 * 1024 * 1024 * 1024;
const MAX_ENTRIES: usize = 200_000;

/// Lays what the package installs.
pub fn unpack(deb: &[u8], tree: &mut Tree) -> Result<()> {
    let (name, data) = data_member(deb)?;
    let reader = decompress(name, data)?.take(MAX_UNPACKED);
    let mut archive = tar::Archive::new(reader);
    for (count, entry) in archive.entries()?.enumerate() {
        if count > MAX_ENTRIES {
            bail!("more than {MAX_ENTRIES} files");
        }
        lay(entry?, tree)?;
    }
    Ok(())
}

fn lay<R: Read>(mut entry: tar::Entry<'_, R>, tree: &mut Tree) -> Result<()> {
    let raw = entry.path_bytes().into_owned();
    let text = std::str::from_utf8(&raw).context("a path that is not UTF-8")?;
    let path = text.strip_prefix("./").unwrap_or(text).trim_end_matches('/');
    if path.is_empty() || path == "." {
        return Ok(());
    }
    let path = plain_path(path).map_err(anyhow::Error::msg)?;
    let header = entry.header();
    let mode = u16::try_from(header.mode()? & 0o7777)?;
    let (uid, gid) = (u32::try_from(header.uid()?)?, u32::try_from(header.gid()?)?);
    let link = || -> Result<String> {
        let target = entry.link_name_bytes().with_context(|| format!("{path}: a link without a target"))?;
        Ok(std::str::from_utf8(&target).with_context(|| format!("{path}: its target"))?.to_owned())
    };
    let node = match header.entry_type() {
        EntryType::Directory => Node::directory(mode),
        EntryType::Symlink => Node::symlink(link()?),
        EntryType::Link => {
            let target = link()?;
            let target = plain_path(target.strip_prefix("./").unwrap_or(&target))
                .map_err(anyhow::Error::msg)?
                .to_owned();
            return Ok(tree.hard_link(path, &target)?);
        }
        EntryType::Regular => {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).with_context(|| path.to_owned())?;
            Node::file(bytes, mode)
        }
        other => bail!("{path}: an entry of type {other:?}"),
    };
    Ok(tree.insert(path, node.owned(uid, gid))?)
}

/// Name and bytes of `data.tar.*`.
fn data_member(deb: &[u8]) -> Result<(&str, &[u8])> {
    let mut rest = deb.strip_prefix(b"!<arch>\n").context("is no .deb (no ar archive)")?;
    while rest.len() >= 60 {
        let (header, after) = rest.split_at(60);
        let name = std::str::from_utf8(&header[..16])?.trim_end().trim_end_matches('/');
        let size: usize =
            std::str::from_utf8(&header[48..58])?.trim_end().parse().context("size of an ar member")?;
        let member = after.get(..size).context("ends in the middle")?;
        if name.starts_with("data.tar") {
            return Ok((name, member));
        }
        rest = after.get(size.next_multiple_of(2)..).unwrap_or_default();
    }
    bail!("is no .deb (no data.tar in it)")
}

/// A reader of what `name`'s ending says it is.
pub fn decompress<'a>(name: &str, bytes: &'a [u8]) -> Result<Box<dyn Read + 'a>> {
    Ok(match name.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(bytes)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::with_buffer(bytes)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(bytes)),
        Some("tar" | "ko") => Box::new(bytes),
        _ => bail!("{name}: neither .xz, .zst nor .gz"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DebFile, make_deb};

    #[test]
    fn every_compression_unpacks_to_the_same() {
        let files = [DebFile::Dir("usr"), DebFile::File("usr/a", b"hello"), DebFile::Link("usr/b", "a")];
        let mut trees = Vec::new();
        for compression in ["xz", "zst", "gz"] {
            let mut tree = Tree::default();
            unpack(&make_deb(&files, compression), &mut tree).unwrap();
            trees.push(tree);
        }
        assert_eq!(trees[0], trees[1]);
        assert_eq!(trees[1], trees[2]);
        assert_eq!(trees[0].read("usr/b"), Some(&b"hello"[..]));
    }

    #[test]
    fn hostile_packages_are_refused() {
        let mut tree = Tree::default();
        for bytes in [&b""[..], b"!<arch>\n", b"PK\x03\x04", &[0; 100]] {
            assert!(unpack(bytes, &mut tree).is_err());
        }
        let good = make_deb(&[DebFile::File("usr/a", b"hello")], "xz");
        for end in (8..good.len() - 1).step_by(7) {
            assert!(unpack(&good[..end], &mut Tree::default()).is_err(), "cut at {end}");
        }
        assert!(unpack(&make_deb(&[DebFile::Hard("a", "../../etc/passwd")], "gz"), &mut tree).is_err());
    }
}
