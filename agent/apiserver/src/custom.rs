//! Kinds that come from definitions in the store, and the end of those kinds.
//!
//! The store is asked each time: a kind is served from the moment its definition says so, on whichever node leads, and
//! what was read out of a definition is kept only for as long as that stays as it is.

use crate::delete;
use crate::engine::Engine;
use crate::object::{self, deleting, load, text};
use crate::path::Target;
use crate::status::{Result, Status};
use crate::write::{Options, Part};
use resources::custom::{self, CLEANUP, GROUP, PLURAL};
use resources::{Descriptor, find};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use store::{Expect, Record, Revision, Write};

/// Objects of a kind that ends are deleted this many at a time.
const CHUNK: usize = 500;

/// What was read out of definitions, by the revision of each.
#[derive(Default)]
pub(crate) struct Kinds {
    known: Mutex<HashMap<Arc<str>, (Revision, Served)>>,
    /// Some definition may be waiting for its objects to be gone.
    ending: AtomicBool,
}

/// The versions that one definition serves.
type Served = Arc<[Arc<Descriptor>]>;

impl Kinds {
    /// The kinds of the definition in a record.
    fn of(&self, record: &Record) -> Served {
        let known = |map: &HashMap<Arc<str>, (Revision, Served)>| {
            map.get(&record.key)
                .filter(|(at, _)| *at == record.modified)
                .map(|(_, served)| Arc::clone(served))
        };
        if let Some(served) = known(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return served;
        }
        // Read without the lock: a big schema takes a while.
        let definition: Value = serde_json::from_slice(&record.value).unwrap_or_default();
        let served: Served = custom::descriptors(&definition).into_iter().map(Arc::new).collect();
        let mut map = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(Arc::clone(&record.key), (record.modified, Arc::clone(&served)));
        served
    }

    /// Forgets definitions that are no more.
    fn retain(&self, records: &[Record]) {
        let mut map = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() > records.len() {
            map.retain(|key, _| records.iter().any(|record| record.key == *key));
        }
    }

    /// An object of this kind is no more: its definition may have waited for that.
    pub fn gone(&self, kind: &Descriptor) {
        if kind.custom().is_some_and(|version| version.terminating) {
            self.end();
        }
    }

    /// Has ending kinds looked at.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Whether ending kinds are to be looked at; once.
    pub fn take_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire) && self.ending.swap(false, Ordering::AcqRel)
    }
}

/// Whether objects of this kind are kinds.
pub(crate) fn is_definition(kind: &Descriptor) -> bool {
    kind.group == GROUP && kind.plural == PLURAL
}

impl Engine {
    /// The record of the definition of a kind, if it is a custom one.
    fn definition(&self, group: &str, plural: &str) -> Option<Record> {
        let definitions = find(GROUP, "v1", PLURAL)?;
        self.durable.get(&object::key(definitions, None, &format!("{plural}.{group}")))
    }

    /// The kind served at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Descriptor>> {
        let measured = || resources::measured().iter().find(|k| k.is(group, version, plural));
        if let Some(kind) = find(group, version, plural).or_else(measured) {
            return Some(Arc::clone(kind));
        }
        // No definition's group is without a dot: what else is asked for need not be looked up.
        let record = group.contains('.').then(|| self.definition(group, plural))??;
        self.kinds.of(&record).iter().find(|kind| kind.version == version).cloned()
    }

    /// Every kind that is served.
    pub fn catalog(&self) -> Vec<Arc<Descriptor>> {
        let mut all = [resources::all(), resources::measured()].concat();
        if let Some(definitions) = find(GROUP, "v1", PLURAL) {
            let records = self.durable.list(&object::prefix(definitions, None), None, 0).records;
            self.kinds.retain(&records);
            all.extend(records.iter().flat_map(|record| self.kinds.of(record).to_vec()));
        }
        all
    }

    /// The other kinds whose objects are those of this one: its other versions.
    pub fn equivalents(&self, kind: &Descriptor) -> Vec<Arc<Descriptor>> {
        let mut all = match kind.custom() {
            Some(_) => self
                .definition(&kind.group, &kind.plural)
                .map(|record| self.kinds.of(&record).to_vec())
                .unwrap_or_default(),
            None => {
                let all = resources::all().iter().filter(|own| own.plural == kind.plural);
                all.filter(|own| own.kept_in() == kind.kept_in()).cloned().collect()
            }
        };
        all.retain(|own| own.group != kind.group || own.version != kind.version);
        all
    }

    /// Refuses to make objects of a kind that ends. Gives the condition under which the kind is still as it was read.
    pub fn admit_kind(&self, kind: &Descriptor) -> Result<Option<Write>> {
        let Some(version) = kind.custom() else { return Ok(None) };
        if version.terminating {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::method_not_allowed_because(why));
        }
        let record = self.definition(&kind.group, &kind.plural).ok_or_else(Status::no_resource)?;
        let same = self.kinds.of(&record).iter().any(|served| std::ptr::eq(served.as_ref(), kind));
        if !same {
            return Err(Status::unavailable("the kind was changed meanwhile: try again"));
        }
        Ok(Some(Write { key: record.key.to_string(), expect: Expect::Stays(record.modified), value: None }))
    }

    /// What the server says of a definition.
    pub fn settle_definition(&self, kind: &Descriptor, new: &mut Value) {
        if is_definition(kind) {
            custom::settle(new, &self.all(GROUP, PLURAL, ""), &object::timestamp(0));
        }
    }

    /// Deletes the objects of kinds that end, and lets the definitions go that have none left.
    pub async fn sweep(&self) {
        let Some(definitions) = find(GROUP, "v1", PLURAL) else { return };
        let records = self.durable.list(&object::prefix(definitions, None), None, 0).records;
        for record in records {
            let Ok(definition) = load(definitions, &record) else { continue };
            if !deleting(&definition) || !object::finalizers(&definition).contains(&CLEANUP) {
                continue;
            }
            if let Err(status) = self.end(definitions, &definition).await {
                // Whoever leads next begins again; on this one the next request does.
                tracing::warn!(definition = object::name(&definition), "not ended: {}", status.message);
                self.kinds.end();
                return;
            }
        }
    }

    async fn end(&self, definitions: &Arc<Descriptor>, definition: &Value) -> Result<()> {
        let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        let left = match self.served(group, plural) {
            Some(kind) => self.delete_all(&kind).await?,
            None => false,
        };
        if left {
            return Ok(());
        }
        let target = Target { kind: Arc::clone(definitions), namespace: None, name: None, subresource: None };
        let make = |old: &Value| {
            let mut new = old.clone();
            if let Some(all) = new["metadata"]["finalizers"].as_array_mut() {
                all.retain(|finalizer| finalizer != CLEANUP);
            }
            Ok(new)
        };
        match self.change(&target, object::name(definition), Part::Whole, &Options::own(), make).await {
            Err(status) if status.reason == "NotFound" => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Any served version of a custom kind.
    fn served(&self, group: &str, plural: &str) -> Option<Arc<Descriptor>> {
        self.kinds.of(&self.definition(group, plural)?).first().cloned()
    }

    /// Deletes all objects of a kind; whether some are held by finalizers.
    async fn delete_all(&self, kind: &Arc<Descriptor>) -> Result<bool> {
        let (prefix, mut after, mut left) = (object::prefix(kind, None), None::<String>, false);
        loop {
            let page = self.durable.list(&prefix, after.as_deref(), CHUNK);
            for record in &page.records {
                let object = load(kind, record)?;
                if deleting(&object) {
                    left = true;
                    continue;
                }
                let namespace = Some(text(&object, "/metadata/namespace")).filter(|n| !n.is_empty());
                let target = Target {
                    kind: Arc::clone(kind),
                    namespace: namespace.map(str::to_owned),
                    name: None,
                    subresource: None,
                };
                let options = delete::Options::default();
                match self.delete(&target, object::name(&object), &options).await {
                    Ok(_) => left |= self.durable.get(&record.key).is_some(),
                    Err(status) if status.reason == "NotFound" => {}
                    Err(status) => return Err(status),
                }
            }
            match page.records.last() {
                Some(last) if page.more => after = Some(last.key.to_string()),
                _ => return Ok(left),
            }
        }
    }
}
