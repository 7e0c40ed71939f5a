//! The next steps: what is missing is made in order, what is too much goes in the opposite order, then what is old.

use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, Volume};

use super::{COMPONENT, POD_INDEX, POD_NAME, View, claims, is_leaving};
use crate::{
    event::Event,
    kind::Typed,
    owned::{self, BURST, share},
    pod,
    reconcile::Context,
    revision::{self, HASH_LABEL},
    write::{Propagation, Target, Write},
};

/// Pods and claims to be made, changed and deleted now.
pub(super) fn step(view: &View<'_>, cx: &Context<'_>) -> Vec<Write> {
    let mut writes = claims::owners(view, cx.world);
    if !writes.is_empty() {
        return writes;
    }
    let mut waits = false;
    for number in view.start..view.start.saturating_add(view.want) {
        writes.extend(replica(view, number, cx));
        let there = view.pods.get(&number).is_some_and(|p| !is_leaving(p) && view.is_available(p, cx));
        waits |= !there;
        if (view.in_order() && waits) || writes.len() >= BURST {
            return writes;
        }
    }
    let surplus = surplus(view, cx);
    writes.extend(surplus.iter().map(|p| delete(view, p)));
    let leaving = view.pods.iter().any(|(number, p)| !view.wants(*number) && is_leaving(p));
    if !writes.is_empty() || (view.in_order() && leaving) || !view.rolls() {
        return writes;
    }
    old(view, cx).into_iter().map(|p| delete(view, p)).collect()
}

/// Makes the pod of a number, with its claims; one that has ended makes room first.
fn replica(view: &View<'_>, number: i64, cx: &Context<'_>) -> Vec<Write> {
    match view.pods.get(&number) {
        None => {
            let mut writes = claims::missing(view, number, cx.world);
            writes.push(create(view, number));
            writes
        }
        Some(p) if pod::is_finished(p) && !is_leaving(p) => {
            let name = p.metadata.name.as_deref().unwrap_or_default();
            let namespace = view.set.metadata.namespace.as_deref().unwrap_or_default();
            let message = format!("StatefulSet {namespace}/{} is recreating failed Pod {name}", view.name());
            let event = Event::warning(COMPONENT, view.set, "RecreatingFailedPod", message);
            vec![Write::Tell(event), delete(view, p)]
        }
        // A claim that was deleted under a pod that does not run yet.
        Some(p) if pod::phase(p) == "Pending" && !is_leaving(p) => claims::missing(view, number, cx.world),
        Some(_) => Vec::new(),
    }
}

/// Pods beyond the wanted number, the last first. In order: one at a time, and none while another one is unwell.
fn surplus<'a>(view: &View<'a>, cx: &Context<'_>) -> Vec<&'a Pod> {
    let beyond = view.pods.iter().rev().filter(|(number, _)| !view.wants(**number)).map(|(_, p)| *p);
    if !view.in_order() {
        return beyond.filter(|p| !is_leaving(p)).take(BURST).collect();
    }
    let all: Vec<&Pod> = beyond.collect();
    let unwell = all.iter().rev().find(|p| !view.is_available(p, cx));
    match all.first() {
        Some(last) if is_leaving(last) => Vec::new(),
        Some(last) if view.is_available(last, cx) => vec![*last],
        // The unwell one of the lowest number may go itself; those above it go before it.
        Some(last) if unwell.is_some_and(|p| p.metadata.uid == last.metadata.uid) => vec![*last],
        _ => Vec::new(),
    }
}

/// Pods of an old revision, the last first: no more than may be away, and none while a new one is not up.
fn old<'a>(view: &View<'a>, cx: &Context<'_>) -> Vec<&'a Pod> {
    let rolling = view.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let total = i32::try_from(view.want).unwrap_or(i32::MAX);
    let most = rolling.and_then(|r| r.max_unavailable.as_ref()).map_or(1, |value| share(value, total, true));
    let mut room = usize::try_from(most).unwrap_or(0).max(1);
    let mut chosen = Vec::new();
    for (number, p) in view.pods.iter().rev() {
        if room == 0 || *number < view.partition() {
            break;
        }
        if !view.wants(*number) {
            continue;
        }
        let is_old = revision::label(&p.metadata) != Some(view.update);
        if is_old && !is_leaving(p) {
            chosen.push(*p);
            room -= 1;
        } else if is_leaving(p) || !view.is_available(p, cx) {
            room -= 1;
        }
    }
    chosen
}

fn create(view: &View<'_>, number: i64) -> Write {
    let name = format!("{}-{number}", view.name());
    // One below the partition comes back as it was.
    let before = view.rolls() && number < view.partition();
    let (template, of) =
        if before { (&view.current_template, view.current) } else { (&view.spec.template, view.update) };
    let mut p = owned::pod(view.set, template, name.clone());
    let labels = p.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), of.to_owned());
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), number.to_string());
    let spec = p.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = view.spec.service_name.clone().filter(|name| !name.is_empty());
    let templates = view.spec.volume_claim_templates.as_deref().unwrap_or_default();
    let volumes = spec.volumes.get_or_insert_default();
    for template in templates {
        let volume = template.metadata.name.clone().unwrap_or_default();
        volumes.retain(|v| v.name != volume);
        let claim_name = claims::name(view, template, number);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Volume::default()
        });
    }
    spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
    let set = view.name();
    let done = format!("create Pod {name} in StatefulSet {set} successful");
    let failed = format!("create Pod {name} in StatefulSet {set} failed error: ");
    Write::Create {
        object: p.wrap(),
        done: Some(Event::normal(COMPONENT, view.set, "SuccessfulCreate", done)),
        failed: Some(Event::warning(COMPONENT, view.set, "FailedCreate", failed)),
    }
}

fn delete(view: &View<'_>, p: &Pod) -> Write {
    let (name, set) = (p.metadata.name.as_deref().unwrap_or_default(), view.name());
    let done = format!("delete Pod {name} in StatefulSet {set} successful");
    let failed = format!("delete Pod {name} in StatefulSet {set} failed error: ");
    Write::Delete {
        target: Target::of(p),
        grace: None,
        propagation: Propagation::Background,
        done: Some(Event::normal(COMPONENT, view.set, "SuccessfulDelete", done)),
        failed: Some(Event::warning(COMPONENT, view.set, "FailedDelete", failed)),
    }
}
