//! A custom kind's schema as OpenAPI shows it: what was written, with the fields that every object has.

use crate::Descriptor;
use serde_json::{Value, json};

const META: &str = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// `com.example.v1.Toy`.
pub(crate) fn name(kind: &Descriptor) -> String {
    let mut parts: Vec<&str> = kind.group.split('.').rev().collect();
    parts.extend([kind.version.as_ref(), kind.kind.as_ref()]);
    parts.join(".")
}

/// The schema; its metadata is referred to.
pub(crate) fn schema(kind: &Descriptor, written: &Value) -> Value {
    let mut schema = if written.is_object() { written.clone() } else { json!({"type": "object"}) };
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    schema["properties"]["apiVersion"] = json!({"type": "string",
        "description": "The group and version that this object is written in."});
    schema["properties"]["kind"] = json!({"type": "string", "description": "What this object is."});
    schema["properties"]["metadata"] = json!({"allOf": [{"$ref": META}], "default": {},
        "description": "Standard object's metadata."});
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
    schema
}
