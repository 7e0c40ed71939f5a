//! Which images are here: one small file, replaced atomically, and the manifests and configs beside it.
//!
//! After a power cut the file names only images whose layers were all complete before; anything else on disk is litter,
//! which the next start takes away.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::api::Image;
use crate::{manifest, reference, sys};

/// One image and what it is made of.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    pub(crate) image: Image,
    /// Layer folders, lowest first.
    pub(crate) layers: Vec<String>,
    /// Blobs (manifest, config) that belong to it.
    pub(crate) blobs: BTreeSet<String>,
}

/// All images.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    records: Vec<Record>,
}

impl Store {
    /// Reads the list of a folder; a missing one is empty.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        let records = match fs::read(dir.join("images.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let store = Self { dir: dir.to_owned(), records };
        store.sweep_blobs()?;
        Ok(store)
    }

    fn sweep_blobs(&self) -> io::Result<()> {
        for file in fs::read_dir(self.dir.join("blobs/sha256"))? {
            let file = file?;
            let digest = format!("sha256:{}", file.file_name().to_string_lossy());
            if !self.records.iter().any(|r| r.blobs.contains(&digest)) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Keeps a manifest or config; its digest was verified.
    pub(crate) fn put_blob(&self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(manifest::is_sha256(digest));
        sys::write_atomic(&self.blob_path(digest), bytes)
    }

    /// Adds an image. Its tags are taken from whatever had them before.
    pub(crate) fn add(&mut self, new: Record) -> io::Result<Image> {
        for record in &mut self.records {
            record.image.tags.retain(|t| !new.image.tags.contains(t));
        }
        let image = match self.records.iter_mut().find(|r| r.image.id == new.image.id) {
            Some(old) => {
                merge(&mut old.image.tags, new.image.tags);
                merge(&mut old.image.digests, new.image.digests);
                old.layers = new.layers;
                old.blobs.extend(new.blobs);
                old.image.clone()
            }
            None => {
                self.records.push(new);
                self.records.last().map(|r| r.image.clone()).ok_or_else(|| io::Error::other("just pushed"))?
            }
        };
        self.save()?;
        Ok(image)
    }

    /// Takes an image off the list.
    pub(crate) fn remove(&mut self, id: &str) -> io::Result<Option<Record>> {
        let Some(at) = self.records.iter().position(|r| r.image.id == id) else { return Ok(None) };
        let record = self.records.remove(at);
        self.save()?;
        self.sweep_blobs()?;
        Ok(Some(record))
    }

    fn save(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&self.records).map_err(io::Error::other)?;
        sys::write_atomic(&self.dir.join("images.json"), &text)
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Record> {
        self.records.iter().find(|r| r.image.id == id)
    }

    /// Finds by tag, by digest or by id.
    pub(crate) fn find(&self, name: &str) -> Option<&Record> {
        if manifest::is_sha256(name) {
            return self.by_id(name);
        }
        let parsed = reference::parse(name).ok()?;
        match parsed.digest() {
            Some(digest) => {
                let wanted = reference::digest(&parsed, digest);
                self.records.iter().find(|r| r.image.digests.contains(&wanted))
            }
            None => {
                let wanted = reference::tag(&parsed)?;
                self.records.iter().find(|r| r.image.tags.contains(&wanted))
            }
        }
    }
}

fn merge(into: &mut Vec<String>, from: Vec<String>) {
    for name in from {
        if !into.contains(&name) {
            into.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: &str, tag: &str) -> Record {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"diff_ids":["{}"]}}}}"#,
            manifest::sha256(content.as_bytes())
        );
        let id = manifest::sha256(config.as_bytes());
        let mut image = manifest::ImageConfig::parse(config.as_bytes()).unwrap().image(id.clone());
        image.tags = vec![tag.into()];
        Record { image, layers: vec![content.into()], blobs: BTreeSet::from([id]) }
    }

    #[test]
    fn a_tag_moves_and_everything_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let first = store.add(record("a", "docker.io/library/a:latest")).unwrap();
        let second = store.add(record("b", "docker.io/library/a:latest")).unwrap();
        store.put_blob(&second.id, b"config").unwrap();
        store.put_blob(&manifest::sha256(b"litter"), b"litter").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.find("a").unwrap().image.id, second.id);
        assert!(store.by_id(&first.id).unwrap().image.tags.is_empty());
        assert!(store.blob_path(&second.id).exists());
        assert!(!store.blob_path(&manifest::sha256(b"litter")).exists());
    }
}
