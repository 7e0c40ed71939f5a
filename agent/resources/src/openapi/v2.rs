//! OpenAPI v2, for clients that know nothing newer: the same schemas with less in them.

use serde_json::{Map, Value, json};

/// How deep a custom kind's schema is followed.
const MAX_DEPTH: usize = 64;
/// What of a schema v2 knows, besides what holds further schemas.
const KEPT: [&str; 6] = ["description", "type", "format", "required", "enum", "pattern"];

/// A v3 schema as v2 has it.
pub fn schema(v3: &Value) -> Value {
    convert(v3, MAX_DEPTH)
}

fn convert(v3: &Value, depth: usize) -> Value {
    let mut v2 = Map::new();
    let Some(fields) = v3.as_object().filter(|_| depth > 0) else { return v2.into() };
    for (name, value) in fields {
        let value = match name.as_str() {
            "properties" => {
                let all = value.as_object().into_iter().flatten();
                all.map(|(name, value)| (name.clone(), convert(value, depth - 1)))
                    .collect::<Map<_, _>>()
                    .into()
            }
            "items" => convert(value, depth - 1),
            "additionalProperties" if value.is_object() => convert(value, depth - 1),
            "$ref" => reference(value),
            // A reference with words of its own, or with nothing.
            "allOf" => {
                if let Some(target) = value.pointer("/0/$ref") {
                    v2.insert("$ref".to_owned(), reference(target));
                }
                continue;
            }
            name if KEPT.contains(&name) || name.starts_with("x-kubernetes-") => value.clone(),
            _ => continue,
        };
        v2.insert(name.clone(), value);
    }
    if v2.get("format") == Some(&json!("int-or-string"))
        || fields.contains_key("oneOf") && !v2.contains_key("type")
    {
        v2.insert("type".to_owned(), "string".into());
    }
    // Whatever is there may hold more than is told.
    if v2.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        v2.retain(|name, _| name.starts_with("x-kubernetes-") || name == "description");
    }
    if v2.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        v2.remove("type");
    }
    v2.into()
}

fn reference(target: &Value) -> Value {
    target.as_str().unwrap_or_default().replace("#/components/schemas/", "#/definitions/").into()
}
