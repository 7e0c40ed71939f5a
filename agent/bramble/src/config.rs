//! `/etc/bramble/config.toml`: what a person or the image builder sets on a node. Everything has a default.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cluster::join::{ClusterSettings, Token};
use serde::Deserialize;

use crate::audit::AuditLog;

/// The file as written. Unknown keys are mistakes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The node's name; the hostname when empty.
    pub node_name: String,
    /// This node's address, when it has several.
    pub address: Option<IpAddr>,
    /// What must survive a reboot.
    pub data_dir: PathBuf,
    /// What must not.
    pub run_dir: PathBuf,
    /// The secret that all cards of a batch share.
    pub cluster_secret: Option<String>,
    /// All cgroups are made below this one.
    pub cgroup_root: String,
    /// The API's port.
    pub api_port: u16,
    /// The kubelet's port.
    pub kubelet_port: u16,
    /// The status pages' port.
    pub status_port: u16,
    /// All pods' addresses; read when the cluster is made.
    pub cluster_cidr: ipnet::Ipv4Net,
    /// All services' addresses; read when the cluster is made.
    pub service_cidr: ipnet::Ipv4Net,
    /// The cluster's DNS domain; read when the cluster is made.
    pub domain: String,
    /// Seconds without a heartbeat after which a node is NotReady.
    pub node_monitor_grace_seconds: u64,
    /// Seconds after that until its pods are moved.
    pub pod_eviction_seconds: u64,
    /// Where names outside the cluster are asked for; /etc/resolv.conf when empty.
    pub upstream_dns: Vec<SocketAddr>,
    /// Labels of this node.
    pub labels: BTreeMap<String, String>,
    /// Which requests to the API are written down, and where.
    pub audit: AuditLog,
    /// Registries by host.
    pub registries: BTreeMap<String, Registry>,
}

/// One registry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Plain HTTP is allowed.
    pub insecure: bool,
    /// Asked first, in order.
    pub mirrors: Vec<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// A certificate authority to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let settings = ClusterSettings::default();
        Self {
            node_name: String::new(),
            address: None,
            data_dir: "/var/lib/bramble".into(),
            run_dir: "/run/bramble".into(),
            cluster_secret: None,
            cgroup_root: "/bramble".into(),
            api_port: 6443,
            kubelet_port: 10250,
            status_port: 8080,
            cluster_cidr: settings.cluster_cidr,
            service_cidr: settings.service_cidr,
            domain: settings.domain,
            node_monitor_grace_seconds: 10,
            pod_eviction_seconds: 5,
            upstream_dns: Vec::new(),
            labels: BTreeMap::new(),
            audit: AuditLog::default(),
            registries: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads the file; a missing one is all defaults.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut config: Self =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        if config.node_name.is_empty() {
            config.node_name = hostname();
        }
        check_name(&config.node_name)?;
        config.baked()?;
        Ok(config)
    }

    /// All defaults, and this machine's name.
    pub fn of_this_machine() -> Self {
        Self { node_name: hostname(), ..Self::default() }
    }

    /// The baked secret, if there is one.
    pub fn baked(&self) -> Result<Option<Token>> {
        let token = self.cluster_secret.as_deref().map(Token::baked).transpose();
        token.context("cluster_secret in /etc/bramble/config.toml")
    }

    /// What every node of a new cluster will share.
    pub fn settings(&self) -> ClusterSettings {
        ClusterSettings {
            cluster_cidr: self.cluster_cidr,
            service_cidr: self.service_cidr,
            domain: self.domain.clone(),
        }
    }

    /// [`Config::node_monitor_grace_seconds`].
    pub fn node_monitor_grace(&self) -> Duration {
        Duration::from_secs(self.node_monitor_grace_seconds)
    }

    /// [`Config::pod_eviction_seconds`].
    pub fn pod_eviction_timeout(&self) -> Duration {
        Duration::from_secs(self.pod_eviction_seconds)
    }

    /// How the runtime is set up.
    pub fn runtime(&self) -> runtime::Config {
        let hosts = self.registries.iter().map(|(host, r)| (host.clone(), r.into())).collect();
        runtime::Config {
            state_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            cgroup_root: self.cgroup_root.clone(),
            helper: "/proc/self/exe".into(),
            registries: runtime::Registries { hosts },
        }
    }
}

impl From<&Registry> for runtime::Registry {
    fn from(r: &Registry) -> Self {
        let auth = r.username.clone().map(|username| runtime::RegistryAuth {
            username,
            password: r.password.clone().unwrap_or_default(),
        });
        Self { insecure: r.insecure, mirrors: r.mirrors.clone(), auth, ca_file: r.ca_file.clone() }
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}

/// A node's name is a DNS label: it is in its certificate, its hostname label and the addresses of its pods.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| plain(b) || b == b'-' || b == b'.')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain);
    // Names of the API's own certificate: a node called so could pose as it.
    let reserved =
        ["localhost", "kubernetes", "bramble.local"].contains(&name) || name.starts_with("kubernetes.");
    anyhow::ensure!(!reserved, "{name:?} is the API's own name: give this node another hostname");
    anyhow::ensure!(
        fits,
        "{name:?} cannot be a node's name: use lower-case letters, digits and '-', at most 63 (set the hostname, or node_name in the config)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_person_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(Config::read(&path).unwrap().api_port, 6443);
        let text =
            "node_name = \"pi\"\n[registries.\"docker.io\"]\nmirrors = [\"http://192.168.1.1:5000\"]\n";
        std::fs::write(&path, text).unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.runtime().registries.hosts["docker.io"].mirrors, ["http://192.168.1.1:5000"]);
        std::fs::write(&path, "node_nam = \"pi\"").unwrap();
        assert!(format!("{:#}", Config::read(&path).unwrap_err()).contains("node_nam"));
        std::fs::write(&path, "cluster_secret = \"short\"").unwrap();
        assert!(format!("{:#}", Config::read(&path).unwrap_err()).contains("at least 26"));
    }

    #[test]
    fn names() {
        assert!(check_name("node1").is_ok() && check_name("192.168.1.102").is_ok());
        assert!(check_name("Node").is_err() && check_name("").is_err() && check_name("a_b").is_err());
        assert!(check_name("kubernetes.default.svc").is_err() && check_name("localhost").is_err());
    }
}
