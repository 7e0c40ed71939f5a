//! What of an object is there before anything is in it: the objects that upstream holds without a pointer.

use crate::marks;
use crate::protobuf::schema::{Kind, Shape, table};
use serde_json::{Map, Value};

/// The empty object of the same kind, with what is always there; `{}` for kinds that are not in the table.
pub fn of(object: &Value) -> Value {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let root = table().root(text("apiVersion"), text("kind"));
    let mut empty = root.map_or_else(Map::new, fields);
    for name in ["metadata", "spec", "status"] {
        // Of a root these are held without a pointer, but for a few exceptions.
        if let Some(field) = root.and_then(|root| table().find(root, name))
            && let (Kind::Message(message), Shape::One) = (field.kind, field.shape)
        {
            empty.insert(name.to_owned(), fields(message).into());
        }
    }
    empty.into()
}

fn fields(message: usize) -> Map<String, Value> {
    let name = table().name(message);
    let mut map = Map::new();
    for field in table().fields(message) {
        match (field.kind, field.shape) {
            _ if !marks::of(name, field.name).plain => {}
            (Kind::Message(inner), Shape::One) => {
                map.insert(field.name.to_owned(), fields(inner).into());
            }
            _ => {
                map.insert(field.name.to_owned(), Value::Array(Vec::new()));
            }
        }
    }
    map
}
