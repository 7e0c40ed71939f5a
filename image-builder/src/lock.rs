//! The lock: exactly which `.deb` files an image is made of, `image-builder/locks/SUITE-ARCH.toml`. What is locked was
//! checked against Debian's signatures when it was locked; from then on only the hashes here count.

use crate::control::Package;
use crate::hash;
use crate::resolve::Request;
use crate::schema::{Arch, Source, Suite};
use crate::version::Version;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const HEAD: &str = "# Written by `image-builder lock`: not for editing by hand.\n";
const MAX_LOCK: u64 = 4 * 1024 * 1024;
/// Packages are unpacked in memory.
const MAX_DEB: u64 = 1024 * 1024 * 1024;

/// A lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Debian suite.
    pub suite: String,
    /// Debian architecture.
    pub arch: String,
    /// The signed releases that it was made from.
    pub release: Vec<LockedRelease>,
    /// What each board asked for.
    pub board: Vec<LockedBoard>,
    /// Every package of any of the boards, by name.
    pub deb: Vec<LockedDeb>,
}

/// A signed release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedRelease {
    /// The archive.
    pub uri: String,
    /// Name below `dists/`.
    pub suite: String,
    /// Debian's version, "13.7"; empty for a security archive.
    pub version: String,
    /// When it was made, RFC 3339.
    pub date: String,
    /// Hash of its `InRelease`.
    pub inrelease_sha256: String,
    /// Fingerprints of those who signed it.
    pub signers: Vec<String>,
}

/// What one board asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedBoard {
    /// `rpi-3`.
    pub name: String,
    /// Packages wanted by its recipes.
    pub packages: BTreeSet<String>,
    /// Packages excluded by its recipes.
    pub exclude: BTreeSet<String>,
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedDeb {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `arm64`, or `all`.
    pub arch: String,
    /// Bytes.
    pub size: u64,
    /// Hash of the file.
    pub sha256: String,
    /// Archive that has it.
    pub uri: String,
    /// Path below the archive.
    pub path: String,
    /// Boards that take it.
    #[serde(default)]
    pub boards: BTreeSet<String>,
}

impl LockedDeb {
    /// File name in the cache. Debian's own, but for an epoch's colon.
    pub fn file_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.arch)
    }

    /// Where it is in an archive of archives: `@ARCHIVE@` stands for the last part of its own archive's URI.
    pub fn url_in(&self, pattern: &str) -> Option<String> {
        let archive = self.uri.trim_end_matches('/').rsplit('/').next()?;
        Some(format!("{}/{}", pattern.replace("@ARCHIVE@", archive).trim_end_matches('/'), self.path))
    }
}

impl Lock {
    /// Puts boards' answers into one lock.
    pub fn assemble(suite: &str, arch: Arch, release: Vec<LockedRelease>, answers: &[Answer<'_>]) -> Self {
        let mut debs: BTreeMap<&str, LockedDeb> = BTreeMap::new();
        for answer in answers {
            for (package, uri) in &answer.packages {
                let deb = debs.entry(&package.name).or_insert_with(|| LockedDeb {
                    name: package.name.clone(),
                    version: package.version.to_string(),
                    arch: package.arch.clone(),
                    size: package.size,
                    sha256: package.sha256.clone(),
                    uri: (*uri).to_owned(),
                    path: package.path.clone(),
                    boards: BTreeSet::new(),
                });
                deb.boards.insert(answer.board.to_owned());
            }
        }
        let board = answers.iter().map(|answer| LockedBoard {
            name: answer.board.to_owned(),
            packages: answer.request.packages.clone(),
            exclude: answer.request.exclude.clone(),
        });
        Self {
            suite: suite.to_owned(),
            arch: arch.debian().to_owned(),
            release,
            board: board.collect(),
            deb: debs.into_values().collect(),
        }
    }

    /// Whether the lock was made for just this request.
    pub fn answers(&self, board: &str, request: &Request) -> bool {
        self.board
            .iter()
            .any(|b| b.name == board && b.packages == request.packages && b.exclude == request.exclude)
    }

    /// The packages of one board.
    pub fn debs_of<'a>(&'a self, board: &'a str) -> impl Iterator<Item = &'a LockedDeb> {
        self.deb.iter().filter(move |deb| deb.boards.contains(board))
    }

    /// As a file. Its second line is the hash of the rest.
    pub fn to_text(&self) -> Result<String> {
        let body = toml::to_string(self)?;
        Ok(format!("{HEAD}# sha256 {}\n\n{body}", hash::sha256(body.as_bytes())))
    }

    /// Reads a file and checks it against its own hash.
    pub fn from_text(text: &str) -> Result<Self> {
        let damaged = "was damaged or edited by hand: take it from version control, or run `image-builder lock --refresh`";
        let (stated, body) = text
            .strip_prefix(HEAD)
            .and_then(|rest| rest.strip_prefix("# sha256 "))
            .and_then(|rest| rest.split_once("\n\n"))
            .with_context(|| format!("has no hash of its own: it {damaged}"))?;
        if hash::sha256(body.as_bytes()) != stated {
            bail!("does not match its own hash: it {damaged}");
        }
        let lock: Self = toml::from_str(body)?;
        check_debs(&lock.deb)?;
        Ok(lock)
    }

    /// Reads a lock file.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || {
            if std::fs::metadata(path)?.len() > MAX_LOCK {
                bail!("more than {MAX_LOCK} bytes");
            }
            Self::from_text(&std::fs::read_to_string(path)?)
        };
        read().with_context(|| format!("lock {}", path.display()))
    }

    /// What changed from an older lock, a line for each package, for a person.
    pub fn changes_since(&self, old: Option<&Self>) -> Vec<String> {
        let by_name = |lock: &'_ Self| -> BTreeMap<String, LockedDeb> {
            lock.deb.iter().map(|d| (d.name.clone(), d.clone())).collect()
        };
        let old = old.map(by_name).unwrap_or_default();
        let new = by_name(self);
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        names.into_iter().filter_map(|name| change(name, old.get(name), new.get(name))).collect()
    }

    /// Sources of the suite that were left out when the lock was made, because their index was not sound then.
    pub fn left_out<'a>(&self, suite: &'a Suite) -> Vec<&'a Source> {
        let has = |source: &&Source| self.release.iter().any(|r| r.uri == *source.uri.get_ref());
        suite.sources.iter().filter(|source| !has(source)).collect()
    }

    /// Where a package is found after its archive has dropped it, if the suite names such a place.
    pub fn fallback_url(&self, suite: &Suite, deb: &LockedDeb) -> Option<String> {
        let pattern = suite.fallback.as_ref()?.get_ref();
        let date = &self.release.iter().find(|release| release.uri == deb.uri)?.date;
        // Archives are recorded a few times a day, and keep what an update replaced for longer than one.
        let time =
            date.parse::<jiff::Timestamp>().ok()?.checked_add(jiff::SignedDuration::from_hours(24)).ok()?;
        deb.url_in(&pattern.replace("@TIME@", &time.strftime("%Y%m%dT%H%M%SZ").to_string()))
    }

    /// Bytes of all packages.
    pub fn size(&self) -> u64 {
        self.deb.iter().map(|d| d.size).sum()
    }
}

/// That no path leads elsewhere, each hash is one and no size is beyond any package's.
pub fn check_debs(debs: &[LockedDeb]) -> Result<()> {
    let mut names = BTreeSet::new();
    for deb in debs {
        if deb.size > MAX_DEB {
            bail!("{}: {} bytes, more than any package has", deb.name, deb.size);
        }
        if !names.insert(deb.file_name()) {
            bail!("{} is in it twice", deb.file_name());
        }
        let name = deb.file_name();
        let sound = [&deb.path, &name].iter().all(|p| crate::schema::plain_path(p).is_ok());
        if !sound || name.contains('/') || !hash::is_sha256(&deb.sha256) {
            bail!("{}: its path or hash is none", deb.name);
        }
    }
    Ok(())
}

/// What a board asked for and got, each package with the archive that has it.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The board.
    pub board: &'a str,
    /// Its request.
    pub request: &'a Request,
    /// Its packages.
    pub packages: Vec<(&'a Package, &'a str)>,
}

fn change(name: &str, old: Option<&LockedDeb>, new: Option<&LockedDeb>) -> Option<String> {
    let size = |deb: &LockedDeb| indicatif::HumanBytes(deb.size).to_string();
    Some(match (old, new) {
        (None, Some(new)) => format!("+ {name} {} ({})", new.version, size(new)),
        (Some(old), None) => format!("- {name} {} ({})", old.version, size(old)),
        (Some(old), Some(new)) if old.version != new.version => {
            let back = Version::new(&*new.version) < Version::new(&*old.version);
            let word = if back { " (older!)" } else { "" };
            format!("  {name} {} -> {}{word} ({} -> {})", old.version, new.version, size(old), size(new))
        }
        (Some(old), Some(new)) if old.sha256 != new.sha256 => {
            format!(
                "! {name} {}: another file of the same version ({} -> {})",
                new.version,
                size(old),
                size(new)
            )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deb(name: &str, version: &str, size: u64) -> LockedDeb {
        LockedDeb {
            name: name.into(),
            version: version.into(),
            arch: "arm64".into(),
            size,
            sha256: hash::sha256(version.as_bytes()),
            uri: "http://deb.debian.org/debian".into(),
            path: format!("pool/main/{name}.deb"),
            boards: BTreeSet::from(["rpi-3".to_owned()]),
        }
    }

    fn lock(debs: Vec<LockedDeb>) -> Lock {
        let board = LockedBoard {
            name: "rpi-3".into(),
            packages: BTreeSet::from(["bash".to_owned()]),
            exclude: BTreeSet::new(),
        };
        Lock { suite: "trixie".into(), arch: "arm64".into(), release: vec![], board: vec![board], deb: debs }
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        let lock = lock(vec![deb("bash", "5.2-1", 10), deb("passwd", "1:4.16", 20)]);
        assert_eq!(Lock::from_text(&lock.to_text().unwrap()).unwrap(), lock);
        assert_eq!(lock.deb[1].file_name(), "passwd_1%3a4.16_arm64.deb");
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let text = lock(vec![deb("bash", "5.2-1", 10)]).to_text().unwrap();
        for (at, _) in text.char_indices() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Lock::from_text(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_an_archive_dropped_is_looked_for_a_day_after_the_release() {
        let mut lock = lock(vec![deb("bash", "5.2-1", 10)]);
        let suite: Suite = toml::from_str(
            "keyring = 'k'\nfallback = 'https://snap/archive/@ARCHIVE@/@TIME@/'\n\
             [[sources]]\nuri = 'http://deb.debian.org/debian'\nsuites = ['t']\ncodename = 't'\ncomponents = ['main']\n\
             [[sources]]\nuri = 'http://s/debian-security'\nsuites = ['t']\ncodename = 't'\ncomponents = ['main']\n\
             optional = true\n",
        )
        .unwrap();
        assert_eq!(lock.fallback_url(&suite, &lock.deb[0]), None, "no release, no time");
        lock.release.push(LockedRelease {
            uri: "http://deb.debian.org/debian".into(),
            suite: "trixie".into(),
            version: "13.8".into(),
            date: "2026-11-30T19:15:44Z".into(),
            inrelease_sha256: String::new(),
            signers: Vec::new(),
        });
        assert_eq!(
            lock.fallback_url(&suite, &lock.deb[0]).as_deref(),
            Some("https://snap/archive/debian/20261201T191544Z/pool/main/bash.deb")
        );
        let left_out: Vec<&str> = lock.left_out(&suite).iter().map(|s| s.uri.get_ref().as_str()).collect();
        assert_eq!(left_out, ["http://s/debian-security"]);
    }

    #[test]
    fn a_lock_with_an_honest_hash_and_hostile_entries_is_refused() {
        let refused = |change: &dyn Fn(&mut LockedDeb)| {
            let mut bad = deb("bash", "5.2-1", 10);
            change(&mut bad);
            let text = lock(vec![deb("a", "1", 1), bad]).to_text().unwrap();
            format!("{:#}", Lock::from_text(&text).unwrap_err())
        };
        assert!(refused(&|d| d.path = "pool/../../../etc/passwd".into()).contains("bash"));
        assert!(refused(&|d| d.name = "../../x".into()).contains("../../x"));
        assert!(refused(&|d| d.version = "1/../../../x".into()).contains("bash"));
        assert!(refused(&|d| d.sha256 = "00".into()).contains("bash"));
        assert!(refused(&|d| d.size = u64::MAX / 4).contains("more than any package"));
        assert!(refused(&|d| (d.name, d.version) = ("a".into(), "1".into())).contains("twice"));
    }

    #[test]
    fn changes_are_told_by_name_version_and_size() {
        let old = lock(vec![deb("a", "1", 1024), deb("b", "2", 2048), deb("c", "1", 10)]);
        let new = lock(vec![deb("a", "2", 4096), deb("c", "1", 10), deb("d", "1", 512)]);
        assert_eq!(
            new.changes_since(Some(&old)),
            ["  a 1 -> 2 (1.00 KiB -> 4.00 KiB)", "- b 2 (2.00 KiB)", "+ d 1 (512 B)"]
        );
        assert!(old.changes_since(Some(&old)).is_empty());
        assert!(old.changes_since(Some(&new))[0].contains("(older!)"));
    }
}
