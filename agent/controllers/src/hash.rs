//! Names made by controllers: random suffixes and the pod template's hash, in an alphabet without vowels.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use rand::Rng;
use sha2::{Digest, Sha256};

const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Names may be 63 characters where they become host names; a suffix takes some of them.
const PREFIX_BOUND: usize = 57;

/// `prefix` and five random characters.
pub(crate) fn random_name(prefix: &str, rng: &mut impl Rng) -> String {
    let mut name: String = prefix.chars().take(PREFIX_BOUND).collect();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
    name
}

/// A short name for a pod template; `collisions` makes another one.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hasher = Sha256::new();
    // Through `Value`, whose maps are sorted: the same template always gives the same bytes.
    let value = serde_json::to_value(template).unwrap_or_default();
    hasher.update(value.to_string().as_bytes());
    if collisions > 0 {
        hasher.update(collisions.to_be_bytes());
    }
    hasher
        .finalize()
        .iter()
        .take(10)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}
