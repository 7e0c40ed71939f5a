//! What the server says of a definition: whether its names are free, and whether its kind is served.

use crate::json::{child, items, text};
use serde_json::{Value, json};

/// Where names are compared: the field, and the reason that a taken one gives.
const NAMES: [(&str, &str); 4] = [
    ("plural", "PluralConflict"),
    ("singular", "SingularConflict"),
    ("kind", "KindConflict"),
    ("listKind", "ListKindConflict"),
];

/// Names of this definition that another kind of its group has: why it is not accepted, if so.
fn conflicts(new: &Value, others: &[Value]) -> Option<(&'static str, String)> {
    let group = text(new, "/spec/group");
    let others = others.iter().filter(|other| {
        text(other, "/spec/group") == group && text(other, "/metadata/name") != text(new, "/metadata/name")
    });
    let mut taken: Vec<String> = Vec::new();
    let mut kinds: Vec<String> = Vec::new();
    for other in others {
        let own = |field: &str| text(other, &format!("/status/acceptedNames/{field}")).to_owned();
        taken.extend([own("plural"), own("singular")]);
        let short = items(other, "/status/acceptedNames/shortNames");
        taken.extend(short.iter().filter_map(Value::as_str).map(str::to_owned));
        kinds.extend([own("kind"), own("listKind")]);
    }
    for kind in crate::all().iter().filter(|kind| kind.group == group) {
        taken.extend([kind.plural.to_string(), kind.singular.to_string()]);
        taken.extend(kind.short_names.iter().map(ToString::to_string));
        kinds.extend([kind.kind.to_string(), kind.list_kind.to_string()]);
    }
    for (field, reason) in NAMES {
        let name = text(new, &format!("/spec/names/{field}"));
        let among = if field.ends_with("ind") { &kinds } else { &taken };
        if !name.is_empty() && among.iter().any(|other| other == name) {
            return Some((reason, format!("{name:?} is already in use")));
        }
    }
    let mut short = items(new, "/spec/names/shortNames").iter().filter_map(Value::as_str);
    let found = short.find(|name| taken.iter().any(|other| other == name))?;
    Some(("ShortNamesConflict", format!("{found:?} is already in use")))
}

/// Sets a definition's status: names, versions that objects were kept as, conditions. `others`: all definitions.
pub fn settle(new: &mut Value, others: &[Value], now: &str) {
    let conflict = conflicts(new, others);
    let deleting = !text(new, "/metadata/deletionTimestamp").is_empty();
    let names = new["spec"]["names"].clone();
    let storage =
        items(new, "/spec/versions").iter().find(|v| v["storage"] == true).map(|v| v["name"].clone());
    let before = condition_holds(new, "Established");
    let Some(status) = new.as_object_mut().and_then(|fields| child(fields, "status")) else { return };
    if conflict.is_none() {
        status.insert("acceptedNames".to_owned(), names);
    } else {
        status.entry("acceptedNames").or_insert_with(|| json!({"plural": "", "kind": ""}));
    }
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let (Some(all), Some(storage)) = (stored.as_array_mut(), storage)
        && !all.contains(&storage)
    {
        all.push(storage);
    }
    let (accepted, reason, message) = match &conflict {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => ("False", *reason, message.clone()),
    };
    set(status, "NamesAccepted", accepted, reason, &message, now);
    // Once established, a kind stays so.
    let (established, reason, message) = if before || conflict.is_none() {
        ("True", "InitialNamesAccepted", "the initial names have been accepted")
    } else {
        ("False", "NotAccepted", "not all names are accepted")
    };
    set(status, "Established", established, reason, message, now);
    if deleting {
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        set(status, "Terminating", "True", "InstanceDeletionPending", message, now);
    }
}

fn condition_holds(definition: &Value, kind: &str) -> bool {
    items(definition, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Sets a condition; its time is when it last turned.
fn set(status: &mut crate::json::Fields, kind: &str, value: &str, reason: &str, message: &str, now: &str) {
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(all) = conditions.as_array_mut() else { return };
    let found = all.iter().position(|c| c["type"] == kind);
    let since = found
        .map(|at| &all[at])
        .filter(|c| c["status"] == value)
        .and_then(|c| c["lastTransitionTime"].as_str())
        .unwrap_or(now);
    let condition = json!({"type": kind, "status": value, "lastTransitionTime": since, "reason": reason, "message": message});
    match found {
        Some(at) => all[at] = condition,
        None => all.push(condition),
    }
}
