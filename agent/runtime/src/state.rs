//! What a container leaves on disk, and who writes it.
//!
//! `job.json`: the daemon, before anything runs. `state.json`: the shim, while it lives. `exit.json`: the shim when the
//! container has ended, or the daemon when the shim is gone without one. Where `exit.json` stands, all is over.
//!
//! Only `exit.json` is forced to the card. A container so young that a power cut takes its job away is as one that was
//! never started; its folder is litter then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{ContainerSpec, Exit};
use crate::sys;

/// All a shim has to know.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Job {
    pub(crate) spec: ContainerSpec,
    pub(crate) layers_dir: PathBuf,
    /// Layer folders, lowest first.
    pub(crate) layers: Vec<String>,
    /// Full cgroup path.
    pub(crate) cgroup: String,
    /// Where attach is served.
    pub(crate) socket: PathBuf,
}

impl Job {
    /// Beside the socket, which is in memory.
    pub(crate) fn spare_exit(&self) -> PathBuf {
        self.socket.with_extension("exit")
    }
}

/// A shim and, once it runs, its container's main process.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) boot_id: String,
    pub(crate) shim: Process,
    pub(crate) init: Option<Process>,
    pub(crate) started_at: Option<String>,
}

/// A process that cannot be mistaken for a later one with its pid, within one boot.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        sys::start_time(pid).map(|start_time| Self { pid, start_time })
    }

    pub(crate) fn pidfd(self) -> Option<std::os::fd::OwnedFd> {
        sys::pidfd(self.pid, self.start_time)
    }
}

/// The files of one container.
#[derive(Clone, Debug)]
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What the library keeps.
    pub(crate) fn library(&self) -> PathBuf {
        self.0.join("library")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    pub(crate) fn job(&self) -> io::Result<Job> {
        read(&self.0.join("job.json"))
    }

    pub(crate) fn write_job(&self, job: &Job) -> io::Result<()> {
        sys::write_volatile(&self.0.join("job.json"), &serde_json::to_vec(job)?)
    }

    pub(crate) fn state(&self) -> Option<State> {
        read(&self.0.join("state.json")).ok()
    }

    pub(crate) fn write_state(&self, state: &State) -> io::Result<()> {
        sys::write_volatile(&self.0.join("state.json"), &serde_json::to_vec(state)?)
    }

    /// The recorded exit, wherever there was room for it.
    pub(crate) fn exit(&self, job: &Job) -> Option<Exit> {
        read(&self.0.join("exit.json")).or_else(|_| read(&job.spare_exit())).ok()
    }

    /// Records an exit. On a full card it goes to memory, where a later agent of this boot still finds it.
    pub(crate) fn write_exit(&self, job: &Job, exit: &Exit) -> io::Result<()> {
        let text = serde_json::to_vec(exit)?;
        sys::write_atomic(&self.0.join("exit.json"), &text)
            .or_else(|_| sys::write_volatile(&job.spare_exit(), &text))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}
