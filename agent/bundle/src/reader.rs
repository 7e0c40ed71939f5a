//! Reading a bundle as it comes.

use std::io::{self, Read};

use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use crate::keys::TrustedKeys;
use crate::manifest::{Entry, Manifest, ManifestError};

const MAX_MANIFEST: u64 = 256 * 1024;
const MAX_SIGNATURE: u64 = 64;
/// Bytes given to the sink at once: a card is written fastest in large aligned pieces, and memory is short.
const CHUNK: usize = 1 << 20;

/// Why a bundle is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is something else.
    #[error("this is not an update bundle ({0})")]
    NotABundle(&'static str),
    /// Signed by nobody that this node trusts.
    #[error(
        "the update is not signed by a key that this node trusts (/etc/bramble/update-keys): it is from somebody \
         else, or was changed on the way; nothing was written"
    )]
    Signature,
    /// The manifest is refused.
    #[error("the update is refused: {0}")]
    Manifest(#[from] ManifestError),
    /// A file is not what the manifest says.
    #[error("the update is damaged: {name}: {why}")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// It ended or broke off.
    #[error("reading the update failed")]
    Io(#[from] io::Error),
}

/// Takes a bundle's files.
pub trait Sink {
    /// What can go wrong in it.
    type Error: From<ReadError>;

    /// The manifest is authentic. Called once, before anything else.
    ///
    /// # Errors
    /// If this update is not wanted: then nothing more is read.
    fn accept(&mut self, manifest: &Manifest) -> Result<(), Self::Error>;

    /// The next bytes of a file, from offset `at`. Not yet known to be right.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn chunk(&mut self, file: &Entry, at: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The file is complete and its sum is right.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn complete(&mut self, file: &Entry) -> Result<(), Self::Error>;
}

/// Reads a bundle, giving `sink` what is in it, and returns its manifest once all of it was right.
///
/// # Errors
/// If it is not a bundle, not signed by one of `keys`, damaged, or the sink refuses.
pub fn read<S: Sink>(from: impl Read, keys: &TrustedKeys, sink: &mut S) -> Result<Manifest, S::Error> {
    let mut archive = Archive::new(from);
    let io = |e: io::Error| S::Error::from(ReadError::Io(e));
    // Raw: long names and other extensions, whose size nobody vouches for yet, are never collected in memory.
    let mut entries = archive.entries().map_err(io)?.raw(true);
    let mut next = |name: &str, what| {
        let entry = entries.next().ok_or(ReadError::NotABundle(what))?.map_err(not_tar)?;
        let named =
            entry.header().entry_type() == EntryType::Regular && *entry.path_bytes() == *name.as_bytes();
        if named { Ok(entry) } else { Err(ReadError::NotABundle(what)) }
    };
    let text = bounded(next("manifest.json", "it does not begin with a manifest")?, MAX_MANIFEST)?;
    let signature = bounded(next("manifest.sig", "it has no signature")?, MAX_SIGNATURE)?;
    if !keys.verify(&text, &signature) {
        return Err(ReadError::Signature.into());
    }
    let manifest = Manifest::parse(&text).map_err(ReadError::from)?;
    sink.accept(&manifest)?;
    let mut buffer = vec![0; CHUNK];
    for file in &manifest.files {
        let damaged = |why| ReadError::Damaged { name: file.name.clone(), why };
        let mut entry = next(&file.name, "").map_err(|e| match e {
            ReadError::NotABundle(_) => damaged("it is missing"),
            other => other,
        })?;
        if entry.size() != file.size {
            return Err(damaged("its size is not the one that was signed").into());
        }
        if pass_on(&mut entry, file, &mut buffer, sink)? != file.sha256 {
            return Err(damaged("its checksum is not the one that was signed").into());
        }
        sink.complete(file)?;
    }
    Ok(manifest)
}

/// Gives a file to the sink and returns its sum.
fn pass_on<S: Sink>(
    from: &mut impl Read,
    file: &Entry,
    buffer: &mut [u8],
    sink: &mut S,
) -> Result<String, S::Error> {
    let mut sum = Sha256::new();
    let mut at = 0;
    while at < file.size {
        let want = usize::try_from(file.size - at).unwrap_or(usize::MAX).min(buffer.len());
        from.read_exact(&mut buffer[..want]).map_err(|e| S::Error::from(ReadError::Io(e)))?;
        sum.update(&buffer[..want]);
        sink.chunk(file, at, &buffer[..want])?;
        at += want as u64;
    }
    Ok(hex(&sum.finalize()))
}

fn bounded<R: Read>(entry: tar::Entry<'_, R>, limit: u64) -> Result<Vec<u8>, ReadError> {
    if entry.size() > limit {
        return Err(ReadError::NotABundle("its manifest is too large"));
    }
    let size = entry.size();
    let mut bytes = Vec::new();
    entry.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

/// The tar reader reports bytes that are no tar as an error of its own kind; a broken connection stays one.
fn not_tar(error: io::Error) -> ReadError {
    if error.kind() == io::ErrorKind::Other && error.raw_os_error().is_none() {
        ReadError::NotABundle("it is no tar file")
    } else {
        ReadError::Io(error)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
