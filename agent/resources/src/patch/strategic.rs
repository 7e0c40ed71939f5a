//! Strategic merge: RFC 7396, and lists whose items have keys are merged item by item.

use super::PatchError;
use crate::Descriptor;
use crate::json::Fields;
use crate::marks::{self, Strategy};
use crate::protobuf::schema::{Kind, Shape, table};
use serde_json::Value;

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";
/// Pairs of items that are compared when lists are merged.
const MAX_COMPARED: usize = 1_000_000;

/// Applies the patch. Sizes and depths have been checked.
pub fn merge(kind: &Descriptor, doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Some(patch) = patch.as_object() else {
        return Err(PatchError::Malformed("a strategic merge patch is an object".to_owned()));
    };
    let Some(fields) = doc.as_object_mut() else {
        return Err(PatchError::Malformed("only objects can be patched".to_owned()));
    };
    let root = table().root(&kind.api_version(), &kind.kind);
    object(fields, patch, root)
}

/// What a `$patch` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &Fields) -> Result<Directive, PatchError> {
    match patch.get(DIRECTIVE) {
        None => Ok(Directive::Merge),
        Some(Value::String(word)) if word == "merge" => Ok(Directive::Merge),
        Some(Value::String(word)) if word == "replace" => Ok(Directive::Replace),
        Some(Value::String(word)) if word == "delete" => Ok(Directive::Delete),
        Some(other) => Err(PatchError::Malformed(format!("unknown patch type {other} found in map"))),
    }
}

/// Whether a field of a patch tells how to patch, rather than what is wanted.
fn is_directive(name: &str) -> bool {
    name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) || name.starts_with(DELETE)
}

/// How the list in a field of this message is patched.
fn strategy(at: Option<usize>, field: &str) -> Strategy {
    at.map_or(Strategy::Atomic, |message| marks::of(table().name(message), field).strategy)
}

/// The message in a field of this one.
fn inner(at: Option<usize>, field: &str) -> Option<usize> {
    let field = table().find(at?, field)?;
    match (field.kind, field.shape) {
        (_, Shape::Map) => None,
        (Kind::Message(message), _) => Some(message),
        _ => None,
    }
}

fn object(doc: &mut Fields, patch: &Fields, at: Option<usize>) -> Result<(), PatchError> {
    match directive(patch)? {
        Directive::Merge => {}
        Directive::Replace => {
            *doc = clean(patch);
            return Ok(());
        }
        Directive::Delete => {
            doc.clear();
            return Ok(());
        }
    }
    retain_keys(doc, patch)?;
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(DELETE) {
            delete_values(doc, list, value)?;
        }
    }
    for (name, value) in patch.iter().filter(|(name, _)| !is_directive(name)) {
        field(doc, name, value, at)?;
    }
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix(ORDER) {
            let patched = patch.get(list).and_then(Value::as_array);
            let strategy = strategy(at, list);
            set_order(doc, list, order, patched.map_or(&[], Vec::as_slice), strategy)?;
        }
    }
    Ok(())
}

fn field(doc: &mut Fields, name: &str, value: &Value, at: Option<usize>) -> Result<(), PatchError> {
    match (value, doc.get_mut(name)) {
        (Value::Null, _) => {
            doc.remove(name);
        }
        (Value::Object(patch), Some(Value::Object(old))) => {
            let gone = directive(patch)? == Directive::Delete;
            object(old, patch, inner(at, name))?;
            if gone {
                doc.remove(name);
            }
        }
        (Value::Object(patch), _) => {
            if directive(patch)? != Directive::Delete {
                let mut new = Fields::new();
                object(&mut new, patch, inner(at, name))?;
                doc.insert(name.to_owned(), Value::Object(new));
            }
        }
        (Value::Array(patch), old) => {
            let old = old.and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
            let new = list(old, patch, name, at)?;
            doc.insert(name.to_owned(), Value::Array(new));
        }
        (other, _) => {
            doc.insert(name.to_owned(), other.clone());
        }
    }
    Ok(())
}

fn list(old: Vec<Value>, patch: &[Value], name: &str, at: Option<usize>) -> Result<Vec<Value>, PatchError> {
    match strategy(at, name) {
        Strategy::Atomic => Ok(patch.iter().map(clean_value).collect()),
        Strategy::Set => {
            bound(old.len(), patch.len())?;
            let mut new = old;
            for item in patch.iter().filter(|item| !item.is_object()) {
                if !new.contains(item) {
                    new.push(item.clone());
                }
            }
            Ok(new)
        }
        Strategy::Keyed(key) => keyed(old, patch, key, inner(at, name)),
    }
}

fn keyed(
    mut list: Vec<Value>,
    patch: &[Value],
    key: &'static str,
    at: Option<usize>,
) -> Result<Vec<Value>, PatchError> {
    bound(list.len() + patch.len(), patch.len())?;
    // An item that is nothing but `$patch: replace` makes the rest of the patch the whole list.
    for item in patch.iter().filter_map(Value::as_object) {
        if item.get(key).is_none() && directive(item)? == Directive::Replace {
            list.clear();
        }
    }
    for item in patch {
        let Some(fields) = item.as_object() else {
            return Err(PatchError::Malformed(format!("items of a list merged by {key} are objects")));
        };
        let directive = directive(fields)?;
        let Some(id) = fields.get(key).filter(|id| !id.is_null()) else {
            if directive == Directive::Replace {
                continue;
            }
            return Err(PatchError::NoMergeKey(shown(item), key));
        };
        let place = list.iter().position(|old| old.get(key) == Some(id));
        match (directive, place) {
            (Directive::Delete, _) => list.retain(|old| old.get(key) != Some(id)),
            (_, Some(place)) => {
                if let Some(old) = list.get_mut(place).and_then(Value::as_object_mut) {
                    object(old, fields, at)?;
                }
            }
            (_, None) => {
                let mut new = Fields::new();
                object(&mut new, fields, at)?;
                list.push(Value::Object(new));
            }
        }
    }
    Ok(list)
}

/// A patch as a value of its own: without directives.
fn clean(patch: &Fields) -> Fields {
    let kept = patch.iter().filter(|(name, value)| !is_directive(name) && !value.is_null());
    kept.map(|(name, value)| (name.clone(), clean_value(value))).collect()
}

fn clean_value(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(clean(fields)),
        Value::Array(items) => items.iter().map(clean_value).collect(),
        other => other.clone(),
    }
}

/// Every item of one list is looked for in the other: lists of sizes that no object has are refused.
fn bound(one: usize, other: usize) -> Result<(), PatchError> {
    if one.saturating_mul(other) > MAX_COMPARED { Err(PatchError::TooBig) } else { Ok(()) }
}

/// The start of an item, for a message.
fn shown(item: &Value) -> String {
    item.to_string().chars().take(200).collect()
}

/// `$retainKeys`: of the old object only these fields stay.
fn retain_keys(doc: &mut Fields, patch: &Fields) -> Result<(), PatchError> {
    let Some(keys) = patch.get(RETAIN) else { return Ok(()) };
    let Some(keys) = keys.as_array() else {
        return Err(PatchError::Malformed(format!("{RETAIN} is a list of names")));
    };
    doc.retain(|name, _| keys.iter().any(|key| key == name.as_str()));
    Ok(())
}

/// `$deleteFromPrimitiveList/x`: these values go from the list `x`.
fn delete_values(doc: &mut Fields, list: &str, gone: &Value) -> Result<(), PatchError> {
    let Some(gone) = gone.as_array() else {
        return Err(PatchError::Malformed(format!("{DELETE}{list} is a list")));
    };
    if let Some(old) = doc.get_mut(list).and_then(Value::as_array_mut) {
        bound(old.len(), gone.len())?;
        old.retain(|value| !gone.contains(value));
    }
    Ok(())
}

/// `$setElementOrder/x`: the named items of the list `x` stand in this order; items of the server's own keep the place
/// they have before the next named one.
fn set_order(
    doc: &mut Fields,
    list: &str,
    order: &Value,
    patched: &[Value],
    strategy: Strategy,
) -> Result<(), PatchError> {
    let Some(order) = order.as_array() else {
        return Err(PatchError::Malformed(format!("{ORDER}{list} is a list")));
    };
    let key = match strategy {
        Strategy::Keyed(key) => Some(key),
        Strategy::Set => None,
        Strategy::Atomic => return Ok(()),
    };
    let id = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or_default(),
        None => item.clone(),
    };
    let length = doc.get(list).and_then(Value::as_array).map_or(0, Vec::len);
    bound(order.len(), length + patched.len())?;
    let wanted: Vec<Value> = order.iter().map(id).collect();
    if patched.iter().any(|item| !deletes(item) && !id(item).is_null() && !wanted.contains(&id(item))) {
        let text = format!("the items of {list} are not all in {ORDER}{list}");
        return Err(PatchError::Malformed(text));
    }
    let Some(items) = doc.get_mut(list).and_then(Value::as_array_mut) else { return Ok(()) };
    let rank = |item: &Value| wanted.iter().position(|w| *w == id(item));
    let old = std::mem::take(items);
    let (mut named, own): (Vec<_>, Vec<_>) =
        old.into_iter().enumerate().partition(|(_, item)| rank(item).is_some());
    named.sort_by_key(|(_, item)| rank(item));
    let mut own = own.into_iter().peekable();
    for (at, item) in named {
        while own.peek().is_some_and(|(own_at, _)| *own_at < at) {
            items.extend(own.next().map(|(_, item)| item));
        }
        items.push(item);
    }
    items.extend(own.map(|(_, item)| item));
    Ok(())
}

fn deletes(item: &Value) -> bool {
    item.get(DIRECTIVE).is_some_and(|word| word == "delete" || word == "replace")
}

#[cfg(test)]
mod tests;
