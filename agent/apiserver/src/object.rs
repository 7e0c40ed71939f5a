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

/// Whether what is kept of a kind's objects is what is shown, but for the revision.
pub(crate) fn kept_as_shown(kind: &Descriptor) -> bool {
    kind.custom().is_none() && kind.kept_as().is_none()
}

/// Appends the object in a record, with its revision, as it is kept. `None` if it has no metadata where it should.
pub(crate) fn append(record: &Record, out: &mut Vec<u8>) -> Option<()> {
    let (before, after) = record.value.split_at_checked(metadata(&record.value)?)?;
    out.extend_from_slice(before);
    out.extend(format!("\"resourceVersion\":\"{}\"", record.modified).bytes());
    out.extend((after.first() != Some(&b'}')).then_some(b','));
    out.extend_from_slice(after);
    Some(())
}

/// Where the first field of an object's own `metadata` begins, in what `bytes` wrote.
fn metadata(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let start = at + 1;
                at = start;
                while *bytes.get(at)? != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if depth == 1 && &bytes[start..at] == b"metadata" && bytes[at + 1..].starts_with(b":{") {
                    return Some(at + 3);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_goes_into_the_object_s_own_metadata() {
        let hidden = json!({"apiVersion": "v1", "data": {"metadata": {"a": "\\\"metadata\":{"}}, "kind": "X",
            "metadata": {"name": "a"}, "z": {"metadata": {}}});
        let nothing = json!({"metadata": {}});
        for object in [hidden, nothing] {
            let value = Bytes::from(object.to_string());
            let record = Record { key: "k".into(), value, created: 1, modified: 7 };
            let mut out = Vec::new();
            append(&record, &mut out).unwrap();
            let mut expected = object;
            set_revision(&mut expected, 7);
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
        }
        assert_eq!(metadata(b"{\"metadata\":1}"), None);
        assert_eq!(metadata(b"{\"a\\"), None);
    }
}
