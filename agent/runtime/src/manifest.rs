//! Image manifests, indexes and configs: what is read of them, and which platform fits this node. Pure.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::api::{Error, Image};

/// Manifests and indexes larger than this are refused (registries cap them at 4 MiB as well).
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Image configs larger than this are refused.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// The layer count that every other runtime stops at too; with short ids they fit one mount call.
pub(crate) const MAX_LAYERS: usize = 127;

/// What this node runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    architecture: &'static str,
    /// Accepted variants, best first; an image without a variant always comes last.
    variants: &'static [&'static str],
}

impl Host {
    pub(crate) const fn current() -> Self {
        if cfg!(target_arch = "x86_64") {
            Self { architecture: "amd64", variants: &["v1"] }
        } else if cfg!(target_arch = "aarch64") {
            Self { architecture: "arm64", variants: &["v8"] }
        } else if cfg!(target_arch = "arm") {
            Self { architecture: "arm", variants: &["v7", "v6", "v5"] }
        } else {
            Self { architecture: std::env::consts::ARCH, variants: &[] }
        }
    }

    pub(crate) fn name(&self) -> String {
        match self.variants.first() {
            Some(v) if self.architecture != "amd64" => format!("linux/{}/{v}", self.architecture),
            _ => format!("linux/{}", self.architecture),
        }
    }

    /// How well a platform fits, smaller is better.
    fn rank(&self, platform: &Platform) -> Option<usize> {
        if platform.os != "linux" || platform.architecture != self.architecture {
            return None;
        }
        match platform.variant.as_deref().unwrap_or("") {
            "" => Some(self.variants.len()),
            variant => self.variants.iter().position(|v| *v == variant),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    pub(crate) variant: Option<String>,
}

impl Platform {
    fn name(&self) -> String {
        match &self.variant {
            Some(v) => format!("{}/{}/{v}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// Either kind of document that a reference can lead to.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Either {
    schema_version: u32,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// Reads a manifest or an index; the error says what is wrong with it.
pub(crate) fn document(bytes: &[u8]) -> Result<Document, String> {
    let either: Either = serde_json::from_slice(bytes).map_err(|e| format!("not a manifest: {e}"))?;
    if either.schema_version != 2 {
        return Err(format!("manifest schema version {} is not supported", either.schema_version));
    }
    match (either.manifests, either.config, either.layers) {
        (Some(manifests), None, _) => Ok(Document::Index(manifests)),
        (_, Some(config), Some(layers)) if layers.len() <= MAX_LAYERS => {
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        (_, Some(_), Some(layers)) => {
            Err(format!("{} layers, at most {MAX_LAYERS} are supported", layers.len()))
        }
        _ => Err("neither an image manifest nor an index".into()),
    }
}

/// The entry of an index that fits best, or what the index offers instead.
pub(crate) fn resolve(host: Host, entries: &[Descriptor]) -> Result<&Descriptor, String> {
    let fits = |d: &Descriptor| d.platform.as_ref().and_then(|p| host.rank(p));
    entries.iter().filter(|d| fits(d).is_some()).min_by_key(|d| fits(d)).ok_or_else(|| {
        // Attestations carry `unknown/unknown`: nobody can run them, so they are no offer.
        let mut offers: Vec<String> = entries
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .map(Platform::name)
            .collect();
        offers.dedup();
        if offers.is_empty() { "nothing".to_owned() } else { offers.join(", ") }
    })
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Runnable {
    user: String,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    stop_signal: String,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// The image config.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<Runnable>,
    rootfs: RootFs,
}

impl ImageConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| format!("not an image config: {e}"))?;
        if config.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(format!(
                "{} layers, at most {MAX_LAYERS} are supported",
                config.rootfs.diff_ids.len()
            ));
        }
        match config.rootfs.diff_ids.iter().find(|id| !is_sha256(id)) {
            Some(id) => Err(format!("layer id {id:?} is not a sha256 digest")),
            None => Ok(config),
        }
    }

    pub(crate) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    pub(crate) fn fits(&self, host: Host) -> bool {
        host.rank(&self.platform).is_some()
    }

    /// Refuses an image for another machine.
    pub(crate) fn check(&self, host: Host, reference: &str) -> Result<(), Error> {
        if self.fits(host) {
            return Ok(());
        }
        Err(Error::WrongArchitecture {
            reference: reference.to_owned(),
            wanted: host.name(),
            offered: self.platform.name(),
        })
    }

    /// The image it describes, without names.
    pub(crate) fn image(&self, id: String) -> Image {
        let c = self.config.clone().unwrap_or_default();
        Image {
            id,
            tags: Vec::new(),
            digests: Vec::new(),
            size: 0,
            entrypoint: c.entrypoint.unwrap_or_default(),
            cmd: c.cmd.unwrap_or_default(),
            env: c.env.unwrap_or_default(),
            working_dir: c.working_dir,
            user: c.user,
            stop_signal: c.stop_signal,
        }
    }
}

/// Whether a digest is `sha256:` and 64 lower-case hex digits; nothing else may become a file name.
pub(crate) fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    finish(Sha256::new_with_prefix(bytes))
}

/// `sha256:<hex>` of what was fed to a hasher.
pub(crate) fn finish(hasher: Sha256) -> String {
    use std::fmt::Write;
    hasher.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Names each layer by all that lies below it too: what a layer's implicit parents look like depends on those.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match chain.last() {
            Some(below) => sha256(format!("{below} {id}").as_bytes()),
            None => id.clone(),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM: Host = Host { architecture: "arm", variants: &["v7", "v6", "v5"] };
    const ARM64: Host = Host { architecture: "arm64", variants: &["v8"] };
    const AMD64: Host = Host { architecture: "amd64", variants: &["v1"] };

    fn entry(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: format!("{os}/{architecture}/{}", variant.unwrap_or("")),
            size: 1,
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(Into::into),
            }),
            annotations: Default::default(),
        }
    }

    #[test]
    fn the_best_variant_wins() {
        let all = [
            entry("linux", "amd64", None),
            entry("linux", "arm", Some("v5")),
            entry("linux", "arm", Some("v6")),
            entry("linux", "arm", Some("v7")),
            entry("linux", "arm64", Some("v8")),
            entry("unknown", "unknown", None),
        ];
        assert_eq!(resolve(ARM, &all).unwrap().digest, "linux/arm/v7");
        assert_eq!(resolve(ARM, &all[..3]).unwrap().digest, "linux/arm/v6");
        assert_eq!(resolve(ARM64, &all).unwrap().digest, "linux/arm64/v8");
        assert_eq!(resolve(AMD64, &all).unwrap().digest, "linux/amd64/");
        assert_eq!(resolve(ARM64, &[entry("linux", "arm64", None)]).unwrap().digest, "linux/arm64/");
        assert_eq!(resolve(AMD64, &all[4..]).unwrap_err(), "linux/arm64/v8");
        assert_eq!(resolve(AMD64, &[entry("windows", "amd64", None)]).unwrap_err(), "windows/amd64");
    }

    #[test]
    fn a_single_image_for_another_machine_names_both_sides() {
        let config =
            ImageConfig::parse(br#"{"architecture":"s390x","os":"linux","rootfs":{"diff_ids":[]}}"#).unwrap();
        let text = config.check(AMD64, "x").unwrap_err().to_string();
        assert!(text.contains("linux/amd64") && text.contains("linux/s390x"), "{text}");
    }

    #[test]
    fn hostile_documents_are_refused() {
        let layer = r#"{"digest":"sha256:0","size":1}"#;
        let many = vec![layer; MAX_LAYERS + 1].join(",");
        assert!(
            document(format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{many}]}}"#).as_bytes())
                .is_err()
        );
        assert!(document(br#"{"schemaVersion":1}"#).is_err());
        assert!(document(b"[]").is_err());
        assert!(!is_sha256("sha256:../../etc"));
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["sha256:../x"]}}"#;
        assert!(ImageConfig::parse(config).is_err());
    }

    #[test]
    fn chain_ids_depend_on_what_is_below() {
        let a = sha256(b"a");
        let b = sha256(b"b");
        assert_eq!(chain_ids(std::slice::from_ref(&a)), std::slice::from_ref(&a));
        assert_ne!(chain_ids(&[a.clone(), b.clone()])[1], b);
        assert_ne!(chain_ids(&[b.clone(), a])[1], chain_ids(&[b.clone(), b])[1]);
    }
}
