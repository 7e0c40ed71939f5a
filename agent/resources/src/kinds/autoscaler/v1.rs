//! The older form: one CPU target in a field of its own. The rest goes through annotations, so that nothing is lost
//! when a client of this version writes what one of the newer version wrote.

use super::{HORIZONTAL_POD_AUTOSCALER, validate as validate_v2};
use crate::cause::Causes;
use crate::json::{child, child_if, counters, default, fields, int, items, spec};
use crate::{Builtin, CellContext, Stored};
use serde_json::{Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
/// Annotations for fields of the newer form: the object they are in, the field, the annotation.
const HIDDEN: [(&str, &str, &str); 3] = [
    ("spec", "behavior", "autoscaling.alpha.kubernetes.io/behavior"),
    ("status", "conditions", "autoscaling.alpha.kubernetes.io/conditions"),
    ("status", "currentMetrics", "autoscaling.alpha.kubernetes.io/current-metrics"),
];

pub const HORIZONTAL_POD_AUTOSCALER_V1: Builtin = Builtin {
    version: "v1",
    stored: Some(Stored { group: "autoscaling", version: "v2", load, store }),
    defaults,
    validate,
    columns: &[
        HORIZONTAL_POD_AUTOSCALER.columns[0],
        HORIZONTAL_POD_AUTOSCALER.columns[1],
        super::string("Targets", targets),
        HORIZONTAL_POD_AUTOSCALER.columns[3],
        HORIZONTAL_POD_AUTOSCALER.columns[4],
        HORIZONTAL_POD_AUTOSCALER.columns[5],
        HORIZONTAL_POD_AUTOSCALER.columns[6],
    ],
    ..HORIZONTAL_POD_AUTOSCALER
};

fn newer(scaler: &Value) -> Value {
    let mut newer = scaler.clone();
    store(&mut newer);
    newer
}

fn targets(scaler: &Value, context: &CellContext) -> Value {
    super::targets(&newer(scaler), context)
}

fn defaults(object: &mut Value) {
    let others = fields(object, "/metadata/annotations").is_some_and(|a| a.contains_key(METRICS));
    if let Some(spec) = spec(object) {
        default(spec, "minReplicas", 1);
        if !others {
            default(spec, "targetCPUUtilizationPercentage", 80);
        }
    }
    counters(object, &["currentReplicas", "desiredReplicas"]);
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    validate_v2(&newer(new), old.map(newer).as_ref())
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

fn load(object: &mut Value) {
    let (cpu, others): (Vec<Value>, Vec<Value>) = items(object, "/spec/metrics")
        .iter()
        .cloned()
        .partition(|metric| is_cpu(metric) && int(metric, "/resource/target/averageUtilization").is_some());
    let now = items(object, "/status/currentMetrics").iter().find(|metric| is_cpu(metric));
    let now = now.and_then(|metric| int(metric, "/resource/current/averageUtilization"));
    let mut hidden = Vec::new();
    // One target has a field; whatever else there is, also a second one like it, is kept beside it.
    let rest: Vec<Value> = cpu.iter().skip(1).cloned().chain(others).collect();
    if !rest.is_empty() {
        hidden.push((METRICS, json!(rest)));
    }
    let Some(scaler) = object.as_object_mut() else { return };
    if let Some(spec) = child_if(scaler, "spec") {
        spec.remove("metrics");
        if let Some(share) = cpu.first().and_then(|metric| int(metric, "/resource/target/averageUtilization"))
        {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), share.into());
        }
    }
    for (part, field, annotation) in HIDDEN {
        if let Some(value) = child_if(scaler, part).and_then(|fields| fields.remove(field)) {
            hidden.push((annotation, value));
        }
    }
    if let (Some(now), Some(status)) = (now, child_if(scaler, "status")) {
        status.insert("currentCPUUtilizationPercentage".to_owned(), now.into());
    }
    if !hidden.is_empty()
        && let Some(annotations) = child(scaler, "metadata").and_then(|meta| child(meta, "annotations"))
    {
        let texts = hidden.into_iter().map(|(name, value)| (name.to_owned(), value.to_string().into()));
        annotations.extend(texts);
    }
}

fn store(object: &mut Value) {
    let Some(scaler) = object.as_object_mut() else { return };
    let metrics = unhide(scaler, METRICS);
    for (part, field, annotation) in HIDDEN {
        if let Some(value) = unhide(scaler, annotation)
            && let Some(fields) = child(scaler, part)
        {
            fields.insert(field.to_owned(), value);
        }
    }
    if let Some(status) = child_if(scaler, "status") {
        status.remove("currentCPUUtilizationPercentage");
    }
    let Some(spec) = child_if(scaler, "spec") else { return };
    let cpu = spec.remove("targetCPUUtilizationPercentage").map(|share| {
        json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": share}}})
    });
    let others = metrics.and_then(|metrics| metrics.as_array().cloned()).unwrap_or_default();
    let all: Vec<Value> = cpu.into_iter().chain(others).collect();
    if !all.is_empty() {
        spec.insert("metrics".to_owned(), all.into());
    }
}

/// Takes what an annotation holds.
fn unhide(scaler: &mut crate::json::Fields, name: &str) -> Option<Value> {
    let meta = child_if(scaler, "metadata")?;
    let annotations = child_if(meta, "annotations")?;
    // What somebody else wrote there and cannot be read is theirs.
    let value =
        annotations.get(name).and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok())?;
    annotations.remove(name);
    if annotations.is_empty() {
        meta.remove("annotations");
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_loses_nothing_of_the_newer() {
        let newer = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5, "behavior": {"scaleUp": {"selectPolicy": "Max"}},
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]},
            "status": {"desiredReplicas": 2, "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7}}}]}});
        let mut older = newer.clone();
        load(&mut older);
        assert_eq!(older["spec"]["targetCPUUtilizationPercentage"], 60);
        assert_eq!(older["status"]["currentCPUUtilizationPercentage"], 7);
        assert_eq!(older["metadata"]["annotations"].as_object().map(|a| a.len()), Some(4));
        assert_eq!(older["spec"].get("metrics"), None);
        assert_eq!(targets(&older, &CellContext { now: 0 }), "cpu: 7%/60%, memory: <unknown>/1Gi");
        store(&mut older);
        assert_eq!(older, newer);
    }
}
