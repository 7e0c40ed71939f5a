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
