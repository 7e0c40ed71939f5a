//! Loads images from an archive: docker-save or OCI layout, plain or compressed.
//!
//! Only regular files are taken out, under names of our own, so the archive cannot choose where anything lands.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::api::{Error, Image};
use crate::decompress::Turns;
use crate::images::Images;
use crate::manifest::{self, Descriptor, Document, Host, ImageConfig};
use crate::store::Record;
use crate::{decompress, layers, reference};

/// Bytes that an archive may unpack to.
const MAX_ARCHIVE: u64 = 32 << 30;
/// Files that it may have.
const MAX_FILES: usize = 20_000;

/// Files taken out of an archive, by their cleaned path in it.
type Files = HashMap<String, PathBuf>;

/// One image as the archive describes it.
struct Found {
    config: ImageConfig,
    config_bytes: Vec<u8>,
    manifest_bytes: Option<Vec<u8>>,
    layers: Vec<PathBuf>,
    tags: Vec<String>,
}

/// Loads all images of an archive that are for this machine.
pub(crate) async fn load(images: &Images, archive: &Path) -> Result<Vec<Image>, Error> {
    let name = archive.display().to_string();
    let fail = |why: String| Error::Pull { reference: name.clone(), why };
    let scratch = images.scratch().map_err(|e| Error::Node(format!("make a folder to load into: {e}")))?;
    let (from, to) = (archive.to_owned(), scratch.path().to_owned());
    let files = tokio::task::spawn_blocking(move || extract(&from, &to))
        .await
        .map_err(|e| fail(e.to_string()))?
        .map_err(|e| fail(e.to_string()))?;
    let found = read_images(&files, &name)?;
    let mut loaded = Vec::new();
    for image in found {
        loaded.push(add(images, image).await.map_err(fail)?);
    }
    Ok(loaded)
}

fn extract(archive: &Path, to: &Path) -> io::Result<Files> {
    let stream = decompress::Bounded::new(decompress::open(File::open(archive)?)?, MAX_ARCHIVE);
    let mut files = Files::new();
    let mut links: Vec<(String, String)> = Vec::new();
    let (stream, turn) = Turns::new(stream);
    let mut archive = tar::Archive::new(stream);
    let mut entries = archive.entries()?;
    loop {
        turn.headers();
        let Some(entry) = entries.next() else { break };
        turn.content();
        let mut entry = entry?;
        if files.len() + links.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files in the archive")));
        }
        let name = clean(&entry.path()?, "");
        match (entry.header().entry_type(), name) {
            (tar::EntryType::Regular | tar::EntryType::Continuous, Some(name)) => {
                let path = to.join(files.len().to_string());
                io::copy(&mut entry.by_ref().take(MAX_ARCHIVE), &mut File::create_new(&path)?)?;
                files.insert(name, path);
            }
            // Old archives name a layer that occurs twice by a link.
            (kind @ (tar::EntryType::Symlink | tar::EntryType::Link), Some(name)) => {
                let folder = if kind == tar::EntryType::Link {
                    ""
                } else {
                    name.rsplit_once('/').map_or("", |(d, _)| d)
                };
                if let Some(target) = entry.link_name()?.and_then(|t| clean(&t, folder)) {
                    links.push((name, target));
                }
            }
            // No tool makes sparse ones; their zeros would have no end.
            (tar::EntryType::GNUSparse, _) => {
                return Err(io::Error::other("a sparse file in the archive"));
            }
            _ => {}
        }
        io::copy(&mut entry, &mut io::sink())?;
    }
    for (name, target) in links {
        if let Some(path) = files.get(&target).cloned() {
            files.entry(name).or_insert(path);
        }
    }
    Ok(files)
}

/// A path without dots, below a folder of the archive.
fn clean(path: &Path, folder: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => parts.clear(),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn small(files: &Files, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let path = files.get(name).ok_or_else(|| format!("{name} is missing in the archive"))?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| format!("{name}: {e}"))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    if bytes.len() as u64 > limit { Err(format!("{name} is larger than {limit} bytes")) } else { Ok(bytes) }
}

fn read_images(files: &Files, name: &str) -> Result<Vec<Found>, Error> {
    let fail = |why: String| Error::Pull { reference: name.to_owned(), why };
    if files.contains_key("manifest.json") {
        docker_save(files, name)
    } else if files.contains_key("index.json") {
        oci_layout(files, name)
    } else {
        Err(fail(
            "neither a docker-save nor an OCI archive: it has no manifest.json and no index.json".into(),
        ))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_save(files: &Files, name: &str) -> Result<Vec<Found>, Error> {
    let fail = |why: String| Error::Pull { reference: name.to_owned(), why };
    let text = small(files, "manifest.json", manifest::MAX_MANIFEST).map_err(fail)?;
    let saved: Vec<Saved> = serde_json::from_slice(&text).map_err(|e| fail(format!("manifest.json: {e}")))?;
    let mut found = Vec::new();
    let mut foreign = None;
    for image in saved {
        let config_bytes = small(files, &image.config, manifest::MAX_CONFIG).map_err(fail)?;
        let config = ImageConfig::parse(&config_bytes).map_err(fail)?;
        let mut tags = Vec::new();
        for given in image.repo_tags.unwrap_or_default() {
            tags.extend(reference::tag(&reference::parse(&given)?));
        }
        if let Err(wrong) = config.check(Host::current(), tags.first().map_or(name, String::as_str)) {
            foreign = Some(wrong);
            continue;
        }
        let layers = image
            .layers
            .iter()
            .map(|l| {
                files.get(l).cloned().ok_or_else(|| fail(format!("layer {l} is missing in the archive")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        found.push(Found { config, config_bytes, manifest_bytes: None, layers, tags });
    }
    match foreign {
        // One tag may come for several machines; it is enough that one of them is this one.
        Some(wrong) if found.is_empty() => Err(wrong),
        _ => Ok(found),
    }
}

fn oci_layout(files: &Files, name: &str) -> Result<Vec<Found>, Error> {
    let fail = |why: String| Error::Pull { reference: name.to_owned(), why };
    let index = small(files, "index.json", manifest::MAX_MANIFEST).map_err(fail)?;
    let Document::Index(entries) = manifest::document(&index).map_err(fail)? else {
        return Err(fail("index.json is not an index".into()));
    };
    let mut found = Vec::new();
    let mut foreign = None;
    for entry in &entries {
        match oci_image(files, name, entry) {
            Ok(image) => found.push(image),
            Err(wrong @ Error::WrongArchitecture { .. }) => foreign = Some(wrong),
            Err(e) => return Err(e),
        }
    }
    match foreign {
        Some(wrong) if found.is_empty() => Err(wrong),
        _ => Ok(found),
    }
}

fn oci_image(files: &Files, name: &str, entry: &Descriptor) -> Result<Found, Error> {
    let fail = |why: String| Error::Pull { reference: name.to_owned(), why };
    let tags: Vec<String> =
        oci_name(entry).and_then(|n| reference::tag(&reference::parse(&n).ok()?)).into_iter().collect();
    let shown = tags.first().map_or(name, String::as_str);
    let host = Host::current();
    let mut bytes = blob(files, &entry.digest, manifest::MAX_MANIFEST).map_err(fail)?;
    let mut document = manifest::document(&bytes).map_err(fail)?;
    if let Document::Index(inner) = &document {
        let chosen = manifest::resolve(host, inner).map_err(|offered| Error::WrongArchitecture {
            reference: shown.to_owned(),
            wanted: host.name(),
            offered,
        })?;
        bytes = blob(files, &chosen.digest, manifest::MAX_MANIFEST).map_err(fail)?;
        document = manifest::document(&bytes).map_err(fail)?;
    }
    let Document::Manifest(manifest) = document else {
        return Err(fail("an index inside an index".into()));
    };
    let config_bytes = blob(files, &manifest.config.digest, manifest::MAX_CONFIG).map_err(fail)?;
    let config = ImageConfig::parse(&config_bytes).map_err(fail)?;
    config.check(host, shown)?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        let path = blob_name(&layer.digest).and_then(|n| files.get(&n).cloned());
        layers.push(path.ok_or_else(|| fail(format!("layer {} is missing in the archive", layer.digest)))?);
    }
    Ok(Found { config, config_bytes, manifest_bytes: Some(bytes), layers, tags })
}

/// The image name that tools write beside an entry; a bare tag is no name.
fn oci_name(entry: &Descriptor) -> Option<String> {
    let full = entry.annotations.get("io.containerd.image.name");
    let short =
        || entry.annotations.get("org.opencontainers.image.ref.name").filter(|n| n.contains(['/', ':']));
    full.or_else(short).cloned()
}

fn blob_name(digest: &str) -> Option<String> {
    manifest::is_sha256(digest).then(|| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")))
}

fn blob(files: &Files, digest: &str, limit: u64) -> Result<Vec<u8>, String> {
    let name = blob_name(digest).ok_or_else(|| format!("{digest:?} is not a sha256 digest"))?;
    let bytes = small(files, &name, limit)?;
    match manifest::sha256(&bytes) {
        got if got == digest => Ok(bytes),
        got => Err(format!("{digest} does not verify: it is {got}")),
    }
}

async fn add(images: &Images, found: Found) -> Result<Image, String> {
    let diff_ids = found.config.diff_ids();
    if diff_ids.len() != found.layers.len() {
        return Err("the manifest and the config disagree about the layers".into());
    }
    let chain: Vec<String> = manifest::chain_ids(diff_ids).iter().map(|id| layers::short(id)).collect();
    let _pin = images.layers.pin(chain.clone());
    for (i, layer) in found.layers.iter().enumerate() {
        let _lock = images.layers.lock(&chain[i]).await;
        if !images.layers.has(&chain[i]) {
            // The digest of the content is checked, so the blob's own need not be.
            images.layers.unpack(&chain[i], layer, &diff_ids[i], &chain[..i]).await?;
        }
    }
    let id = manifest::sha256(&found.config_bytes);
    let mut image = found.config.image(id.clone());
    image.tags = found.tags;
    let mut blobs = vec![(id.clone(), found.config_bytes)];
    if let Some(bytes) = found.manifest_bytes {
        let digest = manifest::sha256(&bytes);
        image.digests = image
            .tags
            .iter()
            .filter_map(|t| Some(reference::digest(&reference::parse(t).ok()?, &digest)))
            .collect();
        blobs.push((digest, bytes));
    }
    let record =
        Record { image, layers: chain, blobs: blobs.iter().map(|(d, _)| d.clone()).collect::<BTreeSet<_>>() };
    let blobs: Vec<(&str, &[u8])> = blobs.iter().map(|(d, b)| (d.as_str(), b.as_slice())).collect();
    let added = images.add(record, &blobs).map_err(|e| format!("record the image: {e}"))?;
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_paths_are_cleaned() {
        for (path, folder, want) in [
            ("./a/b", "", Some("a/b")),
            ("../x/layer.tar", "y", Some("x/layer.tar")),
            ("/abs", "y", Some("abs")),
            ("../../x", "y", None),
            (".", "", None),
        ] {
            assert_eq!(clean(Path::new(path), folder).as_deref(), want, "{path}");
        }
    }
}
