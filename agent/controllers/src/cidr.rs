//! Pod CIDRs: every node gets a /24 of its own.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::{
    event::Event,
    reconcile::Context,
    write::{Outcome, Target, Write},
};

/// Length of a node's prefix.
pub(crate) const NODE_PREFIX: u8 = 24;

/// Gives every node without a CIDR the lowest free one. One reconcile for all nodes, so that no two of them run at a
/// time; a CIDR once asked for stays with its node, whether or not the answer to the write arrived.
pub(crate) fn reconcile(cx: &mut Context<'_>) -> Outcome {
    let mut taken: BTreeSet<Ipv4Net> = cx.world.nodes.all().filter_map(cidr_of).collect();
    taken.extend(cx.world.cidr_claims.values().copied());
    let mut outcome = Outcome::default();
    for node in
        cx.world.nodes.all().filter(|n| cidr_of(n).is_none() && n.metadata.deletion_timestamp.is_none())
    {
        let name = node.metadata.name.clone().unwrap_or_default();
        let claimed = cx.world.cidr_claims.get(&name).copied();
        let Some(cidr) = claimed.or_else(|| lowest_free(cx.config.cluster_cidr, &taken)) else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            outcome.writes.push(Write::Tell(Event::normal(
                "cidrAllocator",
                node,
                "CIDRNotAvailable",
                message,
            )));
            continue;
        };
        taken.insert(cidr);
        outcome.claims.push((name, cidr));
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()] },
        });
        outcome.writes.push(Write::Patch { target: Target::of(node), patch, done: None });
    }
    outcome
}

fn cidr_of(node: &Node) -> Option<Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// The lowest /24 that overlaps none of those taken.
fn lowest_free(cluster: Ipv4Net, taken: &BTreeSet<Ipv4Net>) -> Option<Ipv4Net> {
    let overlaps = |net: &Ipv4Net, other: &Ipv4Net| net.contains(other) || other.contains(net);
    cluster.subnets(NODE_PREFIX).ok()?.find(|net| !taken.iter().any(|t| overlaps(net, t)))
}

#[cfg(test)]
mod tests;
