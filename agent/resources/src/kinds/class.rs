//! PriorityClass and RuntimeClass: kinds of pods.

use super::BASE;
use super::columns::{AGE, NAME, boolean, integer, number, string, text_at};
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::json::{default, flag, int, text};
use crate::{Builtin, metadata, names};
use serde_json::Value;

/// Above are the priorities of the system's own pods.
const MAX_PRIORITY: i64 = 1_000_000_000;

pub const PRIORITY_CLASS: Builtin = Builtin {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    namespaced: false,
    columns: &[
        NAME,
        integer("Value", |class, _| number(class, "/value")),
        boolean("Global-Default", |class, _| flag(class, "/globalDefault").into()),
        AGE,
        string("PreemptionPolicy", |class, _| text_at(class, "/preemptionPolicy")),
    ],
    defaults: |object| {
        if let Some(class) = object.as_object_mut() {
            default(class, "value", 0);
            default(class, "preemptionPolicy", "PreemptLowerPriority");
        }
    },
    validate: validate_priority,
    ..BASE
};

pub const RUNTIME_CLASS: Builtin = Builtin {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    namespaced: false,
    columns: &[NAME, string("Handler", |class, _| text_at(class, "/handler")), AGE],
    validate: |new, old| {
        let mut causes = metadata::validate(new, old, names::dns_subdomain);
        let handler = text(new, "/handler");
        if handler.is_empty() {
            causes.push(required("handler", ""));
        } else {
            causes.extend(names::dns_label(handler).iter().map(|fault| invalid("handler", handler, fault)));
        }
        metadata::immutable(new, old, "/handler", "handler", &mut causes);
        causes
    },
    idle: true,
    ..BASE
};

fn validate_priority(new: &Value, old: Option<&Value>) -> Causes {
    const POLICIES: [&str; 2] = ["Never", "PreemptLowerPriority"];
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let system = match text(new, "/metadata/name") {
        "system-cluster-critical" => Some(2_000_000_000),
        "system-node-critical" => Some(2_000_001_000),
        _ => None,
    };
    let value = int(new, "/value").unwrap_or(0);
    if system != Some(value) {
        if text(new, "/metadata/name").starts_with("system-") {
            let detail = "priority class names with 'system-' prefix are reserved for system use only";
            causes.push(forbidden("metadata.name", detail));
        }
        if value > MAX_PRIORITY {
            let detail = format!("maximum allowed value of a user defined priority is {MAX_PRIORITY}");
            causes.push(forbidden("value", &detail));
        }
    }
    let policy = text(new, "/preemptionPolicy");
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        causes.push(not_supported("preemptionPolicy", policy, &POLICIES));
    }
    if let Some(old) = old {
        if int(old, "/value") != int(new, "/value") {
            causes.push(forbidden("value", "may not be changed in an update."));
        }
        metadata::immutable(new, Some(old), "/preemptionPolicy", "preemptionPolicy", &mut causes);
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn priorities_stay_and_the_systems_are_its_own() {
        let fields = |name: &str, value: i64, old: Option<&Value>| {
            let class = json!({"metadata": {"name": name}, "value": value});
            validate_priority(&class, old).into_iter().map(|c| c.field).collect::<Vec<_>>()
        };
        assert!(fields("high", 1000, None).is_empty());
        assert!(fields("system-node-critical", 2_000_001_000, None).is_empty());
        assert_eq!(fields("system-mine", 2_000_001_000, None), ["metadata.name", "value"]);
        let old = json!({"metadata": {"name": "high"}, "value": 1000});
        assert_eq!(fields("high", 1001, Some(&old)), ["value"]);
    }
}
