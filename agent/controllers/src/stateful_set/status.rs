//! What a stateful set reports.

use k8s_openapi::api::apps::v1::StatefulSetStatus;

use super::{View, is_leaving, is_up};
use crate::{
    owned::{number, positive},
    reconcile::Context,
    revision,
};

/// The status by what its pods are.
pub(super) fn status(view: &View<'_>, cx: &Context<'_>) -> StatefulSetStatus {
    let before = view.set.status.clone().unwrap_or_default();
    let pods = || view.pods.values().copied();
    let of = |name: &str| {
        number(pods().filter(|p| !is_leaving(p) && revision::label(&p.metadata) == Some(name)).count())
    };
    let (ready, updated) = (number(pods().filter(|p| is_up(p)).count()), of(view.update));
    let replicas = number(pods().count());
    let want = view.spec.replicas.unwrap_or(1);
    let arrived = view.rolls() && [replicas, ready, updated].iter().all(|n| *n == want);
    let (current, current_replicas) =
        if arrived { (view.update, updated) } else { (view.current, of(view.current)) };
    StatefulSetStatus {
        available_replicas: Some(number(pods().filter(|p| view.is_available(p, cx)).count())),
        collision_count: Some(before.collision_count.unwrap_or(0)),
        conditions: before.conditions,
        current_replicas: positive(current_replicas),
        current_revision: Some(current.to_owned()),
        observed_generation: view.set.metadata.generation,
        ready_replicas: positive(ready),
        replicas,
        update_revision: Some(view.update.to_owned()),
        updated_replicas: positive(updated),
    }
}
