//! Pods and what they use.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use runtime::Container;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::limits;
use crate::meter::{self, Rate};
use crate::node::Machine;
use crate::pods::Node;
use crate::spec::label;

/// This node's pods.
pub(super) async fn pods(State(node): State<Arc<Node>>) -> Json<Value> {
    let pods: Vec<Arc<Pod>> = node.pods();
    let items: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// CPU and memory of the node, its pods and their containers, in the form of the summary API. A rate of CPU use says in
/// `windowSeconds` over which time it was.
pub(super) async fn summary(State(node): State<Arc<Node>>) -> Json<Value> {
    let machine = Machine::look(&node.config);
    let now = jiff::Timestamp::now().to_string();
    let running = node.runtime.list().await;
    let mut pods = Vec::new();
    for pod in node.pods() {
        let uid = pod.uid().unwrap_or_default();
        let mut containers = Vec::new();
        for container in running.iter().filter(|c| c.exit.is_none() && c.labels.get(label::UID) == Some(&uid))
        {
            containers.push(of_container(&node, container, &now).await);
        }
        let reference = json!({"name": pod.name_any(), "namespace": pod.namespace(), "uid": uid});
        let head = json!({"podRef": reference, "containers": containers});
        let cgroup = limits::pod_cgroup(pod.spec.as_ref(), &uid);
        pods.push(entry(&now, node.runtime.usage(&cgroup).await, head));
    }
    let used = machine.memory.saturating_sub(machine.memory_free);
    let memory = json!({"time": now, "availableBytes": machine.memory_free, "usageBytes": used, "workingSetBytes": used});
    let busy = meter::busy_nanos();
    let mut cpu = json!({"time": now, "usageCoreNanoSeconds": busy});
    add_rate(&mut cpu, node.meter.machine(Instant::now(), busy));
    let head = json!({"nodeName": node.config.node_name, "memory": memory, "cpu": cpu});
    Json(json!({"node": head, "pods": pods}))
}

async fn of_container(node: &Node, container: &Container, now: &str) -> Value {
    let (at, usage) = (Instant::now(), node.runtime.usage(&meter::cgroup(container)).await);
    let counted = usage.as_ref().map(|usage| usage.cpu_nanos).ok();
    let rate = counted
        .and_then(|counted| node.meter.container(&container.id, at, counted, meter::running(container)));
    let mut entry = entry(now, usage, json!({"name": container.labels.get(label::CONTAINER)}));
    if let Some(cpu) = entry.get_mut("cpu") {
        add_rate(cpu, rate);
    }
    entry
}

fn add_rate(cpu: &mut Value, rate: Option<Rate>) {
    if let Some(rate) = rate {
        cpu["usageNanoCores"] = rate.nanocores.into();
        cpu["windowSeconds"] = rate.window.as_secs_f64().into();
    }
}

fn entry(now: &str, usage: Result<runtime::Usage, runtime::Error>, mut head: Value) -> Value {
    if let Ok(usage) = usage {
        head["cpu"] = json!({"time": now, "usageCoreNanoSeconds": usage.cpu_nanos});
        let memory = usage.memory_bytes;
        head["memory"] = json!({"time": now, "usageBytes": memory, "workingSetBytes": memory});
    }
    head
}
