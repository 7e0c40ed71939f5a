//! Which nodes a pod may run on at all, and why not on the others, in upstream's words.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use crate::{
    affinity::Affinities,
    request::{HostPort, Resources, host_ports, requests},
    selector::{matches_map, matches_term},
    snapshot::NodeState,
};

/// What a filter needs of the pod, computed once for all nodes.
pub(crate) struct Wish<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) requests: Resources,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) affinities: Affinities<'a>,
}

impl<'a> Wish<'a> {
    pub(crate) fn new(pod: &'a Pod, nodes: &[NodeState]) -> Self {
        Self { pod, requests: requests(pod), ports: host_ports(pod), affinities: Affinities::new(pod, nodes) }
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
    }
}

/// Why a pod may not run on a node; empty if it may.
pub(crate) fn reasons(wish: &Wish<'_>, node: &NodeState) -> Vec<String> {
    if let Some(reason) = lasting(wish, node).or_else(|| ports(wish, node)) {
        return vec![reason];
    }
    let lacking = insufficient(wish, node);
    if !lacking.is_empty() {
        return lacking;
    }
    wish.affinities.reason(node).into_iter().map(str::to_owned).collect()
}

/// Whether a pod could run on a node if other pods were not there.
pub(crate) fn resolvable(wish: &Wish<'_>, node: &NodeState) -> bool {
    lasting(wish, node).is_none()
}

/// What is in the way whatever else runs there.
fn lasting(wish: &Wish<'_>, node: &NodeState) -> Option<String> {
    unschedulable(wish, node).or_else(|| untolerated(wish, node)).or_else(|| node_affinity(wish, node))
}

fn unschedulable(wish: &Wish<'_>, node: &NodeState) -> Option<String> {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let tolerated = wish.tolerations().iter().any(|t| tolerates(t, &taint));
    (node.unschedulable && !tolerated).then(|| "node(s) were unschedulable".to_owned())
}

fn untolerated(wish: &Wish<'_>, node: &NodeState) -> Option<String> {
    let hard = node.taints.iter().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    let taint = hard.into_iter().find(|taint| !wish.tolerations().iter().any(|t| tolerates(t, taint)))?;
    let value = taint.value.as_deref().unwrap_or_default();
    Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key))
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let key = some(&toleration.key);
    let exists = toleration.operator.as_deref() == Some("Exists");
    some(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && key.as_ref().is_none_or(|key| *key == taint.key)
        && (exists || (key.is_some() && some(&toleration.value) == some(&taint.value)))
}

fn node_affinity(wish: &Wish<'_>, node: &NodeState) -> Option<String> {
    let spec = wish.pod.spec.as_ref()?;
    let selected =
        spec.node_selector.as_ref().is_none_or(|s| s.is_empty() || matches_map(Some(s), &node.labels));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    let affine = required.is_none_or(|r| {
        r.node_selector_terms.iter().any(|term| matches_term(term, &node.name, &node.labels))
    });
    (!selected || !affine).then(|| "node(s) didn't match Pod's node affinity/selector".to_owned())
}

fn ports(wish: &Wish<'_>, node: &NodeState) -> Option<String> {
    let conflict = wish.ports.iter().any(|p| node.ports.iter().any(|used| used.conflicts(p)));
    conflict.then(|| "node(s) didn't have free ports for the requested pod ports".to_owned())
}

fn insufficient(wish: &Wish<'_>, node: &NodeState) -> Vec<String> {
    let mut reasons = Vec::new();
    let count = i128::try_from(node.pods.len()).unwrap_or(i128::MAX).saturating_add(1).saturating_mul(1000);
    if node.allocatable.get("pods").is_some_and(|most| count > *most) {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in wish.requests.iter().filter(|(_, amount)| **amount > 0) {
        let free =
            node.allocatable.get(name).copied().unwrap_or(0) - node.used.get(name).copied().unwrap_or(0);
        if *amount > free {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}
