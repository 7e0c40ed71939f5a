//! Strategic merge: RFC 7396, and lists whose items have keys are merged item by item.

use super::PatchError;
use super::keys::{Strategy, is_directive, strategy};
use crate::Descriptor;
use crate::json::Fields;
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
    Merge { kind: kind.kind }.object(fields, patch, &mut Vec::new())
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

struct Merge<'k> {
    kind: &'k str,
}

impl Merge<'_> {
    fn object<'p>(
        &self,
        doc: &mut Fields,
        patch: &'p Fields,
        path: &mut Vec<&'p str>,
    ) -> Result<(), PatchError> {
        match directive(patch)? {
            Directive::Merge => {}
            Directive::Replace => {
                *doc = self.clean(patch);
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
            self.field(doc, name, value, path)?;
        }
        for (name, order) in patch {
            if let Some(list) = name.strip_prefix(ORDER) {
                let patched = patch.get(list).and_then(Value::as_array);
                let strategy = strategy(self.kind, path, list);
                set_order(doc, list, order, patched.map_or(&[], Vec::as_slice), strategy)?;
            }
        }
        Ok(())
    }

    fn field<'p>(
        &self,
        doc: &mut Fields,
        name: &'p str,
        value: &'p Value,
        path: &mut Vec<&'p str>,
    ) -> Result<(), PatchError> {
        match (value, doc.get_mut(name)) {
            (Value::Null, _) => {
                doc.remove(name);
            }
            (Value::Object(patch), Some(Value::Object(old))) => {
                let gone = directive(patch)? == Directive::Delete;
                path.push(name);
                self.object(old, patch, path)?;
                path.pop();
                if gone {
                    doc.remove(name);
                }
            }
            (Value::Object(patch), _) => {
                if directive(patch)? != Directive::Delete {
                    let mut new = Fields::new();
                    path.push(name);
                    self.object(&mut new, patch, path)?;
                    path.pop();
                    doc.insert(name.to_owned(), Value::Object(new));
                }
            }
            (Value::Array(patch), old) => {
                let old = old.and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
                let new = self.list(old, patch, name, path)?;
                doc.insert(name.to_owned(), Value::Array(new));
            }
            (other, _) => {
                doc.insert(name.to_owned(), other.clone());
            }
        }
        Ok(())
    }

    fn list<'p>(
        &self,
        old: Vec<Value>,
        patch: &'p [Value],
        name: &'p str,
        path: &mut Vec<&'p str>,
    ) -> Result<Vec<Value>, PatchError> {
        match strategy(self.kind, path, name) {
            Strategy::Atomic => Ok(patch.iter().map(|item| self.clean_value(item)).collect()),
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
            Strategy::Keyed(key) => {
                path.push(name);
                let new = self.keyed(old, patch, key, path);
                path.pop();
                new
            }
        }
    }

    fn keyed<'p>(
        &self,
        mut list: Vec<Value>,
        patch: &'p [Value],
        key: &'static str,
        path: &mut Vec<&'p str>,
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
            let at = list.iter().position(|old| old.get(key) == Some(id));
            match (directive, at) {
                (Directive::Delete, _) => list.retain(|old| old.get(key) != Some(id)),
                (_, Some(at)) => {
                    if let Some(old) = list.get_mut(at).and_then(Value::as_object_mut) {
                        self.object(old, fields, path)?;
                    }
                }
                (_, None) => {
                    let mut new = Fields::new();
                    self.object(&mut new, fields, path)?;
                    list.push(Value::Object(new));
                }
            }
        }
        Ok(list)
    }

    /// A patch as a value of its own: without directives.
    fn clean(&self, patch: &Fields) -> Fields {
        let kept = patch.iter().filter(|(name, value)| !is_directive(name) && !value.is_null());
        kept.map(|(name, value)| (name.clone(), self.clean_value(value))).collect()
    }

    fn clean_value(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => Value::Object(self.clean(fields)),
            Value::Array(items) => items.iter().map(|item| self.clean_value(item)).collect(),
            other => other.clone(),
        }
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
