//! What a bundle says about itself.

use serde::{Deserialize, Serialize};

/// The first word of every manifest: what the signature vouches for is an update, and of this form.
pub const FORMAT: &str = "bramble-update/1";
/// The name of the root filesystem in a bundle; all else is boot files under `boot/`.
pub const ROOT: &str = "root.squashfs";

/// Far above what a card holds; a manifest from outside must not make a node allocate or loop for long.
const MAX_ROOT: u64 = 8 << 30;
const MAX_BOOT: u64 = 256 << 20;
const MAX_FILES: usize = 512;
const MAX_NAME: usize = 90;

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `root.squashfs`, or `boot/` and a path in the slot's folder.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

impl Entry {
    /// The path in the slot's boot folder, unless this is the root filesystem.
    #[must_use]
    pub fn boot_path(&self) -> Option<&str> {
        self.name.strip_prefix("boot/")
    }
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The system's version.
    pub version: String,
    /// The board configuration it was baked for.
    pub board: String,
    /// Debian's name of the architecture.
    pub arch: String,
    /// The files in their order.
    pub files: Vec<Entry>,
}

/// A manifest that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the right shape.
    #[error("its manifest cannot be read: {0}")]
    Shape(String),
    /// Written by a later Bramble.
    #[error("it is of the form {0:?}, which this version does not know (it knows {FORMAT:?})")]
    Format(String),
    /// A file that must not be.
    #[error("its manifest has a file that is refused: {name:?}: {why}")]
    File {
        /// The name given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something is missing.
    #[error("its manifest lists {0}")]
    Content(&'static str),
}

impl Manifest {
    /// Reads and checks the bytes of a manifest.
    ///
    /// # Errors
    /// If anything in it is not as it must be.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Form {
            format: String,
        }
        let shape = |e: serde_json::Error| ManifestError::Shape(e.to_string());
        let Form { format } = serde_json::from_slice(bytes).map_err(shape)?;
        if format != FORMAT {
            return Err(ManifestError::Format(format));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(shape)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The root filesystem's entry.
    #[must_use]
    pub fn root(&self) -> Option<&Entry> {
        self.files.iter().find(|file| file.name == ROOT)
    }

    /// Bytes of all boot files.
    #[must_use]
    pub fn boot_size(&self) -> u64 {
        self.files.iter().filter(|file| file.name != ROOT).map(|file| file.size).sum()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    pub(crate) fn check(&self) -> Result<(), ManifestError> {
        if self.files.len() > MAX_FILES {
            return Err(ManifestError::Content("more than 512 files"));
        }
        for (at, file) in self.files.iter().enumerate() {
            let limit = if file.name == ROOT { MAX_ROOT } else { MAX_BOOT };
            let why = if let Some(why) = bad_name(&file.name) {
                why
            } else if file.size > limit {
                "it is too large"
            } else if self.files[..at].iter().any(|f| f.name.eq_ignore_ascii_case(&file.name)) {
                "it is listed twice"
            } else if file.sha256.len() != 64
                || !file.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            {
                "its sha256 is none"
            } else {
                continue;
            };
            return Err(ManifestError::File { name: file.name.clone(), why });
        }
        if self.root().is_none() {
            return Err(ManifestError::Content("no root filesystem"));
        }
        if !self.files.iter().any(|file| file.name == "boot/cmdline.txt") {
            return Err(ManifestError::Content("no boot/cmdline.txt"));
        }
        Ok(())
    }
}

/// What is wrong with a file's name: it becomes a path on a FAT partition.
fn bad_name(name: &str) -> Option<&'static str> {
    if name == ROOT {
        return None;
    }
    let Some(path) = name.strip_prefix("boot/") else {
        return Some("only boot/ and root.squashfs are known");
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    if name.len() > MAX_NAME || path.split('/').count() > 4 {
        return Some("its name is too long");
    }
    let good =
        path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain));
    (!good).then_some("its name has parts that are refused")
}
