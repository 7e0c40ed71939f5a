//! The garbage collector: dependents go with their owners, in the order the owner's deletion asked for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::{
    meta::Entry,
    reconcile::Context,
    write::{Outcome, Propagation, Target, Write},
};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// What an owner reference leads to.
enum Owner<'a> {
    /// There, and to stay.
    Solid,
    /// There, but waits for its dependents to go.
    Waiting(&'a OwnerReference),
    /// Not known here.
    Absent(Target),
    /// Of a kind or in a place that cannot be looked up: never a reason to delete.
    Unknown,
}

/// Reconciles one object, by uid.
pub(crate) fn reconcile(uid: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(entry) = cx.world.meta.get(uid) else { return Outcome::default() };
    if entry.deleting {
        return Outcome::new(as_owner(entry, cx));
    }
    Outcome::new(as_dependent(entry, cx))
}

/// An object being deleted that must first see to its dependents.
fn as_owner(entry: &Entry, cx: &Context<'_>) -> Vec<Write> {
    let dependents = || cx.world.meta.dependents(&entry.uid);
    if entry.finalizers.iter().any(|f| f == ORPHAN) {
        let mut writes: Vec<Write> = dependents().map(|d| without_owners(d, &[&entry.uid])).collect();
        writes.push(without_finalizer(entry, ORPHAN));
        return writes;
    }
    if entry.finalizers.iter().any(|f| f == FOREGROUND) && !dependents().any(|d| blocks(d, &entry.uid)) {
        return vec![without_finalizer(entry, FOREGROUND)];
    }
    Vec::new()
}

fn blocks(dependent: &Entry, owner: &str) -> bool {
    dependent.owners.iter().any(|o| o.uid == owner && o.block_owner_deletion == Some(true))
}

fn as_dependent(entry: &Entry, cx: &Context<'_>) -> Vec<Write> {
    let owners: Vec<(Owner<'_>, &OwnerReference)> =
        entry.owners.iter().map(|owner| (classify(entry, owner, cx), owner)).collect();
    if owners.is_empty() || owners.iter().any(|(o, _)| matches!(o, Owner::Unknown)) {
        return Vec::new();
    }
    let absent = || {
        owners.iter().filter_map(|(o, _)| match o {
            Owner::Absent(target) => Some(target.clone()),
            _ => None,
        })
    };
    let mut writes: Vec<Write> = absent().map(|target| Write::RequireAbsent { target }).collect();
    if owners.iter().any(|(o, _)| matches!(o, Owner::Solid)) {
        let going: Vec<&str> = owners
            .iter()
            .filter(|(o, _)| !matches!(o, Owner::Solid))
            .map(|(_, reference)| reference.uid.as_str())
            .collect();
        if going.is_empty() {
            return Vec::new();
        }
        writes.push(without_owners(entry, &going));
        return writes;
    }
    let blocking =
        owners.iter().any(|(o, _)| matches!(o, Owner::Waiting(r) if r.block_owner_deletion == Some(true)));
    let parent = cx.world.meta.dependents(&entry.uid).next().is_some();
    let propagation = if entry.finalizers.iter().any(|f| f == ORPHAN) {
        Propagation::Orphan
    } else if entry.finalizers.iter().any(|f| f == FOREGROUND) || (blocking && parent) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    writes.push(Write::Delete {
        target: Target::entry(entry),
        grace: None,
        propagation,
        done: None,
        failed: None,
    });
    writes
}

fn classify<'a>(entry: &Entry, owner: &'a OwnerReference, cx: &Context<'_>) -> Owner<'a> {
    let kinds = cx.world.kinds.as_ref();
    let Some(kind) = kinds.and_then(|kinds| kinds.find(&owner.api_version, &owner.kind)) else {
        return Owner::Unknown;
    };
    let namespaced = kinds.and_then(|kinds| kinds.get(kind)).is_some_and(|info| info.namespaced);
    if namespaced && entry.namespace.is_empty() {
        return Owner::Unknown;
    }
    let namespace = if namespaced { entry.namespace.clone() } else { String::new() };
    match cx.world.meta.get(&owner.uid).filter(|o| o.namespace == namespace) {
        Some(o) if o.deleting && o.finalizers.iter().any(|f| f == FOREGROUND) => Owner::Waiting(owner),
        Some(_) => Owner::Solid,
        None => Owner::Absent(Target { kind, namespace, name: owner.name.clone(), uid: owner.uid.clone() }),
    }
}

fn without_owners(entry: &Entry, uids: &[&str]) -> Write {
    let owners: Vec<&OwnerReference> =
        entry.owners.iter().filter(|o| !uids.contains(&o.uid.as_str())).collect();
    Write::patch_meta(
        Target::entry(entry),
        Some(&entry.resource_version),
        json!({ "ownerReferences": owners }),
    )
}

fn without_finalizer(entry: &Entry, finalizer: &str) -> Write {
    let rest: Vec<&String> = entry.finalizers.iter().filter(|f| *f != finalizer).collect();
    Write::patch_meta(Target::entry(entry), Some(&entry.resource_version), json!({ "finalizers": rest }))
}

#[cfg(test)]
mod tests;
