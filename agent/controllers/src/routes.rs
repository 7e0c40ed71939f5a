//! Which keys a difference in the world concerns.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Namespace, Pod, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};

use crate::{
    disruption, furnishing, job,
    kind::{Kinds, Object, Typed},
    node, owned, pod, quota,
    reconcile::{Controller, Key},
    selector, slices,
    world::{Diff, World},
};

/// All keys to look at after a difference.
pub(crate) fn keys(world: &World, diff: &Diff) -> Vec<Key> {
    let mut keys = Vec::new();
    for object in diff.old.iter().chain(&diff.new) {
        by_kind(world, object, diff.new.is_none(), &mut keys);
    }
    if quota::concerns(diff.old.as_ref(), diff.new.as_ref())
        && let Some(namespace) = diff.latest().and_then(|object| object.meta().namespace.as_deref())
    {
        keys.extend(world.quotas.in_namespace(namespace).filter_map(|q| key_of(Controller::Quota, q)));
    }
    if let Some(
        Object::ReplicaSet(_)
        | Object::ReplicationController(_)
        | Object::StatefulSet(_)
        | Object::Deployment(_),
    ) = diff.latest()
    {
        // A scale has changed, perhaps: shares of it are something else now.
        let namespace = diff.latest().and_then(|o| o.meta().namespace.clone()).unwrap_or_default();
        let budgets = world.budgets.in_namespace(&namespace);
        keys.extend(budgets.filter_map(|b| key_of(Controller::Disruption, b)));
    }
    if let Some(object) = diff.latest() {
        by_meta(world, object, diff.new.is_none(), &mut keys);
    }
    keys.sort();
    keys.dedup();
    keys
}

fn by_kind(world: &World, object: &Object, gone: bool, keys: &mut Vec<Key>) {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    match object {
        Object::Pod(p) => by_pod(world, p, keys),
        Object::ReplicaSet(_) => {
            keys.push(Key::new(Controller::ReplicaSet, namespace, name));
            deployments(world, meta, keys);
        }
        Object::ReplicationController(_) => {
            keys.push(Key::new(Controller::ReplicationController, namespace, name))
        }
        Object::Deployment(_) => keys.push(Key::new(Controller::Deployment, namespace, name)),
        Object::DaemonSet(_) => keys.push(Key::new(Controller::DaemonSet, namespace, name)),
        Object::StatefulSet(_) => keys.push(Key::new(Controller::StatefulSet, namespace, name)),
        Object::CronJob(_) => keys.push(Key::new(Controller::CronJob, namespace, name)),
        Object::ControllerRevision(_) => keepers(world, meta, keys),
        Object::PersistentVolumeClaim(_) => claimants(world, namespace, name, keys),
        Object::Job(_) => {
            keys.push(Key::new(Controller::Job, namespace, name));
            owned_by(meta, "CronJob", Controller::CronJob, keys);
            if gone {
                let uid = meta.uid.as_deref().unwrap_or_default();
                let own = world.pods.in_namespace(namespace).filter(|p| owned::is_owned(&p.metadata, uid));
                keys.extend(own.map(|p| pod_key(Controller::JobOrphan, p)));
            }
        }
        Object::PodDisruptionBudget(_) => keys.push(Key::new(Controller::Disruption, namespace, name)),
        Object::ResourceQuota(_) => keys.push(Key::new(Controller::Quota, namespace, name)),
        Object::Service(_) | Object::Endpoints(_) => service(namespace, name, keys),
        Object::EndpointSlice(slice) => {
            if let Some(name) = slice.metadata.labels.as_ref().and_then(|l| l.get(slices::SERVICE_NAME)) {
                service(namespace, name, keys);
            }
        }
        Object::Node(_) => by_node(world, name, gone, keys),
        Object::Lease(_) if namespace == node::LEASE_NAMESPACE => {
            keys.push(Key::new(Controller::NodeLifecycle, "", name));
        }
        Object::Namespace(_) => {
            keys.push(Key::new(Controller::Namespace, "", name));
            keys.push(Key::new(Controller::Furnishing, "", name));
        }
        Object::Meta(kind, _) if world.kinds.as_ref().and_then(Kinds::event) == Some(*kind) => {
            keys.extend(meta.uid.as_deref().map(|uid| Key::new(Controller::EventTtl, "", uid)));
        }
        Object::Meta(..) if gone && furnishing::is_furniture(name) => {
            keys.push(Key::new(Controller::Furnishing, "", namespace));
        }
        Object::Lease(_) | Object::Meta(..) => {}
    }
}

/// The controller of an object, if it is one of this kind.
fn owned_by(meta: &ObjectMeta, kind: &str, controller: Controller, keys: &mut Vec<Key>) {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let owner = pod::controller_of(meta).filter(|owner| owner.kind == kind);
    keys.extend(owner.map(|owner| Key::new(controller, namespace, &owner.name)));
}

/// Who keeps a revision, or might adopt it.
fn keepers(world: &World, meta: &ObjectMeta, keys: &mut Vec<Key>) {
    owned_by(meta, "DaemonSet", Controller::DaemonSet, keys);
    owned_by(meta, "StatefulSet", Controller::StatefulSet, keys);
    if pod::controller_of(meta).is_none() {
        selecting(world, meta, keys);
    }
}

/// Sets whose selectors are for these labels.
fn selecting(world: &World, meta: &ObjectMeta, keys: &mut Vec<Key>) {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let labels = meta.labels.as_ref();
    let wants = |selector: Option<&LabelSelector>| selector.is_some_and(|s| selector::matches(s, labels));
    let daemons = world.daemon_sets.in_namespace(namespace);
    let daemons = daemons.filter(|d| wants(d.spec.as_ref().map(|s| &s.selector)));
    keys.extend(daemons.filter_map(|d| key_of(Controller::DaemonSet, d)));
    let sets = world.stateful_sets.in_namespace(namespace);
    let sets = sets.filter(|s| wants(s.spec.as_ref().map(|s| &s.selector)));
    keys.extend(sets.filter_map(|s| key_of(Controller::StatefulSet, s)));
}

/// Stateful sets of which a claim of this name may be: `template-set-number`.
fn claimants(world: &World, namespace: &str, claim: &str, keys: &mut Vec<Key>) {
    let Some((rest, _)) = claim.rsplit_once('-') else { return };
    let sets = world.stateful_sets.in_namespace(namespace).filter(|set| {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        rest.strip_suffix(name).is_some_and(|template| template.ends_with('-'))
    });
    keys.extend(sets.filter_map(|set| key_of(Controller::StatefulSet, set)));
}

fn service(namespace: &str, name: &str, keys: &mut Vec<Key>) {
    keys.push(Key::new(Controller::Endpoints, namespace, name));
    keys.push(Key::new(Controller::EndpointSlices, namespace, name));
}

fn by_node(world: &World, name: &str, gone: bool, keys: &mut Vec<Key>) {
    keys.push(Key::new(Controller::NodeLifecycle, "", name));
    keys.push(Key::new(Controller::NodeCidr, "", ""));
    service("default", "kubernetes", keys);
    keys.extend(world.daemon_sets.all().filter_map(|set| key_of(Controller::DaemonSet, set)));
    if gone {
        let orphans = world.pods.all().filter(|p| pod::node(p) == Some(name));
        keys.extend(orphans.map(|p| pod_key(Controller::PodGarbage, p)));
    }
}

fn pod_key(controller: Controller, p: &Pod) -> Key {
    let meta = &p.metadata;
    Key::new(
        controller,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn by_pod(world: &World, p: &Pod, keys: &mut Vec<Key>) {
    let namespace = p.metadata.namespace.as_deref().unwrap_or_default();
    owners_of_pod(world, p, namespace, keys);
    let known = |owner: &OwnerReference| {
        owner.kind == "Job" && world.jobs.get(namespace, &owner.name).is_some_and(|j| is_of(j, &owner.uid))
    };
    if job::is_tracked(p) && !pod::controller_of(&p.metadata).is_some_and(known) {
        keys.push(pod_key(Controller::JobOrphan, p));
    }
    for s in world.services.in_namespace(namespace) {
        let wanted = s.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        if selector::matches_map(wanted, p.metadata.labels.as_ref()) {
            service(namespace, s.metadata.name.as_deref().unwrap_or_default(), keys);
        }
    }
    let deleting = p.metadata.deletion_timestamp.is_some();
    match pod::node(p) {
        None if deleting => keys.push(pod_key(Controller::PodGarbage, p)),
        None => {}
        Some(name) => match world.nodes.get("", name) {
            None => keys.push(pod_key(Controller::PodGarbage, p)),
            Some(n) if n.spec.as_ref().is_some_and(|s| s.taints.as_ref().is_some_and(|t| !t.is_empty())) => {
                keys.push(Key::new(Controller::NodeLifecycle, "", name));
            }
            Some(_) => {}
        },
    }
    if pod::is_finished(p) {
        keys.push(Key::new(Controller::FinishedPods, "", ""));
    }
    let budgets = world.budgets.in_namespace(namespace);
    let budgets = budgets.filter(|b| disruption::is_for(b, p.metadata.labels.as_ref()));
    keys.extend(budgets.filter_map(|b| key_of(Controller::Disruption, b)));
}

fn owners_of_pod(world: &World, p: &Pod, namespace: &str, keys: &mut Vec<Key>) {
    if let Some(owner) = pod::controller_of(&p.metadata) {
        match owner.kind.as_str() {
            "ReplicaSet" => {
                keys.push(Key::new(Controller::ReplicaSet, namespace, &owner.name));
                // Recreate waits for the last pod of the old template.
                if let Some(set) = world.replica_sets.get(namespace, &owner.name) {
                    deployments(world, &set.metadata, keys);
                }
            }
            "ReplicationController" => {
                keys.push(Key::new(Controller::ReplicationController, namespace, &owner.name));
            }
            "DaemonSet" => keys.push(Key::new(Controller::DaemonSet, namespace, &owner.name)),
            "StatefulSet" => keys.push(Key::new(Controller::StatefulSet, namespace, &owner.name)),
            "Job" => keys.push(Key::new(Controller::Job, namespace, &owner.name)),
            _ => {}
        }
        return;
    }
    let labels = p.metadata.labels.as_ref();
    let sets = world.replica_sets.in_namespace(namespace);
    let sets = sets.filter(|rs| rs.spec.as_ref().is_some_and(|s| selector::matches(&s.selector, labels)));
    keys.extend(sets.filter_map(|rs: &ReplicaSet| key_of(Controller::ReplicaSet, rs)));
    selecting(world, &p.metadata, keys);
    let jobs = world.jobs.in_namespace(namespace).filter(|j| job::selects(j, &p.metadata));
    keys.extend(jobs.filter_map(|j| key_of(Controller::Job, j)));
    let controllers = world.replication_controllers.in_namespace(namespace);
    let matching = controllers.filter(|rc| rc_matches(rc, labels));
    keys.extend(matching.filter_map(|rc| key_of(Controller::ReplicationController, rc)));
}

/// Whether an object has this uid.
fn is_of<K: Typed>(object: &K, uid: &str) -> bool {
    object.meta().uid.as_deref() == Some(uid)
}

fn rc_matches(rc: &ReplicationController, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector::matches_map(rc.spec.as_ref().and_then(|s| s.selector.as_ref()), labels)
}

fn key_of<K: Typed>(controller: Controller, object: &K) -> Option<Key> {
    let meta = object.meta();
    Some(Key::new(controller, meta.namespace.as_deref()?, meta.name.as_deref()?))
}

/// The deployment of a replica set, or those that might adopt it.
fn deployments(world: &World, set: &ObjectMeta, keys: &mut Vec<Key>) {
    let namespace = set.namespace.as_deref().unwrap_or_default();
    match pod::controller_of(set) {
        Some(owner) if owner.kind == "Deployment" => {
            keys.push(Key::new(Controller::Deployment, namespace, &owner.name));
        }
        Some(_) => {}
        None => {
            let wants = |d: &&Deployment| {
                let selector: Option<&LabelSelector> = d.spec.as_ref().map(|s| &s.selector);
                selector.is_some_and(|s| selector::matches(s, set.labels.as_ref()))
            };
            let all = world.deployments.in_namespace(namespace).filter(wants);
            keys.extend(all.filter_map(|d| key_of(Controller::Deployment, d)));
        }
    }
}

/// What concerns an object of any kind: its owners, its dependents and its namespace.
fn by_meta(world: &World, object: &Object, gone: bool, keys: &mut Vec<Key>) {
    let meta = object.meta();
    let Some(uid) = meta.uid.as_deref() else { return };
    let garbage = |uid: &str| Key::new(Controller::Garbage, "", uid);
    let deleting = meta.deletion_timestamp.is_some();
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    if gone || deleting {
        keys.extend(world.meta.dependents(uid).map(|d| garbage(&d.uid)));
    }
    if gone {
        let waiting = owners.iter().filter(|o| world.meta.get(&o.uid).is_some_and(|e| e.deleting));
        keys.extend(waiting.map(|o| garbage(&o.uid)));
    } else if deleting || !owners.is_empty() {
        keys.push(garbage(uid));
    }
    if let Some(namespace) = &meta.namespace {
        let ending = |ns: &Namespace| ns.metadata.deletion_timestamp.is_some();
        if world.namespaces.get("", namespace).is_some_and(ending) {
            keys.push(Key::new(Controller::Namespace, "", namespace));
        }
    }
}
