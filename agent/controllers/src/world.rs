//! What the controllers know of the cluster. One task owns it; reconciles read it.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        coordination::v1::Lease,
        core::v1::{
            Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota,
            Service,
        },
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use tokio::time::Instant;

use crate::{
    back_off::{self, Failures},
    kind::{KindId, Kinds, Object, Typed, for_each_typed},
    meta::{MetaIndex, Place},
    pod,
};

/// All objects of one typed kind, by namespace and name.
#[derive(Debug)]
pub(crate) struct Cache<K>(BTreeMap<(String, String), K>);

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Resource> Cache<K> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&K> {
        self.0.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &K> {
        self.0.values()
    }

    pub(crate) fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a K> {
        self.0
            .range((namespace.to_owned(), String::new())..)
            .take_while(move |((ns, _), _)| ns == namespace)
            .map(|(_, object)| object)
    }

    fn insert(&mut self, object: K) -> Option<K> {
        let meta = object.meta();
        let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        self.0.insert(key, object)
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<K> {
        self.0.remove(&(namespace.to_owned(), name.to_owned()))
    }

    fn get_mut(&mut self, namespace: &str, name: &str) -> Option<&mut K> {
        self.0.get_mut(&(namespace.to_owned(), name.to_owned()))
    }
}

/// News from a list, a watch or a response.
#[derive(Debug)]
pub(crate) enum Change {
    /// Everything of a kind, at a revision.
    Listed { kind: KindId, version: u64, objects: Vec<Object> },
    /// One object is now so.
    Applied(Object),
    /// One object is no more.
    Deleted(Object),
    /// A delete was acknowledged.
    Doomed { uid: String },
}

/// One difference a change made to the world.
#[derive(Debug)]
pub(crate) struct Diff {
    pub(crate) old: Option<Object>,
    pub(crate) new: Option<Object>,
}

impl Diff {
    /// The newer of the two.
    pub(crate) fn latest(&self) -> Option<&Object> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

/// What has been seen of a node, by this machine's monotonic clock.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    /// When its lease, or the heartbeat in its status, last changed.
    pub(crate) changed: Instant,
    /// The heartbeat last seen in its status: compared with itself only, never with a clock.
    pub(crate) reported: Option<Time>,
    /// Since when it has reported itself not ready; `None` while it reports Ready.
    pub(crate) unready: Option<Instant>,
    /// Since when each taint has been seen, by key.
    pub(crate) taints: BTreeMap<String, Instant>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) pods: Cache<Pod>,
    pub(crate) replica_sets: Cache<ReplicaSet>,
    pub(crate) replication_controllers: Cache<ReplicationController>,
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) services: Cache<Service>,
    pub(crate) endpoints: Cache<Endpoints>,
    pub(crate) slices: Cache<EndpointSlice>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) namespaces: Cache<Namespace>,
    pub(crate) leases: Cache<Lease>,
    pub(crate) jobs: Cache<Job>,
    pub(crate) daemon_sets: Cache<DaemonSet>,
    pub(crate) revisions: Cache<ControllerRevision>,
    pub(crate) cron_jobs: Cache<CronJob>,
    pub(crate) stateful_sets: Cache<StatefulSet>,
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) budgets: Cache<PodDisruptionBudget>,
    pub(crate) quotas: Cache<ResourceQuota>,
    pub(crate) meta: MetaIndex,
    pub(crate) kinds: Option<Kinds>,
    /// Since when each ready pod has been seen ready.
    pub(crate) ready_since: HashMap<String, Instant>,
    /// How the pods of owners that make new ones for failed ones have fared, by the owner's uid and what tells its
    /// pods apart (a node's name, or nothing).
    pub(crate) failures: HashMap<(String, String), Failures>,
    /// By node name.
    pub(crate) heartbeats: HashMap<String, Heartbeat>,
    /// When each event was last seen to change, by uid.
    pub(crate) event_seen: HashMap<String, Instant>,
    /// Pod CIDRs ever asked for, by node: a write whose answer was lost may still have happened.
    pub(crate) cidr_claims: BTreeMap<String, ipnet::Ipv4Net>,
    listed: HashSet<KindId>,
}

/// A typed kind's cache in the world.
pub(crate) trait InWorld: Typed {
    fn cache(world: &mut World) -> &mut Cache<Self>;
}

macro_rules! in_world {
    ($($kind:ident $field:ident),* $(,)?) => {
        $(impl InWorld for $kind {
            fn cache(world: &mut World) -> &mut Cache<Self> { &mut world.$field }
        })*
    };
}

in_world! {
    Pod pods, ReplicaSet replica_sets, ReplicationController replication_controllers, Deployment deployments,
    Service services, Endpoints endpoints, EndpointSlice slices, Node nodes, Namespace namespaces, Lease leases,
    Job jobs, DaemonSet daemon_sets, ControllerRevision revisions, CronJob cron_jobs, StatefulSet stateful_sets,
    PersistentVolumeClaim claims, PodDisruptionBudget budgets, ResourceQuota quotas,
}

impl World {
    /// An empty world of these kinds.
    pub(crate) fn new(kinds: Kinds) -> Self {
        Self { kinds: Some(kinds), ..Self::default() }
    }

    /// Whether everything has been listed once.
    pub(crate) fn synced(&self) -> bool {
        self.kinds.as_ref().is_some_and(|kinds| self.listed.len() >= kinds.len())
    }

    /// Takes news in and says what became different.
    pub(crate) fn apply(&mut self, change: Change, now: Instant) -> Vec<Diff> {
        match change {
            Change::Listed { kind, version, objects } => self.replace(kind, version, objects, now),
            Change::Applied(object) => self.put(object, now).into_iter().collect(),
            Change::Deleted(object) => {
                let known = self.meta.delete(object.kind(), object.meta());
                let meta = object.meta();
                let (namespace, name) =
                    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
                self.forget(&object);
                if known {
                    vec![Diff {
                        old: self.take(object.kind(), &namespace, &name).or(Some(object)),
                        new: None,
                    }]
                } else {
                    Vec::new()
                }
            }
            Change::Doomed { uid } => self.doom(&uid).into_iter().collect(),
        }
    }

    fn replace(&mut self, kind: KindId, version: u64, objects: Vec<Object>, now: Instant) -> Vec<Diff> {
        let listed: HashSet<_> = objects
            .iter()
            .map(|o| {
                (o.meta().namespace.clone().unwrap_or_default(), o.meta().name.clone().unwrap_or_default())
            })
            .collect();
        let missing = self.meta.missing(kind, version, &listed);
        let mut diffs: Vec<Diff> = missing.iter().filter_map(|place| self.drop_missing(place)).collect();
        diffs.extend(objects.into_iter().filter_map(|object| self.put(object, now)));
        self.listed.insert(kind);
        diffs
    }

    fn drop_missing(&mut self, place: &Place) -> Option<Diff> {
        let entry = self.meta.drop_place(place)?;
        let meta = ObjectMeta {
            name: Some(entry.name.clone()),
            namespace: Some(entry.namespace.clone()).filter(|ns| !ns.is_empty()),
            uid: Some(entry.uid.clone()),
            owner_references: Some(entry.owners),
            ..ObjectMeta::default()
        };
        let old = self.take(place.0, &place.1, &place.2);
        let old = old.unwrap_or_else(|| Object::Meta(place.0, Box::new(meta)));
        self.forget(&old);
        Some(Diff { old: Some(old), new: None })
    }

    fn put(&mut self, object: Object, now: Instant) -> Option<Diff> {
        if !self.meta.apply(object.kind(), object.meta()) {
            return None;
        }
        self.observe(&object, now);
        let old = self.insert(object.clone());
        Some(Diff { old, new: Some(object) })
    }

    fn insert(&mut self, object: Object) -> Option<Object> {
        macro_rules! insert {
            ($kind:ident) => {
                if let Object::$kind(o) = object {
                    return $kind::cache(self).insert(*o).map(Typed::wrap);
                }
            };
        }
        for_each_typed!(insert);
        None
    }

    fn take(&mut self, kind: KindId, namespace: &str, name: &str) -> Option<Object> {
        macro_rules! take {
            ($kind:ident) => {
                if kind == $kind::KIND {
                    return $kind::cache(self).remove(namespace, name).map(Typed::wrap);
                }
            };
        }
        for_each_typed!(take);
        None
    }

    fn doom(&mut self, uid: &str) -> Option<Diff> {
        let (kind, namespace, name) = self.meta.doom(uid)?;
        macro_rules! doom {
            ($kind:ident) => {
                if kind == $kind::KIND {
                    let object = $kind::cache(self).get_mut(&namespace, &name)?;
                    if object.metadata.deletion_timestamp.is_some() {
                        // Nothing new; a finalizer may hold it for long.
                        return None;
                    }
                    let old = object.clone().wrap();
                    object.metadata.deletion_timestamp.get_or_insert_with(|| Time(jiff::Timestamp::now()));
                    return Some(Diff { old: Some(old), new: Some(object.clone().wrap()) });
                }
            };
        }
        for_each_typed!(doom);
        None
    }

    /// Keeps what the monotonic clock says about an object.
    fn observe(&mut self, object: &Object, now: Instant) {
        match object {
            Object::Pod(pod) => {
                let Some(uid) = pod.metadata.uid.clone() else { return };
                self.observe_end(pod, now);
                if pod::is_ready(pod) {
                    self.ready_since.entry(uid).or_insert(now);
                } else {
                    self.ready_since.remove(&uid);
                }
            }
            Object::Lease(lease) => {
                if let (Some(crate::node::LEASE_NAMESPACE), Some(name)) =
                    (lease.metadata.namespace.as_deref(), &lease.metadata.name)
                {
                    self.heartbeat(name, now).changed = now;
                }
            }
            Object::Node(node) => {
                let Some(name) = &node.metadata.name else { return };
                let ready = crate::node::is_ready(node);
                let reported = crate::node::reported(node);
                let beat = self.heartbeat(name, now);
                if reported.is_some() && beat.reported != reported {
                    beat.changed = now;
                    beat.reported = reported;
                }
                beat.unready = if ready { None } else { beat.unready.or(Some(now)) };
                let keys = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).map(|t| t.key.clone());
                let seen = keys.map(|key| (key.clone(), beat.taints.get(&key).copied().unwrap_or(now)));
                beat.taints = seen.collect();
            }
            Object::Meta(kind, meta) if self.kinds.as_ref().and_then(Kinds::event) == Some(*kind) => {
                if let Some(uid) = &meta.uid {
                    self.event_seen.insert(uid.clone(), now);
                }
            }
            _ => {}
        }
    }

    /// Counts a pod that is seen to have failed for the first time; a success takes the failures back.
    fn observe_end(&mut self, pod: &Pod, now: Instant) {
        let Some(end) = back_off::end(pod) else { return };
        let meta = &pod.metadata;
        let before = self
            .pods
            .get(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
            .filter(|old| old.metadata.uid == meta.uid);
        if before.is_some_and(|old| back_off::end(old).is_some()) {
            return;
        }
        let key = (end.owner.to_owned(), end.place.to_owned());
        if end.success {
            self.failures.remove(&key);
        } else {
            let failures = Failures::one_more(self.failures.get(&key), &end, now);
            self.failures.insert(key, failures);
        }
    }

    fn heartbeat(&mut self, node: &str, now: Instant) -> &mut Heartbeat {
        self.heartbeats.entry(node.to_owned()).or_insert(Heartbeat {
            changed: now,
            reported: None,
            unready: None,
            taints: BTreeMap::new(),
        })
    }

    fn forget(&mut self, object: &Object) {
        let meta = object.meta();
        if let Some(uid) = &meta.uid {
            self.ready_since.remove(uid);
            self.event_seen.remove(uid);
            if matches!(object, Object::Job(_) | Object::DaemonSet(_)) {
                self.failures.retain(|(owner, _), _| owner != uid);
            }
        }
        if let (Object::Node(_), Some(name)) = (object, &meta.name) {
            self.heartbeats.remove(name);
            self.cidr_claims.remove(name);
        }
    }
}
