//! A small API server in memory for tests: it keeps objects as JSON with versions, generations and deletion as the
//! API defines them, and a log of what happened for watches to be fed from.

mod stage;

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::core::DynamicObject;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Config,
    kind::{KindId, Kinds, Object, Typed},
    meta::Place,
    reconcile::{Context, Failure, Key, reconcile},
    world::{Change, World},
    write::{Outcome, Propagation, Target, Write},
};

pub(crate) use stage::Stage;

/// HTTP code and reason.
pub(crate) type Refusal = (u16, &'static str);

/// See the module.
pub(crate) struct Sim {
    pub(crate) kinds: Kinds,
    pub(crate) objects: BTreeMap<Place, Value>,
    pub(crate) revision: u64,
    /// Kind, verb (`ADDED` ...), object.
    pub(crate) log: Vec<(KindId, &'static str, Value)>,
}

impl Sim {
    pub(crate) fn new() -> Self {
        Self { kinds: Kinds::typed(), objects: BTreeMap::new(), revision: 100, log: Vec::new() }
    }

    /// Puts an object in, as a user would.
    pub(crate) fn add<K: Typed>(&mut self, object: Value) -> K {
        let value = self.create(K::KIND, object).unwrap();
        serde_json::from_value(value).unwrap()
    }

    /// Changes an object in place, as a user or a kubelet would.
    pub(crate) fn edit<K: Typed>(&mut self, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let place = (K::KIND, namespace.to_owned(), name.to_owned());
        let mut value = self.objects[&place].clone();
        edit(&mut value);
        self.store(place, value);
    }

    pub(crate) fn get<K: Typed>(&self, namespace: &str, name: &str) -> Option<K> {
        let value = self.objects.get(&(K::KIND, namespace.to_owned(), name.to_owned()))?;
        serde_json::from_value(value.clone()).unwrap()
    }

    pub(crate) fn all<K: Typed>(&self) -> Vec<K> {
        let of_kind = self.objects.iter().filter(|(place, _)| place.0 == K::KIND);
        of_kind.map(|(_, value)| serde_json::from_value(value.clone()).unwrap()).collect()
    }

    pub(crate) fn create(&mut self, kind: KindId, mut value: Value) -> Result<Value, Refusal> {
        let place = place(kind, &value);
        if self.objects.contains_key(&place) {
            return Err((409, "AlreadyExists"));
        }
        let info = self.kinds.get(kind).unwrap();
        value["apiVersion"] = json!(info.resource.api_version);
        value["kind"] = json!(info.resource.kind);
        let meta = value["metadata"].as_object_mut().unwrap();
        meta.insert("uid".into(), json!(format!("uid-{}", self.revision + 1)));
        meta.insert("creationTimestamp".into(), json!("2026-01-01T00:00:00Z"));
        meta.insert("generation".into(), json!(1));
        Ok(self.store(place, value))
    }

    pub(crate) fn replace(
        &mut self,
        kind: KindId,
        value: Value,
        part: Option<&str>,
    ) -> Result<Value, Refusal> {
        let place = place(kind, &value);
        let old = self.objects.get(&place).ok_or((404, "NotFound"))?.clone();
        if value["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] {
            return Err((409, "Conflict"));
        }
        let new = match part {
            Some("status") => with(old, "status", value["status"].clone()),
            Some(_) => with(old, "spec", value["spec"].clone()),
            None => with(value, "status", old["status"].clone()),
        };
        Ok(self.store(place, new))
    }

    pub(crate) fn patch(
        &mut self,
        kind: KindId,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, Refusal> {
        let place = (kind, namespace.to_owned(), name.to_owned());
        let old = self.objects.get(&place).ok_or((404, "NotFound"))?.clone();
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return Err((409, "Conflict"));
        }
        let mut new = old;
        merge(&mut new, patch);
        Ok(self.store(place, new))
    }

    pub(crate) fn delete(
        &mut self,
        target: &Target,
        grace: Option<u32>,
        propagation: Propagation,
    ) -> Result<(), Refusal> {
        let place = (target.kind, target.namespace.clone(), target.name.clone());
        let mut value = self.objects.get(&place).ok_or((404, "NotFound"))?.clone();
        if !target.uid.is_empty() && value["metadata"]["uid"] != json!(target.uid) {
            return Err((409, "Conflict"));
        }
        let finalizer = match propagation {
            Propagation::Background => None,
            Propagation::Foreground => Some(crate::gc::FOREGROUND),
            Propagation::Orphan => Some(crate::gc::ORPHAN),
        };
        if let Some(finalizer) = finalizer {
            let list = value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            value["metadata"]["finalizers"] = json!([list, vec![json!(finalizer)]].concat());
        }
        let graceful = is_bound(&value) && grace != Some(0);
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
        if graceful || is_held(&value) {
            self.store(place, value);
        } else {
            self.remove(&place);
        }
        Ok(())
    }

    /// Removes an object for good, as a kubelet does in the end.
    pub(crate) fn remove(&mut self, place: &Place) {
        if let Some(mut value) = self.objects.remove(place) {
            self.revision += 1;
            value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            self.log.push((place.0, "DELETED", value));
        }
    }

    fn store(&mut self, place: Place, mut value: Value) -> Value {
        let old = self.objects.get(&place).cloned();
        self.revision += 1;
        value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if old.as_ref().is_some_and(|old| old["spec"] != value["spec"]) {
            value["metadata"]["generation"] =
                json!(value["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        let verb = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(place.clone(), value.clone());
        let deleting = !value["metadata"]["deletionTimestamp"].is_null();
        if deleting && !is_held(&value) && !is_bound(&value) {
            self.remove(&place);
        } else {
            self.log.push((place.0, verb, value.clone()));
        }
        value
    }

    /// Does writes as the executor does them, without the network.
    pub(crate) fn execute(&mut self, writes: Vec<Write>) -> (Vec<Change>, Result<(), Refusal>) {
        let mut changes = Vec::new();
        for write in writes {
            match self.step(write) {
                Ok(change) => changes.extend(change),
                Err(refusal) => return (changes, Err(refusal)),
            }
        }
        (changes, Ok(()))
    }

    fn step(&mut self, write: Write) -> Result<Option<Change>, Refusal> {
        let json = |object: &Object| object.to_json().unwrap();
        let (kind, value) = match write {
            Write::Create { object, .. } => (object.kind(), self.create(object.kind(), json(&object))?),
            Write::Make { kind, object, .. } => (kind, self.create(kind, object)?),
            Write::Update { object, .. } => {
                (object.kind(), self.replace(object.kind(), json(&object), None)?)
            }
            Write::UpdateStatus { object } => {
                (object.kind(), self.replace(object.kind(), json(&object), Some("status"))?)
            }
            Write::Finalize { object } => {
                (object.kind(), self.replace(object.kind(), json(&object), Some("spec"))?)
            }
            Write::Patch { target, patch, .. } => {
                (target.kind, self.patch(target.kind, &target.namespace, &target.name, &patch)?)
            }
            Write::Delete { target, grace, propagation, .. } => {
                let _ = self.delete(&target, grace, propagation);
                return Ok(Some(Change::Doomed { uid: target.uid }));
            }
            Write::RequireAbsent { target } => {
                let found = self.objects.get(&(target.kind, target.namespace, target.name));
                let same =
                    found.is_some_and(|v| target.uid.is_empty() || v["metadata"]["uid"] == json!(target.uid));
                return if same { Err((409, "Present")) } else { Ok(None) };
            }
            Write::RequireEmpty { namespace } => {
                let any = self.objects.keys().any(|(_, ns, _)| *ns == namespace);
                return if any { Err((409, "NotEmpty")) } else { Ok(None) };
            }
            Write::Tell(_) => return Ok(None),
        };
        Ok(Some(Change::Applied(parse(kind, value))))
    }

    /// Everything of a kind, as a list brings it.
    pub(crate) fn listed(&self, kind: KindId) -> Change {
        let of_kind = self.objects.iter().filter(|(place, _)| place.0 == kind);
        let objects = of_kind.map(|(_, value)| parse(kind, value.clone())).collect();
        Change::Listed { kind, version: self.revision, objects }
    }

    /// A world that has seen everything.
    pub(crate) fn world(&self, now: Instant) -> World {
        let mut world = World::new(self.kinds.clone());
        for id in 0..self.kinds.len() {
            world.apply(self.listed(KindId(id)), now);
        }
        assert!(world.synced());
        world
    }
}

/// Reconciles a key over a world.
pub(crate) fn run(world: &World, key: &Key, config: &Config, now: Instant, seed: u64) -> Outcome {
    run_after(world, key, config, now, seed, None)
}

/// The same, after a failure.
pub(crate) fn run_after(
    world: &World,
    key: &Key,
    config: &Config,
    now: Instant,
    seed: u64,
    failure: Option<&Failure>,
) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    reconcile(key, &mut Context { world, config, wall: Timestamp::UNIX_EPOCH, now, rng: &mut rng, failure })
}

/// A logged event as the watch would bring it.
pub(crate) fn news(kind: KindId, verb: &str, value: &Value) -> Change {
    let object = parse(kind, value.clone());
    if verb == "DELETED" { Change::Deleted(object) } else { Change::Applied(object) }
}

/// The defaults of a test.
pub(crate) fn config() -> Config {
    Config::new("10.1.0.0/16".parse().unwrap(), 6443)
}

pub(crate) fn parse(kind: KindId, value: Value) -> Object {
    let object: DynamicObject = serde_json::from_value(value).unwrap();
    Object::parse(kind, object).unwrap()
}

/// Bound to a node: its kubelet has the last word.
fn is_bound(value: &Value) -> bool {
    !value["spec"]["nodeName"].is_null()
}

/// Somebody must see to something before it may go.
fn is_held(value: &Value) -> bool {
    let any = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    any(&value["metadata"]["finalizers"]) || any(&value["spec"]["finalizers"])
}

fn place(kind: KindId, value: &Value) -> Place {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (kind, text("/metadata/namespace"), text("/metadata/name"))
}

fn with(mut value: Value, part: &str, content: Value) -> Value {
    value[part] = content;
    value
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
