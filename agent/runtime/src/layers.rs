//! Unpacked layers: one folder each, named by a short form of the chain id, shared by every container and image.
//!
//! A layer is unpacked beside its place by the `unpack` helper, forced to disk and renamed. So a folder with a layer's
//! name is whole, whatever happened; folders with other names are litter from an earlier life.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::io::AsyncWriteExt;

use crate::sys;
use crate::unpack::{Job, Outcome};

/// Bytes that one layer may unpack to.
const MAX_LAYER_BYTES: u64 = 16 << 30;
/// Files that one layer may have.
const MAX_LAYER_ENTRIES: u64 = 1_000_000;
/// Hex digits of a chain id in a folder's name. 96 bits; 127 of them fit the 4096 bytes of mount options.
const SHORT: usize = 24;
const TEMP_PREFIX: &str = ".tmp-";

/// The folder name of a chain id.
pub(crate) fn short(chain_id: &str) -> String {
    chain_id.trim_start_matches("sha256:").chars().take(SHORT).collect()
}

/// One async lock for each name in use.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    pub(crate) async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = locks.get(name).and_then(Weak::upgrade).unwrap_or_default();
            locks.insert(name.to_owned(), Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}

/// Keeps layers from being collected while an image that will use them is being made.
pub(crate) struct Pin<'a> {
    layers: &'a Layers,
    names: Vec<String>,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut pins = self.layers.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            if let Some(count) = pins.get_mut(name) {
                *count -= 1;
            }
        }
        pins.retain(|_, count| *count > 0);
    }
}

/// The folder of all layers.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    helper: PathBuf,
    pins: Mutex<HashMap<String, usize>>,
    locks: Locks,
}

impl Layers {
    pub(crate) fn open(dir: PathBuf, helper: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        // Unpacked images hold setuid programs: no user of the host may reach them.
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMP_PREFIX) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { dir, helper, pins: Mutex::default(), locks: Locks::default() })
    }

    pub(crate) fn pin(&self, names: Vec<String>) -> Pin<'_> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &names {
            *pins.entry(name.clone()).or_default() += 1;
        }
        Pin { layers: self, names }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.dir.join(name).is_dir()
    }

    pub(crate) async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        self.locks.lock(name).await
    }

    /// Bytes of file content in some layers.
    pub(crate) fn size(&self, names: &[String]) -> u64 {
        let one = |name: &String| fs::read_to_string(self.size_path(name)).ok()?.parse::<u64>().ok();
        names.iter().filter_map(one).sum()
    }

    fn size_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.size"))
    }

    /// Unpacks a blob as the layer `name` above `lowers` (lowest first). The caller holds the layer's lock.
    pub(crate) async fn unpack(
        &self,
        name: &str,
        blob: &Path,
        diff_id: &str,
        lowers: &[String],
    ) -> Result<(), String> {
        let temp = self.dir.join(format!("{TEMP_PREFIX}{name}"));
        let made = self.unpack_to(&temp, blob, diff_id, lowers).await;
        let placed = match made {
            Ok(size) => self.place(name, &temp, size).map_err(|e| format!("keep a layer: {e}")),
            Err(e) => Err(e),
        };
        if placed.is_err() {
            let _ = fs::remove_dir_all(&temp);
        }
        placed
    }

    async fn unpack_to(
        &self,
        temp: &Path,
        blob: &Path,
        diff_id: &str,
        lowers: &[String],
    ) -> Result<u64, String> {
        if temp.exists() {
            fs::remove_dir_all(temp).map_err(|e| format!("remove {}: {e}", temp.display()))?;
        }
        fs::create_dir(temp).map_err(|e| format!("make {}: {e}", temp.display()))?;
        fs::set_permissions(temp, Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        let job = Job {
            blob: blob.to_owned(),
            target: temp.to_owned(),
            lowers: lowers.iter().rev().map(|l| self.dir.join(l)).collect(),
            max_bytes: MAX_LAYER_BYTES,
            max_entries: MAX_LAYER_ENTRIES,
        };
        match self.run_helper(&job).await? {
            Outcome::Done { diff_id: got, size } if got == diff_id => Ok(size),
            Outcome::Done { diff_id: got, .. } => {
                Err(format!("layer content is {got}, the image's config says {diff_id}"))
            }
            Outcome::Failed(why) => Err(format!("unpack layer {diff_id}: {why}")),
        }
    }

    async fn run_helper(&self, job: &Job) -> Result<Outcome, String> {
        let text = serde_json::to_vec(job).map_err(|e| e.to_string())?;
        let mut child = tokio::process::Command::new(&self.helper)
            .arg("unpack")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("run {}: {e}", self.helper.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&text).await.map_err(|e| format!("talk to the unpack helper: {e}"))?;
        }
        let output = child.wait_with_output().await.map_err(|e| format!("unpack helper: {e}"))?;
        serde_json::from_slice(&output.stdout)
            .map_err(|_| format!("unpack helper ended early: {}", output.status))
    }

    fn place(&self, name: &str, temp: &Path, size: u64) -> io::Result<()> {
        sys::write_atomic(&self.size_path(name), size.to_string().as_bytes())?;
        fs::rename(temp, self.dir.join(name))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes every layer that no image in `used` and no pin needs.
    pub(crate) fn collect(&self, used: &BTreeSet<String>) -> io::Result<()> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dead = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let name = file_name.trim_end_matches(".size");
            if file_name.starts_with('.') || used.contains(name) || pins.contains_key(name) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                // Renamed first: a half removed folder must not look like a layer.
                let temp = self.dir.join(format!("{TEMP_PREFIX}dead-{name}"));
                fs::rename(entry.path(), &temp)?;
                dead.push(temp);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        drop(pins);
        dead.iter().try_for_each(fs::remove_dir_all)
    }
}
