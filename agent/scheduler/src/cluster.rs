//! What the scheduler knows: pods, nodes, services, who waits, and which bindings are under way.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::runtime::watcher::Event;

use crate::{
    preempt::priority,
    snapshot::{Snapshot, is_ready},
};

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
    Budget(Event<PodDisruptionBudget>),
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
    budgets: BTreeMap<Key, Arc<PodDisruptionBudget>>,
    assumed: BTreeMap<Key, Assumed>,
    /// To be decided now.
    active: BTreeSet<Key>,
    /// Fit nowhere, or their binding failed: until something changes.
    parked: BTreeSet<Key>,
    /// Where room is being made for whom.
    nominated: BTreeMap<Key, String>,
    /// Pods, by uid, that were told to make room; the API has not said so yet.
    leaving: BTreeSet<String>,
    listing: [Option<HashSet<Key>>; 4],
    listed: [bool; 4],
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
            News::Budget(event) => self.budget_news(event),
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
        let another = self.pods.get(&key).is_some_and(|old| old.metadata.uid != pod.metadata.uid);
        if bound || another || is_finished(&pod) {
            self.nominated.remove(&key);
        } else if let Some(node) = nominated_node(&pod) {
            self.nominated.insert(key.clone(), node.to_owned());
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
        if let Some(uid) = self.pods.remove(key).and_then(|pod| pod.metadata.uid.clone()) {
            self.leaving.remove(&uid);
        }
        self.nominated.remove(key);
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

    fn budget_news(&mut self, event: Event<PodDisruptionBudget>) {
        match event {
            Event::Init => self.listing[3] = Some(HashSet::new()),
            Event::InitApply(budget) => {
                let key = key(&budget.metadata);
                self.listing[3].get_or_insert_default().insert(key.clone());
                self.budgets.insert(key, Arc::new(budget));
            }
            Event::InitDone => {
                let listed = self.listing[3].take().unwrap_or_default();
                self.budgets.retain(|key, _| listed.contains(key));
                self.listed[3] = true;
            }
            Event::Apply(budget) => {
                self.budgets.insert(key(&budget.metadata), Arc::new(budget));
            }
            Event::Delete(budget) => {
                self.budgets.remove(&key(&budget.metadata));
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

    /// Keeps room on a node for a pod while others make it.
    pub(crate) fn nominate(&mut self, key: &Key, node: Option<String>) {
        match node {
            Some(node) => self.nominated.insert(key.clone(), node),
            None => self.nominated.remove(key),
        };
    }

    /// Where room is being made for a pod.
    pub(crate) fn nominated(&self, key: &Key) -> Option<&str> {
        self.nominated.get(key).map(String::as_str)
    }

    /// Pods that are as important as this one at least, where room is being made for them.
    pub(crate) fn expected(&self, key: &Key, pod: &Pod) -> Vec<(String, Arc<Pod>)> {
        let others =
            self.nominated.iter().filter(|(other, _)| *other != key && !self.assumed.contains_key(other));
        others
            .filter_map(|(other, node)| Some((node.clone(), self.pods.get(other)?.clone())))
            .filter(|(_, other)| priority(other) >= priority(pod) && node_of(other).is_none())
            .collect()
    }

    /// Whether less important pods are about to leave the node that a pod is nominated for.
    pub(crate) fn is_made_room_for(&self, key: &Key, pod: &Pod) -> bool {
        let Some(node) = self.nominated(key) else { return false };
        self.pods.values().any(|other| {
            node_of(other) == Some(node)
                && priority(other) < priority(pod)
                && !is_finished(other)
                && (other.metadata.deletion_timestamp.is_some() || self.is_leaving(other))
        })
    }

    pub(crate) fn is_leaving(&self, pod: &Pod) -> bool {
        pod.metadata.uid.as_ref().is_some_and(|uid| self.leaving.contains(uid))
    }

    /// A pod is told to make room, or that failed.
    pub(crate) fn leave(&mut self, pod: &Pod, leaves: bool) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        if leaves {
            self.leaving.insert(uid);
        } else {
            self.leaving.remove(&uid);
        }
    }

    pub(crate) fn budgets(&self) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.values().cloned().collect()
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

fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
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
