//! Unpacks a `.deb` into a tree: an ar archive whose `data.tar.*` is what the package installs. Its scripts are never
//! run; what they would have done and matters is done by `system`.

use crate::schema::plain_path;
use crate::tree::{Kind, Node, Tree};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::Read;
use tar::EntryType;

/// More than the largest package (a kernel with all its modules) unpacks to.
const MAX_UNPACKED: u64 = 2 * 1024 * 1024 * 1024;
const MAX_ENTRIES: usize = 200_000;

/// Lays what the package installs.
pub fn unpack(deb: &[u8], tree: &mut Tree) -> Result<()> {
    let (name, data) = data_member(deb)?;
    let mut archive = tar::Archive::new(Bounded { from: decompress(name, data)?, left: MAX_UNPACKED });
    let mut seen = BTreeSet::new();
    for (count, entry) in archive.entries()?.enumerate() {
        if count > MAX_ENTRIES {
            bail!("more than {MAX_ENTRIES} files");
        }
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        lay(entry, tree, &mut seen).with_context(|| format!("{name:?} in it"))?;
    }
    Ok(())
}

fn lay<R: Read>(mut entry: tar::Entry<'_, R>, tree: &mut Tree, seen: &mut BTreeSet<String>) -> Result<()> {
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
        let target = entry.link_name_bytes().context("a link without a target")?;
        Ok(std::str::from_utf8(&target).context("its target is not UTF-8")?.to_owned())
    };
    let node = match header.entry_type() {
        EntryType::Directory => return Ok(tree.insert(path, Node::directory(mode).owned(uid, gid))?),
        EntryType::Symlink => Node::symlink(link()?).owned(uid, gid),
        EntryType::Link => {
            let target = link()?;
            let target =
                plain_path(target.strip_prefix("./").unwrap_or(&target)).map_err(anyhow::Error::msg)?;
            tree.linked(path, target)?
        }
        EntryType::Regular => {
            let size = entry.size();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            ensure!(bytes.len() as u64 == size, "ends in the middle");
            Node::file(bytes, mode).owned(uid, gid)
        }
        other => bail!("an entry of type {other:?}"),
    };
    ensure!(seen.insert(path.to_owned()), "is there twice");
    // The same file in two packages, as dpkg has it: one of them would silently lose.
    if tree.get(path).is_some_and(|old| old.kind != Kind::Directory && old.kind != node.kind) {
        bail!("another package has it too, with something else in it");
    }
    Ok(tree.insert(path, node)?)
}

/// Fails beyond its bound, where `Read::take` would make a file that is cut off look complete.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            std::io::Error::other(format!("unpacks to more than {}", indicatif::HumanBytes(MAX_UNPACKED)))
        })?;
        Ok(count)
    }
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

    fn refused(files: &[DebFile<'_>]) -> String {
        format!("{:#}", unpack(&make_deb(files, "gz"), &mut Tree::default()).unwrap_err())
    }

    #[test]
    fn what_is_wrong_is_named() {
        let twice = [DebFile::File("usr/a", b"1"), DebFile::File("usr/a", b"2")];
        assert!(
            refused(&twice).contains("usr/a") && refused(&twice).contains("twice"),
            "{}",
            refused(&twice)
        );
        let error = refused(&[DebFile::Raw(b"./usr/\xff\xfe", b"x")]);
        assert!(error.contains("UTF-8") && error.contains("usr/"), "{error}");
        for outside in [&b"./usr/../../etc/passwd"[..], b"/etc/passwd", b"./a//b", b"./a/\x07b"] {
            let error = refused(&[DebFile::Raw(outside, b"x")]);
            assert!(error.contains("no plain path"), "{error}");
        }
        let error = refused(&[DebFile::Hard("usr/b", "usr/a")]);
        assert!(error.contains("usr/b") && error.contains("usr/a"), "{error}");
        let error = refused(&[DebFile::Link("a", "b"), DebFile::Link("b", "a"), DebFile::File("a/x", b"")]);
        assert!(error.contains("links lead nowhere"), "{error}");
    }

    /// What goes through a link that points outside stays inside, as it would for a program with this root.
    #[test]
    fn a_link_leads_nowhere_but_into_the_tree() {
        let mut tree = Tree::default();
        let files = [
            DebFile::Link("x", "../../../../outside"),
            DebFile::Link("y", "/outside"),
            DebFile::File("x/a", b"1"),
        ];
        unpack(&make_deb(&files, "gz"), &mut tree).unwrap();
        assert_eq!(tree.read("outside/a"), Some(&b"1"[..]));
        assert_eq!(tree.read("y/a"), Some(&b"1"[..]));
    }

    #[test]
    fn a_file_of_another_package_is_not_replaced() {
        let mut tree = Tree::default();
        unpack(&make_deb(&[DebFile::File("usr/bin/sh", b"honest")], "gz"), &mut tree).unwrap();
        // The same again is no quarrel, nor is a folder.
        unpack(&make_deb(&[DebFile::Dir("usr"), DebFile::File("usr/bin/sh", b"honest")], "gz"), &mut tree)
            .unwrap();
        for files in [
            &[DebFile::File("usr/bin/sh", b"other")][..],
            &[DebFile::Link("s", "usr/bin"), DebFile::File("s/sh", b"other")],
            &[DebFile::Link("usr/bin/sh", "bash")],
        ] {
            let error = format!("{:#}", unpack(&make_deb(files, "gz"), &mut tree).unwrap_err());
            assert!(error.contains("sh") && error.contains("another package"), "{error}");
        }
        assert_eq!(tree.read("usr/bin/sh"), Some(&b"honest"[..]));
    }

    #[test]
    fn what_unpacks_to_too_much_fails_instead_of_being_cut_off() {
        let mut bounded = Bounded { from: &b"12345678"[..], left: 4 };
        let error = std::io::copy(&mut bounded, &mut std::io::sink()).unwrap_err().to_string();
        assert!(error.contains("2.00 GiB"), "{error}");
        // A header that says more than there is.
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1 << 40);
        header.set_path("usr/big").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        tar.append(&header, &b"short"[..]).unwrap();
        let deb = crate::testing::deb_of(&tar.into_inner().unwrap(), "gz");
        let error = format!("{:#}", unpack(&deb, &mut Tree::default()).unwrap_err());
        assert!(error.contains("usr/big"), "{error}");
    }
}
