//! HorizontalPodAutoscaler: as many pods as there is work. Kept as `autoscaling/v2`; `autoscaling/v1` shows the same
//! objects, with what it has no fields for in annotations.

mod v1;

pub use v1::HORIZONTAL_POD_AUTOSCALER_V1;

use super::BASE;
use super::columns::{AGE, NAME, integer, number, string};
use crate::cause::{Causes, invalid, not_supported, required};
use crate::json::{Fields, child, child_if, counters, default, fields, int, items, spec, text};
use crate::{Builtin, CellContext, Column, Subresource, metadata, names};
use serde_json::{Value, json};

/// Kinds of metrics, with the field that describes each.
const METRICS: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

pub const HORIZONTAL_POD_AUTOSCALER: Builtin = Builtin {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    defaults,
    validate,
    idle: true,
    ..BASE
};

const COLUMNS: &[Column] = &[
    NAME,
    string("Reference", |scaler, _| {
        let of = |name: &str| text(scaler, &format!("/spec/scaleTargetRef/{name}"));
        format!("{}/{}", of("kind"), of("name")).into()
    }),
    string("Targets", targets),
    string("MinPods", |scaler, _| match int(scaler, "/spec/minReplicas") {
        Some(least) => least.to_string().into(),
        None => "<unset>".into(),
    }),
    integer("MaxPods", |scaler, _| number(scaler, "/spec/maxReplicas")),
    integer("Replicas", |scaler, _| number(scaler, "/status/currentReplicas")),
    AGE,
];

/// `cpu: <unknown>/80%`.
fn targets(scaler: &Value, _: &CellContext) -> Value {
    let metrics = items(scaler, "/spec/metrics");
    let current = items(scaler, "/status/currentMetrics");
    if metrics.is_empty() {
        return "<none>".into();
    }
    let shown = metrics.iter().enumerate().map(|(i, metric)| target(metric, current.get(i)));
    let shown: Vec<String> = shown.take(2).collect();
    match metrics.len() - shown.len() {
        0 => shown.join(", ").into(),
        more => format!("{} + {more} more...", shown.join(", ")).into(),
    }
}

fn target(metric: &Value, current: Option<&Value>) -> String {
    let kind = text(metric, "/type");
    let Some((_, field)) = METRICS.iter().find(|(name, _)| *name == kind) else {
        return "<unknown type>".to_owned();
    };
    let source = &metric[field];
    let held = |name: &str| current.map(|c| c[field]["current"][name].clone()).unwrap_or_default();
    let show = |value: Value, suffix: &str| match value {
        Value::String(text) => format!("{text}{suffix}"),
        Value::Number(number) => format!("{number}{suffix}"),
        _ => "<unknown>".to_owned(),
    };
    let (name, suffix) = match text(source, "/target/type") {
        "Utilization" => ("averageUtilization", "%"),
        "AverageValue" => ("averageValue", ""),
        _ => ("value", ""),
    };
    let pair = format!("{}/{}", show(held(name), suffix), show(source["target"][name].clone(), suffix));
    match (kind, name) {
        ("Resource" | "ContainerResource", _) => format!("{}: {pair}", text(source, "/name")),
        ("Object" | "External", "averageValue") => format!("{pair} (avg)"),
        _ => pair,
    }
}

/// What stands for metrics that nobody gave.
fn usual_metrics() -> Value {
    json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}])
}

fn defaults(object: &mut Value) {
    let none = items(object, "/spec/metrics").is_empty();
    if let Some(spec) = spec(object) {
        default(spec, "minReplicas", 1);
        if none {
            spec.insert("metrics".to_owned(), usual_metrics());
        }
        if let Some(behavior) = child_if(spec, "behavior") {
            let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            let share = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            fill_rules(behavior, "scaleUp", json!([pods, share.clone()]));
            fill_rules(behavior, "scaleDown", json!([share]));
            if let Some(up) = child_if(behavior, "scaleUp") {
                default(up, "stabilizationWindowSeconds", 0);
            }
        }
    }
    counters(object, &["currentReplicas", "desiredReplicas"]);
}

fn fill_rules(behavior: &mut Fields, side: &str, policies: Value) {
    if let Some(rules) = child(behavior, side) {
        default(rules, "selectPolicy", "Max");
        default(rules, "policies", policies);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let (least, most) = (int(new, "/spec/minReplicas"), int(new, "/spec/maxReplicas").unwrap_or(0));
    if let Some(least) = least.filter(|least| *least < 1) {
        causes.push(invalid("spec.minReplicas", least, "must be greater than or equal to 1"));
    }
    if most < 1 {
        causes.push(invalid("spec.maxReplicas", most, "must be greater than 0"));
    }
    if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        causes.push(invalid("spec.maxReplicas", most, detail));
    }
    for name in ["kind", "name"] {
        let field = format!("spec.scaleTargetRef.{name}");
        match text(new, &format!("/spec/scaleTargetRef/{name}")) {
            "" => causes.push(required(field, "")),
            value => {
                causes.extend(names::path_segment(value).iter().map(|f| invalid(field.as_str(), value, f)));
            }
        }
    }
    for (i, metric) in items(new, "/spec/metrics").iter().enumerate() {
        check_metric(metric, &format!("spec.metrics[{i}]"), &mut causes);
    }
    for side in ["scaleUp", "scaleDown"] {
        check_rules(new, side, &mut causes);
    }
    causes
}

fn check_metric(metric: &Value, field: &str, causes: &mut Causes) {
    let kind = text(metric, "/type");
    let Some((_, own)) = METRICS.iter().find(|(name, _)| *name == kind) else {
        let words = METRICS.map(|(name, _)| name);
        causes.push(if kind.is_empty() {
            required(format!("{field}.type"), "must specify a metric source type")
        } else {
            not_supported(format!("{field}.type"), kind, &words)
        });
        return;
    };
    let field = format!("{field}.{own}");
    let Some(source) = metric.get(own).filter(|source| source.is_object()) else {
        causes.push(required(field, "must populate information for the given metric source"));
        return;
    };
    let name = if kind.ends_with("Resource") { "/name" } else { "/metric/name" };
    if text(source, name).is_empty() {
        let place = name.trim_start_matches('/').replace('/', ".");
        causes.push(required(format!("{field}.{place}"), "must specify a resource name"));
    }
    let kinds = ["AverageValue", "Utilization", "Value"];
    match text(source, "/target/type") {
        "" => causes.push(required(format!("{field}.target.type"), "must specify a metric target type")),
        found if !kinds.contains(&found) => {
            causes.push(not_supported(format!("{field}.target.type"), found, &kinds));
        }
        _ => {}
    }
    let given = fields(source, "/target").into_iter().flatten();
    if !given.into_iter().any(|(name, value)| name != "type" && !value.is_null()) {
        let detail = "must set either a target raw value or a target utilization";
        causes.push(required(format!("{field}.target"), detail));
    }
    if let Some(share) = int(source, "/target/averageUtilization").filter(|share| *share < 1) {
        let field = format!("{field}.target.averageUtilization");
        causes.push(invalid(field, share, "must be greater than 0"));
    }
}

fn check_rules(scaler: &Value, side: &str, causes: &mut Causes) {
    let field = format!("spec.behavior.{side}");
    let Some(rules) = scaler.pointer(&format!("/spec/behavior/{side}")).filter(|r| r.is_object()) else {
        return;
    };
    if let Some(window) =
        int(rules, "/stabilizationWindowSeconds").filter(|window| !(0..=3600).contains(window))
    {
        let field = format!("{field}.stabilizationWindowSeconds");
        causes.push(invalid(field, window, "must be between 0 and 3600, inclusive"));
    }
    let select = text(rules, "/selectPolicy");
    if !["", "Max", "Min", "Disabled"].contains(&select) {
        let words = ["Disabled", "Max", "Min"];
        causes.push(not_supported(format!("{field}.selectPolicy"), select, &words));
    }
    for (i, policy) in items(rules, "/policies").iter().enumerate() {
        let field = format!("{field}.policies[{i}]");
        let kind = text(policy, "/type");
        if !["Pods", "Percent"].contains(&kind) {
            causes.push(not_supported(format!("{field}.type"), kind, &["Percent", "Pods"]));
        }
        for name in ["value", "periodSeconds"] {
            let number = int(policy, &format!("/{name}")).unwrap_or(0);
            if number < 1 {
                causes.push(invalid(format!("{field}.{name}"), number, "must be greater than zero"));
            } else if name == "periodSeconds" && number > 1800 {
                causes.push(invalid(format!("{field}.{name}"), number, "must be less than or equal to 1800"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_one_is_filled_shown_and_checked() {
        let mut scaler = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5, "behavior": {},
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}}});
        defaults(&mut scaler);
        assert_eq!(validate(&scaler, None), []);
        let context = CellContext { now: 0 };
        assert_eq!(targets(&scaler, &context), "cpu: <unknown>/80%");
        assert_eq!(scaler["spec"]["behavior"]["scaleUp"]["policies"].as_array().map(Vec::len), Some(2));
        scaler["status"]["currentMetrics"] =
            json!([{"type": "Resource", "resource": {"current": {"averageUtilization": 7}}}]);
        assert_eq!(targets(&scaler, &context), "cpu: 7%/80%");
        scaler["spec"]["minReplicas"] = 9.into();
        scaler["spec"]["metrics"] = json!([{"type": "Pods"}, {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "X"}}}]);
        scaler["spec"]["behavior"]["scaleDown"]["policies"] =
            json!([{"type": "Pods", "value": 1, "periodSeconds": 0}]);
        let fields: Vec<String> = validate(&scaler, None).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            [
                "spec.maxReplicas",
                "spec.metrics[0].pods",
                "spec.metrics[1].resource.target.type",
                "spec.metrics[1].resource.target",
                "spec.behavior.scaleDown.policies[0].periodSeconds",
            ]
        );
    }
}
