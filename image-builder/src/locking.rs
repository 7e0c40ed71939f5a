//! Makes a lock: fetches the signed releases and their indexes, checks each against the one above it, and resolves
//! what the boards ask for.

use crate::control::{Package, package_index};
use crate::hash;
use crate::lock::{Answer, Lock, LockedRelease};
use crate::net::Client;
use crate::release::{Keyring, Release};
use crate::resolve::{Pool, Request};
use crate::schema::{Arch, Source, Suite};
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;

const MAX_INRELEASE: u64 = 8 * 1024 * 1024;
const MAX_INDEX: u64 = 64 * 1024 * 1024;
const MAX_INDEX_UNPACKED: u64 = 512 * 1024 * 1024;

/// What is to be locked.
#[derive(Debug)]
pub struct Order<'a> {
    /// The suite's name.
    pub suite_name: &'a str,
    /// The suite.
    pub suite: &'a Suite,
    /// Who may sign it.
    pub keyring: &'a Keyring,
    /// The architecture.
    pub arch: Arch,
    /// What each board asks for.
    pub requests: &'a BTreeMap<String, Request>,
    /// The lock that this one is to replace: nothing older than it is taken.
    pub previous: Option<&'a Lock>,
    /// The time.
    pub now: Timestamp,
}

/// Makes the lock. `note` is told what was skipped and why.
pub fn make_lock(client: &Client, order: &Order<'_>, note: &mut dyn FnMut(String)) -> Result<Lock> {
    let mut pool = Pool::default();
    let mut releases = Vec::new();
    let mut origin: HashMap<String, String> = HashMap::new();
    for source in &order.suite.sources {
        match read_source(client, order, source, note) {
            Ok((release, packages)) => {
                for package in &packages {
                    // As with equal versions in the pool, the first archive that has the file is the one to ask.
                    origin.entry(package.sha256.clone()).or_insert_with(|| source.uri.get_ref().clone());
                }
                pool.add(packages);
                releases.push(release);
            }
            Err(error) if source.optional => {
                note(format!("left out {} {}: {error:#}", source.uri.get_ref(), source.codename))
            }
            Err(error) => return Err(error),
        }
    }
    let mut answers = Vec::new();
    for (board, request) in order.requests {
        let chosen = pool.resolve(request).with_context(|| format!("board {board}, {}", order.arch))?;
        let with_origin = |package: &'_ Package| origin.get(&package.sha256).map_or("", String::as_str);
        let packages = chosen.into_values().map(|p| (p, with_origin(p))).collect();
        answers.push(Answer { board, request, packages });
    }
    Ok(Lock::assemble(order.suite_name, order.arch, releases, &answers))
}

/// The first of the source's suite names whose signed release and indexes are whole.
fn read_source(
    client: &Client,
    order: &Order<'_>,
    source: &Source,
    note: &mut dyn FnMut(String),
) -> Result<(LockedRelease, Vec<Package>)> {
    let mut last = None;
    for suite in &source.suites {
        match read_suite(client, order, source, suite) {
            Ok(read) => return Ok(read),
            Err(error) => {
                let error = error.context(format!("suite {suite}, architecture {}", order.arch));
                note(format!("{error:#}"));
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("source {} names no suite", source.uri.get_ref())))
}

fn read_suite(
    client: &Client,
    order: &Order<'_>,
    source: &Source,
    suite: &str,
) -> Result<(LockedRelease, Vec<Package>)> {
    let dists = format!("{}/dists/{suite}", source.uri.get_ref());
    let url = format!("{dists}/InRelease");
    let bytes = client.read(&url, MAX_INRELEASE)?;
    let text = std::str::from_utf8(&bytes).with_context(|| url.clone())?;
    let release = Release::verify(order.keyring, text, order.now).with_context(|| url.clone())?;
    if release.codename != source.codename {
        bail!("{url}: is signed, but for {:?} and not for {:?}", release.codename, source.codename);
    }
    refuse_older(order.previous, source, suite, &release)?;
    let mut packages = Vec::new();
    for component in &source.components {
        packages.extend(read_index(client, &dists, &release, component, order.arch)?);
    }
    let locked = LockedRelease {
        uri: source.uri.get_ref().clone(),
        suite: suite.to_owned(),
        version: release.version,
        date: release.date.to_string(),
        inrelease_sha256: hash::sha256(&bytes),
        signers: release.signers,
    };
    Ok((locked, packages))
}

/// A mirror that serves an old release, signed as it is, would bring back mended bugs.
fn refuse_older(previous: Option<&Lock>, source: &Source, suite: &str, release: &Release) -> Result<()> {
    let same = |r: &&LockedRelease| r.uri == *source.uri.get_ref() && r.suite == suite;
    let Some(locked) = previous.and_then(|lock| lock.release.iter().find(same)) else { return Ok(()) };
    let date: Timestamp = locked.date.parse().context("date in the old lock")?;
    if release.date < date {
        bail!("the mirror's release is of {}, older than the lock's of {date}", release.date);
    }
    Ok(())
}

fn read_index(
    client: &Client,
    dists: &str,
    release: &Release,
    component: &str,
    arch: Arch,
) -> Result<Vec<Package>> {
    let path = format!("{component}/binary-{arch}/Packages.xz");
    let url = format!("{dists}/{path}");
    let (sha256, size) =
        release.indexes.get(&path).with_context(|| format!("InRelease does not list {path}"))?;
    if *size > MAX_INDEX {
        bail!("{url}: {size} bytes, more than {MAX_INDEX}");
    }
    let bytes = client.read(&url, MAX_INDEX)?;
    let found = hash::sha256(&bytes);
    if found != *sha256 {
        bail!(
            "{url}: its sha256 is {found}, the signed InRelease says {sha256}: the mirror is damaged or mid-update"
        );
    }
    let mut text = String::new();
    liblzma::read::XzDecoder::new(&*bytes)
        .take(MAX_INDEX_UNPACKED)
        .read_to_string(&mut text)
        .with_context(|| url.clone())?;
    package_index(&text).with_context(|| url)
}
