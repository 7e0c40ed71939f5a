//! DaemonSet: a pod on every node.

use super::BASE;
use super::columns::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, integer, labels, number, string};
use super::workload::{
    Place, check_selector, check_share, check_template, fill_template, not_negative, share,
};
use crate::cause::{Causes, invalid, not_supported, required};
use crate::json::{child, counters, default, spec, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const DAEMON_SET: Builtin = Builtin {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        integer("Desired", |object, _| number(object, "/status/desiredNumberScheduled")),
        integer("Current", |object, _| number(object, "/status/currentNumberScheduled")),
        integer("Ready", |object, _| number(object, "/status/numberReady")),
        integer("Up-to-date", |object, _| number(object, "/status/updatedNumberScheduled")),
        integer("Available", |object, _| number(object, "/status/numberAvailable")),
        string("Node Selector", |object, _| labels(object, "/spec/template/spec/nodeSelector")),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

fn defaults(object: &mut Value) {
    if let Some(spec) = spec(object) {
        default(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = child(spec, "updateStrategy") {
            default(strategy, "type", "RollingUpdate");
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate")
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", 1);
                default(rolling, "maxSurge", 0);
            }
        }
        fill_template(spec);
    }
    counters(
        object,
        &["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"],
    );
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let selector = check_selector(new, old, "daemonset", &mut causes);
    check_template(new, Place::Template("DaemonSet"), selector.as_ref(), &mut causes);
    not_negative(new, "spec.minReadySeconds", &mut causes);
    check_strategy(new, &mut causes);
    not_negative(new, "spec.revisionHistoryLimit", &mut causes);
    causes
}

fn check_strategy(object: &Value, causes: &mut Causes) {
    const FIELD: &str = "spec.updateStrategy.rollingUpdate";
    match text(object, "/spec/updateStrategy/type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let of = |name: &str| {
                object
                    .pointer(&format!("/spec/updateStrategy/rollingUpdate/{name}"))
                    .cloned()
                    .unwrap_or(0.into())
            };
            let (unavailable, surge) = (of("maxUnavailable"), of("maxSurge"));
            check_share(&unavailable, &format!("{FIELD}.maxUnavailable"), true, causes);
            check_share(&surge, &format!("{FIELD}.maxSurge"), true, causes);
            match (share(&unavailable), share(&surge)) {
                (Some(0), Some(0)) => {
                    causes
                        .push(required(format!("{FIELD}.maxUnavailable"), "cannot be 0 when maxSurge is 0"));
                }
                (Some(a), Some(b)) if a > 0 && b > 0 => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    causes.push(invalid(format!("{FIELD}.maxSurge"), surge, detail));
                }
                _ => {}
            }
        }
        other => causes.push(not_supported("spec.updateStrategy", other, &["RollingUpdate", "OnDelete"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strategies_are_checked() {
        let found = |strategy: Value| {
            let mut causes = Causes::new();
            check_strategy(&json!({"spec": {"updateStrategy": strategy}}), &mut causes);
            causes.into_iter().map(|c| c.field).collect::<Vec<_>>()
        };
        let rolling = |a: Value, b: Value| {
            found(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": a, "maxSurge": b}}))
        };
        assert!(rolling(1.into(), 0.into()).is_empty() && rolling("0%".into(), "10%".into()).is_empty());
        assert_eq!(rolling(0.into(), 0.into()), ["spec.updateStrategy.rollingUpdate.maxUnavailable"]);
        assert_eq!(rolling(1.into(), 1.into()), ["spec.updateStrategy.rollingUpdate.maxSurge"]);
        assert_eq!(rolling("x".into(), 1.into()), ["spec.updateStrategy.rollingUpdate.maxUnavailable"]);
        assert_eq!(found(json!({"type": "Recreate"})), ["spec.updateStrategy"]);
    }
}
