//! The folder of fetched `.deb` files. A file is used only when it is what the lock says, and one that is not is named
//! and left as it is: replacing it silently would hide damage or worse.

use crate::hash;
use crate::lock::LockedDeb;
use crate::net::{Client, is_gone};
use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// Fetches what is missing.
    pub fn fetch(
        &self,
        client: &Client,
        debs: &[&LockedDeb],
        dropped: &Dropped<'_>,
        progress: &MultiProgress,
    ) -> Result<Fetched> {
        let missing = self.missing(debs);
        let total = missing.iter().map(|d| d.size).sum();
        let bar = progress.add(ProgressBar::new(total));
        bar.set_style(style("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}"));
        let queue = Mutex::new(missing.iter());
        let failure = Mutex::new(None);
        let from_elsewhere = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(missing.len()) {
                scope.spawn(|| {
                    while let Some(deb) = next(&queue, &failure) {
                        bar.set_message(deb.name.clone());
                        match self.fetch_one(client, deb, dropped, &bar) {
                            Ok(true) => drop(from_elsewhere.fetch_add(1, Ordering::Relaxed)),
                            Ok(false) => {}
                            Err(error) => set_first(&failure, error),
                        }
                    }
                });
            }
        });
        bar.finish_and_clear();
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(Fetched { count: missing.len(), from_elsewhere: from_elsewhere.into_inner() }),
        }
    }

    /// True if the archive had dropped it and it came from elsewhere.
    fn fetch_one(
        &self,
        client: &Client,
        deb: &LockedDeb,
        dropped: &Dropped<'_>,
        bar: &ProgressBar,
    ) -> Result<bool> {
        let url = format!("{}/{}", deb.uri, deb.path);
        let error = match client.open(&url) {
            Ok(body) => return self.take(deb, &url, body, bar).map(|()| false),
            Err(error) => error,
        };
        let what = || format!("{} {}", deb.name, deb.version);
        if !is_gone(&error) {
            return Err(error.context(what()));
        }
        let gone = || format!("{}: Debian's pool has dropped it; {}", what(), dropped.remedy);
        let Some(url) = (dropped.elsewhere)(deb) else { return Err(error.context(gone())) };
        let body = client.open(&url).with_context(gone)?;
        self.take(deb, &url, body, bar).map(|()| true)
    }

    /// Whole and as the lock says, or not at all.
    fn take(&self, deb: &LockedDeb, url: &str, body: impl Read, bar: &ProgressBar) -> Result<()> {
        let mut part = tempfile::NamedTempFile::new_in(&self.dir)?;
        // One byte more than the lock says is enough to refuse it.
        let mut copy = Copy { from: body.take(deb.size.saturating_add(1)), to: part.as_file_mut(), bar };
        let (sha256, size) = hash::sha256_reader(&mut copy).with_context(|| url.to_owned())?;
        check(deb, url, &sha256, size)?;
        part.as_file().sync_all()?;
        part.persist(self.dir.join(deb.file_name()))?;
        Ok(())
    }
}

/// What to do about packages that their archive has dropped.
pub struct Dropped<'a> {
    /// Where else one may be.
    pub elsewhere: &'a (dyn Fn(&LockedDeb) -> Option<String> + Sync),
    /// What a person can do when it is nowhere.
    pub remedy: &'a str,
}

/// What was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Packages.
    pub count: usize,
    /// How many of them their archive had dropped.
    pub from_elsewhere: usize,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// An archive of one file: all else is 404. Lives as long as the test's process.
    fn archive(path: &'static str, content: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                lines.find(String::is_empty);
                let (status, body) = match first.split(' ').nth(1) == Some(path) {
                    true => ("200 OK", content),
                    false => ("404 Not Found", &b"nothing here"[..]),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        format!("http://{address}")
    }

    fn deb(uri: String) -> LockedDeb {
        LockedDeb {
            name: "bash".into(),
            version: "5.2-1".into(),
            arch: "arm64".into(),
            size: 5,
            sha256: hash::sha256(b"a deb"),
            uri,
            path: "pool/bash.deb".into(),
            boards: Default::default(),
        }
    }

    fn fetch(deb: &LockedDeb, elsewhere: Option<&str>) -> (Result<Fetched>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let progress = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let elsewhere = |d: &LockedDeb| elsewhere.map(|base| format!("{base}/archive/debian/T/{}", d.path));
        let dropped = Dropped { elsewhere: &elsewhere, remedy: "run `image-builder lock rpi-3 --refresh`" };
        (cache.fetch(&Client::default(), &[deb], &dropped, &progress), dir)
    }

    #[test]
    fn what_the_pool_dropped_comes_from_the_archive_of_archives() {
        let pool = archive("/pool/other.deb", b"");
        let all = archive("/archive/debian/T/pool/bash.deb", b"a deb");
        let (fetched, dir) = fetch(&deb(pool.clone()), Some(&all));
        assert_eq!(fetched.unwrap(), Fetched { count: 1, from_elsewhere: 1 });
        assert_eq!(fs::read(dir.path().join("bash_5.2-1_arm64.deb")).unwrap(), b"a deb");
        // It is held to the lock like any other.
        let liar = archive("/archive/debian/T/pool/bash.deb", b"a bed");
        let error = format!("{:#}", fetch(&deb(pool.clone()), Some(&liar)).0.unwrap_err());
        assert!(error.contains(&liar) && error.contains("is not the package bash 5.2-1"), "{error}");
        // Nowhere: what it is, and what to do.
        let (failed, dir) = fetch(&deb(pool.clone()), Some(&pool));
        let error = format!("{:#}", failed.unwrap_err());
        assert!(
            error.starts_with("bash 5.2-1: Debian's pool has dropped it; run `image-builder lock rpi-3"),
            "{error}"
        );
        assert!(error.contains("/archive/debian/T/pool/bash.deb"), "{error}");
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        assert!(format!("{:#}", fetch(&deb(pool), None).0.unwrap_err()).contains("--refresh"));
    }

    #[test]
    fn an_archive_that_is_there_is_asked_alone_and_one_that_is_away_is_no_dropped_package() {
        let pool = archive("/pool/bash.deb", b"a deb");
        let (fetched, _) = fetch(&deb(pool), Some("http://127.0.0.1:9"));
        assert_eq!(fetched.unwrap(), Fetched { count: 1, from_elsewhere: 0 });
        let error =
            format!("{:#}", fetch(&deb("http://127.0.0.1:9".into()), Some("file:///")).0.unwrap_err());
        assert!(
            error.starts_with("bash 5.2-1: http://127.0.0.1:9/") && !error.contains("dropped"),
            "{error}"
        );
    }
}
