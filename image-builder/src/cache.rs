//! The folder of fetched `.deb` files. A file is used only when it is what the lock says, and one that is not is named
//! and left as it is: replacing it silently would hide damage or worse.

use crate::hash;
use crate::lock::LockedDeb;
use crate::net::Client;
use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Downloads at a time: enough to fill a home line, few enough to be polite to a mirror.
const PARALLEL: usize = 4;

/// The folder.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the folder, making it where it is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cache {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Bytes of a package, checked.
    pub fn read(&self, deb: &LockedDeb) -> Result<Vec<u8>> {
        let path = self.dir.join(deb.file_name());
        let bytes =
            fs::read(&path).with_context(|| format!("{}: run `image-builder fetch`", path.display()))?;
        check(deb, &path.display().to_string(), &hash::sha256(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Those not in the cache yet. What is there is checked when it is read.
    pub fn missing<'a>(&self, debs: &[&'a LockedDeb]) -> Vec<&'a LockedDeb> {
        debs.iter().filter(|deb| !self.dir.join(deb.file_name()).exists()).copied().collect()
    }

    /// Fetches what is missing. Returns how many were.
    pub fn fetch(&self, client: &Client, debs: &[&LockedDeb], progress: &MultiProgress) -> Result<usize> {
        let missing = self.missing(debs);
        let total = missing.iter().map(|d| d.size).sum();
        let bar = progress.add(ProgressBar::new(total));
        bar.set_style(style("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}"));
        let queue = Mutex::new(missing.iter());
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(missing.len()) {
                scope.spawn(|| {
                    while let Some(deb) = next(&queue, &failure) {
                        bar.set_message(deb.name.clone());
                        if let Err(error) = self.fetch_one(client, deb, &bar) {
                            set_first(&failure, error);
                        }
                    }
                });
            }
        });
        bar.finish_and_clear();
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(missing.len()),
        }
    }

    fn fetch_one(&self, client: &Client, deb: &LockedDeb, bar: &ProgressBar) -> Result<()> {
        let url = format!("{}/{}", deb.uri, deb.path);
        let gone = || {
            format!(
                "{} {}: Debian's pool drops old versions; run `image-builder lock --refresh` for those of today",
                deb.name, deb.version
            )
        };
        // One byte more than the lock says is enough to refuse it.
        let body = client.open(&url).with_context(gone)?.take(deb.size + 1);
        let mut part = tempfile::NamedTempFile::new_in(&self.dir)?;
        let mut copy = Copy { from: body, to: part.as_file_mut(), bar };
        let (sha256, size) = hash::sha256_reader(&mut copy).with_context(|| url.clone())?;
        check(deb, &url, &sha256, size)?;
        part.as_file().sync_all()?;
        part.persist(self.dir.join(deb.file_name()))?;
        Ok(())
    }
}

fn next<'a>(
    queue: &Mutex<std::slice::Iter<'a, &'a LockedDeb>>,
    failure: &Mutex<Option<anyhow::Error>>,
) -> Option<&'a LockedDeb> {
    if failure.lock().is_ok_and(|f| f.is_some()) {
        return None;
    }
    queue.lock().ok()?.next().copied()
}

fn set_first(failure: &Mutex<Option<anyhow::Error>>, error: anyhow::Error) {
    if let Ok(mut failure) = failure.lock() {
        failure.get_or_insert(error);
    }
}

fn check(deb: &LockedDeb, place: &str, sha256: &str, size: u64) -> Result<()> {
    if size != deb.size || sha256 != deb.sha256 {
        bail!(
            "{place}: is not the package {} {} that the lock names: {size} bytes with sha256 {sha256}, the lock says \
             {} bytes with {}. If the file is merely damaged, delete it and run `image-builder fetch`",
            deb.name,
            deb.version,
            deb.size,
            deb.sha256
        );
    }
    Ok(())
}

/// A bar's looks.
pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Reads, and writes what it read to a file.
struct Copy<'a, R> {
    from: R,
    to: &'a mut File,
    bar: &'a ProgressBar,
}

impl<R: Read> Read for Copy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}
