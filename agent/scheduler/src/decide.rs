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

/// Chooses a node. Equally good nodes are drawn by `rng`; the rest is determined.
pub(crate) fn decide(pod: &Pod, snapshot: &Snapshot, rng: &mut impl Rng) -> Result<String, Unschedulable> {
    if snapshot.nodes.is_empty() {
        return Err(Unschedulable("no nodes available to schedule pods".to_owned()));
    }
    let wish = Wish::new(pod, &snapshot.nodes);
    let mut possible: Vec<&NodeState> = Vec::new();
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    for node in &snapshot.nodes {
        let reasons = reasons(&wish, node);
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
