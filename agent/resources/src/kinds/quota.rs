//! ResourceQuota and LimitRange: how much a namespace, and what is in it, may take.

use super::BASE;
use super::columns::{AGE, CREATED_AT, NAME, string};
use super::persistent_volume_claim::amount;
use crate::cause::{Causes, invalid, not_supported};
use crate::json::{child, fields, items, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const RESOURCE_QUOTA: Builtin = Builtin {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Request", |o, _| usage(o, false).into()),
        string("Limit", |o, _| usage(o, true).into()),
        AGE,
    ],
    defaults: |object| {
        if let Some(quota) = object.as_object_mut() {
            child(quota, "spec");
            child(quota, "status");
        }
    },
    validate: validate_quota,
    ..BASE
};

pub const LIMIT_RANGE: Builtin = Builtin {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &["limits"],
    columns: &[NAME, CREATED_AT],
    defaults: default_limits,
    validate: validate_limits,
    ..BASE
};

/// `cpu: 1/2, pods: 3/10`: what is used of what there is.
fn usage(quota: &Value, limits: bool) -> String {
    let show = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "0".to_owned(),
    };
    let hard = fields(quota, "/status/hard").or(fields(quota, "/spec/hard")).into_iter().flatten();
    let used = fields(quota, "/status/used");
    let parts = hard.filter(|(name, _)| name.starts_with("limits.") == limits).map(|(name, value)| {
        format!("{name}: {}/{}", show(used.and_then(|used| used.get(name))), show(Some(value)))
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn check_amounts(object: &Value, pointer: &str, field: &str, causes: &mut Causes) {
    for (name, value) in fields(object, pointer).into_iter().flatten() {
        let own = format!("{field}[{name}]");
        causes.extend(
            names::qualified_name(name).iter().map(|fault| invalid(own.as_str(), name.as_str(), fault)),
        );
        if amount(value).is_some_and(|quantity| quantity.is_negative()) {
            causes.push(invalid(own, value.clone(), "must be greater than or equal to 0"));
        }
    }
}

fn validate_quota(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_amounts(new, "/spec/hard", "spec.hard", &mut causes);
    const SCOPES: [&str; 7] = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    for scope in items(new, "/spec/scopes").iter().filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            causes.push(invalid("spec.scopes", scope, "unsupported scope"));
        }
    }
    if let Some(old) = old
        && new.pointer("/spec/scopes") != old.pointer("/spec/scopes")
    {
        let value = new.pointer("/spec/scopes").cloned().unwrap_or_default();
        causes.push(invalid("spec.scopes", value, "field is immutable"));
    }
    causes
}

/// For containers, a limit stands in for a default, and a default for a request that is not given.
fn default_limits(object: &mut Value) {
    let limits = object.pointer_mut("/spec/limits").and_then(Value::as_array_mut).into_iter().flatten();
    for item in limits.filter(|item| text(item, "/type") == "Container").filter_map(Value::as_object_mut) {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(Value::Object(amounts)) = item.get(from).cloned() else { continue };
            let Some(own) = child(item, to) else { continue };
            for (name, amount) in amounts {
                own.entry(name).or_insert(amount);
            }
        }
    }
}

fn validate_limits(new: &Value, old: Option<&Value>) -> Causes {
    const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    for (i, item) in items(new, "/spec/limits").iter().enumerate() {
        let field = format!("spec.limits[{i}]");
        let kind = text(item, "/type");
        if !TYPES.contains(&kind) && !kind.contains('/') {
            causes.push(not_supported(format!("{field}.type"), kind, &TYPES));
        }
        for name in ["min", "max", "default", "defaultRequest"] {
            check_amounts(item, &format!("/{name}"), &format!("{field}.{name}"), &mut causes);
        }
        check_order(item, &field, &mut causes);
    }
    causes
}

/// min, defaultRequest, default and max do not contradict one another.
fn check_order(item: &Value, field: &str, causes: &mut Causes) {
    for (small, large) in [
        ("min", "max"),
        ("min", "defaultRequest"),
        ("min", "default"),
        ("defaultRequest", "default"),
        ("default", "max"),
    ] {
        for (name, value) in fields(item, &format!("/{small}")).into_iter().flatten() {
            let Some(other) = item.pointer(&format!("/{large}")).and_then(|l| l.get(name)) else { continue };
            let both = (amount(value), amount(other));
            if let (Some(low), Some(high)) = both
                && low.milli_value() > high.milli_value()
            {
                let detail =
                    format!("{small} value {value} is greater than {large} value {other}").replace('"', "");
                causes.push(invalid(format!("{field}.{small}[{name}]"), value.clone(), &detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CellContext;
    use serde_json::json;

    const CONTEXT: CellContext = CellContext { now: 0 };

    #[test]
    fn a_quota_shows_what_is_used() {
        let quota = json!({"spec": {"hard": {"pods": "10", "limits.cpu": "4"}}, "status": {"hard": {"pods": "10",
            "limits.cpu": "4"}, "used": {"pods": "3"}}});
        assert_eq!((RESOURCE_QUOTA.columns[1].cell)(&quota, &CONTEXT), "pods: 3/10");
        assert_eq!((RESOURCE_QUOTA.columns[2].cell)(&quota, &CONTEXT), "limits.cpu: 0/4");
    }

    #[test]
    fn limits_stand_in_for_one_another_and_agree() {
        let mut range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container",
            "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        default_limits(&mut range);
        let item = &range["spec"]["limits"][0];
        assert_eq!(
            (&item["default"], &item["defaultRequest"]),
            (&json!({"cpu": "2"}), &json!({"cpu": "2", "memory": "1Mi"}))
        );
        assert_eq!(validate_limits(&range, None), []);
        range["spec"]["limits"][0]["min"]["cpu"] = "3".into();
        range["spec"]["limits"][0]["type"] = "Thing".into();
        let causes = validate_limits(&range, None);
        assert_eq!(causes[0].field, "spec.limits[0].type");
        assert_eq!(causes[1].message, "Invalid value: \"3\": min value 3 is greater than max value 2");
    }
}
