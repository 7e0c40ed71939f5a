//! Leftovers: pods of nodes that no longer exist, too many finished pods, old events.

use k8s_openapi::api::core::v1::Pod;

use crate::{
    kind::Typed,
    pod,
    reconcile::Context,
    write::{Outcome, Target, Write},
};

/// Reconciles one pod whose node may be gone, or that ends without ever having had one.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(p) = cx.world.pods.get(namespace, name) else { return Outcome::default() };
    let deleting = p.metadata.deletion_timestamp.is_some();
    if deleting && p.metadata.deletion_grace_period_seconds == Some(0) {
        // Only a finalizer holds it.
        return Outcome::default();
    }
    match pod::node(p) {
        None if deleting => Outcome::new(vec![Write::force_delete(Target::of(p))]),
        Some(node) if cx.world.nodes.get("", node).is_none() => {
            let target = Target {
                kind: <k8s_openapi::api::core::v1::Node as Typed>::KIND,
                namespace: String::new(),
                name: node.to_owned(),
                uid: String::new(),
            };
            Outcome::new(vec![Write::RequireAbsent { target }, Write::force_delete(Target::of(p))])
        }
        _ => Outcome::default(),
    }
}

/// Deletes the oldest finished pods beyond the bound.
pub(crate) fn reconcile_finished(cx: &mut Context<'_>) -> Outcome {
    let finished = |p: &&Pod| pod::is_finished(p) && p.metadata.deletion_timestamp.is_none();
    let mut pods: Vec<&Pod> = cx.world.pods.all().filter(finished).collect();
    let surplus = pods.len().saturating_sub(cx.config.terminated_pod_limit);
    pods.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
    Outcome::new(pods.into_iter().take(surplus).map(|p| Write::force_delete(Target::of(p))).collect())
}

/// Deletes an event that nothing has been added to for its time to live.
pub(crate) fn reconcile_event(uid: &str, cx: &mut Context<'_>) -> Outcome {
    let (Some(seen), Some(entry)) = (cx.world.event_seen.get(uid), cx.world.meta.get(uid)) else {
        return Outcome::default();
    };
    let left = (*seen + cx.config.event_ttl).saturating_duration_since(cx.now);
    if left.is_zero() && !entry.deleting {
        return Outcome::new(vec![Write::delete(Target::entry(entry))]);
    }
    Outcome { again: Some(left).filter(|left| !left.is_zero()), ..Outcome::default() }
}
