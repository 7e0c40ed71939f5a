//! The update bundle: one file from which a node writes its spare slot.
//!
//! A bundle is a plain tar: `manifest.json`, `manifest.sig`, then the files that the manifest lists, in its order. The
//! signature (Ed25519) is over the manifest's bytes, and the manifest has the size and SHA-256 of every file. So a node
//! can stream a bundle from a server it does not trust straight onto its card: nothing is written before the signature
//! is checked, no byte beyond a stated size is taken, and a file whose sum is wrong never counts ([`read`]).
//!
//! `image-builder bundle` writes them ([`write()`]), `kube-config upgrade` reads them. Keys are the PEM files that
//! `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write ([`SigningKey`], [`TrustedKeys`]).

mod keys;
mod manifest;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use keys::{KeyError, SigningKey, TrustedKeys};
pub use manifest::{Entry, FORMAT, Manifest, ManifestError, ROOT};
pub use reader::{ReadError, Sink, read};
pub use writer::{WriteError, measure, write};
