use super::*;
use crate::testing::TestKey;

const RELEASE: &str = "Origin: Debian\nCodename: trixie\nVersion: 13.7\nDate: Sat, 12 Sep 2026 07:55:41 UTC\nSHA256:\n \
                       e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 17 main/binary-arm64/Packages.xz\n";

fn now() -> Timestamp {
    Timestamp::now()
}

#[test]
fn a_signed_release_is_read() {
    let key = TestKey::new("archive");
    let release = Release::verify(&key.keyring(), &key.sign(RELEASE), now()).unwrap();
    assert_eq!((release.codename.as_str(), release.version.as_str()), ("trixie", "13.7"));
    assert_eq!(release.date.to_string(), "2026-09-12T07:55:41Z");
    assert_eq!(release.indexes["main/binary-arm64/Packages.xz"].1, 17);
    assert_eq!(release.signers.len(), 1);
}

#[test]
fn a_changed_text_is_refused() {
    let key = TestKey::new("archive");
    let signed = key.sign(RELEASE);
    for (from, to) in [("13.7", "13.6"), ("17 main", "18 main"), ("e3b0", "e3b1")] {
        assert!(signed.contains(from));
        let error = Release::verify(&key.keyring(), &signed.replace(from, to), now()).unwrap_err();
        assert!(error.to_string().contains("no signature is good"), "{error:#}");
    }
}

#[test]
fn another_s_signature_is_refused() {
    let (ours, theirs) = (TestKey::new("archive"), TestKey::new("archive"));
    assert!(Release::verify(&ours.keyring(), &theirs.sign(RELEASE), now()).is_err());
    assert!(Release::verify(&ours.keyring(), RELEASE, now()).is_err());
}

#[test]
fn what_is_outside_the_signature_is_not_read() {
    let key = TestKey::new("archive");
    let signed = key.sign(RELEASE);
    let before = format!("Codename: evil\n\n{signed}");
    if let Ok(release) = Release::verify(&key.keyring(), &before, now()) {
        assert_eq!(release.codename, "trixie");
    }
    let after = format!("{signed}\n\nCodename: evil\n");
    if let Ok(release) = Release::verify(&key.keyring(), &after, now()) {
        assert_eq!(release.codename, "trixie");
    }
}

#[test]
fn a_release_past_its_time_is_refused() {
    let key = TestKey::new("archive");
    let signed = key.sign(&format!("{RELEASE}Valid-Until: Sat, 19 Sep 2026 07:55:41 UTC\n"));
    let before: Timestamp = "2026-09-15T00:00:00Z".parse().unwrap();
    let after: Timestamp = "2026-09-20T00:00:00Z".parse().unwrap();
    // A key made now is not yet there for `before`; only the release's own date decides.
    assert!(Release::verify(&key.keyring(), &signed, before).is_ok());
    let error = Release::verify(&key.keyring(), &signed, after).unwrap_err();
    assert!(error.to_string().contains("valid until"), "{error:#}");
}
