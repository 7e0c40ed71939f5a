//! OpenAPI schemas of the kinds. Those of built-in ones are made from the same table of messages that bodies are read
//! by, with the marks that say how lists are merged, without descriptions; those of custom kinds are what their
//! definitions say. [`schema_v2`] and [`document_v2_protobuf`] put them into the older form.

mod gnostic;
mod v2;

pub use gnostic::document as document_v2_protobuf;
pub use v2::schema as schema_v2;

use crate::marks::{self, Strategy, Topology};
use crate::protobuf::schema::{Field, Kind, Shape, Table, table};
use crate::{Descriptor, custom};
use serde_json::{Map, Value, json};

/// The schemas of these kinds, and of all that is in them, by name.
pub fn schemas<'a>(kinds: impl Iterator<Item = &'a Descriptor>) -> Map<String, Value> {
    let mut maker = Maker { table: table(), done: Map::new() };
    for kind in kinds {
        if let Some(version) = kind.custom() {
            maker.done.insert(custom::openapi::name(kind), custom::openapi::schema(kind, version.document()));
            if let Some(message) = maker.table.message("meta.v1.ObjectMeta") {
                maker.make(message);
            }
        }
        let Some(root) = maker.table.root(&kind.api_version(), &kind.kind) else { continue };
        let name = maker.make(root);
        if let Some(schema) = maker.done.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
        }
    }
    maker.done
}

/// The name of a kind's schema: `io.k8s.api.core.v1.Pod`, `com.example.v1.Backup`.
pub fn name(kind: &Descriptor) -> Option<String> {
    if kind.custom().is_some() {
        return Some(custom::openapi::name(kind));
    }
    table().root(&kind.api_version(), &kind.kind).map(|root| full(table().name(root)))
}

/// `core.v1.Pod` with the words before it that clients know it by.
fn full(message: &str) -> String {
    if message.starts_with("meta.v1.") {
        format!("io.k8s.apimachinery.pkg.apis.{message}")
    } else if message.starts_with("apiextensions.v1.") {
        format!("io.k8s.apiextensions-apiserver.pkg.apis.{message}")
    } else {
        format!("io.k8s.api.{message}")
    }
}

/// A list or map with its marks.
fn marked(mut schema: Value, field: &Field, outer: &str) -> Value {
    let mark = marks::of(outer, field.name);
    let list = field.shape == Shape::List;
    match &mark.topology {
        Topology::Atomic if !list => schema["x-kubernetes-map-type"] = "atomic".into(),
        Topology::Set => schema["x-kubernetes-list-type"] = "set".into(),
        Topology::Map(keys) => {
            schema["x-kubernetes-list-type"] = "map".into();
            schema["x-kubernetes-list-map-keys"] = keys.iter().map(|key| key.name).collect();
        }
        Topology::Own | Topology::Atomic if list => schema["x-kubernetes-list-type"] = "atomic".into(),
        _ => {}
    }
    let strategy = match (mark.strategy, mark.retain_keys) {
        (Strategy::Atomic, _) => None,
        (_, true) => Some("merge,retainKeys"),
        (_, false) => Some("merge"),
    };
    if let Some(strategy) = strategy {
        schema["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if let Strategy::Keyed(key) = mark.strategy {
        schema["x-kubernetes-patch-merge-key"] = key.into();
    }
    schema
}

struct Maker {
    table: &'static Table,
    done: Map<String, Value>,
}

impl Maker {
    /// Makes a message's schema, unless it is there, and gives its name. Messages lead to themselves nowhere but
    /// through what is made already.
    fn make(&mut self, message: usize) -> String {
        let short = self.table.name(message);
        let name = full(short);
        if self.done.contains_key(&name) {
            return name;
        }
        self.done.insert(name.clone(), Value::Null);
        let mut properties = Map::new();
        if self.table.is_root(message) {
            properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
            properties.insert("kind".to_owned(), json!({"type": "string"}));
        }
        self.fields(message, short, &mut properties);
        let mut schema = json!({"type": "object", "properties": properties});
        if marks::is_atomic(short) {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        self.done.insert(name.clone(), schema);
        name
    }

    fn fields(&mut self, message: usize, outer: &str, properties: &mut Map<String, Value>) {
        let table = self.table;
        for field in table.fields(message) {
            match (field.shape, field.kind) {
                (Shape::Inline, Kind::Message(inner)) => self.fields(inner, outer, properties),
                _ => {
                    let schema = self.field(field, outer);
                    properties.insert(field.name.to_owned(), schema);
                }
            }
        }
    }

    fn field(&mut self, field: &Field, outer: &str) -> Value {
        let value = self.value(field.kind);
        match field.shape {
            Shape::One | Shape::Inline => value,
            Shape::Map => marked(json!({"type": "object", "additionalProperties": value}), field, outer),
            Shape::List => marked(json!({"type": "array", "items": value}), field, outer),
        }
    }

    fn value(&mut self, kind: Kind) -> Value {
        match kind {
            Kind::Message(message) => json!({"$ref": format!("#/components/schemas/{}", self.make(message))}),
            Kind::Text => json!({"type": "string"}),
            Kind::Flag => json!({"type": "boolean"}),
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 => json!({"type": "integer", "format": "int64"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Time | Kind::MicroTime => json!({"type": "string", "format": "date-time"}),
            Kind::Raw => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            Kind::Quantity => self.leaf(
                "io.k8s.apimachinery.pkg.api.resource.Quantity",
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            ),
            Kind::IntOrString => self.leaf(
                "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        }
    }

    /// A value with a name of its own, by which clients print it.
    fn leaf(&mut self, name: &str, schema: Value) -> Value {
        self.done.entry(name).or_insert(schema);
        json!({"$ref": format!("#/components/schemas/{name}")})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_that_leads_nowhere_else() {
        let all = schemas(crate::all().iter().map(std::sync::Arc::as_ref));
        for kind in crate::all() {
            let schema = &all[&name(kind).expect("a schema")];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], kind.kind.as_ref());
            assert_eq!(schema["properties"]["kind"]["type"], "string", "{}", kind.kind);
        }
        let text = Value::Object(all.clone()).to_string();
        let references: Vec<&str> = text.split("#/components/schemas/").skip(1).collect();
        for reference in references {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(all.get(name).is_some_and(Value::is_object), "{name}");
        }
    }

    #[test]
    fn fields_are_what_they_hold() {
        let all = schemas(crate::find("", "v1", "pods").map(std::sync::Arc::as_ref).into_iter());
        let of = |message: &str, field: &str| {
            all[&format!("io.k8s.api.core.v1.{message}")]["properties"][field].clone()
        };
        let containers = of("PodSpec", "containers");
        assert_eq!(containers["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(
            of("Container", "ports")["x-kubernetes-list-map-keys"],
            json!(["containerPort", "protocol"])
        );
        assert_eq!(of("Container", "command")["x-kubernetes-list-type"], "atomic");
        assert_eq!(
            of("Volume", "emptyDir")["$ref"],
            "#/components/schemas/io.k8s.api.core.v1.EmptyDirVolumeSource"
        );
        assert_eq!(
            of("HTTPGetAction", "port")["$ref"],
            "#/components/schemas/io.k8s.apimachinery.pkg.util.intstr.IntOrString"
        );
        assert_eq!(
            of("PodSpec", "nodeSelector"),
            json!({"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": "atomic"})
        );
        assert_eq!(
            of("ContainerStateRunning", "startedAt"),
            json!({"type": "string", "format": "date-time"})
        );
    }
}
