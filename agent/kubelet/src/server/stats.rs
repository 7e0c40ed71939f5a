//! Pods and what they use.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::limits;
use crate::node::Machine;
use crate::pods::Node;
use crate::spec::label;

/// This node's pods.
pub(super) async fn pods(State(node): State<Arc<Node>>) -> Json<Value> {
    let pods: Vec<Arc<Pod>> = node.pods();
    let items: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// CPU and memory of the node, its pods and their containers, in the form of the summary API.
pub(super) async fn summary(State(node): State<Arc<Node>>) -> Json<Value> {
    let machine = Machine::look(&node.config);
    let now = jiff::Timestamp::now().to_string();
    let running = node.runtime.list().await;
    let mut pods = Vec::new();
    for pod in node.pods() {
        let uid = pod.uid().unwrap_or_default();
        let cgroup = limits::pod_cgroup(pod.spec.as_ref(), &uid);
        let mut containers = Vec::new();
        for container in running.iter().filter(|c| c.exit.is_none() && c.labels.get(label::UID) == Some(&uid))
        {
            let usage = node.runtime.usage(&format!("{cgroup}/{}", container.id)).await;
            containers.push(entry(&now, usage, json!({"name": container.labels.get(label::CONTAINER)})));
        }
        let reference = json!({"name": pod.name_any(), "namespace": pod.namespace(), "uid": uid});
        let head = json!({"podRef": reference, "containers": containers});
        pods.push(entry(&now, node.runtime.usage(&cgroup).await, head));
    }
    let used = machine.memory.saturating_sub(machine.memory_free);
    let memory = json!({"time": now, "availableBytes": machine.memory_free, "usageBytes": used, "workingSetBytes": used});
    let cpu = json!({"time": now, "usageCoreNanoSeconds": busy_nanos()});
    let head = json!({"nodeName": node.config.node_name, "memory": memory, "cpu": cpu});
    Json(json!({"node": head, "pods": pods}))
}

fn entry(now: &str, usage: Result<runtime::Usage, runtime::Error>, mut head: Value) -> Value {
    if let Ok(usage) = usage {
        head["cpu"] = json!({"time": now, "usageCoreNanoSeconds": usage.cpu_nanos});
        let memory = usage.memory_bytes;
        head["memory"] = json!({"time": now, "usageBytes": memory, "workingSetBytes": memory});
    }
    head
}

/// CPU time that the machine spent on anything but idling, by /proc/stat (its ticks are hundredths of a second).
fn busy_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks = fields.enumerate().filter(|(index, _)| !matches!(index, 3 | 4) && *index < 8);
    ticks.filter_map(|(_, field)| field.parse::<u64>().ok()).sum::<u64>().saturating_mul(10_000_000)
}
