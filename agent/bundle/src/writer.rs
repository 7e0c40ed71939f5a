//! Writing a bundle: the same input gives the same bytes.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use crate::keys::SigningKey;
use crate::manifest::{Entry, Manifest, ManifestError};
use crate::reader::hex;

/// Why a bundle cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What it is to be made of would be refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest cannot be put into words.
    #[error("writing the manifest")]
    Json(#[from] serde_json::Error),
    /// A file cannot be read, or the bundle cannot be written.
    #[error("{name}")]
    Io {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Describes a file for the manifest by reading it once.
///
/// # Errors
/// If it cannot be read.
pub fn measure(name: &str, mut from: impl Read) -> io::Result<Entry> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        let got = from.read(&mut buffer)?;
        if got == 0 {
            return Ok(Entry { name: name.to_owned(), size, sha256: hex(&sum.finalize()) });
        }
        sum.update(&buffer[..got]);
        size += got as u64;
    }
}

/// Writes a bundle; `open` gives the content of each file that the manifest lists.
///
/// # Errors
/// If the manifest would be refused by a reader, or something cannot be read or written.
pub fn write<R: Read>(
    to: impl Write,
    manifest: &Manifest,
    key: &SigningKey,
    mut open: impl FnMut(&Entry) -> io::Result<R>,
) -> Result<(), WriteError> {
    let text = serde_json::to_vec_pretty(manifest)?;
    Manifest::parse(&text)?;
    let mut tar = tar::Builder::new(to);
    let failed = |name: &str| {
        let name = name.to_owned();
        move |source| WriteError::Io { name, source }
    };
    append(&mut tar, "manifest.json", text.len() as u64, text.as_slice()).map_err(failed("manifest.json"))?;
    let signature = key.sign(&text);
    append(&mut tar, "manifest.sig", signature.len() as u64, signature.as_slice())
        .map_err(failed("manifest.sig"))?;
    for file in &manifest.files {
        open(file)
            .and_then(|from| append(&mut tar, &file.name, file.size, from))
            .map_err(failed(&file.name))?;
    }
    tar.into_inner().and_then(|mut to| to.flush()).map_err(failed("the bundle"))
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, size: u64, from: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, from)
}
