//! A file system in memory. Every path is relative (`usr/bin/bash`); links in the middle of a path are followed when
//! something is laid, so that `bin/bash` lands in `usr/bin`.

use std::collections::BTreeMap;
use std::sync::Arc;

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// The tree: paths in order, a folder before what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// A node and who may do what with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a node is. Devices, sockets and pipes are made by the running system, not shipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file; hard links share their bytes.
    File(Arc<[u8]>),
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink(String),
}

impl Node {
    /// A file of root's.
    pub fn file(bytes: impl Into<Arc<[u8]>>, mode: u16) -> Self {
        Self { kind: Kind::File(bytes.into()), mode, uid: 0, gid: 0 }
    }

    /// A folder of root's.
    pub fn directory(mode: u16) -> Self {
        Self { kind: Kind::Directory, mode, uid: 0, gid: 0 }
    }

    /// A link.
    pub fn symlink(target: impl Into<String>) -> Self {
        Self { kind: Kind::Symlink(target.into()), mode: 0o777, uid: 0, gid: 0 }
    }

    /// Owned by another.
    pub fn owned(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

/// Why something cannot be laid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A part of the path is a file.
    #[error("{path}: {part} is not a folder")]
    NotADirectory {
        /// The whole path.
        path: String,
        /// The part.
        part: String,
    },
    /// Links lead round in a circle or out of the tree.
    #[error("{0}: its links lead nowhere")]
    Links(String),
    /// A folder would be replaced by something else.
    #[error("{0}: is a folder with something in it")]
    Occupied(String),
    /// Its last part is none that a file can have.
    #[error("{0:?}: ends in no name")]
    Name(String),
    /// A hard link to nothing.
    #[error("{path}: is a hard link to {target}, which is no file")]
    HardLink {
        /// The link.
        path: String,
        /// Where it points.
        target: String,
    },
}

impl Tree {
    /// Lays a node. Missing folders on the way are made, root's, 0755. A folder laid over a folder, or over a link to
    /// one, leaves what is there but takes the new owner and mode of a real folder.
    pub fn insert(&mut self, path: &str, node: Node) -> Result<(), Error> {
        let path = self.locate(path)?;
        if node.kind == Kind::Directory {
            if let Some(Node { kind: Kind::Symlink(_), .. }) = self.nodes.get(&path)
                && self.follow(&path).is_ok_and(|to| self.is_directory(&to))
            {
                return Ok(());
            }
        } else if self.has_children(&path) {
            return Err(Error::Occupied(path));
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// What a second name of a file is.
    pub fn linked(&self, path: &str, target: &str) -> Result<Node, Error> {
        match self.get(target) {
            Some(node @ Node { kind: Kind::File(_), .. }) => Ok(node.clone()),
            _ => Err(Error::HardLink { path: path.to_owned(), target: target.to_owned() }),
        }
    }

    /// The node at a path, links in the middle followed, a link at the end not.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.resolve_parents(path).ok()?)
    }

    /// As `get`, to change it.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        let path = self.resolve_parents(path).ok()?;
        self.nodes.get_mut(&path)
    }

    /// Bytes of the file at a path, all links followed.
    pub fn read(&self, path: &str) -> Option<&[u8]> {
        match &self.nodes.get(&self.follow(path).ok()?)?.kind {
            Kind::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Everything below a folder (`usr/lib/modules`), with its path.
    pub fn below<'a>(&'a self, folder: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let start = prefix.clone();
        self.nodes
            .range(start..)
            .take_while(move |(p, _)| p.starts_with(&prefix))
            .map(|(p, n)| (p.as_str(), n))
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(p, n)| (p.as_str(), n))
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        let bytes = |node: &Node| if let Kind::File(bytes) = &node.kind { bytes.len() as u64 } else { 0 };
        self.nodes.values().map(bytes).sum()
    }

    /// Drops a node and what is below it.
    pub fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|p, _| p != path && !p.starts_with(&below));
    }

    /// Drops what is not wanted; a folder goes only when nothing in it stays.
    pub fn retain(&mut self, mut wanted: impl FnMut(&str, &Node) -> bool) {
        let mut kept: BTreeMap<String, Node> = BTreeMap::new();
        // Children come after their folder, so backwards every folder is met after all that is in it.
        for (path, node) in std::mem::take(&mut self.nodes).into_iter().rev() {
            let inside = format!("{path}/");
            let has_children =
                kept.range(inside.clone()..).next().is_some_and(|(p, _)| p.starts_with(&inside));
            if has_children || wanted(&path, &node) {
                kept.insert(path, node);
            }
        }
        self.nodes = kept;
    }

    fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.nodes.get(path).is_some_and(|n| n.kind == Kind::Directory)
    }

    fn has_children(&self, path: &str) -> bool {
        self.below(path).next().is_some()
    }

    /// The place that a path means, with the folders on the way made.
    fn locate(&mut self, path: &str) -> Result<String, Error> {
        let name = path.rsplit('/').next().unwrap_or_default();
        if matches!(name, "" | "." | "..") || path.contains('\0') {
            return Err(Error::Name(path.to_owned()));
        }
        let path = self.resolve_parents(path)?;
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            let part = &path[..end + slash];
            match self.nodes.get(part) {
                None => {
                    self.nodes.insert(part.to_owned(), Node::directory(0o755));
                }
                Some(Node { kind: Kind::Directory, .. }) => {}
                Some(_) => return Err(Error::NotADirectory { path: path.clone(), part: part.to_owned() }),
            }
            end += slash + 1;
        }
        Ok(path)
    }

    fn resolve_parents(&self, path: &str) -> Result<String, Error> {
        match path.rsplit_once('/') {
            None => Ok(path.to_owned()),
            Some((parent, name)) => {
                let parent = self.follow(parent)?;
                Ok(if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") })
            }
        }
    }

    /// The path without links.
    fn follow(&self, path: &str) -> Result<String, Error> {
        let mut done: Vec<String> = Vec::new();
        let mut open: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(part) = open.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if let Some(Node { kind: Kind::Symlink(target), .. }) = self.nodes.get(&done.join("/")) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::Links(path.to_owned()));
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                open.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        Ok(done.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merged() -> Tree {
        let mut tree = Tree::default();
        tree.insert("usr/bin", Node::directory(0o755)).unwrap();
        tree.insert("bin", Node::symlink("usr/bin")).unwrap();
        tree
    }

    #[test]
    fn what_goes_through_a_link_lands_behind_it() {
        let mut tree = merged();
        tree.insert("bin", Node::directory(0o755)).unwrap();
        tree.insert("bin/bash", Node::file(*b"#!", 0o755)).unwrap();
        let second = tree.linked("bin/rbash", "usr/bin/bash").unwrap();
        tree.insert("bin/rbash", second).unwrap();
        let paths: Vec<&str> = tree.iter().map(|(p, _)| p).collect();
        assert_eq!(paths, ["bin", "usr", "usr/bin", "usr/bin/bash", "usr/bin/rbash"]);
        assert_eq!(tree.read("bin/rbash"), Some(&b"#!"[..]));
    }

    #[test]
    fn nothing_is_laid_in_a_file_over_a_folder_or_round_a_circle() {
        let mut tree = merged();
        tree.insert("usr/bin/bash", Node::file(*b"", 0o755)).unwrap();
        assert!(matches!(
            tree.insert("bin/bash/x", Node::directory(0o755)),
            Err(Error::NotADirectory { .. })
        ));
        assert_eq!(tree.insert("usr", Node::symlink("x")), Err(Error::Occupied("usr".into())));
        tree.insert("a", Node::symlink("b")).unwrap();
        tree.insert("b", Node::symlink("/a")).unwrap();
        assert_eq!(tree.insert("a/x", Node::directory(0o755)), Err(Error::Links("a".into())));
        assert!(tree.linked("y", "a/x").is_err() && tree.linked("y", "usr").is_err());
    }

    #[test]
    fn what_has_no_name_is_not_laid() {
        for path in ["", ".", "..", "etc/systemd/system/..", "usr/", "a\0b"] {
            let laid = merged().insert(path, Node::symlink("/dev/null"));
            assert_eq!(laid, Err(Error::Name(path.to_owned())));
        }
    }

    #[test]
    fn a_folder_stays_for_what_stays_in_it() {
        let mut tree = merged();
        tree.insert("usr/share/doc/x/README", Node::file(*b"", 0o644)).unwrap();
        tree.insert("usr/share/doc/x/copyright", Node::file(*b"", 0o644)).unwrap();
        tree.insert("usr/share/man/y", Node::file(*b"", 0o644)).unwrap();
        tree.retain(|path, _| !path.starts_with("usr/share/") || path.ends_with("copyright"));
        let left: Vec<&str> = tree.below("usr/share").map(|(p, _)| p).collect();
        assert_eq!(left, ["usr/share/doc", "usr/share/doc/x", "usr/share/doc/x/copyright"]);
    }

    proptest! {
        /// Whatever is laid, every node's folder is a folder.
        #[test]
        fn it_stays_a_tree(steps in proptest::collection::vec(("[ab](/[ab]){0,3}", 0u8..3, "(/|\\.\\./)?[ab](/[ab])?"), 0..24)) {
            let mut tree = Tree::default();
            for (path, kind, target) in steps {
                let node = match kind {
                    0 => Node::directory(0o755),
                    1 => Node::file(*b"x", 0o644),
                    _ => Node::symlink(target),
                };
                let _ = tree.insert(&path, node);
            }
            for (path, _) in tree.iter() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    prop_assert_eq!(&tree.nodes[parent].kind, &Kind::Directory, "{}", path);
                }
            }
        }
    }
}
