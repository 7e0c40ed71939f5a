//! The disks of the pods: a claim for each template and number. They stay when pods go, unless told otherwise.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde_json::json;

use super::{COMPONENT, View, is_leaving};
use crate::{
    event::Event,
    kind::Typed,
    owned::owner_reference,
    world::World,
    write::{Target, Write},
};

/// A claim's name.
pub(super) fn name(view: &View<'_>, template: &PersistentVolumeClaim, number: i64) -> String {
    format!("{}-{}-{number}", template.metadata.name.as_deref().unwrap_or_default(), view.name())
}

fn templates<'a>(view: &View<'a>) -> &'a [PersistentVolumeClaim] {
    view.spec.volume_claim_templates.as_deref().unwrap_or_default()
}

fn namespace<'a>(view: &View<'a>) -> &'a str {
    view.set.metadata.namespace.as_deref().unwrap_or_default()
}

/// Whether claims go with what they are for: with the set, and with a pod that is scaled away.
fn goes_with(view: &View<'_>) -> (bool, bool) {
    let policy = view.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |word: Option<&String>| word.map(String::as_str) == Some("Delete");
    (
        deletes(policy.and_then(|p| p.when_deleted.as_ref())),
        deletes(policy.and_then(|p| p.when_scaled.as_ref())),
    )
}

/// The claims of a number that are not there.
pub(super) fn missing(view: &View<'_>, number: i64, world: &World) -> Vec<Write> {
    let absent =
        |t: &&PersistentVolumeClaim| world.claims.get(namespace(view), &name(view, t, number)).is_none();
    templates(view).iter().filter(absent).map(|t| create(view, t, number)).collect()
}

fn create(view: &View<'_>, template: &PersistentVolumeClaim, number: i64) -> Write {
    let name = name(view, template, number);
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.extend(view.spec.selector.match_labels.clone().unwrap_or_default());
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: view.set.metadata.namespace.clone(),
            labels: Some(labels).filter(|map| !map.is_empty()),
            annotations: template.metadata.annotations.clone(),
            owner_references: goes_with(view).0.then(|| vec![held_by_set(view)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let set = view.name();
    let done = format!("create Claim {name} Pod {set}-{number} in StatefulSet {set} success");
    let failed = format!("create Claim {name} Pod {set}-{number} in StatefulSet {set} failed error: ");
    Write::Create {
        object: claim.wrap(),
        done: Some(Event::normal(COMPONENT, view.set, "SuccessfulCreate", done)),
        failed: Some(Event::warning(COMPONENT, view.set, "FailedCreate", failed)),
    }
}

fn held_by_set(view: &View<'_>) -> OwnerReference {
    OwnerReference { block_owner_deletion: Some(true), ..owner_reference(view.set) }
}

/// Whom the claims are to go with; noted before a pod is scaled away.
pub(super) fn owners(view: &View<'_>, world: &World) -> Vec<Write> {
    let all = view.pods.iter().flat_map(|(number, p)| {
        templates(view).iter().filter_map(move |t| {
            let claim = world.claims.get(namespace(view), &name(view, t, *number))?;
            owner(view, *number, p, claim)
        })
    });
    all.collect()
}

fn owner(view: &View<'_>, number: i64, p: &Pod, claim: &PersistentVolumeClaim) -> Option<Write> {
    let (with_set, with_pod) = goes_with(view);
    let by_pod = with_pod && !view.wants(number);
    if claim.metadata.deletion_timestamp.is_some() || (by_pod && is_leaving(p)) {
        return None;
    }
    let set_uid = view.set.metadata.uid.as_deref().unwrap_or_default();
    let before = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |o: &OwnerReference| {
        o.uid == set_uid || (o.kind == "Pod" && Some(o.name.as_str()) == p.metadata.name.as_deref())
    };
    let mut owners: Vec<OwnerReference> = before.iter().filter(|o| !ours(o)).cloned().collect();
    if by_pod {
        owners.push(OwnerReference { block_owner_deletion: None, ..owner_reference(p) });
    } else if with_set {
        owners.push(held_by_set(view));
    }
    let same = owners.len() == before.len()
        && owners.iter().all(|o| before.iter().any(|b| (&b.uid, &b.kind) == (&o.uid, &o.kind)));
    let version = claim.metadata.resource_version.as_deref();
    (!same).then(|| Write::patch_meta(Target::of(claim), version, json!({ "ownerReferences": owners })))
}
