//! PersistentVolumeClaim: storage that a pod asks for.

use super::BASE;
use super::columns::{AGE, NAME, access_modes, string, text_at, wide};
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::json::{Fields, child, default, items, text};
use crate::labels::Selector;
use crate::quantity::Quantity;
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

pub const PERSISTENT_VOLUME_CLAIM: Builtin = Builtin {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Status", |claim, _| {
            let leaving = !text(claim, "/metadata/deletionTimestamp").is_empty();
            if leaving { "Terminating".into() } else { text_at(claim, "/status/phase") }
        }),
        string("Volume", |claim, _| text_at(claim, "/spec/volumeName")),
        string("Capacity", |claim, _| text_at(claim, "/status/capacity/storage")),
        string("Access Modes", |claim, _| access_modes(claim, "/status/accessModes")),
        string("StorageClass", |claim, _| text_at(claim, "/spec/storageClassName")),
        string("VolumeAttributesClass", |claim, _| match text(claim, "/spec/volumeAttributesClassName") {
            "" => "<unset>".into(),
            name => name.into(),
        }),
        AGE,
        wide("VolumeMode", |claim, _| text_at(claim, "/spec/volumeMode")),
    ],
    defaults: |object| {
        if let Some(claim) = object.as_object_mut() {
            fill(claim);
        }
    },
    validate,
    idle: true,
    ..BASE
};

/// Fills a claim in, also one in a template.
pub fn fill(claim: &mut Fields) {
    if let Some(spec) = child(claim, "spec") {
        default(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = child(claim, "status") {
        default(status, "phase", "Pending");
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_spec(new, "", &mut causes);
    if let Some(old) = old
        && fixed(new, old) != fixed(old, old)
    {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                      bound claims";
        causes.push(forbidden("spec", detail));
    }
    causes
}

/// The specification without what may change: the volume is chosen once, a bound claim may grow.
fn fixed(claim: &Value, old: &Value) -> Fields {
    let mut spec = claim.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    if text(old, "/spec/volumeName").is_empty() {
        spec.remove("volumeName");
    }
    if text(old, "/status/phase") == "Bound" {
        spec.remove("volumeAttributesClassName");
        if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
            resources.remove("requests");
        }
    }
    spec
}

/// Checks the specification of a claim; `field` is where the claim stands.
pub fn check_spec(claim: &Value, field: &str, causes: &mut Causes) {
    let of =
        |name: &str| if field.is_empty() { format!("spec.{name}") } else { format!("{field}.spec.{name}") };
    check_access_modes(claim, &of("accessModes"), causes);
    if let Some(selector) = claim.pointer("/spec/selector").filter(|s| !s.is_null())
        && let Err(error) = Selector::from_label_selector(selector)
    {
        causes.push(invalid(of("selector"), selector.clone(), &error.to_string()));
    }
    let asked = claim.pointer("/spec/resources/requests/storage");
    match asked.map(|value| (value, amount(value))) {
        None => causes.push(required(of("resources[storage]"), "")),
        Some((value, Some(quantity))) if quantity.is_zero() || quantity.is_negative() => {
            causes.push(invalid(of("resources[storage]"), value.clone(), "must be greater than zero"));
        }
        _ => {}
    }
    let class = text(claim, "/spec/storageClassName");
    if !class.is_empty() {
        let faults = names::dns_subdomain(class);
        causes.extend(faults.iter().map(|fault| invalid(of("storageClassName"), class, fault)));
    }
    let mode = text(claim, "/spec/volumeMode");
    if !mode.is_empty() && !VOLUME_MODES.contains(&mode) {
        causes.push(not_supported(of("volumeMode"), mode, &VOLUME_MODES));
    }
}

/// A quantity, written as a text or a number.
pub fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        other => Quantity::parse(&other.to_string()).ok(),
    }
}

/// Checks `spec.accessModes`.
pub fn check_access_modes(object: &Value, field: &str, causes: &mut Causes) {
    let modes = items(object, "/spec/accessModes");
    if modes.is_empty() {
        causes.push(required(field, "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter_map(Value::as_str).filter(|mode| !ACCESS_MODES.contains(mode)) {
        causes.push(not_supported(field, mode, &ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        causes.push(forbidden(field, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_asks_for_room_and_keeps_what_it_asked_for() {
        let mut old = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        (PERSISTENT_VOLUME_CLAIM.defaults)(&mut old);
        assert_eq!(validate(&old, None), []);
        let mut new = old.clone();
        new["spec"]["volumeName"] = "pv".into();
        assert_eq!(validate(&new, Some(&old)), []);
        new["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        assert_eq!(validate(&new, Some(&old))[0].field, "spec");
        old["status"]["phase"] = "Bound".into();
        assert_eq!(validate(&new, Some(&old)), []);
        let bad = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["Any", "ReadWriteOncePod"],
            "volumeMode": "Tape", "resources": {"requests": {"storage": "0"}}}});
        let fields: Vec<String> = validate(&bad, None).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            ["spec.accessModes", "spec.accessModes", "spec.resources[storage]", "spec.volumeMode"]
        );
    }
}
