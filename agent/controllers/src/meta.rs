//! The metadata of every object of the cluster: who owns whom, what lives in which namespace, and which of two
//! versions of an object is the newer one.
//!
//! Watches of different kinds, and the responses to own writes, arrive in no common order. Revisions of one kind are
//! comparable numbers, so an older version never replaces a newer one; an object known to be gone does not come back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::kind::KindId;

/// How many deleted uids are remembered, so that a late response does not bring one of them back.
const GONE_BOUND: usize = 8192;

/// What the garbage collector and the namespace controller need of an object.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: KindId,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) version: u64,
    pub(crate) resource_version: String,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) finalizers: Vec<String>,
    pub(crate) deleting: bool,
}

/// Place of an object.
pub(crate) type Place = (KindId, String, String);

/// See the module.
#[derive(Default)]
pub(crate) struct MetaIndex {
    by_place: BTreeMap<Place, Entry>,
    by_uid: HashMap<String, Place>,
    dependents: HashMap<String, BTreeSet<String>>,
    by_namespace: HashMap<String, HashSet<String>>,
    doomed: HashSet<String>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl MetaIndex {
    /// Takes a version of an object in; `false` when it is not news.
    pub(crate) fn apply(&mut self, kind: KindId, meta: &ObjectMeta) -> bool {
        let Some(entry) = entry(kind, meta) else { return false };
        if self.gone.contains(&entry.uid) || (self.doomed.contains(&entry.uid) && !entry.deleting) {
            return false;
        }
        let place = (kind, entry.namespace.clone(), entry.name.clone());
        if self.by_place.get(&place).is_some_and(|old| old.version >= entry.version) {
            return false;
        }
        self.remove(&place);
        for owner in &entry.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(entry.uid.clone());
        }
        self.by_namespace.entry(entry.namespace.clone()).or_default().insert(entry.uid.clone());
        self.by_uid.insert(entry.uid.clone(), place.clone());
        self.by_place.insert(place, entry);
        true
    }

    /// Takes the end of an object in; `false` when it was not known.
    pub(crate) fn delete(&mut self, kind: KindId, meta: &ObjectMeta) -> bool {
        let Some(uid) = &meta.uid else { return false };
        self.bury(uid);
        let Some(place) = self.by_uid.get(uid).cloned() else { return false };
        place.0 == kind && self.remove(&place).is_some()
    }

    /// What a list at `version` no longer has. Objects newer than the list stay.
    pub(crate) fn missing(
        &self,
        kind: KindId,
        version: u64,
        listed: &HashSet<(String, String)>,
    ) -> Vec<Place> {
        let first = (kind, String::new(), String::new());
        let of_kind = self.by_place.range(first..).take_while(|(place, _)| place.0 == kind);
        of_kind
            .filter(|(place, entry)| {
                entry.version <= version && !listed.contains(&(place.1.clone(), place.2.clone()))
            })
            .map(|(place, _)| place.clone())
            .collect()
    }

    /// Forgets an object that a list showed to be gone.
    pub(crate) fn drop_place(&mut self, place: &Place) -> Option<Entry> {
        let entry = self.remove(place)?;
        self.bury(&entry.uid);
        Some(entry)
    }

    /// A delete of this object was acknowledged: from now on it counts as being deleted.
    pub(crate) fn doom(&mut self, uid: &str) -> Option<Place> {
        let place = self.by_uid.get(uid)?.clone();
        let entry = self.by_place.get_mut(&place)?;
        entry.deleting = true;
        self.doomed.insert(uid.to_owned());
        Some(place)
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Entry> {
        self.by_uid.get(uid).and_then(|place| self.by_place.get(place))
    }

    /// Whether there is an object of this name.
    pub(crate) fn is_there(&self, kind: KindId, namespace: &str, name: &str) -> bool {
        self.by_place.contains_key(&(kind, namespace.to_owned(), name.to_owned()))
    }

    /// Objects that name this uid as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Entry> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.get(uid))
    }

    /// Everything in a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Entry> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|uid| self.get(uid))
    }

    fn bury(&mut self, uid: &str) {
        self.doomed.remove(uid);
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        while self.gone_order.len() > GONE_BOUND {
            if let Some(oldest) = self.gone_order.pop_front() {
                self.gone.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, place: &Place) -> Option<Entry> {
        let entry = self.by_place.remove(place)?;
        self.by_uid.remove(&entry.uid);
        for owner in &entry.owners {
            remove_from(&mut self.dependents, &owner.uid, |set| {
                set.remove(&entry.uid);
                set.is_empty()
            });
        }
        remove_from(&mut self.by_namespace, &entry.namespace, |set| {
            set.remove(&entry.uid);
            set.is_empty()
        });
        Some(entry)
    }
}

/// Takes something out of a set in a map, and the set with it when that left it empty.
fn remove_from<T>(map: &mut HashMap<String, T>, key: &str, take: impl FnOnce(&mut T) -> bool) {
    if map.get_mut(key).is_some_and(take) {
        map.remove(key);
    }
}

fn entry(kind: KindId, meta: &ObjectMeta) -> Option<Entry> {
    let resource_version = meta.resource_version.clone()?;
    Some(Entry {
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        version: version(&resource_version),
        resource_version,
        owners: meta.owner_references.clone().unwrap_or_default(),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
    })
}

/// A revision as a number; what is not a number is older than everything.
pub(crate) fn version(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}
