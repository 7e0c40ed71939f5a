//! Finding the fields of an object, and what differs between two.

use super::set::{FieldSet, field};
use super::types::{Key, Schema, Type};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// What differs between two states of an object.
#[derive(Debug, Default)]
pub struct Difference {
    /// Only in the new one.
    pub added: FieldSet,
    /// Only in the old one.
    pub removed: FieldSet,
    /// In both, and not the same.
    pub modified: FieldSet,
}

/// What is wrong with an object that somebody applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `.spec.containers[name="a"].imagee`
    pub path: Vec<String>,
    /// `field not declared in schema`
    pub message: String,
}

/// The step to an item of a list whose items have keys; `None` if it has none of them.
pub(super) fn item_step(keys: &[Key], item: &Value) -> Option<String> {
    let mut found = Map::new();
    for key in keys {
        let said = item.get(key.name.as_ref()).filter(|value| !value.is_null());
        if let Some(value) = said.or(key.default.as_ref()) {
            found.insert(key.name.clone().into_owned(), value.clone());
        }
    }
    (!found.is_empty()).then(|| format!("k:{}", Value::Object(found)))
}

/// The step to a value of a set.
pub(super) fn value_step(value: &Value) -> String {
    format!("v:{value}")
}

/// The items of a list by their steps, if it is one whose items are told apart; the first of each step.
pub(super) fn items<'v>(schema: Schema<'_>, list: &'v [Value]) -> Option<Vec<(String, &'v Value)>> {
    match schema.get() {
        Type::Set => Some(list.iter().map(|item| (value_step(item), item)).collect()),
        Type::ListMap { keys, .. } => {
            list.iter().map(|item| item_step(keys, item).map(|step| (step, item))).collect()
        }
        _ => None,
    }
}

/// The type of the items of a list.
pub(super) fn item_schema(schema: Schema<'_>) -> Schema<'_> {
    match schema.get() {
        Type::ListMap { item, .. } => schema.of(*item),
        _ => schema,
    }
}

/// Whether there is something below a value that can be managed by itself.
fn has_parts(schema: Schema<'_>, value: &Value) -> bool {
    match value {
        Value::Object(fields) => {
            !fields.is_empty() && matches!(schema.get(), Type::Untyped | Type::Struct { .. } | Type::Map(_))
        }
        Value::Array(list) => !list.is_empty() && items(schema, list).is_some(),
        _ => false,
    }
}

/// All fields that an object sets.
pub(super) fn fields(schema: Schema<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match value {
        Value::Object(map) if has_parts(schema, value) => {
            for (name, value) in map {
                let Some(inner) = schema.field(name) else { continue };
                let below = if has_parts(inner, value) { fields(inner, value) } else { FieldSet::default() };
                set.put(field(name), below.is_empty() || !known(schema, name), below);
            }
        }
        Value::Array(list) => {
            let of_items = item_schema(schema);
            for (step, item) in items(schema, list).into_iter().flatten() {
                set.put(step, true, fields(of_items, item));
            }
        }
        _ => {}
    }
    set
}

/// Whether what has parts is there by its parts alone: the fields of a struct, and of what nothing is told.
fn known(schema: Schema<'_>, name: &str) -> bool {
    schema.names(name)
}

/// What differs.
pub(super) fn compare(schema: Schema<'_>, old: &Value, new: &Value) -> Difference {
    let mut compare = Compare { path: Vec::new(), found: Difference::default() };
    compare.value(schema, Some(old), Some(new));
    compare.found
}

struct Compare {
    path: Vec<String>,
    found: Difference,
}

impl Compare {
    fn value(&mut self, schema: Schema<'_>, old: Option<&Value>, new: Option<&Value>) {
        let parts = |value: Option<&Value>| value.is_some_and(|value| has_parts(schema, value));
        if parts(old) || parts(new) {
            match (old, new) {
                (None | Some(Value::Object(_)), None | Some(Value::Object(_))) => {
                    self.objects(schema, old.and_then(Value::as_object), new.and_then(Value::as_object));
                }
                (None | Some(Value::Array(_)), None | Some(Value::Array(_))) => {
                    self.lists(schema, old.and_then(Value::as_array), new.and_then(Value::as_array));
                }
                (Some(old), Some(new)) => {
                    self.value(schema, Some(old), None);
                    self.value(schema, None, Some(new));
                    self.found.modified.insert(&self.path);
                }
                _ => {}
            }
        }
        match (old, new) {
            (None, Some(_)) => self.found.added.insert(&self.path),
            (Some(_), None) => self.found.removed.insert(&self.path),
            (Some(old), Some(new)) if !parts(Some(old)) && !parts(Some(new)) && old != new => {
                self.found.modified.insert(&self.path);
            }
            _ => {}
        }
    }

    fn at(&mut self, step: String, schema: Schema<'_>, old: Option<&Value>, new: Option<&Value>) {
        self.path.push(step);
        self.value(schema, old, new);
        self.path.pop();
    }

    fn objects(
        &mut self,
        schema: Schema<'_>,
        old: Option<&Map<String, Value>>,
        new: Option<&Map<String, Value>>,
    ) {
        for (name, value) in old.into_iter().flatten() {
            let next = new.and_then(|new| new.get(name));
            if let Some(inner) = schema.field(name).filter(|_| next != Some(value)) {
                self.at(field(name), inner, Some(value), next);
            }
        }
        for (name, value) in new.into_iter().flatten() {
            let there = old.is_some_and(|old| old.contains_key(name));
            if let Some(inner) = schema.field(name).filter(|_| !there) {
                self.at(field(name), inner, None, Some(value));
            }
        }
    }

    fn lists(&mut self, schema: Schema<'_>, old: Option<&Vec<Value>>, new: Option<&Vec<Value>>) {
        // A list with items that cannot be told apart is looked at as a whole.
        let (Some(before), Some(after)) =
            (items(schema, old.map_or(&[], Vec::as_slice)), items(schema, new.map_or(&[], Vec::as_slice)))
        else {
            if old.is_some() && new.is_some() && old != new {
                self.found.modified.insert(&self.path);
            }
            return;
        };
        let inner = item_schema(schema);
        let by_step = |list: &[(String, &Value)]| -> HashMap<String, usize> {
            list.iter().enumerate().rev().map(|(i, (step, _))| (step.clone(), i)).collect()
        };
        let (old_places, new_places) = (by_step(&before), by_step(&after));
        for (i, (step, item)) in before.iter().enumerate() {
            if old_places.get(step) == Some(&i) {
                let next = new_places.get(step).map(|at| after[*at].1);
                self.at(step.clone(), inner, Some(item), next);
            }
        }
        for (i, (step, item)) in after.iter().enumerate() {
            if new_places.get(step) == Some(&i) && !old_places.contains_key(step) {
                self.at(step.clone(), inner, None, Some(item));
            }
        }
    }
}

/// What is wrong with an object that somebody applies: fields that there are not, and items that cannot be told apart.
pub(super) fn faults(schema: Schema<'_>, value: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    check(schema, value, &mut Vec::new(), &mut faults);
    faults
}

/// No more faults than this are told.
const MAX_FAULTS: usize = 32;

fn check(schema: Schema<'_>, value: &Value, path: &mut Vec<String>, faults: &mut Vec<Fault>) {
    if faults.len() >= MAX_FAULTS {
        return;
    }
    let mut fault = |path: &[String], message: String| faults.push(Fault { path: path.to_vec(), message });
    match (schema.get(), value) {
        (Type::Struct { .. } | Type::Map(_), Value::Object(fields)) => {
            for (name, value) in fields {
                path.push(field(name));
                match schema.field(name) {
                    Some(inner) => check(inner, value, path, faults),
                    None => faults
                        .push(Fault { path: path.clone(), message: "field not declared in schema".into() }),
                }
                path.pop();
            }
        }
        (Type::Struct { .. } | Type::Map(_), other) if !other.is_null() => {
            fault(path, format!("expected map, got {other}"));
        }
        (Type::Set | Type::ListMap { .. }, Value::Array(list)) => check_list(schema, list, path, faults),
        (Type::Set | Type::ListMap { .. }, other) if !other.is_null() => {
            fault(path, format!("expected list, got {other}"));
        }
        _ => {}
    }
}

fn check_list(schema: Schema<'_>, list: &[Value], path: &mut Vec<String>, faults: &mut Vec<Fault>) {
    let inner = item_schema(schema);
    let mut seen = std::collections::HashSet::new();
    for (i, item) in list.iter().enumerate() {
        let step = match schema.get() {
            Type::ListMap { keys, .. } => item_step(keys, item).ok_or_else(|| {
                let names: Vec<String> = keys.iter().map(|key| format!("{:?}", key.name)).collect();
                format!(
                    "element {i}: associative list with keys has an element that omits all key fields [{}] \
                     (and doesn't have default values for any key fields)",
                    names.join(" ")
                )
            }),
            _ => Ok(value_step(item)),
        };
        match step {
            Ok(step) => {
                path.push(step.clone());
                if !seen.insert(step.clone()) {
                    let message = format!("duplicate entries for key {}", super::set::show(&[step]));
                    faults.push(Fault { path: path[..path.len() - 1].to_vec(), message });
                } else if matches!(schema.get(), Type::ListMap { .. }) {
                    check(inner, item, path, faults);
                }
                path.pop();
            }
            Err(message) => faults.push(Fault { path: path.clone(), message }),
        }
    }
}
