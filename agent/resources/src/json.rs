//! Reading and filling JSON objects of which nothing is known yet: a field of the wrong type counts as absent.

use serde_json::{Map, Value};

/// A JSON object's fields.
pub type Fields = Map<String, Value>;

/// The string at this pointer, or the empty one.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at this pointer.
pub fn int(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// Whether this pointer leads to `true`.
pub fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

/// The items at this pointer, none if there is no array.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The fields of the object at this pointer.
pub fn fields<'a>(value: &'a Value, pointer: &str) -> Option<&'a Fields> {
    value.pointer(pointer).and_then(Value::as_object)
}

/// Whether a field holds nothing in upstream's sense: absent, null, or an empty string.
fn unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    }
}

/// Sets a field that holds nothing.
pub fn default(fields: &mut Fields, name: &str, value: impl Into<Value>) {
    if unset(fields.get(name)) {
        fields.insert(name.to_owned(), value.into());
    }
}

/// The object in a field, made if absent; `None` if something else is there.
pub fn child<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    default(fields, name, Fields::new());
    fields.get_mut(name)?.as_object_mut()
}

/// The object in a field, if there is one.
pub fn child_if<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    fields.get_mut(name)?.as_object_mut()
}

/// The objects in an array field.
pub fn children<'a>(fields: &'a mut Fields, name: &str) -> impl Iterator<Item = &'a mut Fields> {
    fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Sets a field if it is absent and gives the object's `spec`.
pub fn spec(object: &mut Value) -> Option<&mut Fields> {
    child(object.as_object_mut()?, "spec")
}

/// Sets counters of the object's `status` that upstream always writes.
pub fn counters(object: &mut Value, names: &[&str]) {
    if let Some(status) = object.as_object_mut().and_then(|o| child(o, "status")) {
        for name in names {
            default(status, name, 0);
        }
    }
}
