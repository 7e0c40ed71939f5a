//! What the scheduler knows: pods, nodes, services, who waits, and which bindings are under way.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::watcher::Event;

use crate::snapshot::{Snapshot, is_ready};

/// Namespace and name.
pub(crate) type Key = (String, String);

/// News of one of the watches.
#[derive(Debug)]
// Each is taken apart at once: a box would only be one more allocation.
#[allow(clippy::large_enum_variant)]
pub(crate) enum News {
    Pod(Event<Pod>),
    Node(Event<Node>),
    Service(Event<Service>),
}

/// A decision that the API has not confirmed yet.
#[derive(Clone, Debug)]
struct Assumed {
    uid: String,
    node: String,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Cluster {
    scheduler: String,
    pods: BTreeMap<Key, Arc<Pod>>,
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<Key, Arc<Service>>,
    assumed: BTreeMap<Key, Assumed>,
    /// To be decided now.
    active: BTreeSet<Key>,
    /// Fit nowhere, or their binding failed: until something changes.
    parked: BTreeSet<Key>,
    listing: [Option<HashSet<Key>>; 3],
    listed: [bool; 3],
}

impl Cluster {
    pub(crate) fn new(scheduler: String) -> Self {
        Self { scheduler, ..Self::default() }
    }

    /// Whether all has been listed once.
    pub(crate) fn synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    pub(crate) fn take_in(&mut self, news: News) {
        match news {
            News::Pod(event) => self.pod_news(event),
            News::Node(event) => self.node_news(event),
            News::Service(event) => self.service_news(event),
        }
    }

    fn pod_news(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listing[0] = Some(HashSet::new()),
            Event::InitApply(pod) => {
                let key = key(&pod.metadata);
                self.put_pod(pod);
                self.listing[0].get_or_insert_default().insert(key);
            }
            Event::InitDone => {
                let listed = self.listing[0].take().unwrap_or_default();
                let gone: Vec<Key> = self.pods.keys().filter(|k| !listed.contains(*k)).cloned().collect();
                gone.iter().for_each(|key| self.drop_pod(key));
                self.listed[0] = true;
            }
            Event::Apply(pod) => self.put_pod(pod),
            Event::Delete(pod) => self.drop_pod(&key(&pod.metadata)),
        }
    }

    fn put_pod(&mut self, pod: Pod) {
        let key = key(&pod.metadata);
        let bound = node_of(&pod).is_some();
        let replaced = self.assumed.get(&key).is_some_and(|a| Some(&a.uid) != pod.metadata.uid.as_ref());
        if bound || replaced {
            self.assumed.remove(&key);
        }
        let before = self.pods.insert(key.clone(), Arc::new(pod));
        let pod = &self.pods[&key];
        if is_finished(pod) || (bound && before.is_none_or(|old| node_of(&old).is_none())) {
            // Room was freed, or affinities have a new point of reference.
            self.unpark();
        }
        let pod = &self.pods[&key];
        if self.wants_node(pod) && !self.assumed.contains_key(&key) {
            self.parked.remove(&key);
            self.active.insert(key);
        } else {
            self.active.remove(&key);
            self.parked.remove(&key);
        }
    }

    fn drop_pod(&mut self, key: &Key) {
        self.pods.remove(key);
        self.assumed.remove(key);
        self.active.remove(key);
        self.parked.remove(key);
        self.unpark();
    }

    fn node_news(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listing[1] = Some(HashSet::new()),
            Event::InitApply(node) => {
                self.listing[1].get_or_insert_default().insert(key(&node.metadata));
                self.put_node(node);
            }
            Event::InitDone => {
                let listed = self.listing[1].take().unwrap_or_default();
                self.nodes.retain(|name, _| listed.contains(&(String::new(), name.clone())));
                self.listed[1] = true;
                self.unpark();
            }
            Event::Apply(node) => self.put_node(node),
            Event::Delete(node) => {
                self.nodes.remove(&key(&node.metadata).1);
                self.unpark();
            }
        }
    }

    fn put_node(&mut self, node: Node) {
        let old = self.nodes.insert(key(&node.metadata).1, node.clone());
        if old.is_none_or(|old| relevant(&old) != relevant(&node)) {
            self.unpark();
        }
    }

    fn service_news(&mut self, event: Event<Service>) {
        match event {
            Event::Init => self.listing[2] = Some(HashSet::new()),
            Event::InitApply(service) => {
                let key = key(&service.metadata);
                self.listing[2].get_or_insert_default().insert(key.clone());
                self.services.insert(key, Arc::new(service));
            }
            Event::InitDone => {
                let listed = self.listing[2].take().unwrap_or_default();
                self.services.retain(|key, _| listed.contains(key));
                self.listed[2] = true;
            }
            Event::Apply(service) => {
                self.services.insert(key(&service.metadata), Arc::new(service));
            }
            Event::Delete(service) => {
                self.services.remove(&key(&service.metadata));
            }
        }
    }

    fn wants_node(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let ours =
            spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == self.scheduler);
        let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        ours && !gated
            && node_of(pod).is_none()
            && pod.metadata.deletion_timestamp.is_none()
            && !is_finished(pod)
    }

    /// Everything that waits gets another chance.
    pub(crate) fn unpark(&mut self) {
        self.active.append(&mut self.parked);
    }

    /// Pods to be decided, the most important and then the oldest first.
    pub(crate) fn take_active(&mut self) -> Vec<(Key, Arc<Pod>)> {
        let keys = std::mem::take(&mut self.active);
        let mut pods: Vec<_> =
            keys.into_iter().filter_map(|key| self.pods.get(&key).cloned().map(|pod| (key, pod))).collect();
        let priority = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        pods.sort_by(|(_, a), (_, b)| {
            priority(b)
                .cmp(&priority(a))
                .then_with(|| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp))
        });
        pods
    }

    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub(crate) fn park(&mut self, key: Key) {
        if self.pods.contains_key(&key) {
            self.parked.insert(key);
        }
    }

    /// Counts a pod on a node before the API knows.
    pub(crate) fn assume(&mut self, key: Key, pod: &Pod, node: &str) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.assumed.insert(key, Assumed { uid, node: node.to_owned() });
    }

    /// A binding failed: the pod is without a node again. `true` if it still wants one.
    pub(crate) fn forget(&mut self, key: &Key, uid: &str) -> bool {
        if self.assumed.get(key).is_some_and(|a| a.uid == uid) {
            self.assumed.remove(key);
        }
        self.pods.get(key).is_some_and(|pod| self.wants_node(pod))
    }

    /// Puts a pod back into the queue.
    pub(crate) fn activate(&mut self, key: Key) {
        if self.pods.get(&key).is_some_and(|pod| self.wants_node(pod)) && !self.assumed.contains_key(&key) {
            self.parked.remove(&key);
            self.active.insert(key);
        }
    }

    /// The nodes with all that is or is about to be on them.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let placed = self.pods.iter().filter(|(_, pod)| !is_finished(pod)).filter_map(|(key, pod)| {
            let node = node_of(pod).or_else(|| self.assumed.get(key).map(|a| a.node.as_str()))?;
            Some((node, pod.clone()))
        });
        let alive = self.nodes.values().filter(|n| n.metadata.deletion_timestamp.is_none());
        Snapshot::new(alive, placed, self.services.values().cloned().collect())
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What of a node a decision depends on: a heartbeat is no news.
fn relevant(node: &Node) -> impl PartialEq + '_ {
    let status = node.status.as_ref();
    (
        &node.metadata.labels,
        &node.spec,
        status.and_then(|s| s.allocatable.as_ref()),
        status.and_then(|s| s.capacity.as_ref()),
        is_ready(node),
    )
}
