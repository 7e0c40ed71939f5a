//! JSON Web Tokens (RFC 7519), signed with ES256 and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What comes before a P-256 point in a SubjectPublicKeyInfo (RFC 5480).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Signs tokens and knows its own again.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    id: String,
}

impl Signer {
    /// A new key, PKCS #8.
    pub fn new_key() -> Result<Vec<u8>, String> {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        made.map(|document| document.as_ref().to_vec()).map_err(|_| "a key cannot be made".into())
    }

    /// Takes up a key.
    pub fn load(key: &[u8]) -> Result<Self, String> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &SystemRandom::new());
        let key = key.map_err(|e| format!("the signing key cannot be read: {e}"))?;
        let id = BASE64.encode(Sha256::digest([&SPKI, key.public_key().as_ref()].concat()));
        Ok(Self { key, id })
    }

    /// A token that says this.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let mut token =
            format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signed = self.key.sign(&SystemRandom::new(), token.as_bytes());
        let signature = signed.map_err(|_| "a token cannot be signed")?;
        token.push('.');
        BASE64.encode_string(signature, &mut token);
        Ok(token)
    }

    /// What one of our tokens says.
    pub fn verify(&self, token: &str) -> Result<Value, String> {
        let malformed = || "this is no token".to_owned();
        let (said, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, claims) = said.split_once('.').ok_or_else(malformed)?;
        let decode = |part: &str| BASE64.decode(part).map_err(|_| malformed());
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| malformed())?;
        if header["alg"] != "ES256" {
            return Err("the token is signed in another way".into());
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(said.as_bytes(), &decode(signature)?).map_err(|_| "the token's signature is not ours")?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| malformed())
    }

    /// The public half, as a JSON Web Key Set (RFC 7517).
    pub fn jwks(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..65]));
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_tokens_are_taken() {
        let signer = Signer::load(&Signer::new_key().unwrap()).unwrap();
        let other = Signer::load(&Signer::new_key().unwrap()).unwrap();
        let token = signer.sign(&json!({"sub": "me"})).unwrap();
        assert_eq!(signer.verify(&token).unwrap()["sub"], "me");
        assert!(other.verify(&token).is_err());
        let parts: Vec<&str> = token.split('.').collect();
        let forged = BASE64.encode(json!({"sub": "admin"}).to_string());
        assert!(signer.verify(&format!("{}.{forged}.{}", parts[0], parts[2])).is_err());
        let none = BASE64.encode(json!({"alg": "none"}).to_string());
        assert!(signer.verify(&format!("{none}.{forged}.")).is_err());
        for junk in ["", "..", "a.b", "a.b.c", &format!("{token}.x"), &"A".repeat(5000)] {
            assert!(signer.verify(junk).is_err(), "{junk}");
        }
        assert_eq!(signer.jwks()["keys"][0]["kid"], signer.id.as_str());
    }
}
