//! The software bill of materials: CycloneDX JSON of every Debian package and every crate in the image.

use crate::lock::Lock;
use crate::project::LoadedBoard;
use crate::system::Given;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// A crate that is compiled into something on the card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SPDX expression, where it states one.
    pub license: Option<String>,
    /// Hash of its archive, of registry crates.
    pub sha256: Option<String>,
}

/// The programs on the card that are Rust.
const PROGRAMS: [&str; 2] = ["bramble", "bramble-init"];

/// The crates of our programs on one target, from cargo and Cargo.lock.
pub fn crates(root: &Path, target: &str) -> Result<Vec<Crate>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", target]);
    cargo.current_dir(root);
    let metadata: Value = serde_json::from_slice(&crate::tools::run(&mut cargo, "cargo")?)?;
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock")?;
    Ok(from_metadata(&metadata, &checksums(&lock)?))
}

/// Name and version to hash.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = toml::from_str(lock).context("Cargo.lock")?;
    let packages =
        lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock has no packages")?;
    let text = |package: &toml::Value, key: &str| Some(package.get(key)?.as_str()?.to_owned());
    let entry = |p: &toml::Value| Some(((text(p, "name")?, text(p, "version")?), text(p, "checksum")?));
    Ok(packages.iter().filter_map(entry).collect())
}

/// What our programs need to run, not what builds them.
fn from_metadata(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Vec<Crate> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> = list(&metadata["packages"])
        .into_iter()
        .filter_map(|p| Some((p["id"].as_str()?.to_owned(), p)))
        .collect();
    let nodes: BTreeMap<String, Value> = list(&metadata["resolve"]["nodes"])
        .into_iter()
        .filter_map(|n| Some((n["id"].as_str()?.to_owned(), n)))
        .collect();
    let is_program = |p: &&Value| PROGRAMS.iter().any(|name| p["name"] == *name) && p["source"].is_null();
    let mut open: Vec<String> =
        packages.values().filter(is_program).filter_map(|p| Some(p["id"].as_str()?.to_owned())).collect();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let dependencies = nodes.get(&id).map(|n| list(&n["deps"])).unwrap_or_default();
        let is_normal = |d: &Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null());
        open.extend(
            dependencies.iter().filter(|d| is_normal(d)).filter_map(|d| Some(d["pkg"].as_str()?.to_owned())),
        );
    }
    let to_crate = |id: &String| {
        let package = packages.get(id)?;
        let (name, version) = (package["name"].as_str()?.to_owned(), package["version"].as_str()?.to_owned());
        let license = package["license"].as_str().map(str::to_owned);
        let sha256 = checksums.get(&(name.clone(), version.clone())).cloned();
        Some(Crate { name, version, license, sha256 })
    };
    let mut crates: Vec<Crate> = seen.iter().filter_map(to_crate).collect();
    crates.sort();
    crates
}

/// The document.
pub fn document(board: &LoadedBoard, lock: &Lock, given: &Given, crates: &[Crate]) -> Result<String> {
    let hashes = |sum: &str| json!([{ "alg": "SHA-256", "content": sum }]);
    let debs = lock.debs_of(&board.name).map(|deb| {
        let purl = format!(
            "pkg:deb/debian/{}@{}?arch={}&distro={}",
            deb.name,
            deb.version.replace(':', "%3A").replace('+', "%2B"),
            deb.arch,
            lock.suite
        );
        json!({
            "type": "library", "bom-ref": purl, "name": deb.name, "version": deb.version, "purl": purl,
            "hashes": hashes(&deb.sha256)
        })
    });
    let crates = crates.iter().map(|c| {
        let purl = format!("pkg:cargo/{}@{}", c.name, c.version.replace('+', "%2B"));
        let mut component =
            json!({ "type": "library", "bom-ref": purl, "name": c.name, "version": c.version, "purl": purl });
        if let Some(license) = &c.license {
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        if let Some(sum) = &c.sha256 {
            component["hashes"] = hashes(sum);
        }
        component
    });
    let name = format!("bramble-{}", board.name);
    let time = jiff::Timestamp::from_second(given.epoch.into())?.to_string();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", crate::bake::uuid_of(&format!("sbom {name} {} {time}", given.version))),
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": { "type": "operating-system", "name": name, "version": given.version }
        },
        "components": debs.chain(crates).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_on_the_card_is_listed() {
        let package = |id: &str, name: &str, source: Value| json!({ "id": id, "name": name, "version": "1.0.0", "license": "MIT", "source": source });
        let registry = json!("registry+https://github.com/rust-lang/crates.io-index");
        let dep = |id: &str, kind: Value| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("b", "bramble", Value::Null),
                package("t", "tokio", registry.clone()),
                package("c", "cc", registry.clone()),
                package("p", "proptest", registry.clone()),
                package("i", "image-builder", Value::Null),
                package("z", "zstd", registry),
            ],
            "resolve": { "nodes": [
                { "id": "b", "deps": [dep("t", Value::Null), dep("c", json!("build")), dep("p", json!("dev"))] },
                { "id": "i", "deps": [dep("z", Value::Null)] },
                { "id": "t", "deps": [dep("b", Value::Null)] },
            ] }
        });
        let sums =
            checksums("[[package]]\nname = \"tokio\"\nversion = \"1.0.0\"\nchecksum = \"aa\"\n").unwrap();
        let found = from_metadata(&metadata, &sums);
        let names: Vec<(&str, Option<&str>)> =
            found.iter().map(|c| (c.name.as_str(), c.sha256.as_deref())).collect();
        assert_eq!(names, [("bramble", None), ("tokio", Some("aa"))]);
    }
}
