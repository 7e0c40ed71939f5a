//! What controllers with objects of their own share: taking them, making them, letting them go.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use serde_json::json;

use crate::{
    event::Event,
    kind::Typed,
    pod,
    reconcile::Context,
    selector,
    world::World,
    write::{Propagation, Target, Write},
};

/// Most pods made or deleted in one go; the rest follows when these are seen.
pub(crate) const BURST: usize = 500;

/// A controller reference to an object.
pub(crate) fn owner_reference<K: Typed>(object: &K) -> OwnerReference {
    let meta = object.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether an object's controller is the one of this uid.
pub(crate) fn is_owned(meta: &ObjectMeta, uid: &str) -> bool {
    pod::controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// Whether nothing new may be made in a namespace.
pub(crate) fn namespace_ends(world: &World, namespace: &str) -> bool {
    world.namespaces.get("", namespace).is_some_and(|ns| ns.metadata.deletion_timestamp.is_some())
}

/// Adopts matching orphans that may be adopted, and lets go of what no longer matches.
pub(crate) fn claim<'a, K: Typed>(
    objects: impl Iterator<Item = &'a K>,
    selector: &LabelSelector,
    owner: &OwnerReference,
    adopts: impl Fn(&K) -> bool,
) -> Vec<Write> {
    objects
        .filter(|o| o.meta().deletion_timestamp.is_none())
        .filter_map(|o| {
            let meta = o.meta();
            let matches = selector::matches(selector, meta.labels.as_ref());
            let mut owners = meta.owner_references.clone().unwrap_or_default();
            match pod::controller_of(meta) {
                None if matches && adopts(o) => owners.push(owner.clone()),
                Some(held) if held.uid == owner.uid && !matches => owners.retain(|o| o.uid != owner.uid),
                _ => return None,
            }
            let version = meta.resource_version.as_deref();
            Some(Write::patch_meta(Target::of(o), version, json!({ "ownerReferences": owners })))
        })
        .collect()
}

/// A pod of a template.
pub(crate) fn pod<K: Typed>(owner: &K, template: &PodTemplateSpec, name: String) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Makes a pod and tells about it.
pub(crate) fn create<K: Typed>(component: &'static str, owner: &K, pod: Pod) -> Write {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let done = Event::normal(component, owner, "SuccessfulCreate", format!("Created pod: {name}"));
    let failed = Event::warning(component, owner, "FailedCreate", "Error creating: ".to_owned());
    Write::Create { object: pod.wrap(), done: Some(done), failed: Some(failed) }
}

/// Deletes a pod and tells about it.
pub(crate) fn delete<K: Typed>(component: &'static str, owner: &K, p: &Pod) -> Write {
    let name = p.metadata.name.as_deref().unwrap_or_default();
    Write::Delete {
        target: Target::of(p),
        grace: None,
        propagation: Propagation::Background,
        done: Some(Event::normal(component, owner, "SuccessfulDelete", format!("Deleted pod: {name}"))),
        failed: Some(Event::warning(component, owner, "FailedDelete", "Error deleting: ".to_owned())),
    }
}

/// How long until a ready pod counts as available.
pub(crate) fn available_in(p: &Pod, min_ready: Duration, cx: &Context<'_>) -> Duration {
    let since = p.metadata.uid.as_ref().and_then(|uid| cx.world.ready_since.get(uid));
    since.map_or(min_ready, |since| min_ready.saturating_sub(cx.now.saturating_duration_since(*since)))
}

/// A number, or a percentage of `total`; what cannot be read is nothing.
pub(crate) fn share(value: &IntOrString, total: i32, up: bool) -> i32 {
    let percent: i64 = match value {
        IntOrString::Int(number) => return (*number).max(0),
        IntOrString::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
    };
    let product = percent.max(0).saturating_mul(i64::from(total));
    let rounded = if up { product.saturating_add(99) / 100 } else { product / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

/// Seconds of a specification.
pub(crate) fn seconds(value: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(0)).unwrap_or(0))
}

/// A count as the API has it.
pub(crate) fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Zero is left out, as upstream leaves it out.
pub(crate) fn positive(count: i32) -> Option<i32> {
    Some(count).filter(|n| *n > 0)
}

/// For ordering by age.
pub(crate) fn created(meta: &ObjectMeta) -> Option<&Time> {
    meta.creation_timestamp.as_ref()
}
