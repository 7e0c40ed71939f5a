//! Images and containers of one node.
//!
//! [`Libcontainer`] is the daemon's side. It pulls images (`pull`, `load`: verify, then unpack once, `layers`), makes
//! the namespaces that a pod shares (`sandbox`), and starts one shim process per container (`containers`). The daemon
//! itself never calls the container library, which changes the calling process in ways that no program with threads
//! survives: it re-executes its own program, and [`helper`] then becomes one of
//!
//! * `shim`: makes one container, is its parent, owns its log, terminal and exit code (`shim`, `shim_io`, `log`);
//! * `exec`: runs one command inside a container (`exec`, `launch`);
//! * `unpack`: unpacks one layer, locked into that layer's folder (`unpack`).
//!
//! A container's way: `containers` writes `job.json` and spawns a shim; the shim puts itself on record (`state.json`),
//! gets the word to go on over a socket pair (`control`), mounts the overlay, builds the OCI spec (`spec`), starts, and
//! reports the pid. From then on it needs nobody. Its end is seen through its pidfd; it has left `exit.json`.
//!
//! What must hold after power loss: a layer's folder is whole or does not exist; the list of images names only whole
//! ones; a container that has an `exit.json` has ended with that exit, any other one that is on disk is reported as
//! lost, never as running. What must hold after the daemon's death: containers live on, and no exit or log line is lost.

mod api;
mod cgroup;
mod config;
mod containers;
mod control;
mod decompress;
mod exec;
mod frames;
mod helper;
mod images;
mod isolate;
mod launch;
mod layers;
mod load;
mod log;
mod manifest;
mod pull;
mod reference;
mod sandbox;
mod seccomp;
mod shim;
mod shim_io;
mod spec;
mod state;
mod stdio;
mod store;
mod streams;
mod sys;
mod trace;
mod unpack;
mod users;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

pub use api::*;
pub use cgroup::preflight;
pub use config::{Config, Registries, Registry};
pub use helper::helper;

use cgroup::Hierarchy;
use containers::{Containers, full_cgroup};
use images::Images;
use sandbox::Sandboxes;

/// The runtime: libcontainer behind shim processes.
pub struct Libcontainer {
    config: Config,
    hierarchy: Arc<Hierarchy>,
    images: Arc<Images>,
    sandboxes: Sandboxes,
    containers: Containers,
    /// Held while an image is found for a container, and while one is removed that no container has.
    image_use: Mutex<()>,
}

impl Libcontainer {
    /// Opens the folders and takes up what runs, or has ended since.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        // The second of two runtimes in one process finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let hierarchy =
            Hierarchy::find().map_err(|e| Error::Node(format!("find the cgroup hierarchies: {e}")))?;
        let hierarchy = Arc::new(hierarchy);
        let images = Arc::new(Images::open(&config)?);
        let sandboxes = Sandboxes::open(config.sandboxes_dir())?;
        let containers = Containers::open(&config, hierarchy.clone())?;
        Ok(Arc::new(Self { config, hierarchy, images, sandboxes, containers, image_use: Mutex::default() }))
    }

    fn cgroup(&self, path: &str) -> String {
        full_cgroup(&self.config.cgroup_root, path)
    }
}

#[async_trait::async_trait]
impl Runtime for Libcontainer {
    async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, Error> {
        self.images.pull(reference, auth, progress).await
    }

    async fn image(&self, reference: &str) -> Option<Image> {
        self.images.find(reference)
    }

    async fn images(&self) -> Vec<Image> {
        self.images.list()
    }

    async fn remove_image(&self, id: &str) -> Result<(), Error> {
        let _lock = self.image_use.lock().unwrap_or_else(PoisonError::into_inner);
        if self.containers.uses_image(id) {
            return Err(Error::Node(format!("image {id} is used by a container")));
        }
        self.images.remove(id)
    }

    async fn load(&self, archive: &Path) -> Result<Vec<Image>, Error> {
        load::load(&self.images, archive).await
    }

    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, Error> {
        self.sandboxes.create(spec).await
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), Error> {
        self.sandboxes.remove(pod_uid).await
    }

    async fn sandboxes(&self) -> Vec<String> {
        self.sandboxes.list()
    }

    async fn start(&self, spec: ContainerSpec) -> Result<Container, Error> {
        let entry = {
            let _lock = self.image_use.lock().unwrap_or_else(PoisonError::into_inner);
            let layers = self.images.layers_of(&spec.image);
            let layers = layers.ok_or_else(|| Error::NotFound(format!("image {}", spec.image)))?;
            self.containers.register(spec, layers)?
        };
        self.containers.start(entry).await
    }

    async fn list(&self) -> Vec<Container> {
        self.containers.list().iter().map(|e| e.container()).collect()
    }

    async fn container(&self, id: &str) -> Result<Container, Error> {
        self.containers.get(id).map(|e| e.container())
    }

    async fn wait(&self, id: &str) -> Result<Exit, Error> {
        self.containers.get(id)?.wait().await
    }

    async fn kill(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.containers.kill(id, signal)
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        self.containers.remove(id).await
    }

    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Streams, Error> {
        let entry = self.containers.get(id)?;
        if entry.init().is_none() {
            return Err(Error::Start(format!("container {id} is not running")));
        }
        streams::exec(&self.config.helper, &entry, spec).await
    }

    async fn attach(&self, id: &str, stdin: bool) -> Result<Streams, Error> {
        streams::attach(self.containers.get(id)?, stdin).await
    }

    async fn usage(&self, cgroup: &str) -> Result<Usage, Error> {
        self.hierarchy.usage(&self.cgroup(cgroup))
    }

    async fn remove_cgroup(&self, cgroup: &str) -> Result<(), Error> {
        let (hierarchy, path) = (self.hierarchy.clone(), self.cgroup(cgroup));
        let removed = tokio::task::spawn_blocking(move || hierarchy.remove(&path)).await;
        removed
            .map_err(|e| Error::Node(e.to_string()))?
            .map_err(|e| Error::Node(format!("remove cgroup {cgroup}: {e}")))
    }

    async fn dial(
        &self,
        netns: Option<PathBuf>,
        address: IpAddr,
        port: u16,
    ) -> Result<tokio::net::TcpStream, Error> {
        sandbox::dial(netns, address, port).await
    }
}
