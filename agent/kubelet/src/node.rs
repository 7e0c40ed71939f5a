//! This node's own Node object and its heartbeat.
//!
//! The object is written when what it says changes, and every five minutes; that the node lives is said by its Lease
//! alone, which the servers keep in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::env::NodeCapacity;

const LEASES: &str = "kube-node-lease";
const REFRESH: Duration = Duration::from_secs(300);
/// How often the machine is looked at; nothing is written when all is as before.
const LOOK: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// Free memory and disk below which the node is under pressure.
const MEMORY_LEAST: u64 = 100 << 20;
const DISK_LEAST_PERCENT: u64 = 10;
const IMAGES_SHOWN: usize = 50;

/// What this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system that holds the state.
    pub disk: u64,
    /// Bytes of memory that could be had.
    pub memory_free: u64,
    /// Bytes of disk that could be had.
    pub disk_free: u64,
    /// Processes that may exist.
    pub pids: u64,
    /// Processes that exist.
    pub pids_used: u64,
}

impl Machine {
    /// Looks at /proc and the state folder's file system.
    pub fn look(config: &Config) -> Machine {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok())
        };
        let disk = rustix::fs::statvfs(&config.state_dir).ok();
        let number =
            |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let threads = std::fs::read_to_string("/proc/loadavg").ok();
        let threads = threads.and_then(|t| t.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok());
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            memory: kib("MemTotal").unwrap_or(0) * 1024,
            memory_free: kib("MemAvailable").unwrap_or(u64::MAX / 1024) * 1024,
            disk: disk.as_ref().map_or(0, |disk| disk.f_blocks * disk.f_frsize),
            disk_free: disk.as_ref().map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize),
            pids: number("/proc/sys/kernel/pid_max").unwrap_or(32768),
            pids_used: threads.unwrap_or(0),
        }
    }

    /// For containers without limits.
    pub fn capacity(&self) -> NodeCapacity {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        NodeCapacity { cpu_milli: signed(self.cpus.saturating_mul(1000)), memory: signed(self.memory) }
    }
}

/// The node's part of the kubelet.
pub struct Registrar {
    /// Settings.
    pub config: Arc<Config>,
    /// The API.
    pub client: Client,
    /// Whether network and runtime work.
    pub ready: watch::Receiver<Result<(), String>>,
    /// For the list of images.
    pub runtime: Arc<dyn runtime::Runtime>,
}

impl Registrar {
    /// Keeps the Node object right until shut down.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut last: Option<(NodeStatus, tokio::time::Instant)> = None;
        while !shutdown.is_cancelled() {
            let pause = match self.round(&api, &mut last).await {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::debug!(%error, "the node's status was not written");
                    last = None;
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                changed = self.ready.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn round(
        &mut self,
        api: &Api<Node>,
        last: &mut Option<(NodeStatus, tokio::time::Instant)>,
    ) -> Result<(), kube::Error> {
        let before = match api.get_opt(&self.config.node_name).await? {
            Some(node) => self.mended(api, node).await?,
            None => {
                tracing::info!(node = self.config.node_name, "registering the node");
                *last = None;
                api.create(&PostParams::default(), &self.node()).await?
            }
        };
        let ready = self.ready.borrow_and_update().clone();
        let old = before.status.unwrap_or_default();
        let status = self.status(&old, ready).await;
        let fresh = last.as_ref().is_some_and(|(_, at)| at.elapsed() < REFRESH);
        let same = same(&old, &status);
        if fresh && same {
            return Ok(());
        }
        let patch = serde_json::json!({ "status": status });
        api.patch_status(&self.config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        *last = Some((status, tokio::time::Instant::now()));
        Ok(())
    }

    /// Our labels on a Node that is there already.
    async fn mended(&self, api: &Api<Node>, node: Node) -> Result<Node, kube::Error> {
        let wanted = self.labels();
        let has = node.metadata.labels.clone().unwrap_or_default();
        if wanted.iter().all(|(key, value)| has.get(key) == Some(value)) {
            return Ok(node);
        }
        let patch = serde_json::json!({"metadata": {"labels": wanted}});
        api.patch(&self.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.config.labels.clone();
        let own = [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
        ];
        for (key, value) in own {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    fn node(&self) -> Node {
        let taints = (!self.config.taints.is_empty()).then(|| self.config.taints.clone());
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(self.labels()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { taints, ..NodeSpec::default() }),
            status: None,
        }
    }

    async fn status(&self, old: &NodeStatus, ready: Result<(), String>) -> NodeStatus {
        let machine = Machine::look(&self.config);
        let resources = self.resources(&machine);
        let internal = self.config.addresses.iter().map(|ip| address("InternalIP", &ip.to_string()));
        let addresses = internal.chain([address("Hostname", &self.config.hostname)]).collect();
        let port = DaemonEndpoint { port: self.config.port.into() };
        NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(resources.clone()),
            capacity: Some(resources),
            conditions: Some(conditions(old, &machine, ready)),
            daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(port) }),
            images: Some(self.images().await),
            node_info: Some(self.info()),
            ..NodeStatus::default()
        }
    }

    fn resources(&self, machine: &Machine) -> BTreeMap<String, Quantity> {
        let pairs = [
            ("cpu", machine.cpus.to_string()),
            ("memory", format!("{}Ki", machine.memory / 1024)),
            ("ephemeral-storage", format!("{}Ki", machine.disk / 1024)),
            ("pods", self.config.max_pods.to_string()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), Quantity(value))).collect()
    }

    async fn images(&self) -> Vec<ContainerImage> {
        let mut images = self.runtime.images().await;
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        let shown = images.into_iter().take(IMAGES_SHOWN).map(|image| ContainerImage {
            names: Some(image.digests.into_iter().chain(image.tags).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        });
        shown.collect()
    }

    fn info(&self) -> NodeSystemInfo {
        let uname = rustix::system::uname();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
        NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: concat!("bramble://", env!("CARGO_PKG_VERSION")).to_owned(),
            kernel_version: uname.release().to_string_lossy().into_owned(),
            kubelet_version: self.config.version.clone(),
            machine_id: read("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: os.trim_matches('"').to_owned(),
            system_uuid: read("/sys/class/dmi/id/product_uuid"),
            ..NodeSystemInfo::default()
        }
    }
}

fn address(kind: &str, text: &str) -> NodeAddress {
    NodeAddress { type_: kind.to_owned(), address: text.to_owned() }
}

/// As Kubernetes and image indexes name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64gc" => "riscv64",
        other => other,
    }
}

fn conditions(old: &NodeStatus, machine: &Machine, ready: Result<(), String>) -> Vec<NodeCondition> {
    let memory = machine.memory_free < MEMORY_LEAST.min(machine.memory / 10);
    let disk = machine.disk > 0 && machine.disk_free < machine.disk / 100 * DISK_LEAST_PERCENT;
    let pids = machine.pids_used > machine.pids / 100 * 95;
    let pressure = |under: bool, bad: &'static str, good: &'static str, text: &str| {
        let text = if under {
            format!("kubelet has {text} pressure")
        } else {
            format!("kubelet has no {text} pressure")
        };
        (under, if under { bad } else { good }, text)
    };
    let memory = pressure(memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "memory");
    let disk = pressure(disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "disk");
    let pids = pressure(pids, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "PID");
    let ready = match ready {
        Ok(()) => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Err(why) => (false, "KubeletNotReady", why),
    };
    let now = Timestamp::now();
    let all = [("MemoryPressure", memory), ("DiskPressure", disk), ("PIDPressure", pids), ("Ready", ready)];
    let all = all.into_iter().map(|(kind, (is, reason, message))| {
        let status = if is { "True" } else { "False" };
        let before = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        }
    });
    all.collect()
}

/// Whether there is no need to write: all we say is there, heartbeat times aside.
fn same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let conditions = status.conditions.iter().flatten();
        let mut conditions: Vec<_> =
            conditions.map(|c| (c.type_.clone(), c.status.clone(), c.message.clone())).collect();
        conditions.sort();
        conditions
    };
    let (was, is) = (plain(old), plain(new));
    is.iter().all(|condition| was.contains(condition))
        && old.addresses == new.addresses
        && old.capacity == new.capacity
        && old.allocatable == new.allocatable
        && old.images == new.images
        && old.node_info == new.node_info
}

/// Renews the node's Lease until shut down.
pub async fn heartbeat(config: Arc<Config>, client: Client, shutdown: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, LEASES);
    let mut interval = tokio::time::interval(config.lease_renew);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        let renewed = tokio::time::timeout(config.lease_duration, renew(&api, &config)).await;
        match renewed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lease was not renewed"),
            Err(_) => tracing::debug!("renewing the lease takes too long"),
        }
    }
}

async fn renew(api: &Api<Lease>, config: &Config) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let seconds = i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let spec = LeaseSpec {
        holder_identity: Some(config.node_name.clone()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(now),
        ..LeaseSpec::default()
    };
    let patch = serde_json::json!({ "spec": spec });
    match api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let metadata = ObjectMeta {
                name: Some(config.node_name.clone()),
                namespace: Some(LEASES.to_owned()),
                ..ObjectMeta::default()
            };
            let lease = Lease { metadata, spec: Some(spec) };
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        cpus: 4,
        memory: 1 << 30,
        disk: 100 << 30,
        memory_free: 1 << 29,
        disk_free: 50 << 30,
        pids: 32768,
        pids_used: 100,
    };

    fn of<'a>(conditions: &'a [NodeCondition], kind: &str) -> &'a NodeCondition {
        conditions.iter().find(|c| c.type_ == kind).unwrap()
    }

    #[test]
    fn conditions_say_what_is_wrong_and_keep_their_times() {
        let first = conditions(&NodeStatus::default(), &MACHINE, Err("network is not up".into()));
        assert_eq!(of(&first, "Ready").status, "False");
        assert_eq!(of(&first, "Ready").message.as_deref(), Some("network is not up"));
        let mut old = NodeStatus { conditions: Some(first), ..NodeStatus::default() };
        let long_ago = Time(Timestamp::from_second(1).unwrap());
        for condition in old.conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(long_ago.clone());
        }
        let full = Machine { disk_free: 1 << 30, ..MACHINE };
        let second = conditions(&old, &full, Ok(()));
        assert_ne!(of(&second, "Ready").last_transition_time, Some(long_ago.clone()));
        assert_eq!(of(&second, "MemoryPressure").last_transition_time, Some(long_ago));
        assert_eq!(of(&second, "DiskPressure").status, "True");
        assert!(!same(&old, &NodeStatus { conditions: Some(second), ..NodeStatus::default() }));
        assert!(same(&old, &old.clone()));
    }
}
