//! Ephemeral containers: put into a pod that runs, through its subresource alone, and never taken out again.

use crate::cause::{Causes, forbidden, not_found};
use crate::json::{fields, items, text};
use serde_json::Value;

/// What such a container may say; all else is about ports, resources and lives that it does not have.
const ALLOWED: [&str; 17] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

/// Checks those of the specification that stands at `field`, beyond what holds for every container.
pub fn check(spec: &Value, field: &str, causes: &mut Causes) {
    for (i, container) in items(spec, "/ephemeralContainers").iter().enumerate() {
        let own = format!("{field}.ephemeralContainers[{i}]");
        let target = text(container, "/targetContainerName");
        let mut others = ["/containers", "/initContainers"].into_iter().flat_map(|list| items(spec, list));
        if !target.is_empty() && !others.any(|other| text(other, "/name") == target) {
            causes.push(not_found(format!("{own}.targetContainerName"), target));
        }
        let said = fields(container, "").into_iter().flatten();
        for (name, _) in said.filter(|(name, value)| !ALLOWED.contains(&name.as_str()) && !is_nothing(value))
        {
            causes.push(forbidden(format!("{own}.{name}"), "cannot be set for an Ephemeral Container"));
        }
        for (j, mount) in items(container, "/volumeMounts").iter().enumerate() {
            for name in
                ["subPath", "subPathExpr"].into_iter().filter(|n| !text(mount, &format!("/{n}")).is_empty())
            {
                let own = format!("{own}.volumeMounts[{j}].{name}");
                causes.push(forbidden(own, "cannot be set for an Ephemeral Container"));
            }
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Checks that they only become more.
pub fn check_update(new: &Value, old: &Value, causes: &mut Causes) {
    let (list, field) = ("/spec/ephemeralContainers", "spec.ephemeralContainers");
    for container in items(old, list) {
        let name = text(container, "/name");
        match items(new, list).iter().find(|c| text(c, "/name") == name) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                causes.push(forbidden(field, &why));
            }
            Some(kept) if kept != container => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                causes.push(forbidden(field, &why));
            }
            Some(_) => {}
        }
    }
}
