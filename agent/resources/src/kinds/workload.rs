//! What all that keep pods running share: a template and a selector.

use super::pod_spec;
pub use super::pod_spec::Place;
use crate::cause::{Causes, invalid, required};
use crate::json::{Fields, child, counters, default, int, spec, text};
use crate::labels::Selector;
use crate::metadata;
use serde_json::Value;

/// Fills a template in.
pub fn fill_template(spec: &mut Fields) {
    if let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut) {
        fill_pod_template(template);
    }
}

/// Fills a `PodTemplateSpec` in.
pub fn fill_pod_template(template: &mut Fields) {
    child(template, "metadata");
    if let Some(spec) = child(template, "spec") {
        pod_spec::fill(spec);
    }
}

/// A field that must be one of a few words.
pub fn one_of(object: &Value, field: &str, words: &[&str], causes: &mut Causes) {
    pod_spec::one_of(text(object, &pointer(field)), field, words, causes);
}

/// Fills in what keeps a number of equal pods.
pub fn fill_replicas(object: &mut Value) {
    if let Some(spec) = spec(object) {
        default(spec, "replicas", 1);
        fill_template(spec);
    }
    counters(object, &["replicas"]);
}

/// `spec.replicas` and the like are not below nought.
pub fn not_negative(object: &Value, field: &str, causes: &mut Causes) {
    if let Some(number) = int(object, &pointer(field)).filter(|n| *n < 0) {
        causes.push(invalid(field, number, "must be greater than or equal to 0"));
    }
}

/// Checks the template at `spec.template`.
pub fn check_template(object: &Value, place: Place, selector: Option<&Selector>, causes: &mut Causes) {
    check_template_at(object, "spec.template", place, selector, causes);
}

/// Checks the template at this field.
pub fn check_template_at(
    object: &Value,
    field: &str,
    place: Place,
    selector: Option<&Selector>,
    causes: &mut Causes,
) {
    let Some(template) = object.pointer(&pointer(field)).filter(|t| t.is_object()) else {
        causes.push(required(field, ""));
        return;
    };
    let labels = template.pointer("/metadata/labels");
    let labels_field = format!("{field}.metadata.labels");
    if selector.is_some_and(|s| !s.is_empty() && !s.matches(labels)) {
        let shown = labels.cloned().unwrap_or_default();
        let detail = "`selector` does not match template `labels`";
        causes.push(invalid(labels_field.as_str(), shown, detail));
    }
    metadata::labels(template, "/metadata/labels", &labels_field, causes);
    let spec = template.get("spec").unwrap_or(&Value::Null);
    pod_spec::check(spec, &format!("{field}.spec"), place, causes);
}

/// `spec.a.b` as a JSON pointer.
pub fn pointer(field: &str) -> String {
    format!("/{}", field.replace('.', "/"))
}

/// A number, or the number before a percent sign.
pub fn share(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => {
            let digits = text.strip_suffix('%')?;
            if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
        }
        other => other.as_i64(),
    }
}

/// Checks a number or percentage that is there; a percentage may be limited to 100%.
pub fn check_share(value: &Value, field: &str, at_most_all: bool, causes: &mut Causes) {
    match share(value) {
        None => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
                          '1%',  or '93%', regex used for validation is '[0-9]+%')";
            causes.push(invalid(field, value.clone(), detail));
        }
        Some(n) if n < 0 => causes.push(invalid(field, n, "must be greater than or equal to 0")),
        Some(n) if at_most_all && value.is_string() && n > 100 => {
            causes.push(invalid(field, value.clone(), "must not be greater than 100%"));
        }
        Some(_) => {}
    }
}

/// Checks the `LabelSelector` at `spec.selector`, which may not be empty nor change.
pub fn check_selector(new: &Value, old: Option<&Value>, kind: &str, causes: &mut Causes) -> Option<Selector> {
    metadata::immutable(new, old, "/spec/selector", "spec.selector", causes);
    read_selector(new, kind, causes)
}

/// Checks the `LabelSelector` at `spec.selector`, which may not be empty.
pub fn read_selector(new: &Value, kind: &str, causes: &mut Causes) -> Option<Selector> {
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
