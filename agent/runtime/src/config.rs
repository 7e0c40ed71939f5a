//! Where the runtime keeps its things and which registries it may ask.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::api::RegistryAuth;

/// How a [`crate::Libcontainer`] is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// What must survive a reboot: images, layers, containers (`/var/lib/bramble`).
    pub state_dir: PathBuf,
    /// What must not: namespaces and sockets (`/run/bramble`).
    pub run_dir: PathBuf,
    /// All cgroups are made below this one, e.g. `/bramble`.
    pub cgroup_root: String,
    /// Program to re-execute as helper; its `main` calls [`crate::helper`] first. Normally `/proc/self/exe`.
    pub helper: PathBuf,
    /// Registries that need more than the defaults.
    pub registries: Registries,
}

impl Config {
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.state_dir.join("layers")
    }

    pub(crate) fn containers_dir(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    pub(crate) fn sandboxes_dir(&self) -> PathBuf {
        self.run_dir.join("sandboxes")
    }

    pub(crate) fn sockets_dir(&self) -> PathBuf {
        self.run_dir.join("shims")
    }
}

/// Settings by registry host (`docker.io`, `192.168.1.1:5000`).
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// What is known of each host; a host that is missing here is asked over HTTPS, without credentials.
    pub hosts: BTreeMap<String, Registry>,
}

/// How to talk to one registry.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// Plain HTTP.
    pub insecure: bool,
    /// Asked first, in order: `http://192.168.1.1:5000`, `https://mirror.example/prefix`.
    pub mirrors: Vec<String>,
    /// Used when a pull brings no credentials of its own.
    pub auth: Option<RegistryAuth>,
    /// PEM file of a certificate authority to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}
