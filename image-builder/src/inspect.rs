//! Takes an image apart again: to explain how two differ, and to check what is in one.

use crate::tools::run;
use crate::tree::{Kind, Node, Tree};
use anyhow::{Context, Result, bail};
use backhand::{FilesystemReader, InnerNode};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const SECTOR: u64 = 512;
/// A file in a squashfs that is larger than this is none of ours.
const MAX_FILE: u64 = 1024 * 1024 * 1024;

/// An image, taken apart.
#[derive(Debug)]
pub struct Card {
    /// Bytes before the first partition.
    pub head: Vec<u8>,
    /// First byte and length of each partition.
    pub partitions: Vec<(u64, u64)>,
    /// The boot partition.
    pub boot: Tree,
    /// Slot A's root.
    pub root: Tree,
}

impl Card {
    /// Reads an image.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let read = || -> Result<Self> {
            let mut head = vec![0; 512];
            file.read_exact_at(&mut head, 0)?;
            let partitions = partitions(&head)?;
            let first = partitions.iter().map(|(start, _)| *start).min().unwrap_or(SECTOR);
            head.resize(usize::try_from(first.min(16 * 1024 * 1024))?, 0);
            file.read_exact_at(&mut head, 0)?;
            let [boot, root, ..] = partitions[..] else { bail!("has fewer than two partitions") };
            Ok(Self { head, boot: read_fat(path, boot.0)?, root: read_squashfs(path, root.0)?, partitions })
        };
        read().with_context(|| path.display().to_string())
    }
}

fn partitions(mbr: &[u8]) -> Result<Vec<(u64, u64)>> {
    if mbr[510..] != [0x55, 0xaa] {
        bail!("has no MBR: it is no card image");
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let entry = |e: &[u8]| (number(&e[8..12]) * SECTOR, number(&e[12..16]) * SECTOR);
    Ok(mbr[446..510].chunks_exact(16).filter(|e| e[4] != 0).map(entry).collect())
}

/// mtools cannot list in a form made for programs, but it copies whole folders.
fn read_fat(image: &Path, at: u64) -> Result<Tree> {
    let scratch = tempfile::tempdir()?;
    let mut mcopy = Command::new("mcopy");
    mcopy.args(["-s", "-n", "-i", &format!("{}@@{at}", image.display()), "::/"]).arg(scratch.path());
    run(&mut mcopy, "mtools")?;
    let mut tree = Tree::default();
    crate::system::lay_folder(scratch.path(), "", &mut tree)?;
    Ok(tree)
}

fn read_squashfs(image: &Path, at: u64) -> Result<Tree> {
    let reader = BufReader::new(File::open(image)?);
    let squashfs = FilesystemReader::from_reader_with_offset(reader, at).context("slot A's root")?;
    let mut tree = Tree::default();
    for node in squashfs.files() {
        let path = node.fullpath.to_str().context("a path that is not UTF-8")?.trim_start_matches('/');
        if path.is_empty() {
            continue;
        }
        let (header, mode) = (node.header, node.header.permissions & 0o7777);
        let read = match &node.inner {
            InnerNode::Dir(_) => Node::directory(mode),
            InnerNode::Symlink(link) => Node::symlink(link.link.to_str().context("a link's target")?),
            InnerNode::File(file) => {
                let mut bytes = Vec::new();
                squashfs
                    .file(file)
                    .reader()
                    .take(MAX_FILE)
                    .read_to_end(&mut bytes)
                    .with_context(|| path.to_owned())?;
                Node::file(bytes, mode)
            }
            _ => bail!("{path}: neither file, folder nor link"),
        };
        tree.insert(path, read.owned(header.uid, header.gid))?;
    }
    Ok(tree)
}

/// How two images differ, a line for each thing, for a person. Nothing: they are the same.
pub fn explain(a: &Path, b: &Path) -> Result<Vec<String>> {
    if same_bytes(a, b)? {
        return Ok(Vec::new());
    }
    let (left, right) = (Card::read(a)?, Card::read(b)?);
    let mut lines = Vec::new();
    if let Some(at) = first_difference(&left.head, &right.head) {
        let what =
            if at < 512 { "the partition table or disk id" } else { "what is before the first partition" };
        lines.push(format!("card: {what} differs from byte {at}"));
    }
    if left.partitions != right.partitions {
        lines.push(format!(
            "card: partitions (start, length) {:?} and {:?}",
            left.partitions, right.partitions
        ));
    }
    lines.extend(tree_differences("boot", &left.boot, &right.boot));
    lines.extend(tree_differences("root", &left.root, &right.root));
    if lines.is_empty() {
        let at = first_file_difference(a, b)?;
        lines.push(format!(
            "the same files, laid otherwise: from byte {at} on ({}); a time stamp, or another mkfs.vfat or mke2fs",
            place(&left.partitions, at)
        ));
    }
    Ok(lines)
}

fn place(partitions: &[(u64, u64)], at: u64) -> String {
    let inside = partitions.iter().position(|(start, length)| (*start..start + length).contains(&at));
    inside.map_or("outside of all partitions".to_owned(), |i| format!("partition {}", i + 1))
}

fn tree_differences(name: &str, a: &Tree, b: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, node) in a.iter() {
        match b.get(path) {
            None => lines.push(format!("{name}: /{path} is only in the first")),
            Some(other) => {
                lines.extend(node_difference(node, other).map(|d| format!("{name}: /{path}: {d}")))
            }
        }
    }
    lines.extend(
        b.iter()
            .filter(|(p, _)| a.get(p).is_none())
            .map(|(p, _)| format!("{name}: /{p} is only in the second")),
    );
    lines
}

fn node_difference(a: &Node, b: &Node) -> Option<String> {
    match (&a.kind, &b.kind) {
        (Kind::File(one), Kind::File(other)) if one != other => {
            let at = first_difference(one, other).unwrap_or(one.len().min(other.len()));
            return Some(format!(
                "contents differ from byte {at} on ({} and {} bytes)",
                one.len(),
                other.len()
            ));
        }
        (Kind::Symlink(one), Kind::Symlink(other)) if one != other => {
            return Some(format!("points to {one} and to {other}"));
        }
        (one, other) if std::mem::discriminant(one) != std::mem::discriminant(other) => {
            return Some("is of two kinds".to_owned());
        }
        _ => {}
    }
    let rights = |n: &Node| format!("{:04o} {}:{}", n.mode, n.uid, n.gid);
    (rights(a) != rights(b)).then(|| format!("{} and {}", rights(a), rights(b)))
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(x, y)| x != y).or((a.len() != b.len()).then_some(a.len().min(b.len())))
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let sum = |path: &Path| -> Result<(String, u64)> {
        Ok(crate::hash::sha256_reader(File::open(path).with_context(|| path.display().to_string())?)?)
    };
    Ok(sum(a)? == sum(b)?)
}

fn first_file_difference(a: &Path, b: &Path) -> Result<u64> {
    let (mut a, mut b) = (BufReader::new(File::open(a)?).bytes(), BufReader::new(File::open(b)?).bytes());
    let mut at = 0;
    loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (Some(x), Some(y)) if x == y => at += 1,
            _ => return Ok(at),
        }
    }
}
