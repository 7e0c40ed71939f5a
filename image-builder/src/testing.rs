//! What tests need: a signing key of their own.

use crate::release::Keyring;
use pgp::composed::{
    CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedPublicKey, SignedSecretKey,
};
use pgp::ser::Serialize;
use pgp::types::Password;

/// A key that signs a release.
pub struct TestKey(SignedSecretKey);

impl TestKey {
    /// A fresh one.
    pub fn new(name: &str) -> Self {
        let mut params = SecretKeyParamsBuilder::default();
        params
            .key_type(KeyType::Ed25519Legacy)
            .can_sign(true)
            .can_certify(true)
            .primary_user_id(name.to_owned());
        Self(params.build().unwrap().generate(rand08::thread_rng()).unwrap())
    }

    /// Its certificate, binary.
    pub fn certificate(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        SignedPublicKey::from(self.0.clone()).to_writer(&mut bytes).unwrap();
        bytes
    }

    /// The keyring that trusts it alone.
    pub fn keyring(&self) -> Keyring {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.certificate()).unwrap();
        Keyring::read(file.path()).unwrap()
    }

    /// A signed text.
    pub fn sign(&self, text: &str) -> String {
        let key = &self.0.primary_key;
        let signed =
            CleartextSignedMessage::sign(rand08::thread_rng(), text, key, &Password::empty()).unwrap();
        signed.to_armored_string(Default::default()).unwrap()
    }
}

/// One file of a package made in a test.
pub enum DebFile<'a> {
    /// A folder.
    Dir(&'a str),
    /// A file.
    File(&'a str, &'a [u8]),
    /// A symbolic link.
    Link(&'a str, &'a str),
    /// A hard link.
    Hard(&'a str, &'a str),
    /// A file whose name is these bytes, whatever they are.
    Raw(&'a [u8], &'a [u8]),
}

/// A `.deb`.
pub fn make_deb(files: &[DebFile<'_>], compression: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o755);
        let mut link = |kind, path: &str, target: &str| {
            header.set_entry_type(kind);
            header.set_size(0);
            tar.append_link(&mut header.clone(), format!("./{path}"), target).unwrap();
        };
        match file {
            DebFile::Link(path, target) => link(tar::EntryType::Symlink, path, target),
            DebFile::Hard(path, target) => link(tar::EntryType::Link, path, target),
            DebFile::Dir(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, format!("./{path}/"), &[][..]).unwrap();
            }
            DebFile::Raw(path, bytes) => {
                header.set_size(bytes.len() as u64);
                header.as_old_mut().name[..path.len()].copy_from_slice(path);
                header.set_cksum();
                tar.append(&header, *bytes).unwrap();
            }
            DebFile::File(path, bytes) => {
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, format!("./{path}"), *bytes).unwrap();
            }
        }
    }
    deb_of(&tar.into_inner().unwrap(), compression)
}

/// A `.deb` with this `data.tar`.
pub fn deb_of(tar: &[u8], compression: &str) -> Vec<u8> {
    let data = match compression {
        "xz" => {
            let mut out = Vec::new();
            std::io::Read::read_to_end(&mut liblzma::read::XzEncoder::new(tar, 1), &mut out).unwrap();
            out
        }
        "zst" => zstd::encode_all(tar, 1).unwrap(),
        _ => {
            let mut out = Vec::new();
            let level = flate2::Compression::fast();
            std::io::Read::read_to_end(&mut flate2::read::GzEncoder::new(tar, level), &mut out).unwrap();
            out
        }
    };
    let mut deb = b"!<arch>\n".to_vec();
    for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), (&format!("data.tar.{compression}"), &data)] {
        deb.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, bytes.len()).bytes());
        deb.extend(bytes);
        if bytes.len() % 2 == 1 {
            deb.push(b'\n');
        }
    }
    deb
}
