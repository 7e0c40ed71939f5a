//! Affinity between pods, and hard spreading over topologies.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint};

use crate::{
    selector::matches,
    snapshot::{NodeState, labels},
};

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";
const SPREAD: &str = "node(s) didn't match pod topology spread constraints";

/// Values of topology labels, as key and value.
type Domains = BTreeSet<(String, String)>;

/// A pod's hard rules about other pods, with the domains they allow or forbid.
pub(crate) struct Affinities<'a> {
    /// Per required term: the domains with a match; `None` when nobody matches but the pod itself, the first of its
    /// kind.
    wanted: Vec<(&'a str, Option<Domains>)>,
    refused: Domains,
    refused_by_others: Domains,
    spread: Vec<Spread<'a>>,
}

/// One hard spread constraint: how many matching pods each domain has.
struct Spread<'a> {
    constraint: &'a TopologySpreadConstraint,
    counts: BTreeMap<String, i32>,
    own: i32,
}

impl<'a> Affinities<'a> {
    pub(crate) fn new(pod: &'a Pod, nodes: &[NodeState]) -> Self {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let required = affinity.and_then(|a| {
            a.pod_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_deref()
        });
        let wanted = required.unwrap_or_default().iter().map(|term| wanted(pod, term, nodes)).collect();
        let mut refused = Domains::new();
        for term in anti_terms(pod) {
            refused.extend(domains(nodes, &term.topology_key, |other| applies(term, pod, other)));
        }
        Self {
            wanted,
            refused,
            refused_by_others: refused_by_others(pod, nodes),
            spread: spreads(pod, nodes),
        }
    }

    /// Why a node is out.
    pub(crate) fn reason(&self, node: &NodeState) -> Option<&'static str> {
        let inside = |key: &str, domains: &Domains| {
            node.labels.get(key).is_some_and(|value| domains.contains(&(key.to_owned(), value.clone())))
        };
        let lacks = |(key, found): &(&str, Option<Domains>)| match found {
            Some(domains) => !inside(key, domains),
            None => !node.labels.contains_key(*key),
        };
        if self.wanted.iter().any(lacks) {
            return Some(AFFINITY);
        }
        let any = |domains: &Domains| domains.iter().any(|(key, value)| node.labels.get(key) == Some(value));
        if any(&self.refused) {
            return Some(ANTI_AFFINITY);
        }
        if any(&self.refused_by_others) {
            return Some(EXISTING);
        }
        self.spread.iter().any(|s| !s.allows(node)).then_some(SPREAD)
    }
}

impl Spread<'_> {
    fn allows(&self, node: &NodeState) -> bool {
        let Some(domain) = node.labels.get(&self.constraint.topology_key) else { return false };
        let least = self.counts.values().min().copied().unwrap_or(0);
        let least = match self.constraint.min_domains {
            Some(want) if self.counts.len() < usize::try_from(want).unwrap_or(0) => 0,
            _ => least,
        };
        self.counts.get(domain).copied().unwrap_or(0) + self.own - least <= self.constraint.max_skew
    }
}

fn anti_terms(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    affinity
        .and_then(|a| {
            a.pod_anti_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_deref()
        })
        .unwrap_or_default()
}

/// Whether a term of `owner` speaks of `other`.
pub(crate) fn applies(term: &PodAffinityTerm, owner: &Pod, other: &Pod) -> bool {
    let namespaces = term.namespaces.as_deref().unwrap_or_default();
    // Namespaces' labels are not known here: a namespace selector is taken to mean all.
    let here = if namespaces.is_empty() && term.namespace_selector.is_none() {
        other.metadata.namespace == owner.metadata.namespace
    } else {
        term.namespace_selector.is_some()
            || other.metadata.namespace.as_ref().is_some_and(|ns| namespaces.contains(ns))
    };
    here && matches(term.label_selector.as_ref(), labels(other))
}

fn wanted<'a>(pod: &'a Pod, term: &'a PodAffinityTerm, nodes: &[NodeState]) -> (&'a str, Option<Domains>) {
    let found = domains(nodes, &term.topology_key, |other| applies(term, pod, other));
    let first = found.is_empty() && applies(term, pod, pod);
    (&term.topology_key, (!first).then_some(found))
}

/// The domains that hold a pod for which `is` holds.
fn domains(nodes: &[NodeState], key: &str, is: impl Fn(&Pod) -> bool) -> Domains {
    let with = nodes.iter().filter(|node| node.pods.iter().any(|pod| is(pod)));
    with.filter_map(|node| Some((key.to_owned(), node.labels.get(key)?.clone()))).collect()
}

fn refused_by_others(pod: &Pod, nodes: &[NodeState]) -> Domains {
    let mut refused = Domains::new();
    for node in nodes {
        for other in &node.pods {
            for term in anti_terms(other).iter().filter(|term| applies(term, other, pod)) {
                if let Some(value) = node.labels.get(&term.topology_key) {
                    refused.insert((term.topology_key.clone(), value.clone()));
                }
            }
        }
    }
    refused
}

fn spreads<'a>(pod: &'a Pod, nodes: &[NodeState]) -> Vec<Spread<'a>> {
    let constraints =
        pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    let hard = constraints.iter().filter(|c| c.when_unsatisfiable == "DoNotSchedule");
    hard.map(|constraint| Spread {
        constraint,
        counts: domain_counts(constraint, pod, nodes),
        own: i32::from(matches(constraint.label_selector.as_ref(), labels(pod))),
    })
    .collect()
}

/// Matching pods by domain; a domain without any counts as zero.
pub(crate) fn domain_counts(
    constraint: &TopologySpreadConstraint,
    pod: &Pod,
    nodes: &[NodeState],
) -> BTreeMap<String, i32> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        let Some(domain) = node.labels.get(&constraint.topology_key) else { continue };
        let matching = node.pods.iter().filter(|other| {
            other.metadata.namespace == pod.metadata.namespace
                && other.metadata.deletion_timestamp.is_none()
                && matches(constraint.label_selector.as_ref(), labels(other))
        });
        let count = i32::try_from(matching.count()).unwrap_or(i32::MAX);
        let sum: &mut i32 = counts.entry(domain.clone()).or_default();
        *sum = sum.saturating_add(count);
    }
    counts
}
