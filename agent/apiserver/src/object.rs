//! Objects as the store keeps them, and the parts of `metadata` the server owns.

use crate::status::{Result, Status};
use bytes::Bytes;
use resources::Descriptor;
use serde_json::{Map, Value, json};
use store::{Record, Revision};

/// The deepest nesting an object may have.
pub(crate) const MAX_DEPTH: usize = 100;

/// An object's key.
pub(crate) fn key(kind: &Descriptor, namespace: Option<&str>, name: &str) -> String {
    format!("{}{name}", prefix(kind, namespace))
}

/// What the keys of a collection start with.
pub(crate) fn prefix(kind: &Descriptor, namespace: Option<&str>) -> String {
    let group = match kind.kept_in() {
        "" => "core",
        group => group,
    };
    match namespace {
        Some(namespace) => format!("/registry/{group}/{}/{namespace}/", kind.plural),
        None => format!("/registry/{group}/{}/", kind.plural),
    }
}

/// The object in a record, with its revision.
pub(crate) fn load(kind: &Descriptor, record: &Record) -> Result<Value> {
    load_at(kind, record, record.modified)
}

/// The object in a record, with another revision than its own (a deletion's).
pub(crate) fn load_at(kind: &Descriptor, record: &Record, revision: Revision) -> Result<Value> {
    let mut object: Value = serde_json::from_slice(&record.value)
        .map_err(|e| Status::internal(format!("{} cannot be read: {e}", record.key)))?;
    kind.load(&mut object);
    set_revision(&mut object, revision);
    Ok(object)
}

pub(crate) fn set_revision(object: &mut Value, revision: Revision) {
    meta(object).insert("resourceVersion".into(), revision.to_string().into());
}

/// What is kept of an object: all but its revision, which the store knows.
pub(crate) fn bytes(kind: &Descriptor, object: &Value) -> Result<Bytes> {
    let mut kept = object.clone();
    kind.store(&mut kept);
    meta(&mut kept).remove("resourceVersion");
    serde_json::to_vec(&kept).map(Bytes::from).map_err(Status::internal)
}

/// `metadata`, made if it is not there.
pub(crate) fn meta(object: &mut Value) -> &mut Map<String, Value> {
    field(as_map(object), "metadata")
}

/// The object in a field, put there if something else is.
pub(crate) fn field<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    as_map(map.entry(name).or_insert_with(|| json!({})))
}

/// A value as a map, replaced by an empty one if it is none.
pub(crate) fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    list(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect()
}

pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Now, as `metav1.Time`.
pub(crate) fn timestamp(plus_seconds: i64) -> String {
    resources::time::format(now().saturating_add(plus_seconds))
}

/// Now, seconds since the epoch.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub(crate) fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A name made of `generateName` and five random characters, as upstream's alphabet has them (no vowels).
pub(crate) fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MAX: usize = 63;
    let mut end = base.len().min(MAX - 5);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    name.extend((0..5).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])));
    name
}
