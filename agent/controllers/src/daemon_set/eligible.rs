//! On which nodes a daemon may be, and how its pods ask for theirs.

use k8s_openapi::api::{
    apps::v1::DaemonSetSpec,
    core::v1::{
        Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
        Toleration,
    },
};

use crate::{
    pod, selector,
    taints::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, tolerates},
};

const NAME_FIELD: &str = "metadata.name";

/// What a node is to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There must be one.
    Run,
    /// One that is there may stay.
    Stay,
    /// There must be none.
    Leave,
}

/// What a node is to the daemons of this set.
pub(super) fn judge(spec: &DaemonSetSpec, node: &Node) -> Verdict {
    let default = PodSpec::default();
    let template = spec.template.spec.as_ref().unwrap_or(&default);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let elsewhere = template.node_name.as_deref().is_some_and(|n| !n.is_empty() && n != name);
    if elsewhere || !is_asked_for(template, node) {
        return Verdict::Leave;
    }
    let tolerations = tolerations(template);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let refuses = |effect: &str| {
        taints.iter().any(|t| t.effect == effect && !tolerations.iter().any(|own| tolerates(own, t)))
    };
    match (refuses(NO_EXECUTE), refuses(NO_SCHEDULE)) {
        (true, _) => Verdict::Leave,
        (false, true) => Verdict::Stay,
        (false, false) => Verdict::Run,
    }
}

/// By the node selector and the node affinity.
fn is_asked_for(template: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selected = template.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = template.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    selected
        && required
            .is_none_or(|r| r.node_selector_terms.iter().any(|t| selector::matches_term(t, name, &labels)))
}

/// What a daemon bears besides what its template says: it stays through most of a node's troubles.
pub(super) fn tolerations(template: &PodSpec) -> Vec<Toleration> {
    let mut all = template.tolerations.clone().unwrap_or_default();
    let network = template.host_network == Some(true);
    let own = [
        (NOT_READY, NO_EXECUTE, true),
        (UNREACHABLE, NO_EXECUTE, true),
        ("node.kubernetes.io/disk-pressure", NO_SCHEDULE, true),
        ("node.kubernetes.io/memory-pressure", NO_SCHEDULE, true),
        ("node.kubernetes.io/pid-pressure", NO_SCHEDULE, true),
        ("node.kubernetes.io/unschedulable", NO_SCHEDULE, true),
        ("node.kubernetes.io/network-unavailable", NO_SCHEDULE, network),
    ];
    for (key, effect, _) in own.into_iter().filter(|(_, _, bears)| *bears) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Makes a pod ask for this node.
pub(super) fn bind_to(spec: &mut PodSpec, node: &str) {
    let by_name = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NAME_FIELD.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let of_node: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    of_node.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![by_name] });
}

/// The node a pod is on, or asks for.
pub(super) fn node_of(p: &Pod) -> Option<&str> {
    if let Some(name) = pod::node(p) {
        return Some(name);
    }
    let affinity = p.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let by_name = fields.into_iter().find(|r| r.key == NAME_FIELD && r.operator == "In")?;
    by_name.values.as_ref()?.first().map(String::as_str)
}
