//! The nodes and what is on them, as one decision sees them.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Pod, Service, Taint};

use crate::{
    request::{HostPort, Resources, add, amounts, host_ports, requests},
    selector::Labels,
};

/// One node with its pods.
#[derive(Clone, Debug)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    /// Its taints, and one more while it is not Ready: the taint follows the condition only after a while.
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    pub(crate) allocatable: Resources,
    pub(crate) used: Resources,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) images: HashMap<String, i64>,
}

/// All nodes, by name, and the services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) services: Vec<Arc<Service>>,
}

impl Snapshot {
    /// Puts pods on nodes. Pods of unknown nodes and finished ones take no room.
    pub(crate) fn new<'a>(
        nodes: impl Iterator<Item = &'a Node>,
        pods: impl Iterator<Item = (&'a str, Arc<Pod>)>,
        services: Vec<Arc<Service>>,
    ) -> Self {
        let mut nodes: Vec<NodeState> = nodes.map(NodeState::new).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut snapshot = Self { nodes, services };
        for (node, pod) in pods {
            snapshot.put(node, pod);
        }
        snapshot
    }

    /// The same with more pods.
    pub(crate) fn with(&self, pods: Vec<(String, Arc<Pod>)>) -> Self {
        let mut snapshot = self.clone();
        pods.into_iter().for_each(|(node, pod)| snapshot.put(&node, pod));
        snapshot
    }

    /// Counts a pod on a node.
    pub(crate) fn put(&mut self, node: &str, pod: Arc<Pod>) {
        if let Ok(at) = self.nodes.binary_search_by(|n| n.name.as_str().cmp(node)) {
            self.nodes[at].put(pod);
        }
    }
}

impl NodeState {
    fn new(node: &Node) -> Self {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        let mut taints = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        if !is_ready(node) && !taints.iter().any(|t| t.key.starts_with("node.kubernetes.io/")) {
            taints.push(Taint {
                key: "node.kubernetes.io/not-ready".to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Taint::default()
            });
        }
        let images = status.and_then(|s| s.images.as_deref()).unwrap_or_default();
        let sizes = images.iter().flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints,
            unschedulable: spec.and_then(|s| s.unschedulable) == Some(true),
            allocatable: amounts(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()))),
            used: Resources::new(),
            ports: Vec::new(),
            pods: Vec::new(),
            images: sizes.collect(),
        }
    }

    /// Counts a pod here.
    pub(crate) fn put(&mut self, pod: Arc<Pod>) {
        add(&mut self.used, &requests(&pod));
        self.ports.extend(host_ports(&pod));
        self.pods.push(pod);
    }

    /// Takes away the pods that are not to stay.
    pub(crate) fn retain(&mut self, stays: impl Fn(&Pod) -> bool) {
        let pods = std::mem::take(&mut self.pods);
        self.used.clear();
        self.ports.clear();
        pods.into_iter().filter(|pod| stays(pod)).for_each(|pod| self.put(pod));
    }
}

/// Condition Ready is True.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Labels of a pod.
pub(crate) fn labels(pod: &Pod) -> &Labels {
    static NONE: Labels = Labels::new();
    pod.metadata.labels.as_ref().unwrap_or(&NONE)
}
