//! Event: what happened to an object. Kept in the namespace of the object.

use super::BASE;
use super::columns::{string, wide};
use crate::cause::{Causes, invalid};
use crate::json::{int, text};
use crate::{CellContext, Column, Descriptor, metadata, names, time};
use serde_json::Value;

pub const EVENT: Descriptor = Descriptor {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    columns: COLUMNS,
    selectable: &[
        ("involvedObject.kind", "/involvedObject/kind"),
        ("involvedObject.namespace", "/involvedObject/namespace"),
        ("involvedObject.name", "/involvedObject/name"),
        ("involvedObject.uid", "/involvedObject/uid"),
        ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
        ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
        ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
        ("reason", "/reason"),
        ("reportingComponent", "/reportingComponent"),
        ("source", "/source/component"),
        ("type", "/type"),
    ],
    validate,
    ..BASE
};

const COLUMNS: &[Column] = &[
    string("Last Seen", last_seen),
    string("Type", |event, _| text(event, "/type").into()),
    string("Reason", |event, _| text(event, "/reason").into()),
    string("Object", |event, _| object(event).into()),
    wide("Subobject", |event, _| text(event, "/involvedObject/fieldPath").into()),
    wide("Source", |event, _| source(event).into()),
    string("Message", |event, _| text(event, "/message").trim().into()),
    wide("First Seen", first_seen),
    wide("Count", |event, _| count(event).to_string().into()),
    Column {
        name: "Name",
        kind: "string",
        format: "name",
        priority: 1,
        cell: |event, _| text(event, "/metadata/name").into(),
    },
];

fn first<'a>(event: &'a Value, pointers: &[&str]) -> &'a str {
    pointers.iter().map(|p| text(event, p)).find(|t| !t.is_empty()).unwrap_or_default()
}

fn last_seen(event: &Value, context: &CellContext) -> Value {
    let last = first(event, &["/series/lastObservedTime", "/lastTimestamp", "/firstTimestamp", "/eventTime"]);
    time::since(last, context.now).into()
}

fn first_seen(event: &Value, context: &CellContext) -> Value {
    time::since(first(event, &["/firstTimestamp", "/eventTime"]), context.now).into()
}

fn count(event: &Value) -> i64 {
    int(event, "/series/count").or(int(event, "/count")).filter(|c| *c > 0).unwrap_or(1)
}

/// `pod/web-1`.
fn object(event: &Value) -> String {
    let kind = text(event, "/involvedObject/kind").to_lowercase();
    match text(event, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

/// `kubelet, pi-1`.
fn source(event: &Value) -> String {
    let component = first(event, &["/source/component", "/reportingComponent"]);
    match first(event, &["/source/host", "/reportingInstance"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let (own, other) = (text(new, "/metadata/namespace"), text(new, "/involvedObject/namespace"));
    // Events about objects outside namespaces are kept in the default one.
    if own != other && !(other.is_empty() && matches!(own, "default" | "kube-system")) {
        causes.push(invalid("involvedObject.namespace", other, "does not match event.namespace"));
    }
    causes
}
