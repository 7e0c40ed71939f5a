//! Merging what somebody wants into an object, and taking fields out.

use super::set::{FieldSet, field};
use super::types::{Schema, Type};
use super::walk::{item_schema, item_step, items, value_step};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The object with all that is wanted: fields that are not wanted stay as they are.
pub(super) fn merge(schema: Schema<'_>, live: &Value, wanted: &Value) -> Value {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) if !matches!(schema.get(), Type::Atomic) => {
            let mut merged = live.clone();
            for (name, value) in wanted {
                let value = match (live.get(name), schema.field(name)) {
                    (Some(old), Some(inner)) => merge(inner, old, value),
                    _ => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(list)) => match (items(schema, live), items(schema, list)) {
            (Some(live), Some(wanted)) => merge_items(item_schema(schema), &live, &wanted).into(),
            _ => wanted.clone(),
        },
        _ => wanted.clone(),
    }
}

/// Those that are wanted in the order in which they are; each other one stays behind the one that it followed.
fn merge_items(schema: Schema<'_>, live: &[(String, &Value)], wanted: &[(String, &Value)]) -> Vec<Value> {
    let places: HashMap<&str, usize> =
        live.iter().enumerate().rev().map(|(i, (step, _))| (step.as_str(), i)).collect();
    let wanted_steps: HashMap<&str, ()> = wanted.iter().map(|(step, _)| (step.as_str(), ())).collect();
    let mut merged = Vec::with_capacity(live.len() + wanted.len());
    let mut done: HashMap<&str, ()> = HashMap::new();
    let mut rest = live.iter().peekable();
    for (step, item) in wanted {
        while let Some((other, value)) = rest.next_if(|(other, _)| {
            !wanted_steps.contains_key(other.as_str()) || done.contains_key(other.as_str())
        }) {
            if !wanted_steps.contains_key(other.as_str()) {
                merged.push((*value).clone());
            }
        }
        if done.insert(step, ()).is_none() {
            merged.push(match places.get(step.as_str()) {
                Some(at) => merge(schema, live[*at].1, item),
                None => (*item).clone(),
            });
        }
    }
    merged.extend(
        rest.filter(|(other, _)| !wanted_steps.contains_key(other.as_str()))
            .map(|(_, value)| (*value).clone()),
    );
    merged
}

/// Takes out what is in the set, with all that is below it; what has nothing left then goes too.
pub(super) fn remove(schema: Schema<'_>, value: &mut Value, set: &FieldSet) {
    match value {
        Value::Object(fields) if !matches!(schema.get(), Type::Atomic) => remove_fields(schema, fields, set),
        Value::Array(list) => {
            let inner = item_schema(schema);
            list.retain_mut(|item| {
                let step = match schema.get() {
                    Type::Set => Some(value_step(item)),
                    Type::ListMap { keys, .. } => item_step(keys, item),
                    _ => None,
                };
                match step.and_then(|step| set.step(&step)) {
                    Some((true, _)) => false,
                    Some((false, below)) => {
                        remove(inner, item, below);
                        true
                    }
                    None => true,
                }
            });
        }
        _ => {}
    }
}

fn remove_fields(schema: Schema<'_>, fields: &mut Map<String, Value>, set: &FieldSet) {
    fields.retain(|name, value| {
        let Some(inner) = schema.field(name) else { return true };
        match set.step(&field(name)) {
            Some((true, _)) => false,
            Some((false, below)) => {
                remove(inner, value, below);
                !is_empty(value)
            }
            None => true,
        }
    });
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}
