//! Bundles as written, and bundles that somebody changed.

use std::io;

use proptest::prelude::*;

use crate::*;

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Failed(#[from] ReadError);

/// Keeps what it is given.
#[derive(Debug, Default)]
struct Kept {
    accepted: bool,
    files: Vec<(String, Vec<u8>)>,
    complete: Vec<String>,
}

impl Sink for Kept {
    type Error = Failed;

    fn accept(&mut self, _: &Manifest) -> Result<(), Failed> {
        self.accepted = true;
        Ok(())
    }

    fn chunk(&mut self, file: &Entry, at: u64, bytes: &[u8]) -> Result<(), Failed> {
        assert!(self.accepted);
        if at == 0 {
            self.files.push((file.name.clone(), Vec::new()));
        }
        let (_, content) = self.files.last_mut().unwrap();
        assert_eq!(content.len() as u64, at);
        content.extend_from_slice(bytes);
        Ok(())
    }

    fn complete(&mut self, file: &Entry) -> Result<(), Failed> {
        self.complete.push(file.name.clone());
        Ok(())
    }
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("boot/cmdline.txt", b"bramble.slot=a".to_vec()),
        ("boot/overlays/x.dtbo", vec![7; 1000]),
        ("root.squashfs", (0..1_500_000_u32).map(|i| (i % 251) as u8).collect()),
    ]
}

fn manifest() -> Manifest {
    Manifest {
        format: FORMAT.to_owned(),
        version: "0.2.0".to_owned(),
        board: "rpi-3".to_owned(),
        arch: "arm64".to_owned(),
        files: files().iter().map(|(name, content)| measure(name, content.as_slice()).unwrap()).collect(),
    }
}

fn bundle(key: &SigningKey, manifest: &Manifest) -> Result<Vec<u8>, WriteError> {
    let mut out = Vec::new();
    write(&mut out, manifest, key, |entry| {
        let (_, content) = files().into_iter().find(|(name, _)| *name == entry.name).unwrap();
        Ok(io::Cursor::new(content))
    })?;
    Ok(out)
}

fn key() -> (SigningKey, TrustedKeys) {
    let (key, _) = SigningKey::generate().unwrap();
    let mut trusted = TrustedKeys::default();
    trusted.add("test", &key.public_pem()).unwrap();
    (key, trusted)
}

fn take(bytes: &[u8], keys: &TrustedKeys) -> (Result<Manifest, Failed>, Kept) {
    let mut kept = Kept::default();
    (read(bytes, keys, &mut kept), kept)
}

#[test]
fn what_is_written_is_read() {
    let (key, trusted) = key();
    let bytes = bundle(&key, &manifest()).unwrap();
    assert_eq!(bytes, bundle(&key, &manifest()).unwrap(), "reproducible");
    let (read, kept) = take(&bytes, &trusted);
    assert_eq!(read.unwrap(), manifest());
    let expected: Vec<_> = files().into_iter().map(|(name, content)| (name.to_owned(), content)).collect();
    assert_eq!(kept.files, expected);
    assert_eq!(kept.complete.len(), 3);
}

#[test]
fn another_key_writes_nothing() {
    let bytes = bundle(&key().0, &manifest()).unwrap();
    let (result, kept) = take(&bytes, &key().1);
    assert!(matches!(result.unwrap_err().0, ReadError::Signature));
    assert!(!kept.accepted);
    let (result, _) = take(&bytes, &TrustedKeys::default());
    assert!(matches!(result.unwrap_err().0, ReadError::Signature));
}

#[test]
fn not_a_bundle() {
    let (_, trusted) = key();
    for bytes in [&b""[..], b"hello", &[0; 4096], &[0x42; 4096]] {
        assert!(matches!(take(bytes, &trusted).0.unwrap_err().0, ReadError::NotABundle(_)), "{bytes:?}");
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    tar.append_data(&mut header, "etc/passwd", &b"hello"[..]).unwrap();
    assert!(matches!(take(&tar.into_inner().unwrap(), &trusted).0.unwrap_err().0, ReadError::NotABundle(_)));
}

#[test]
fn signed_nonsense_is_refused() {
    let (key, trusted) = key();
    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        // The writer refuses; a reader must not rely on that.
        assert!(bundle(&key, &manifest).is_err());
        let text = serde_json::to_vec(&manifest).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in [("manifest.json", text.clone()), ("manifest.sig", key.sign(&text))] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        let (result, kept) = take(&tar.into_inner().unwrap(), &trusted);
        assert!(!kept.accepted);
        result.unwrap_err().to_string()
    };
    assert!(with(&|m| m.format = "bramble-update/9".to_owned()).contains("bramble-update/9"));
    for name in [
        "boot/../../x",
        "/boot/x",
        "boot/",
        "boot//x",
        "boot/.x",
        "etc/x",
        "boot/a b",
        "boot/a\\b",
        "boot/1/2/3/4/5",
    ] {
        assert!(with(&|m| m.files[1].name = name.to_owned()).contains("refused"), "{name}");
    }
    assert!(with(&|m| m.files[1].name = "boot/CMDLINE.TXT".to_owned()).contains("twice"));
    assert!(with(&|m| m.files[1].size = 1 << 40).contains("too large"));
    assert!(with(&|m| m.files[1].sha256 = "x".to_owned()).contains("sha256"));
    assert!(with(&|m| m.files.truncate(2)).contains("root"));
}

#[test]
fn keys_of_openssl_and_wrong_ones() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(TrustedKeys::load(folder.path()), Err(KeyError::None(_))));
    let (key, text) = SigningKey::generate().unwrap();
    std::fs::write(folder.path().join("ours.pem"), key.public_pem()).unwrap();
    std::fs::write(folder.path().join("README"), "not a key").unwrap();
    TrustedKeys::load(folder.path()).unwrap();
    std::fs::write(folder.path().join("typo.pem"), "-----BEGIN PUBLIC KEY-----\n").unwrap();
    assert!(TrustedKeys::load(folder.path()).unwrap_err().to_string().contains("typo.pem"));
    assert!(SigningKey::from_pem("k", &key.public_pem()).is_err());
    let again = SigningKey::from_pem("k", &text).unwrap();
    assert_eq!(again.public_pem(), key.public_pem());
    // RFC 8410's own example, as openssl prints it.
    let example = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    let public = SigningKey::from_pem("k", example).unwrap().public_pem();
    assert!(public.contains("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="), "{public}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever one changed byte or a lost end does: never a whole update, never a complete file that is not ours.
    #[test]
    fn changed_on_the_way(at in 0..1_510_000_usize, flip in 1..=255_u8, cut: bool) {
        let (key, trusted) = key();
        let mut bytes = bundle(&key, &manifest()).unwrap();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        let (result, kept) = take(&bytes, &trusted);
        for (name, content) in files() {
            if kept.complete.iter().any(|n| n == name) {
                prop_assert!(kept.files.iter().any(|(n, c)| n == name && *c == content));
            }
        }
        // Padding and the fields of tar that nobody reads may change.
        if result.is_ok() {
            prop_assert_eq!(kept.complete.len(), 3);
        }
    }
}
