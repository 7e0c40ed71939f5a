//! Event: what happened to an object. Kept in the namespace of the object, in its older form of core/v1; what
//! `events.k8s.io/v1` shows are the same objects, with other names for some fields.

use super::BASE;
use super::columns::{string, wide};
use crate::cause::{Causes, invalid, required};
use crate::json::{int, text};
use crate::{Builtin, CellContext, Column, Stored, metadata, names, time};
use serde_json::Value;

pub const EVENT: Builtin = Builtin {
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

pub const EVENT_V1: Builtin = Builtin {
    group: "events.k8s.io",
    selectable: &[
        ("regarding.kind", "/regarding/kind"),
        ("regarding.namespace", "/regarding/namespace"),
        ("regarding.name", "/regarding/name"),
        ("regarding.uid", "/regarding/uid"),
        ("regarding.apiVersion", "/regarding/apiVersion"),
        ("regarding.resourceVersion", "/regarding/resourceVersion"),
        ("regarding.fieldPath", "/regarding/fieldPath"),
        ("reason", "/reason"),
        ("reportingController", "/reportingController"),
        ("type", "/type"),
    ],
    stored: Some(Stored {
        group: "",
        version: "v1",
        load: |event| rename(event, NAMES.iter().copied()),
        store: |event| rename(event, NAMES.iter().map(|(old, new)| (*new, *old))),
    }),
    validate: validate_v1,
    ..EVENT
};

/// What fields are called in core/v1 and in events.k8s.io/v1.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(event: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(fields) = event.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

const COLUMNS: &[Column] = &[
    string("Last Seen", last_seen),
    string("Type", |event, _| text(event, "/type").into()),
    string("Reason", |event, _| text(event, "/reason").into()),
    string("Object", |event, _| object(event).into()),
    wide("Subobject", |event, _| first(event, &["/involvedObject/fieldPath", "/regarding/fieldPath"]).into()),
    wide("Source", |event, _| source(event).into()),
    string("Message", |event, _| first(event, &["/message", "/note"]).trim().into()),
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
    let last = first(
        event,
        &[
            "/series/lastObservedTime",
            "/lastTimestamp",
            "/deprecatedLastTimestamp",
            "/firstTimestamp",
            "/deprecatedFirstTimestamp",
            "/eventTime",
        ],
    );
    time::since(last, context.now).into()
}

fn first_seen(event: &Value, context: &CellContext) -> Value {
    time::since(first(event, &["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]), context.now)
        .into()
}

fn count(event: &Value) -> i64 {
    let count =
        ["/series/count", "/count", "/deprecatedCount"].iter().find_map(|pointer| int(event, pointer));
    count.filter(|c| *c > 0).unwrap_or(1)
}

/// `pod/web-1`.
fn object(event: &Value) -> String {
    let kind = first(event, &["/involvedObject/kind", "/regarding/kind"]).to_lowercase();
    match first(event, &["/involvedObject/name", "/regarding/name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

/// `kubelet, pi-1`.
fn source(event: &Value) -> String {
    let component = first(
        event,
        &["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"],
    );
    match first(event, &["/source/host", "/deprecatedSource/host", "/reportingInstance"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_namespace(new, "/involvedObject/namespace", &mut causes);
    causes
}

fn check_namespace(event: &Value, pointer: &str, causes: &mut Causes) {
    let (own, other) = (text(event, "/metadata/namespace"), text(event, pointer));
    // Events about objects outside namespaces are kept in the default one.
    if own != other && !(other.is_empty() && matches!(own, "default" | "kube-system")) {
        causes.push(invalid("involvedObject.namespace", other, "does not match event.namespace"));
    }
}

/// The newer form asks for more than the older, whose objects it shows all the same.
fn validate_v1(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_namespace(new, "/regarding/namespace", &mut causes);
    if let Some(old) = old {
        for field in
            ["regarding", "reason", "note", "action", "type", "reportingController", "reportingInstance"]
        {
            metadata::immutable(new, Some(old), &format!("/{field}"), field, &mut causes);
        }
        return causes;
    }
    if text(new, "/eventTime").is_empty() {
        causes.push(required("eventTime", ""));
    }
    let controller = text(new, "/reportingController");
    if controller.is_empty() {
        causes.push(required("reportingController", ""));
    } else {
        let faults = names::qualified_name(controller);
        causes.extend(faults.iter().map(|fault| invalid("reportingController", controller, fault)));
    }
    for field in ["reportingInstance", "action", "reason"] {
        match text(new, &format!("/{field}")) {
            "" => causes.push(required(field, "")),
            long if long.len() > 128 => causes.push(invalid(field, long, "can have at most 128 characters")),
            _ => {}
        }
    }
    let (kind, note) = (text(new, "/type"), text(new, "/note"));
    if !["Normal", "Warning"].contains(&kind) {
        causes.push(invalid("type", "", &format!("has invalid value: {kind}")));
    }
    if note.len() > 1024 {
        causes.push(invalid("note", note, "can have at most 1024 characters"));
    }
    if let Some(count) = int(new, "/series/count").filter(|count| *count < 2) {
        causes.push(invalid("series.count", count, "should be at least 2"));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_show_the_same() {
        let context = CellContext { now: 100 };
        let old = json!({"involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec"}, "count": 3,
            "message": "m", "reason": "r", "source": {"component": "kubelet", "host": "pi"},
            "firstTimestamp": "1970-01-01T00:00:10Z", "lastTimestamp": "1970-01-01T00:01:30Z"});
        let mut new = old.clone();
        rename(&mut new, NAMES.iter().copied());
        assert_eq!((&new["note"], &new["regarding"]["name"]), (&json!("m"), &json!("web")));
        for column in COLUMNS {
            assert_eq!((column.cell)(&old, &context), (column.cell)(&new, &context), "{}", column.name);
        }
        rename(&mut new, NAMES.iter().map(|(old, new)| (*new, *old)));
        assert_eq!(new, old);
    }

    #[test]
    fn the_newer_form_asks_for_more() {
        let bare = json!({"metadata": {"name": "e", "namespace": "default"}});
        let fields: Vec<String> = validate_v1(&bare, None).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            ["eventTime", "reportingController", "reportingInstance", "action", "reason", "type"]
        );
        assert_eq!(validate_v1(&bare, Some(&bare)), []);
    }
}
