//! Nodes.

use super::{Row, Tone};
use crate::known::{Known, Table};
use crate::text::{Moment, word, word_or_empty, words};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;
use std::collections::BTreeMap;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

/// A line of the node table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRow {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) ready: bool,
    pub(crate) roles: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) kubelet_version: String,
    pub(crate) architecture: String,
    pub(crate) creation_timestamp: Moment,
    /// Pods on it that have not ended; counted when the page is made.
    pub(crate) pods: usize,
    pub(crate) capacity: Capacity,
}

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Capacity {
    pub(crate) cpu: String,
    /// In binary units, for people.
    pub(crate) memory: String,
}

impl NodeRow {
    pub(crate) fn tone(&self) -> Tone {
        match self.status.as_str() {
            "Ready" => Tone::Good,
            _ if self.ready => Tone::Busy,
            _ => Tone::Bad,
        }
    }
}

impl Row for NodeRow {
    type Object = Node;

    fn new(node: &Node) -> Self {
        let status = node.status.clone().unwrap_or_default();
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default();
        let info = status.node_info.as_ref();
        Self {
            name: word_or_empty(node.metadata.name.as_deref()),
            status: state(&status, unschedulable),
            ready: condition(&status, "Ready") == Some("True"),
            roles: roles(node.metadata.labels.as_ref()),
            addresses: addresses(&status),
            kubelet_version: word_or_empty(info.map(|info| info.kubelet_version.as_str())),
            architecture: word_or_empty(info.map(|info| info.architecture.as_str())),
            creation_timestamp: node.metadata.creation_timestamp.as_ref().into(),
            pods: 0,
            capacity: capacity(status.capacity.as_ref()),
        }
    }

    fn table(known: &mut Known) -> &mut Table<Self> {
        &mut known.nodes
    }
}

fn condition<'a>(status: &'a NodeStatus, type_: &str) -> Option<&'a str> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
}

/// `Ready`, `NotReady` or `Unknown`, then what else is the matter.
fn state(status: &NodeStatus, unschedulable: bool) -> String {
    let ready = match condition(status, "Ready") {
        Some("True") => "Ready",
        Some("False") => "NotReady",
        // The node stopped reporting: for its pods that is the same as not being ready.
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let pressures = ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"];
    let pressures = pressures.into_iter().filter(|type_| condition(status, type_) == Some("True"));
    let cordoned = unschedulable.then_some("SchedulingDisabled");
    std::iter::once(ready).chain(pressures).chain(cordoned).collect::<Vec<_>>().join(", ")
}

fn roles(labels: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let roles = labels.into_iter().flatten().filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) if !role.is_empty() => Some(role),
        _ => (key == "kubernetes.io/role").then_some(value.as_str()),
    });
    words(roles)
}

fn addresses(status: &NodeStatus) -> Vec<String> {
    let addresses = status.addresses.as_deref().unwrap_or_default();
    words(addresses.iter().filter(|address| address.type_.ends_with("IP")).map(|a| a.address.as_str()))
}

fn capacity(capacity: Option<&BTreeMap<String, Quantity>>) -> Capacity {
    let get =
        |name: &str| capacity.and_then(|capacity| capacity.get(name)).map(|quantity| quantity.0.as_str());
    Capacity { cpu: word_or_empty(get("cpu")), memory: get("memory").map(memory).unwrap_or_default() }
}

/// `3884052Ki` says little; `3.7 GiB` does. What cannot be read stays as it is.
fn memory(quantity: &str) -> String {
    let units = [("Ki", 1u64 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40), ("", 1)];
    let bytes = units.into_iter().find_map(|(unit, factor)| {
        let number: u64 = quantity.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(factor)
    });
    match bytes {
        Some(bytes) if bytes >= 1 << 30 => {
            let tenths = u128::from(bytes) * 10 / (1 << 30);
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        }
        Some(bytes) => format!("{} MiB", bytes >> 20),
        None => word(quantity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn row(object: Value) -> NodeRow {
        NodeRow::new(&serde_json::from_value(object).unwrap())
    }

    fn with_conditions(conditions: Value, unschedulable: bool) -> NodeRow {
        row(json!({ "metadata": { "name": "pi" }, "spec": { "unschedulable": unschedulable },
            "status": { "conditions": conditions } }))
    }

    #[test]
    fn a_node_says_its_roles_addresses_and_capacity() {
        let node = row(json!({
            "metadata": { "name": "pi-100", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {
                "node-role.kubernetes.io/master": "", "kubernetes.io/role": "storage", "other": "x" } },
            "status": {
                "addresses": [{ "type": "Hostname", "address": "pi-100" }, { "type": "InternalIP", "address": "192.168.1.100" }],
                "capacity": { "cpu": "4", "memory": "3884052Ki" },
                "conditions": [{ "type": "Ready", "status": "True" }],
                "nodeInfo": { "kubeletVersion": "v1.36.0", "architecture": "arm64", "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "",
                    "systemUUID": "" },
            },
        }));
        assert_eq!(node.status, "Ready");
        assert_eq!(node.tone(), Tone::Good);
        assert_eq!(node.roles, ["storage", "master"]);
        assert_eq!(node.addresses, ["192.168.1.100"]);
        assert_eq!(node.capacity, Capacity { cpu: "4".into(), memory: "3.7 GiB".into() });
        assert_eq!(node.kubelet_version, "v1.36.0");
    }

    #[test]
    fn the_status_says_what_is_the_matter() {
        let ready = json!({ "type": "Ready", "status": "True" });
        let disk = json!({ "type": "DiskPressure", "status": "True" });
        let no_memory_pressure = json!({ "type": "MemoryPressure", "status": "False" });
        let silent = json!({ "type": "Ready", "status": "Unknown" });
        let table = [
            (with_conditions(json!([ready]), true), "Ready, SchedulingDisabled", Tone::Busy),
            (
                with_conditions(json!([ready, disk, no_memory_pressure]), false),
                "Ready, DiskPressure",
                Tone::Busy,
            ),
            (with_conditions(json!([silent]), false), "NotReady", Tone::Bad),
            (with_conditions(json!([]), false), "Unknown", Tone::Bad),
        ];
        for (row, status, tone) in table {
            assert_eq!((row.status.as_str(), row.tone()), (status, tone));
        }
    }

    #[test]
    fn memory_is_in_binary_units_or_as_it_came() {
        for (quantity, expected) in
            [("524288Ki", "512 MiB"), ("8Gi", "8.0 GiB"), ("1073741824", "1.0 GiB"), ("2G", "2G")]
        {
            assert_eq!(memory(quantity), expected);
        }
        assert_eq!(memory("99999999999999999999Ti"), "99999999999999999999Ti");
    }
}
