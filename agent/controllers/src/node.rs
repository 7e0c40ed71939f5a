//! Node lifecycle: who is silent is NotReady, and after a while its pods start elsewhere.
//!
//! Silence is measured with this machine's monotonic clock since its lease last changed before our eyes. A new leader
//! therefore gives every node the full grace period. When every node looks dead, it is more likely that we are.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    event::Event,
    pod,
    reconcile::Context,
    taints::{Bears, NO_EXECUTE, NOT_READY, UNREACHABLE, bears, exchange},
    write::{Outcome, Propagation, Target, Write},
};

pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
const COMPONENT: &str = "node-controller";
const SILENT_REASON: &str = "NodeStatusUnknown";
const SILENT_MESSAGE: &str = "Kubelet stopped posting node status.";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Condition Ready is True.
pub(crate) fn is_ready(node: &Node) -> bool {
    ready_condition(node).is_some_and(|c| c.status == "True")
}

/// The kubelet's heartbeat in the node's status.
pub(crate) fn reported(node: &Node) -> Option<Time> {
    ready_condition(node)?.last_heartbeat_time.clone()
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready")
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

/// Since when a node is silent beyond its grace period.
fn silent_since(node: &Node, cx: &Context<'_>) -> Option<Instant> {
    let beat = cx.world.heartbeats.get(name(node))?;
    let since = beat.changed + cx.config.node_monitor_grace;
    (cx.now >= since).then_some(since)
}

/// Reconciles one node.
pub(crate) fn reconcile(node_name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(node) = cx.world.nodes.get("", node_name) else { return Outcome::default() };
    let mut outcome = Outcome::default();
    if node.metadata.deletion_timestamp.is_some() {
        return outcome;
    }
    let silent = silent_since(node, cx);
    if silent.is_some() {
        outcome.writes.extend(mark_unknown(node, cx));
    } else if let Some(beat) = cx.world.heartbeats.get(node_name) {
        outcome.look_again((beat.changed + cx.config.node_monitor_grace).saturating_duration_since(cx.now));
    }
    let pods: Vec<&Pod> = cx.world.pods.all().filter(|p| pod::node(p) == Some(node_name)).collect();
    // Pods first lose their readiness, so that services stop leading there; only then is anything slower done.
    if silent.is_some() {
        outcome.writes.extend(pods.iter().filter_map(|p| mark_pod(p, cx)));
    }
    outcome.writes.extend(taint(node, silent.is_some(), cx));
    evict(node, silent, &pods, cx, &mut outcome);
    outcome
}

/// All conditions of a silent node are unknown.
fn mark_unknown(node: &Node, cx: &Context<'_>) -> Vec<Write> {
    if ready_condition(node).is_some_and(|c| c.status == "Unknown") {
        return Vec::new();
    }
    let mut node = node.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let at = conditions.iter().position(|c| c.type_ == kind).unwrap_or_else(|| {
            conditions.push(NodeCondition { type_: kind.to_owned(), ..NodeCondition::default() });
            conditions.len() - 1
        });
        let condition = &mut conditions[at];
        if condition.status != "Unknown" {
            condition.last_transition_time = Some(cx.time());
        }
        condition.status = "Unknown".to_owned();
        condition.reason = Some(SILENT_REASON.to_owned());
        condition.message = Some(SILENT_MESSAGE.to_owned());
    }
    let message = format!("Node {} status is now: NodeNotReady", name(&node));
    let event = Event::normal(COMPONENT, &node, "NodeNotReady", message);
    vec![Write::update_status(node), Write::Tell(event)]
}

fn mark_pod(p: &Pod, cx: &Context<'_>) -> Option<Write> {
    if !pod::is_ready(p) || pod::is_finished(p) {
        return None;
    }
    let mut p = p.clone();
    for condition in p.status.as_mut()?.conditions.as_mut()?.iter_mut().filter(|c| c.type_ == "Ready") {
        *condition = PodCondition {
            status: "False".to_owned(),
            reason: Some(SILENT_REASON.to_owned()),
            message: Some(SILENT_MESSAGE.to_owned()),
            last_transition_time: Some(cx.time()),
            ..condition.clone()
        };
    }
    Some(Write::update_status(p))
}

fn taint(node: &Node, silent: bool, cx: &Context<'_>) -> Option<Write> {
    let unknown = ready_condition(node).is_some_and(|c| c.status == "Unknown");
    let key = match (silent || unknown, is_ready(node)) {
        (true, _) => Some(UNREACHABLE),
        (false, false) => Some(NOT_READY),
        (false, true) => None,
    };
    let present = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let taints = exchange(present, key, cx.time())?;
    // Guarded by the taints themselves, not by the version: the status was perhaps written a moment ago.
    let taints = Some(taints).filter(|t| !t.is_empty());
    Some(Write::Patch {
        target: Target::of(node),
        patch: json!({ "spec": { "taints": taints } }),
        done: None,
    })
}

/// Deletes the pods that do not bear the node's NoExecute taints any longer.
fn evict(node: &Node, silent: Option<Instant>, pods: &[&Pod], cx: &Context<'_>, outcome: &mut Outcome) {
    if silent.is_some() && cx.world.nodes.all().all(|n| silent_since(n, cx).is_some()) {
        outcome.look_again(cx.config.node_monitor_grace);
        return;
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    for taint in taints.iter().filter(|t| t.effect == NO_EXECUTE) {
        let Some((since, patience)) = taint_age(node, taint, silent, cx) else { continue };
        for p in pods {
            let Some(bears) = patience_of(p, taint, patience, silent.is_some()) else { continue };
            match (since + bears).checked_duration_since(cx.now) {
                Some(left) if left > Duration::ZERO => outcome.look_again(left),
                _ => outcome.writes.extend(eviction(p, silent.is_some())),
            }
        }
    }
}

/// Since when a taint is there, and how long a pod that says nothing about it may stay.
fn taint_age(
    node: &Node,
    taint: &Taint,
    silent: Option<Instant>,
    cx: &Context<'_>,
) -> Option<(Instant, Duration)> {
    let beat = cx.world.heartbeats.get(name(node))?;
    match taint.key.as_str() {
        NOT_READY | UNREACHABLE => {
            // A node that is back but has not yet said how it is keeps its pods.
            let since = silent.or(beat.unready.filter(|_| taint.key == NOT_READY))?;
            Some((since, cx.config.pod_eviction_timeout))
        }
        key => Some((beat.taints.get(key).copied().unwrap_or(cx.now), Duration::ZERO)),
    }
}

fn patience_of(p: &Pod, taint: &Taint, unsaid: Duration, node_gone: bool) -> Option<Duration> {
    let mirror = p.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR));
    if mirror || (pod::is_finished(p) && p.metadata.deletion_timestamp.is_none()) {
        return None;
    }
    // Nobody is there to finish a deletion that was asked for.
    if node_gone && p.metadata.deletion_timestamp.is_some() {
        return Some(unsaid);
    }
    match bears(p, taint) {
        Bears::Unsaid => Some(unsaid),
        Bears::For(time) => Some(time),
        Bears::Forever => None,
    }
}

fn eviction(p: &Pod, node_gone: bool) -> Option<Write> {
    if p.metadata.deletion_timestamp.is_some()
        && (!node_gone || p.metadata.deletion_grace_period_seconds == Some(0))
    {
        return None;
    }
    let meta = &p.metadata;
    let message = format!(
        "Marking for deletion Pod {}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    );
    Some(Write::Delete {
        target: Target::of(p),
        grace: node_gone.then_some(0),
        propagation: Propagation::Background,
        done: Some(Event::normal("taint-eviction-controller", p, "TaintManagerEviction", message)),
        failed: None,
    })
}

#[cfg(test)]
mod tests;
