//! Cells that several kinds show.

use crate::json::{fields, int, items, text};
use crate::{CellContext, Column, time};
use serde_json::Value;

/// The first column of every kind.
pub const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    cell: |object, _| text(object, "/metadata/name").into(),
};

/// How long ago it was created.
pub const AGE: Column = string("Age", |object, context| age(object, context).into());

/// What pods of a template hold: names, shown by `-o wide`.
pub const CONTAINERS: Column = wide("Containers", |object, _| of_containers(object, "/name"));

/// And images.
pub const IMAGES: Column = wide("Images", |object, _| of_containers(object, "/image"));

/// A `LabelSelector` in `spec.selector`.
pub const SELECTOR: Column = wide("Selector", |object, _| selector(object, "/spec/selector"));

/// How many pods are wanted.
pub const DESIRED: Column = integer("Desired", |object, _| number(object, "/spec/replicas"));

/// How many there are.
pub const CURRENT: Column = integer("Current", |object, _| number(object, "/status/replicas"));

/// How many of them are ready.
pub const READY: Column = integer("Ready", |object, _| number(object, "/status/readyReplicas"));

/// A column of text, always shown.
pub const fn string(name: &'static str, cell: fn(&Value, &CellContext) -> Value) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell }
}

/// A column of text, shown by `-o wide`.
pub const fn wide(name: &'static str, cell: fn(&Value, &CellContext) -> Value) -> Column {
    Column { name, kind: "string", format: "", priority: 1, cell }
}

/// A column of flags.
pub const fn boolean(name: &'static str, cell: fn(&Value, &CellContext) -> Value) -> Column {
    Column { name, kind: "boolean", format: "", priority: 0, cell }
}

/// When it was created, as it is written.
pub const CREATED_AT: Column =
    string("Created At", |object, _| text_at(object, "/metadata/creationTimestamp"));

/// A column of whole numbers.
pub const fn integer(name: &'static str, cell: fn(&Value, &CellContext) -> Value) -> Column {
    Column { name, kind: "integer", format: "", priority: 0, cell }
}

/// The object's age.
pub fn age(object: &Value, context: &CellContext) -> String {
    time::since(text(object, "/metadata/creationTimestamp"), context.now)
}

/// A text, empty if absent.
pub fn text_at(object: &Value, pointer: &str) -> Value {
    text(object, pointer).into()
}

/// `RWO,ROX`: how a volume may be used.
pub fn access_modes(object: &Value, pointer: &str) -> Value {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    let modes: Vec<&str> = items(object, pointer).iter().map(short).filter(|mode| !mode.is_empty()).collect();
    modes.join(",").into()
}

/// A number, nought if absent.
pub fn number(object: &Value, pointer: &str) -> Value {
    int(object, pointer).unwrap_or(0).into()
}

/// A text, or `<none>`.
pub fn or_none(value: &str) -> Value {
    if value.is_empty() { "<none>".into() } else { value.into() }
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(object: &Value, pointer: &str) -> Value {
    let pairs = fields(object, pointer).into_iter().flatten();
    let pairs: Vec<String> = pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    or_none(&pairs.join(","))
}

/// A `LabelSelector` as kubectl prints it, or `<none>`.
pub fn selector(object: &Value, pointer: &str) -> Value {
    let selector = object.pointer(pointer).cloned().unwrap_or_default();
    match crate::labels::Selector::from_label_selector(&selector) {
        Ok(selector) => or_none(&selector.to_string()),
        Err(_) => "<error>".into(),
    }
}

fn of_containers(object: &Value, pointer: &str) -> Value {
    let all = items(object, "/spec/template/spec/containers").iter();
    all.map(|c| text(c, pointer)).collect::<Vec<_>>().join(",").into()
}

/// The first `max` of these, and how many more: `a,b + 3 more...`; `<none>` if there are none.
pub fn shortened(all: &[String], max: usize) -> String {
    if all.is_empty() {
        return "<none>".to_owned();
    }
    let shown = all.iter().take(max).map(String::as_str).collect::<Vec<_>>().join(",");
    if all.len() > max { format!("{shown} + {} more...", all.len() - max) } else { shown }
}
