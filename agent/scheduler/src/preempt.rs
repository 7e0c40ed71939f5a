//! Which pods have to go so that a more important one finds room. Pure.

use std::{cmp::Reverse, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};

use crate::{
    filter::{Wish, reasons, resolvable},
    selector::matches,
    snapshot::{NodeState, Snapshot, labels},
};

/// Pods that make room on a node.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) node: String,
    pub(crate) victims: Vec<Arc<Pod>>,
    /// How many of them a disruption budget would rather keep.
    pub(crate) violations: usize,
}

/// A pod's importance.
pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Whether a pod takes room from others.
pub(crate) fn may_preempt(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref()) != Some("Never")
}

/// The node where a pod would find room at the least cost to others; or why there is none, in upstream's words. The
/// snapshot has those pods on it, too, for which room is being made already.
pub(crate) fn preempt(
    pod: &Pod,
    snapshot: &Snapshot,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Plan, String> {
    let wish = Wish::new(pod, &snapshot.nodes);
    let helpful: Vec<bool> = snapshot.nodes.iter().map(|node| resolvable(&wish, node)).collect();
    let own = priority(pod);
    let holds_less = |node: &NodeState| node.pods.iter().any(|other| priority(other) < own);
    let candidates: Vec<usize> =
        (0..helpful.len()).filter(|at| helpful[*at] && holds_less(&snapshot.nodes[*at])).collect();
    // One copy for all tries: each puts its node back.
    let mut nodes = if candidates.is_empty() { Vec::new() } else { snapshot.nodes.clone() };
    let plans = candidates.into_iter().filter_map(|at| plan(pod, &mut nodes, at, budgets));
    plans.min_by_key(cost).ok_or_else(|| explain(&helpful))
}

fn explain(helpful: &[bool]) -> String {
    let useful = helpful.iter().filter(|useful| **useful).count();
    let parts = [
        (useful, "No preemption victims found for incoming pod"),
        (helpful.len() - useful, "Preemption is not helpful for scheduling"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect();
    format!("preemption: 0/{} nodes are available: {}.", helpful.len(), parts.join(", "))
}

/// What upstream compares, one after the other: budgets, the most important victim, all of them, their number, and
/// how long the most important ones have been running.
fn cost(plan: &Plan) -> impl Ord + use<> {
    let highest = plan.victims.iter().map(|v| priority(v)).max().unwrap_or(i32::MIN);
    // Shifted, so that many unimportant pods weigh more than one.
    let sum: i64 = plan.victims.iter().map(|v| i64::from(priority(v)) - i64::from(i32::MIN)).sum();
    let earliest = plan.victims.iter().filter(|v| priority(v) == highest).map(|v| started(v)).min();
    (plan.violations, highest, sum, plan.victims.len(), Reverse(earliest), plan.node.clone())
}

/// The least that has to go from one node; `None` if even all less important pods do not make room.
fn plan(pod: &Pod, nodes: &mut [NodeState], at: usize, budgets: &[Arc<PodDisruptionBudget>]) -> Option<Plan> {
    let before = nodes[at].clone();
    let own = priority(pod);
    nodes[at].retain(|other| priority(other) >= own);
    let found = fits(pod, nodes, at).then(|| {
        let mut less: Vec<Arc<Pod>> =
            before.pods.iter().filter(|other| priority(other) < own).cloned().collect();
        // The most important first, of equal ones the oldest: they stay if any may.
        less.sort_by_key(|other| (Reverse(priority(other)), started(other)));
        let (held, free) = split(less, budgets);
        let mut victims = Vec::new();
        let mut reprieve = |others: Vec<Arc<Pod>>| {
            let count = victims.len();
            for other in others {
                nodes[at].put(other.clone());
                if !fits(pod, nodes, at) {
                    nodes[at].retain(|kept| !std::ptr::eq(kept, &*other));
                    victims.push(other);
                }
            }
            victims.len() - count
        };
        let violations = reprieve(held);
        reprieve(free);
        Plan { node: before.name.clone(), victims, violations }
    });
    nodes[at] = before;
    found
}

fn fits(pod: &Pod, nodes: &[NodeState], at: usize) -> bool {
    reasons(&Wish::new(pod, nodes), &nodes[at]).is_empty()
}

/// Those that a budget would rather keep, and the others.
fn split(pods: Vec<Arc<Pod>>, budgets: &[Arc<PodDisruptionBudget>]) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    let status = |budget: &PodDisruptionBudget| {
        budget.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0)
    };
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| status(budget)).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            if is_for(budget, pod) {
                *allowed -= 1;
                violates |= *allowed < 0;
            }
        }
        violates
    })
}

fn is_for(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let says = |s: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector| {
        s.match_labels.as_ref().is_some_and(|l| !l.is_empty())
            || s.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    // Whose eviction was allowed already is counted.
    let counted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
    budget.metadata.namespace == pod.metadata.namespace
        && !counted.is_some_and(|pods| pods.contains_key(name))
        && selector.filter(says).is_some_and(|s| matches(Some(s), labels(pod)))
}

fn started(pod: &Pod) -> Option<Timestamp> {
    let at = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    at.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

#[cfg(test)]
mod tests;
