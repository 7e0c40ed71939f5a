//! Ed25519 keys as PEM files.

use std::path::{Path, PathBuf};

use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// What stands before the seed in a PKCS #8 Ed25519 key (RFC 8410).
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// What stands before the key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
/// Trusted keys that a folder may hold, and bytes of one of them.
const MAX_KEYS: usize = 32;
const MAX_PEM: u64 = 16 * 1024;

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("{}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{what}: not an Ed25519 {kind} in PEM form (`openssl genpkey -algorithm ed25519` makes one)")]
    Form {
        /// The file.
        what: String,
        /// Private or public.
        kind: &'static str,
    },
    /// There are none.
    #[error("{}: no key (*.pem) to check updates with; put the public key of whoever builds your updates there", .0.display())]
    None(PathBuf),
    /// The kernel has no random bytes.
    #[error("no random bytes to make a key from")]
    Random,
}

/// Signs bundles.
#[derive(Debug)]
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Makes a new one; the text is its PEM form.
    ///
    /// # Errors
    /// If there are no random bytes.
    pub fn generate() -> Result<(Self, String), KeyError> {
        let mut seed = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::Random)?;
        let text = pem::encode(&pem::Pem::new("PRIVATE KEY", [&PKCS8[..], &seed].concat()));
        Ok((Self::from_pem("new key", &text)?, text))
    }

    /// Reads a PKCS #8 key; `what` names it in the error.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_pem(what: &str, text: &str) -> Result<Self, KeyError> {
        let form = || KeyError::Form { what: what.to_owned(), kind: "private key" };
        let key = pem::parse(text).ok().filter(|pem| pem.tag() == "PRIVATE KEY").ok_or_else(form)?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.contents()).map(Self).map_err(|_| form())
    }

    /// The public half in PEM form, for `/etc/bramble/update-keys`.
    #[must_use]
    pub fn public_pem(&self) -> String {
        pem::encode(&pem::Pem::new("PUBLIC KEY", [&SPKI[..], self.0.public_key().as_ref()].concat()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

/// The keys whose updates are taken.
#[derive(Clone, Debug, Default)]
pub struct TrustedKeys(Vec<Vec<u8>>);

impl TrustedKeys {
    /// Reads all `*.pem` of a folder.
    ///
    /// # Errors
    /// If there is none, or one is no key: a typing mistake must not silently leave a key out.
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        let failed = |path: &Path, source| KeyError::Read { path: path.to_owned(), source };
        let mut keys = Self::default();
        for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))?.take(MAX_KEYS) {
            let path = entry.map_err(|e| failed(folder, e))?.path();
            if path.extension().is_none_or(|e| e != "pem") {
                continue;
            }
            let size = std::fs::metadata(&path).map_err(|e| failed(&path, e))?.len();
            let what = path.display().to_string();
            if size > MAX_PEM {
                return Err(KeyError::Form { what, kind: "public key" });
            }
            keys.add(&what, &std::fs::read_to_string(&path).map_err(|e| failed(&path, e))?)?;
        }
        if keys.0.is_empty() { Err(KeyError::None(folder.to_owned())) } else { Ok(keys) }
    }

    /// Trusts one more; `what` names it in the error.
    ///
    /// # Errors
    /// If it is no public key.
    pub fn add(&mut self, what: &str, text: &str) -> Result<(), KeyError> {
        let form = || KeyError::Form { what: what.to_owned(), kind: "public key" };
        let pem = pem::parse(text).ok().filter(|pem| pem.tag() == "PUBLIC KEY").ok_or_else(form)?;
        let key = pem.contents().strip_prefix(&SPKI).filter(|key| key.len() == 32).ok_or_else(form)?;
        self.0.push(key.to_vec());
        Ok(())
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok())
    }
}
