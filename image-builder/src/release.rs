//! Debian's signed `InRelease`: the one thing trusted by signature; every index and every package below it is trusted
//! by hash.

use crate::control::paragraphs;
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::packet::Signature;
use pgp::types::{KeyDetails, Tag};
use std::collections::BTreeMap;
use std::path::Path;

/// The certificates that may sign a release.
#[derive(Debug)]
pub struct Keyring {
    certificates: Vec<SignedPublicKey>,
}

impl Keyring {
    /// Reads a file of certificates, binary or armored.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| {
            format!("keyring {}: on Debian it comes with the package debian-archive-keyring", path.display())
        })?;
        Self::parse(&bytes).with_context(|| format!("keyring {}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let certificates: Vec<SignedPublicKey> = if bytes.starts_with(b"-----BEGIN") {
            SignedPublicKey::from_armor_many(bytes)?.0.collect::<Result<_, _>>()?
        } else {
            SignedPublicKey::from_bytes_many(bytes)?.collect::<Result<_, _>>()?
        };
        if certificates.is_empty() {
            bail!("holds no certificate");
        }
        Ok(Self { certificates })
    }

    /// Fingerprint of the certificate under which the signature is good.
    fn signer(&self, signature: &Signature, text: &[u8], now: Timestamp) -> Option<String> {
        if signature_expired(signature, now) {
            return None;
        }
        self.certificates.iter().filter(|certificate| usable(certificate, now)).find_map(|certificate| {
            let primary = &certificate.primary_key;
            let by_primary = signature.verify(primary, text).is_ok();
            let by_subkey = || {
                certificate.public_subkeys.iter().any(|subkey| {
                    subkey.verify_bindings(primary).is_ok()
                        && subkey.signatures.iter().any(|s| s.key_flags().sign())
                        && signature.verify(&subkey.key, text).is_ok()
                })
            };
            (by_primary || by_subkey()).then(|| format!("{:X}", primary.fingerprint()))
        })
    }
}

fn signature_expired(signature: &Signature, now: Timestamp) -> bool {
    let Some(created) = signature.created() else { return true };
    let created = i64::from(created.as_secs());
    let lifetime = signature.signature_expiration_time().map_or(0, |d| i64::from(d.as_secs()));
    lifetime != 0 && created + lifetime < now.as_second()
}

/// Neither revoked nor past its time, by what its own newest self-signature says. Others' signatures on it, which a
/// keyring is full of, do not count.
fn usable(certificate: &SignedPublicKey, now: Timestamp) -> bool {
    let primary = &certificate.primary_key;
    let details = &certificate.details;
    if details.revocation_signatures.iter().any(|s| s.verify_key(primary).is_ok()) {
        return false;
    }
    let by_user = details.users.iter().flat_map(|user| {
        let own = |s: &&Signature| s.verify_certification(primary, Tag::UserId, &user.id).is_ok();
        user.signatures.iter().filter(own)
    });
    let direct = details.direct_signatures.iter().filter(|s| s.verify_key(primary).is_ok());
    let Some(newest) = by_user.chain(direct).max_by_key(|s| s.created().map(|t| t.as_secs())) else {
        return false;
    };
    let lifetime = newest.key_expiration_time().map_or(0, |d| i64::from(d.as_secs()));
    lifetime == 0 || i64::from(primary.created_at().as_secs()) + lifetime > now.as_second()
}

/// What a good `InRelease` says.
#[derive(Debug)]
pub struct Release {
    /// `trixie`.
    pub codename: String,
    /// `13.7`; security archives have none.
    pub version: String,
    /// When it was made.
    pub date: Timestamp,
    /// Fingerprints of the certificates whose signatures are good.
    pub signers: Vec<String>,
    /// Hash and size of each index below it.
    pub indexes: BTreeMap<String, (String, u64)>,
}

impl Release {
    /// Checks the signatures and reads what they cover, nothing else of the file.
    pub fn verify(keyring: &Keyring, file: &str, now: Timestamp) -> Result<Self> {
        let (message, _) = CleartextSignedMessage::from_string(file).context("is no signed text")?;
        let text = message.signed_text();
        let good = message.signatures().iter().filter_map(|s| keyring.signer(s, text.as_bytes(), now));
        let mut signers: Vec<String> = good.collect();
        signers.dedup();
        if signers.is_empty() {
            bail!("no signature is good under any certificate of the keyring");
        }
        let text = text.replace("\r\n", "\n");
        let mut release = Self::parse(&text)?;
        release.signers = signers;
        if let Some(until) = valid_until(&text)?
            && until < now
        {
            bail!("was valid until {until}");
        }
        Ok(release)
    }

    fn parse(text: &str) -> Result<Self> {
        let paragraph = paragraphs(text).next().context("is empty")?;
        let field = |name: &str| paragraph.get(name).with_context(|| format!("has no {name}"));
        let mut indexes = BTreeMap::new();
        for line in field("SHA256")?.lines() {
            let mut words = line.split_whitespace();
            let (Some(hash), Some(size), Some(path)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            if crate::hash::is_sha256(hash) {
                let size = size.parse().with_context(|| format!("size of {path}"))?;
                indexes.insert(path.to_owned(), (hash.to_owned(), size));
            }
        }
        Ok(Self {
            codename: field("Codename")?.to_owned(),
            version: paragraph.get("Version").unwrap_or_default().to_owned(),
            date: date(field("Date")?)?,
            signers: Vec::new(),
            indexes,
        })
    }
}

fn valid_until(text: &str) -> Result<Option<Timestamp>> {
    paragraphs(text).next().and_then(|p| p.get("Valid-Until")).map(date).transpose()
}

fn date(text: &str) -> Result<Timestamp> {
    let numeric = text.replace("UTC", "+0000");
    Ok(jiff::fmt::rfc2822::parse(&numeric).with_context(|| format!("date {text:?}"))?.timestamp())
}

#[cfg(test)]
#[path = "release/tests.rs"]
mod tests;
