//! What a node keeps about itself on disk, besides the store's own files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use cluster::join::ClusterSettings;
use cluster::ledger;
use cluster::members::Member;
use cluster::pki::Pair;
use serde::{Deserialize, Serialize};

/// `node.json`: this node belongs to a cluster. Written last when joining, removed first when leaving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeState {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node's own record.
    pub member: Member,
    /// What all nodes share.
    pub settings: ClusterSettings,
    /// Everybody, as last heard: how to find the cluster after a reboot.
    pub members: Vec<Member>,
    /// This node's pods' range, once it has been given one: pods need no master to start again.
    pub pod_cidr: Option<ipnet::Ipv4Net>,
    /// Whether the cluster was made here.
    pub first: bool,
}

impl NodeState {
    /// The address others reach this node at.
    pub fn address(&self) -> Result<IpAddr> {
        self.member.addresses.first().copied().context("node.json has no address")
    }
}

/// The files of one node.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
    turn: Arc<Mutex<()>>,
}

impl Files {
    /// Below the data folder.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), turn: Arc::default() }
    }

    /// The store's folder.
    pub fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    /// Kubeconfig of the administrator, on the node where the cluster was made.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    fn node(&self) -> PathBuf {
        self.root.join("node.json")
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(name)
    }

    /// The node's state, if it belongs to a cluster.
    pub fn load(&self) -> Result<Option<NodeState>> {
        Ok(ledger::load(&self.node())?)
    }

    /// Writes `node.json`.
    pub fn save(&self, state: &NodeState) -> Result<()> {
        Ok(ledger::save(&self.node(), state, 0o600)?)
    }

    /// Changes `node.json`, if it is there; the new state. Several tasks do: one after the other.
    pub fn update(&self, change: impl FnOnce(&mut NodeState)) -> Result<Option<NodeState>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = self.load()? else { return Ok(None) };
        let mut new = old.clone();
        change(&mut new);
        if new != old {
            self.save(&new)?;
        }
        Ok(Some(new))
    }

    /// The node's key and certificate, and the CA's certificate.
    pub fn load_pki(&self) -> Result<(Pair, String)> {
        let read = |name| {
            let path = self.pki(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok((Pair { certificate: read("node.crt")?, key: read("node.key")? }, read("ca.crt")?))
    }

    /// Writes them.
    pub fn save_pki(&self, node: &Pair, ca: &str) -> Result<()> {
        ledger::write(&self.pki("node.key"), node.key.as_bytes(), 0o600)?;
        ledger::write(&self.pki("node.crt"), node.certificate.as_bytes(), 0o644)?;
        Ok(ledger::write(&self.pki("ca.crt"), ca.as_bytes(), 0o644)?)
    }

    /// Forgets the cluster: `node.json` first, so that a power cut in between leaves a node that is in none.
    pub fn wipe(&self) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for file in [self.node(), self.kubeconfig()] {
            absent(std::fs::remove_file(&file)).with_context(|| file.display().to_string())?;
        }
        for name in ["raft", "pki", "pods", "network"] {
            let folder = self.root.join(name);
            absent(std::fs::remove_dir_all(&folder)).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    }
}

fn absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A kubeconfig with a client certificate.
pub fn kubeconfig(server: &str, ca: &str, client: &Pair) -> String {
    use base64::Engine;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: bramble\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: bramble\n  context:\n    cluster: bramble\n    user: kubernetes-admin\n\
         current-context: bramble\n",
        b64(ca),
        b64(&client.certificate),
        b64(&client.key)
    )
}
