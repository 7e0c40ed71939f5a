//! Which fields a kind has and what they hold: what a strict decoder would say of an object.
//!
//! Typed clients refuse a whole list for one field of the wrong type, so such an object must never be stored.

use crate::cause::field_path;
use crate::marks;
use crate::protobuf::schema::{Field, Kind, Shape, Table, table};
use crate::{quantity::Quantity, time};
use serde_json::Value;

/// No more faults than this are told.
const MAX_FOUND: usize = 100;

/// Objects within an object. Defaults make small ones ten times as big, so there may not be too many.
const MAX_OBJECTS: usize = 20_000;

/// What does not fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Paths of fields that the kind does not have: for `strict decoding error: unknown field "spec.x"`.
    pub unknown: Vec<String>,
    /// What upstream says of fields that hold something else: each makes the request a bad one.
    pub mistyped: Vec<String>,
}

/// Takes out what upstream would not keep: nulls, lists and maps with nothing in them, and unknown fields. Tells what it
/// found. `None` if the object's
/// `apiVersion` and `kind` are not known here.
pub fn conform(object: &mut Value) -> Option<Findings> {
    let kind = crate::json::text(object, "/kind").to_owned();
    let root = table().root(crate::json::text(object, "/apiVersion"), &kind)?;
    let mut check = Check { table: table(), kind, path: Vec::new(), objects: 0, found: Findings::default() };
    check.message(root, object);
    Some(check.found)
}

/// The same for the fields that an object of any kind has: `apiVersion`, `kind`, `metadata`.
pub(crate) fn conform_metadata(object: &mut Value) -> Findings {
    let kind = crate::json::text(object, "/kind").to_owned();
    let mut check = Check {
        table: table(),
        kind,
        path: vec!["metadata".to_owned()],
        objects: 0,
        found: Findings::default(),
    };
    let root = table().root("v1", "ConfigMap").and_then(|root| table().find(root, "metadata"));
    if let (Some(field), Some(metadata)) = (root, object.get_mut("metadata")) {
        check.field(field, metadata);
    }
    check.found
}

struct Check {
    table: &'static Table,
    kind: String,
    /// Names and `[i]`, from the root.
    path: Vec<String>,
    objects: usize,
    found: Findings,
}

impl Check {
    fn message(&mut self, message: usize, value: &mut Value) {
        let outer = self.table.name(message);
        let Some(fields) = value.as_object_mut() else {
            return self.mistyped(value, "object");
        };
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            if self.objects == MAX_OBJECTS + 1 {
                self.found.mistyped.push(format!("{} holds more than {MAX_OBJECTS} objects", self.kind));
            }
            return;
        }
        let root = self.path.is_empty();
        fields.retain(|name, value| {
            if value.is_null() {
                return false;
            }
            // Objects may stand in objects: a StatefulSet's claims say what they are.
            if matches!(name.as_str(), "apiVersion" | "kind") && (root || self.table.is_root(message)) {
                if !value.is_string() {
                    self.path.push(name.clone());
                    self.mistyped(value, "string");
                    self.path.pop();
                }
                return true;
            }
            self.path.push(name.clone());
            let field = self.table.find(message, name);
            match field {
                // A schema in a schema, where a flag or a list may also be.
                Some(field)
                    if field.kind == Kind::Raw && value.is_object() && self.holds_itself(message, name) =>
                {
                    self.message(message, value);
                }
                Some(field) => self.field(field, value),
                None if self.found.unknown.len() < MAX_FOUND => {
                    self.found.unknown.push(field_path(&self.path))
                }
                None => {}
            }
            self.path.pop();
            field.is_some_and(|field| !is_nothing(field, value) || marks::of(outer, name).plain)
        });
    }

    fn holds_itself(&self, message: usize, field: &str) -> bool {
        self.table.name(message) == "apiextensions.v1.JSONSchemaProps"
            && matches!(field, "items" | "additionalProperties" | "additionalItems")
    }

    fn field(&mut self, field: &Field, value: &mut Value) {
        match field.shape {
            Shape::One | Shape::Inline => self.value(field.kind, value),
            Shape::List => match value.as_array_mut() {
                Some(items) => {
                    for (i, item) in items.iter_mut().enumerate() {
                        self.path.push(format!("[{i}]"));
                        self.value(field.kind, item);
                        self.path.pop();
                    }
                }
                None => self.mistyped(value, "array"),
            },
            Shape::Map => match value.as_object_mut() {
                Some(entries) => {
                    for (name, item) in entries.iter_mut() {
                        self.path.push(name.clone());
                        self.value(field.kind, item);
                        self.path.pop();
                    }
                }
                None => self.mistyped(value, "map"),
            },
        }
    }

    fn value(&mut self, kind: Kind, value: &mut Value) {
        let wanted = match kind {
            Kind::Message(message) => return self.message(message, value),
            Kind::Raw => return,
            Kind::Text if value.is_string() => return,
            Kind::Flag if value.is_boolean() => return,
            Kind::Int32 if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => return,
            Kind::Int64 if value.is_i64() => return,
            Kind::Double if value.is_number() => return,
            Kind::Bytes if value.is_string() => return,
            Kind::Quantity if is_quantity(value) => return,
            Kind::IntOrString if value.is_i64() || value.is_string() => return,
            Kind::Time | Kind::MicroTime if value.as_str().is_some_and(|t| time::parse(t).is_some()) => {
                return;
            }
            Kind::Texts if value.as_array().is_some_and(|all| all.iter().all(Value::is_string)) => return,
            Kind::Text => "string",
            Kind::Flag => "bool",
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::Double => "float64",
            Kind::Bytes => "[]uint8",
            Kind::Quantity => "resource.Quantity",
            Kind::IntOrString => "intstr.IntOrString",
            Kind::Time => "v1.Time",
            Kind::MicroTime => "v1.MicroTime",
            Kind::Texts => "[]string",
        };
        self.mistyped(value, wanted);
    }

    fn mistyped(&mut self, value: &Value, wanted: &str) {
        let held = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if self.found.mistyped.len() < MAX_FOUND {
            let (kind, place) = (&self.kind, field_path(&self.path));
            let text =
                format!("json: cannot unmarshal {held} into Go struct field {kind}.{place} of type {wanted}");
            self.found.mistyped.push(text);
        }
    }
}

/// Whether a list or map holds nothing: then upstream does not write it.
fn is_nothing(field: &Field, value: &Value) -> bool {
    match (field.shape, value) {
        (Shape::List, Value::Array(items)) => items.is_empty(),
        (Shape::Map, Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

fn is_quantity(value: &Value) -> bool {
    match value {
        Value::String(text) => Quantity::parse(text).is_ok(),
        other => other.is_number(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_good_object_stays_as_it_is() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"a": "b"}, "creationTimestamp": "2016-03-21T21:06:00Z"},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "schedulingGroup": {"podGroupName": "x"},
                "containers": [{"name": "a", "image": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "env": [{"name": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}});
        let mut same = pod.clone();
        assert_eq!(conform(&mut same), Some(Findings::default()));
        assert_eq!(same, pod);
    }

    #[test]
    fn lists_and_maps_with_nothing_in_them_go() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {}, "finalizers": [], "annotations": {}},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [], "nodeSelector": {}}});
        conform(&mut pod).expect("known kind");
        let kept = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}});
        assert_eq!(pod, kept);
        let mut role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "a"}, "rules": []});
        conform(&mut role).expect("known kind");
        assert_eq!(role["rules"], json!([]));
    }

    #[test]
    fn unknown_fields_and_nulls_go() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "extra": 1,
            "metadata": {"creationTimestamp": null}, "spec": {"containers": [{"imagee": "x"}]}});
        let found = conform(&mut pod).expect("known kind");
        assert_eq!(found.unknown, ["extra", "spec.containers[0].imagee"]);
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": [{}]}})
        );
    }

    #[test]
    fn too_many_objects_are_refused() {
        let containers = vec![json!({}); MAX_OBJECTS];
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": containers}});
        assert_eq!(conform(&mut pod).expect("pod").mistyped, ["Pod holds more than 20000 objects"]);
    }

    #[test]
    fn wrong_types_are_told() {
        let mut deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "spec": {"replicas": "3", "template": {"spec": {"containers": {}}}, "paused": 1}});
        let found = conform(&mut deployment).expect("known kind");
        assert_eq!(
            found.mistyped,
            [
                "json: cannot unmarshal number into Go struct field Deployment.spec.paused of type bool",
                "json: cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32",
                "json: cannot unmarshal object into Go struct field Deployment.spec.template.spec.containers of \
                 type array",
            ]
        );
        assert_eq!(conform(&mut json!({"apiVersion": "x/v1", "kind": "Y"})), None);
        assert_eq!(conform(&mut json!(1)), None);
    }
}
