//! The images of this node: the list, the layers, and who is pulling what.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use tokio::sync::{mpsc, watch};

use crate::api::{Error, Image, Progress, RegistryAuth};
use crate::config::{Config, Registries};
use crate::layers::{Layers, Locks};
use crate::store::{Record, Store};
use crate::{pull, reference};

/// Unfinished downloads older than this are not taken up again.
const PARTIAL_LIFETIME: Duration = Duration::from_secs(24 * 3600);

type SharedPull = WeakShared<BoxFuture<'static, Result<Image, Error>>>;

/// All that concerns images.
pub(crate) struct Images {
    dir: PathBuf,
    pub(crate) registries: Registries,
    pub(crate) layers: Layers,
    pub(crate) blob_locks: Arc<Locks>,
    store: Mutex<Store>,
    numbers: std::sync::atomic::AtomicU64,
    pulls: Mutex<HashMap<String, (SharedPull, watch::Receiver<Progress>)>>,
}

fn node(what: &str) -> impl FnOnce(io::Error) -> Error + '_ {
    move |e| Error::Node(format!("{what}: {e}"))
}

impl Images {
    /// Opens the folders and takes away what an interrupted life left.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let dir = config.images_dir();
        fs::create_dir_all(dir.join("ingest")).map_err(node("make the image folder"))?;
        let mut store = Store::open(&dir).map_err(node("read the list of images"))?;
        let layers = Layers::open(config.layers_dir(), config.helper.clone())
            .map_err(node("open the layer folder"))?;
        let broken: Vec<String> = store
            .records()
            .iter()
            .filter(|r| !r.layers.iter().all(|l| layers.has(l)))
            .map(|r| r.image.id.clone())
            .collect();
        for id in broken {
            tracing::warn!(id, "image lost a layer, dropping it");
            store.remove(&id).map_err(node("drop a broken image"))?;
        }
        let images = Self {
            dir,
            registries: config.registries.clone(),
            layers,
            blob_locks: Arc::default(),
            store: Mutex::new(store),
            numbers: Default::default(),
            pulls: Mutex::default(),
        };
        images.sweep_ingest().map_err(node("clean unfinished downloads"))?;
        images.collect().map_err(node("clean unused layers"))?;
        Ok(images)
    }

    pub(crate) fn ingest_dir(&self) -> PathBuf {
        self.dir.join("ingest")
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep_ingest(&self) -> io::Result<()> {
        for file in fs::read_dir(self.ingest_dir())? {
            let file = file?;
            if file.file_type()?.is_dir() {
                fs::remove_dir_all(file.path())?;
                continue;
            }
            let partial = file.path().extension().is_some_and(|e| e == "partial");
            let age = SystemTime::now().duration_since(file.metadata()?.modified()?).unwrap_or_default();
            if !partial || age > PARTIAL_LIFETIME {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    fn collect(&self) -> io::Result<()> {
        let store = self.store();
        let used: BTreeSet<String> = store.records().iter().flat_map(|r| r.layers.iter().cloned()).collect();
        self.layers.collect(&used)
    }

    /// Records an image whose layers are all in place.
    pub(crate) fn add(&self, mut record: Record, blobs: &[(&str, &[u8])]) -> io::Result<Image> {
        record.image.size = self.layers.size(&record.layers);
        let mut store = self.store();
        for (digest, bytes) in blobs {
            store.put_blob(digest, bytes)?;
        }
        store.add(record)
    }

    pub(crate) fn find(&self, name: &str) -> Option<Image> {
        self.store().find(name).map(|r| r.image.clone())
    }

    pub(crate) fn list(&self) -> Vec<Image> {
        self.store().records().iter().map(|r| r.image.clone()).collect()
    }

    /// Layer folders of an image, lowest first.
    pub(crate) fn layers_of(&self, id: &str) -> Option<Vec<String>> {
        self.store().by_id(id).map(|r| r.layers.clone())
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), Error> {
        let removed = self.store().remove(id).map_err(node("remove an image"))?;
        if removed.is_none() {
            return Err(Error::NotFound(id.to_owned()));
        }
        self.collect().map_err(node("remove layers"))
    }

    /// Pulls, or joins a pull of the same reference that is under way.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        name: &str,
        auth: Option<RegistryAuth>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, Error> {
        let parsed = reference::parse(name)?;
        // Who may not see an image must not get it by waiting for someone who may.
        let key = format!("{parsed} {auth:?}");
        let (shared, mut seen) = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.retain(|_, (pull, _)| pull.upgrade().is_some_and(|p| p.peek().is_none()));
            match pulls.get(&key).and_then(|(pull, seen)| Some((pull.upgrade()?, seen.clone()))) {
                Some(running) => running,
                None => {
                    let (sender, seen) = watch::channel(Progress { layers: (0, 0), bytes: (0, 0) });
                    let (images, name) = (self.clone(), name.to_owned());
                    let work = async move { pull::pull(&images, &name, auth, sender).await };
                    let shared = work.boxed().shared();
                    if let Some(weak) = shared.downgrade() {
                        pulls.insert(key, (weak, seen.clone()));
                    }
                    (shared, seen)
                }
            }
        };
        let mut shared = shared;
        let Some(progress) = progress else { return shared.await };
        loop {
            let result = tokio::select! {
                result = &mut shared => Some(result),
                changed = seen.changed() => if changed.is_ok() { None } else { Some((&mut shared).await) },
            };
            // The caller may have stopped listening, or be too slow for every step; neither holds up the pull.
            let _ = progress.try_send(seen.borrow_and_update().clone());
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// A number that nothing in the ingest folder has in its name yet.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// A fresh folder for an archive that is being loaded.
    pub(crate) fn scratch(&self) -> io::Result<Scratch> {
        let path = self.ingest_dir().join(format!("load-{}-{}", std::process::id(), self.number()));
        fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

/// A folder that goes away with its owner.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
