//! Which of the possible nodes is best.

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};

use crate::{
    affinity::{applies, domain_counts},
    filter::{Wish, tolerates},
    selector::{matches_map, matches_term},
    snapshot::{NodeState, Snapshot, labels},
};

/// A pod that asks for nothing still counts as this much, in thousandths: otherwise all of them land on one node.
const UNSAID: [(&str, i128); 2] = [("cpu", 100), ("memory", 200 * (1 << 20) * 1000)];
/// From this size on, an image that is already there counts fully.
const IMAGE_FULL: i64 = 500 << 20;

/// The score of each of these nodes, each part from 0 to 100 times its weight.
pub(crate) fn scores(wish: &Wish<'_>, nodes: &[&NodeState], snapshot: &Snapshot) -> Vec<i64> {
    let parts: [(i64, Vec<i64>); 7] = [
        (1, nodes.iter().map(|node| least_allocated(wish, node)).collect()),
        (3, fewer_is_better(nodes.iter().map(|node| siblings(wish.pod, node, snapshot)).collect())),
        (2, more_is_better(nodes.iter().map(|node| preferred_node(wish.pod, node)).collect())),
        (2, more_is_better(preferred_pods(wish.pod, nodes, &snapshot.nodes))),
        (2, fewer_is_better(soft_spread(wish.pod, nodes, &snapshot.nodes))),
        (3, fewer_is_better(nodes.iter().map(|node| disliked_taints(wish, node)).collect())),
        (1, nodes.iter().map(|node| images(wish.pod, node)).collect()),
    ];
    let mut total = vec![0; nodes.len()];
    for (weight, part) in parts {
        for (sum, score) in total.iter_mut().zip(part) {
            *sum += weight * score;
        }
    }
    total
}

fn fewer_is_better(counts: Vec<i64>) -> Vec<i64> {
    let most = counts.iter().max().copied().unwrap_or(0);
    counts.into_iter().map(|n| if most == 0 { 100 } else { 100 * (most - n) / most }).collect()
}

/// From least to most; all alike are all worth nothing.
fn more_is_better(values: Vec<i64>) -> Vec<i64> {
    let (least, most) =
        (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
    values.into_iter().map(|n| if most == least { 0 } else { 100 * (n - least) / (most - least) }).collect()
}

fn least_allocated(wish: &Wish<'_>, node: &NodeState) -> i64 {
    let free = UNSAID.iter().map(|(name, unsaid)| {
        let most = node.allocatable.get(*name).copied().unwrap_or(0);
        let asked = wish.requests.get(*name).copied().filter(|n| *n > 0).unwrap_or(*unsaid);
        let silent = node.pods.iter().filter(|p| !asks_for(p, name)).count();
        let silent = unsaid.saturating_mul(i128::try_from(silent).unwrap_or(0));
        let used = node.used.get(*name).copied().unwrap_or(0) + silent + asked;
        if most <= 0 { 0 } else { (100 * (most - used).max(0) / most).min(100) }
    });
    i64::try_from(free.sum::<i128>() / 2).unwrap_or(0)
}

fn asks_for(pod: &Pod, name: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    containers.filter_map(|c| c.resources.as_ref()).any(|r| {
        [&r.requests, &r.limits].iter().any(|list| list.as_ref().is_some_and(|list| list.contains_key(name)))
    })
}

/// Pods of the same owner or the same service on a node.
fn siblings(pod: &Pod, node: &NodeState, snapshot: &Snapshot) -> i64 {
    let owner = |p: &Pod| {
        p.metadata
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.controller == Some(true))
            .map(|o| o.uid.clone())
    };
    let own = owner(pod);
    let selectors: Vec<_> = snapshot
        .services
        .iter()
        .filter(|s| s.metadata.namespace == pod.metadata.namespace)
        .filter_map(|s| s.spec.as_ref()?.selector.as_ref())
        .filter(|selector| matches_map(Some(selector), labels(pod)))
        .collect();
    let sibling = |p: &Pod| {
        p.metadata.namespace == pod.metadata.namespace
            && p.metadata.deletion_timestamp.is_none()
            && ((own.is_some() && owner(p) == own)
                || selectors.iter().any(|s| matches_map(Some(s), labels(p))))
    };
    count(node.pods.iter().filter(|p| sibling(p)).count())
}

fn preferred_node(pod: &Pod, node: &NodeState) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let terms = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let matching =
        terms.unwrap_or_default().iter().filter(|t| matches_term(&t.preference, &node.name, &node.labels));
    matching.map(|t| i64::from(t.weight)).sum()
}

fn preferred_pods(pod: &Pod, nodes: &[&NodeState], all: &[NodeState]) -> Vec<i64> {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let near = affinity.and_then(|a| {
        a.pod_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_deref()
    });
    let far = affinity.and_then(|a| {
        a.pod_anti_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_deref()
    });
    let near = near.unwrap_or_default().iter().map(|t| (i64::from(t.weight), &t.pod_affinity_term));
    let far = far.unwrap_or_default().iter().map(|t| (-i64::from(t.weight), &t.pod_affinity_term));
    let terms: Vec<(i64, &PodAffinityTerm)> = near.chain(far).collect();
    let weigh = |node: &&NodeState| {
        terms.iter().map(|(weight, term)| weight * matching_in_domain(term, pod, node, all)).sum()
    };
    nodes.iter().map(weigh).collect()
}

fn matching_in_domain(term: &PodAffinityTerm, pod: &Pod, node: &NodeState, all: &[NodeState]) -> i64 {
    let Some(domain) = node.labels.get(&term.topology_key) else { return 0 };
    let inside = all.iter().filter(|n| n.labels.get(&term.topology_key) == Some(domain));
    count(inside.flat_map(|n| &n.pods).filter(|other| applies(term, pod, other)).count())
}

fn soft_spread(pod: &Pod, nodes: &[&NodeState], all: &[NodeState]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let constraints =
        pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    for constraint in constraints.iter().filter(|c| c.when_unsatisfiable == "ScheduleAnyway") {
        let counts = domain_counts(constraint, pod, all);
        let most = counts.values().max().copied().unwrap_or(0);
        for (total, node) in totals.iter_mut().zip(nodes) {
            let domain = node.labels.get(&constraint.topology_key);
            // A node without the label is worse than any with it.
            *total += i64::from(domain.and_then(|d| counts.get(d)).copied().unwrap_or(most + 1));
        }
    }
    totals
}

fn disliked_taints(wish: &Wish<'_>, node: &NodeState) -> i64 {
    let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    count(soft.filter(|taint| !wish.tolerations().iter().any(|t| tolerates(t, taint))).count())
}

/// Images that are there already. Worth less than anything else: spreading matters more than a pull.
fn images(pod: &Pod, node: &NodeState) -> i64 {
    let wanted = pod.spec.iter().flat_map(|s| &s.containers).filter_map(|c| c.image.as_deref());
    let present: i64 = wanted
        .filter_map(|image| node.images.iter().find(|(name, _)| same_image(name, image)))
        .map(|(_, size)| *size)
        .sum();
    20 * present.clamp(0, IMAGE_FULL) / IMAGE_FULL
}

/// `nginx` and `docker.io/library/nginx:latest` are the same.
fn same_image(full: &str, short: &str) -> bool {
    let tagged = |name: &str| {
        let last = name.rsplit('/').next().unwrap_or(name);
        if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
    };
    let (full, short) = (tagged(full), tagged(short));
    full == short
        || full.strip_suffix(&short).is_some_and(|rest| matches!(rest, "docker.io/" | "docker.io/library/"))
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
