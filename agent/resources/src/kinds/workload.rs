//! What all that keep pods running share: a template and a selector.

use super::pod_spec::{self, Place};
use crate::cause::{Causes, invalid, required};
use crate::json::{Fields, child, default, int, spec};
use crate::labels::Selector;
use crate::metadata;
use serde_json::Value;

/// Fills a template in.
pub fn fill_template(spec: &mut Fields) {
    if let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut) {
        child(template, "metadata");
        if let Some(spec) = child(template, "spec") {
            pod_spec::fill(spec);
        }
    }
}

/// Fills in what keeps a number of equal pods.
pub fn fill_replicas(object: &mut Value) {
    if let Some(spec) = spec(object) {
        default(spec, "replicas", 1);
        fill_template(spec);
    }
    if let Some(status) = object.as_object_mut().and_then(|o| child(o, "status")) {
        default(status, "replicas", 0);
    }
}

/// `spec.replicas` and the like are not below nought.
pub fn not_negative(object: &Value, field: &str, causes: &mut Causes) {
    let pointer = format!("/{}", field.replace('.', "/"));
    if let Some(number) = int(object, &pointer).filter(|n| *n < 0) {
        causes.push(invalid(field, number, "must be greater than or equal to 0"));
    }
}

/// Checks the template at `spec.template`.
pub fn check_template(object: &Value, selector: Option<&Selector>, causes: &mut Causes) {
    let Some(template) = object.pointer("/spec/template").filter(|t| t.is_object()) else {
        causes.push(required("spec.template", ""));
        return;
    };
    let labels = template.pointer("/metadata/labels");
    if selector.is_some_and(|s| !s.is_empty() && !s.matches(labels)) {
        let shown = labels.cloned().unwrap_or_default();
        let detail = "`selector` does not match template `labels`";
        causes.push(invalid("spec.template.metadata.labels", shown, detail));
    }
    metadata::labels(template, "/metadata/labels", "spec.template.metadata.labels", causes);
    let spec = template.get("spec").unwrap_or(&Value::Null);
    pod_spec::check(spec, "spec.template.spec", Place::Template, causes);
}

/// Checks the `LabelSelector` at `spec.selector`, which may not be empty nor change.
pub fn check_selector(new: &Value, old: Option<&Value>, kind: &str, causes: &mut Causes) -> Option<Selector> {
    metadata::immutable(new, old, "/spec/selector", "spec.selector", causes);
    let Some(value) = new.pointer("/spec/selector").filter(|s| !s.is_null()) else {
        causes.push(required("spec.selector", ""));
        return None;
    };
    match Selector::from_label_selector(value) {
        Ok(selector) => {
            if selector.is_empty() {
                let detail = format!("empty selector is invalid for {kind}");
                causes.push(invalid("spec.selector", value.clone(), &detail));
            }
            Some(selector)
        }
        Err(error) => {
            causes.push(invalid("spec.selector", value.clone(), &error.to_string()));
            None
        }
    }
}
