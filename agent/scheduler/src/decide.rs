//! One decision: a pod, the nodes, the answer. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use rand::Rng;

use crate::{
    filter::{Wish, reasons},
    score::scores,
    snapshot::{NodeState, Snapshot},
};

/// No node is possible; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unschedulable(pub(crate) String);

/// What a pod is decided over.
pub(crate) struct View<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// The same with the pods for which room is being made; they may come or not.
    pub(crate) crowded: Option<&'a Snapshot>,
    /// Where room was made for this pod.
    pub(crate) nominated: Option<&'a str>,
}

/// Chooses a node. Equally good nodes are drawn by `rng`; the rest is determined.
pub(crate) fn decide(pod: &Pod, view: &View<'_>, rng: &mut impl Rng) -> Result<String, Unschedulable> {
    let snapshot = view.snapshot;
    if snapshot.nodes.is_empty() {
        return Err(Unschedulable("no nodes available to schedule pods".to_owned()));
    }
    let wish = Wish::new(pod, &snapshot.nodes);
    let mut possible: Vec<&NodeState> = Vec::new();
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let crowded = view.crowded.map(|crowded| (Wish::new(pod, &crowded.nodes), &crowded.nodes));
    for (at, node) in snapshot.nodes.iter().enumerate() {
        let mut reasons = reasons(&wish, node);
        if let Some((wish, nodes)) = crowded.as_ref().filter(|_| reasons.is_empty()) {
            reasons = crate::filter::reasons(wish, &nodes[at]);
        }
        if reasons.is_empty() {
            possible.push(node);
        }
        for reason in reasons {
            *refusals.entry(reason).or_default() += 1;
        }
    }
    if possible.is_empty() {
        return Err(Unschedulable(explain(snapshot.nodes.len(), refusals)));
    }
    if let Some(node) = view.nominated.filter(|own| possible.iter().any(|node| node.name == *own)) {
        return Ok(node.to_owned());
    }
    let scores = scores(&wish, &possible, snapshot);
    let best = scores.iter().max().copied().unwrap_or(0);
    let top: Vec<&NodeState> =
        possible.into_iter().zip(scores).filter(|(_, score)| *score == best).map(|(node, _)| node).collect();
    Ok(top[rng.random_range(0..top.len())].name.clone())
}

fn explain(nodes: usize, refusals: BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> =
        refusals.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
