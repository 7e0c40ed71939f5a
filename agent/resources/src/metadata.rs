//! `metadata`, which every kind has.

use crate::cause::{Causes, invalid, required, too_long};
use crate::json::{fields, text};
use crate::names;
use serde_json::Value;

/// All annotations of an object together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// What a kind's names may look like.
pub type NameRule = fn(&str) -> Vec<String>;

/// Checks `metadata`, against the old object too on update.
pub fn validate(new: &Value, old: Option<&Value>, rule: NameRule) -> Causes {
    let mut causes = Causes::new();
    let name = text(new, "/metadata/name");
    if name.is_empty() {
        causes.push(required("metadata.name", "name or generateName is required"));
    } else {
        causes.extend(rule(name).iter().map(|fault| invalid("metadata.name", name, fault)));
    }
    labels(new, "/metadata/labels", "metadata.labels", &mut causes);
    let mut size = 0;
    for (key, value) in fields(new, "/metadata/annotations").into_iter().flatten() {
        size += key.len() + value.as_str().map(str::len).unwrap_or_default();
        let faults = names::qualified_name(&key.to_lowercase());
        causes.extend(faults.iter().map(|fault| invalid("metadata.annotations", key.as_str(), fault)));
        not_text(value, &format!("metadata.annotations.{key}"), &mut causes);
    }
    if size > MAX_ANNOTATIONS {
        causes.push(too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
    if let Some(old) = old {
        for field in ["name", "namespace", "uid", "creationTimestamp"] {
            let pointer = format!("/metadata/{field}");
            if text(new, &pointer) != text(old, &pointer) {
                causes.push(invalid(format!("metadata.{field}"), text(new, &pointer), "field is immutable"));
            }
        }
    }
    causes
}

/// Checks a map of labels.
pub fn labels(object: &Value, pointer: &str, field: &str, causes: &mut Causes) {
    for (key, value) in fields(object, pointer).into_iter().flatten() {
        causes.extend(names::qualified_name(key).iter().map(|fault| invalid(field, key.as_str(), fault)));
        match value.as_str() {
            Some(label) => {
                causes.extend(names::label_value(label).iter().map(|fault| invalid(field, label, fault)))
            }
            None => not_text(value, &format!("{field}.{key}"), causes),
        }
    }
}

fn not_text(value: &Value, field: &str, causes: &mut Causes) {
    if !value.is_string() {
        causes.push(invalid(field, value.clone(), "must be a string"));
    }
}

/// Says that a field may not change, unless it did not.
pub fn immutable(new: &Value, old: Option<&Value>, pointer: &str, field: &str, causes: &mut Causes) {
    if let Some(old) = old
        && new.pointer(pointer) != old.pointer(pointer)
    {
        let value = new.pointer(pointer).cloned().unwrap_or_default();
        causes.push(invalid(field, value, "field is immutable"));
    }
}
