//! What the kubelet asks of a container runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// An image that is present and unpacked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// Digest of the image's config (`sha256:...`): the image's identity.
    pub id: String,
    /// References that name it here (`docker.io/library/nginx:1.27`), without digests.
    pub tags: Vec<String>,
    /// References by manifest digest (`docker.io/library/nginx@sha256:...`).
    pub digests: Vec<String>,
    /// Bytes that it takes on disk, shared layers counted fully.
    pub size: u64,
    /// From the image's config.
    pub entrypoint: Vec<String>,
    /// From the image's config.
    pub cmd: Vec<String>,
    /// From the image's config, `KEY=value`.
    pub env: Vec<String>,
    /// From the image's config; empty: `/`.
    pub working_dir: String,
    /// From the image's config: `user`, `uid`, `uid:gid`, `user:group`; empty: root.
    pub user: String,
    /// From the image's config, a signal's name; empty: SIGTERM.
    pub stop_signal: String,
}

/// The namespaces that a pod's containers share, as files under the runtime's state folder.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sandbox {
    /// Network namespace; `None` for a pod on the host's network.
    pub net: Option<PathBuf>,
    /// IPC namespace; `None` for the host's.
    pub ipc: Option<PathBuf>,
    /// UTS namespace (its hostname is set); `None` for the host's.
    pub uts: Option<PathBuf>,
    /// The pod's /dev/shm.
    pub shm: Option<PathBuf>,
}

/// How to make a pod's sandbox.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// The pod's uid: names the sandbox.
    pub pod_uid: String,
    /// The hostname inside.
    pub hostname: String,
    /// Share the host's network (and its hostname).
    pub host_network: bool,
    /// Share the host's IPC namespace.
    pub host_ipc: bool,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    /// Path on the node.
    pub host_path: PathBuf,
    /// Path inside; made if missing.
    pub container_path: PathBuf,
    /// Read-only.
    pub read_only: bool,
}

/// Limits and shares. `None`: unlimited, or the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Relative weight (cgroup v1 scale, 2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per 100 ms period.
    pub cpu_quota: Option<i64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// Written to the init process's oom_score_adj.
    pub oom_score_adj: Option<i32>,
}

/// How to make one container.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ContainerSpec {
    /// Unique for all time on this node: letters, digits, `-`, at most 128.
    pub id: String,
    /// `Image::id` to run.
    pub image: String,
    /// Namespaces to join.
    pub sandbox: Sandbox,
    /// Share the host's PID namespace.
    pub host_pid: bool,
    /// Join this process's PID namespace (shareProcessNamespace).
    pub pid_of: Option<u32>,
    /// The full argument vector, already resolved against the image.
    pub args: Vec<String>,
    /// Environment, `KEY=value`, already resolved against the image. PATH is added if missing.
    pub env: Vec<String>,
    /// Working directory; made if missing.
    pub working_dir: String,
    /// As in `Image::user`: resolved inside the container's /etc/passwd and /etc/group.
    pub user: String,
    /// Extra group ids.
    pub supplemental_groups: Vec<u32>,
    /// Bind mounts, in order.
    pub mounts: Vec<Mount>,
    /// cgroup path below the cgroup root, e.g. `/kubepods/burstable/pod<uid>/<id>`.
    pub cgroup: String,
    /// Limits.
    pub resources: Resources,
    /// All capabilities, all devices, no seccomp, no masked paths.
    pub privileged: bool,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// Sets no_new_privs.
    pub no_new_privileges: bool,
    /// Capabilities added to and dropped from the usual set (`NET_ADMIN`; `ALL` allowed).
    pub add_capabilities: Vec<String>,
    /// See `add_capabilities`.
    pub drop_capabilities: Vec<String>,
    /// No seccomp profile.
    pub seccomp_unconfined: bool,
    /// Sysctls inside the sandbox's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// A terminal for the main process.
    pub tty: bool,
    /// Keep the main process's standard input open (for attach).
    pub stdin: bool,
    /// Log file in the CRI format (`<RFC 3339 nano> stdout|stderr F|P <line>`). At 10 MiB it is renamed to
    /// `<log_path>.1`, which replaces an earlier one, and begun anew.
    pub log_path: PathBuf,
    /// Free labels, given back by `list`: pod name, namespace, uid, container name, restart count ...
    pub labels: BTreeMap<String, String>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed something in its cgroup for lack of memory.
    pub oom_killed: bool,
    /// RFC 3339 with nanoseconds.
    pub finished_at: String,
    /// Why it could not be started, when it never ran.
    pub error: Option<String>,
}

/// A container as the runtime knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// `ContainerSpec::id`.
    pub id: String,
    /// `ContainerSpec::image`.
    pub image: String,
    /// `ContainerSpec::labels`.
    pub labels: BTreeMap<String, String>,
    /// The init process on the host, while it runs.
    pub pid: Option<u32>,
    /// RFC 3339 with nanoseconds.
    pub started_at: Option<String>,
    /// Set once it has ended.
    pub exit: Option<Exit>,
    /// `ContainerSpec::log_path`.
    pub log_path: PathBuf,
}

/// What a pull reports while it works.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Layers done and in all.
    pub layers: (usize, usize),
    /// Bytes done and in all.
    pub bytes: (u64, u64),
}

/// A command to run inside a container.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ExecSpec {
    /// Argument vector.
    pub command: Vec<String>,
    /// With a terminal.
    pub tty: bool,
    /// Whether standard input is wanted.
    pub stdin: bool,
}

/// A terminal's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The byte streams of a running command, or of an attached container.
pub struct Streams {
    /// Standard input; dropping it closes it.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output (of a terminal: everything).
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal resizes.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// Resolves to the exit code when the command ended. Dropping everything kills an exec'ed command.
    pub exit: tokio::sync::oneshot::Receiver<Result<i32, Error>>,
}

/// CPU and memory used by one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the start, nanoseconds.
    pub cpu_nanos: u64,
    /// Working set, bytes (usage less inactive file pages).
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Credentials for one registry.
#[derive(Clone, Debug)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// What can go wrong, by what the caller should do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The reference cannot be parsed.
    #[error("invalid image reference {reference:?}: {why}")]
    InvalidReference {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry answered that there is no such image.
    #[error("{reference}: not found")]
    ImageNotFound {
        /// What was asked for.
        reference: String,
    },
    /// The image exists but not for this machine; both sides are named in the text.
    #[error("{reference}: no image for {wanted}; it has {offered}")]
    WrongArchitecture {
        /// What was asked for.
        reference: String,
        /// This node's platform.
        wanted: String,
        /// What the image offers.
        offered: String,
    },
    /// The registry cannot be reached, refused, or sent something that does not verify.
    #[error("{reference}: {why}")]
    Pull {
        /// What was asked for.
        reference: String,
        /// Why, with its causes.
        why: String,
    },
    /// No such container, image or sandbox here.
    #[error("{0}: not found")]
    NotFound(String),
    /// The container could not be made or started; the text is for the user.
    #[error("{0}")]
    Start(String),
    /// The node lacks something (cgroup, disk space, kernel feature); the text names it.
    #[error("{0}")]
    Node(String),
}

/// A container runtime.
#[async_trait::async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Fetches, verifies and unpacks an image. Concurrent pulls of one reference share the work.
    async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, Error>;
    /// The present image that a reference names, without asking a registry.
    async fn image(&self, reference: &str) -> Option<Image>;
    /// All present images.
    async fn images(&self) -> Vec<Image>;
    /// Removes an image's references and what no other image needs. Refused while a container uses it.
    async fn remove_image(&self, id: &str) -> Result<(), Error>;
    /// Loads a docker-save or OCI archive (plain, gzip or zstd) from a file.
    async fn load(&self, archive: &std::path::Path) -> Result<Vec<Image>, Error>;

    /// Makes a pod's shared namespaces. Idempotent.
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, Error>;
    /// Removes them. Idempotent.
    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), Error>;
    /// Pod uids that have sandboxes.
    async fn sandboxes(&self) -> Vec<String>;

    /// Makes and starts a container; returns once its process runs (or failed to). One that failed stays listed, with
    /// `Exit::error` set, until it is removed.
    async fn start(&self, spec: ContainerSpec) -> Result<Container, Error>;
    /// All containers, running and ended, also those of an agent before this one.
    async fn list(&self) -> Vec<Container>;
    /// One container.
    async fn container(&self, id: &str) -> Result<Container, Error>;
    /// Resolves when the container has ended (at once if it has).
    async fn wait(&self, id: &str) -> Result<Exit, Error>;
    /// Sends a signal to the main process. Ended containers are no error.
    async fn kill(&self, id: &str, signal: i32) -> Result<(), Error>;
    /// Removes an ended container's state (not its log). Idempotent.
    async fn remove(&self, id: &str) -> Result<(), Error>;
    /// Runs a command inside a running container, with its namespaces, user, cwd, capabilities and seccomp profile.
    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Streams, Error>;
    /// Attaches to the main process's streams. Shutting `Streams::stdin` down closes the container's standard input;
    /// dropping it leaves that open for whoever attaches next.
    async fn attach(&self, id: &str, stdin: bool) -> Result<Streams, Error>;
    /// Use of a cgroup path below the cgroup root (a container's or a pod's).
    async fn usage(&self, cgroup: &str) -> Result<Usage, Error>;
    /// Removes an empty pod cgroup and its empty children in all controllers. Idempotent.
    async fn remove_cgroup(&self, cgroup: &str) -> Result<(), Error>;
    /// Opens a TCP connection to a port on localhost inside a network namespace (for port-forward).
    async fn dial(
        &self,
        netns: Option<PathBuf>,
        address: IpAddr,
        port: u16,
    ) -> Result<tokio::net::TcpStream, Error>;
}
