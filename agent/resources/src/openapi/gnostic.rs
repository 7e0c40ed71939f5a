//! OpenAPI v2 in the protobuf form that kubectl before 1.27 insists on (`openapi.v2` of the gnostic project).
//!
//! Messages may be written piece by piece: one after the other they are one document.

use serde_json::Value;

/// A part of a document: its paths and definitions.
pub fn document(v2: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, v2.get("swagger"));
    if let Some(info) = v2.get("info") {
        let mut inner = Vec::new();
        text(&mut inner, 1, info.get("title"));
        text(&mut inner, 2, info.get("version"));
        bytes(&mut out, 2, &inner);
    }
    let mut paths = Vec::new();
    for (name, item) in fields(v2, "paths") {
        bytes(&mut paths, 2, &named(name, &path(item)));
    }
    bytes(&mut out, 8, &paths);
    let mut definitions = Vec::new();
    for (name, definition) in fields(v2, "definitions") {
        bytes(&mut definitions, 1, &named(name, &schema(definition)));
    }
    bytes(&mut out, 9, &definitions);
    out
}

fn fields<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value.get(name).and_then(Value::as_object).into_iter().flatten()
}

fn items<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8 & 0x7f) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(out: &mut Vec<u8>, tag: u64, content: &[u8]) {
    varint(out, tag << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn flag(out: &mut Vec<u8>, tag: u64, value: bool) {
    varint(out, tag << 3);
    out.push(value.into());
}

fn text(out: &mut Vec<u8>, tag: u64, value: Option<&Value>) {
    if let Some(text) = value.and_then(Value::as_str) {
        bytes(out, tag, text.as_bytes());
    }
}

/// A name and what it names.
fn named(name: &str, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 2, content);
    out
}

/// A value of whatever kind, as YAML, which JSON is too.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 2, value.to_string().as_bytes());
    out
}

fn extensions(out: &mut Vec<u8>, tag: u64, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        bytes(out, tag, &named(name, &any(value)));
    }
}

fn path(item: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, verb) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(verb) {
            bytes(&mut out, tag, &operation(found));
        }
    }
    out
}

fn operation(operation: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 5, operation.get("operationId"));
    for parameter in items(operation, "parameters") {
        // Parameter > NonBodyParameter > QueryParameterSubSchema.
        let mut query = Vec::new();
        for (tag, name) in [(2, "in"), (3, "description"), (4, "name"), (6, "type")] {
            text(&mut query, tag, parameter.get(name));
        }
        let mut content = query;
        for tag in [3, 2, 1] {
            let mut outer = Vec::new();
            bytes(&mut outer, tag, &content);
            content = outer;
        }
        bytes(&mut out, 8, &content);
    }
    let mut responses = Vec::new();
    for (code, response) in fields(operation, "responses") {
        let mut inner = Vec::new();
        text(&mut inner, 1, response.get("description"));
        let mut value = Vec::new();
        bytes(&mut value, 1, &inner);
        bytes(&mut responses, 1, &named(code, &value));
    }
    bytes(&mut out, 9, &responses);
    extensions(&mut out, 13, operation);
    out
}

fn schema(of: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, name) in [(1, "$ref"), (2, "format"), (4, "description"), (13, "pattern")] {
        text(&mut out, tag, of.get(name));
    }
    for required in items(of, "required") {
        text(&mut out, 19, Some(required));
    }
    for value in items(of, "enum") {
        bytes(&mut out, 20, &any(value));
    }
    match of.get("additionalProperties") {
        Some(Value::Bool(allowed)) => {
            let mut inner = Vec::new();
            flag(&mut inner, 2, *allowed);
            bytes(&mut out, 21, &inner);
        }
        Some(of) => {
            let mut inner = Vec::new();
            bytes(&mut inner, 1, &schema(of));
            bytes(&mut out, 21, &inner);
        }
        None => {}
    }
    if let Some(of) = of.get("type") {
        let mut inner = Vec::new();
        text(&mut inner, 1, Some(of));
        bytes(&mut out, 22, &inner);
    }
    if let Some(of) = of.get("items") {
        let mut inner = Vec::new();
        bytes(&mut inner, 1, &schema(of));
        bytes(&mut out, 23, &inner);
    }
    if of.get("properties").is_some() {
        let mut inner = Vec::new();
        for (name, of) in fields(of, "properties") {
            bytes(&mut inner, 1, &named(name, &schema(of)));
        }
        bytes(&mut out, 25, &inner);
    }
    extensions(&mut out, 31, of);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_written_as_the_format_has_them() {
        let v2 = json!({"swagger": "2.0", "definitions": {"a": {"$ref": "b"}}});
        let expected = b"\x0a\x032.0\x42\x00\x4a\x0a\x0a\x08\x0a\x01a\x12\x03\x0a\x01b";
        assert_eq!(document(&v2), expected);
        let schema = schema(&json!({"type": "array", "items": {"type": "string"}, "x-a": ["b"]}));
        let expected = b"\xb2\x01\x07\x0a\x05array\xba\x01\x0d\x0a\x0b\xb2\x01\x08\x0a\x06string\xfa\x01\x0e\x0a\x03x-a\x12\x07\x12\x05[\"b\"]";
        assert_eq!(schema, expected);
    }
}
