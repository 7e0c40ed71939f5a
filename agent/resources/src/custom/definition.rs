//! The kind CustomResourceDefinition.

use super::path::Path;
use super::{CLEANUP, structural};
use crate::cause::{Causes, duplicate, forbidden, invalid, not_supported, required};
use crate::json::{child, children, default, flag, items, spec, text};
use crate::{metadata, names};
use serde_json::Value;
use std::collections::BTreeSet;

/// Versions of one definition.
const MAX_VERSIONS: usize = 32;
const MAX_COLUMNS: usize = 64;
const MAX_SELECTABLE: usize = 8;
const APPROVED: &str = "/metadata/annotations/api-approved.kubernetes.io";

/// Fills in names and the way of conversion.
pub fn defaults(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(false)) {
        spec.remove("preserveUnknownFields");
    }
    if let Some(conversion) = child(spec, "conversion") {
        default(conversion, "strategy", "None");
    }
    for version in children(spec, "versions") {
        for flag in ["served", "storage"] {
            version.entry(flag).or_insert(false.into());
        }
    }
    let Some(names) = child(spec, "names") else { return };
    let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !kind.is_empty() {
        default(names, "singular", kind.to_lowercase());
        default(names, "listKind", format!("{kind}List"));
    }
}

/// All that is wrong with a definition.
pub fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let (group, plural) = (text(new, "/spec/group"), text(new, "/spec/names/plural"));
    let name = text(new, "/metadata/name");
    if name != format!("{plural}.{group}") {
        causes.push(invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
    check_group(new, group, &mut causes);
    match text(new, "/spec/scope") {
        "Cluster" | "Namespaced" => {}
        "" => causes.push(required("spec.scope", "")),
        other => causes.push(not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    check_names(new, &mut causes);
    check_versions(new, &mut causes);
    if flag(new, "/spec/preserveUnknownFields") {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        causes.push(invalid("spec.preserveUnknownFields", true, why));
    }
    let strategy = text(new, "/spec/conversion/strategy");
    if strategy != "None" {
        causes.push(not_supported("spec.conversion.strategy", strategy, &["None"]));
    }
    if let Some(old) = old {
        check_change(new, old, &mut causes);
    }
    causes
}

fn check_group(new: &Value, group: &str, causes: &mut Causes) {
    if group.is_empty() {
        causes.push(required("spec.group", ""));
        return;
    }
    causes.extend(names::dns_subdomain(group).iter().map(|fault| invalid("spec.group", group, fault)));
    if !group.contains('.') {
        causes.push(invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    let guarded =
        ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    let approval = text(new, APPROVED);
    let field = "metadata.annotations[api-approved.kubernetes.io]";
    if guarded && approval.is_empty() {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        causes.push(required(field, why));
    } else if guarded && !approval.starts_with("unapproved") && !approval.contains("://") {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111";
        causes.push(invalid(field, approval, why));
    }
}

fn check_names(new: &Value, causes: &mut Causes) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let (name, at) = (text(new, &format!("/spec/names/{field}")), format!("spec.names.{field}"));
        if name.is_empty() {
            causes.push(required(at, ""));
            continue;
        }
        let faults = names::dns_1035_label(&name.to_lowercase());
        let mixed = field.ends_with("ind");
        causes.extend(faults.iter().map(|fault| {
            let case = "may have mixed case, but should otherwise match: ";
            invalid(&at, name, &if mixed { format!("{case}{fault}") } else { fault.clone() })
        }));
        if !mixed && field != "listKind" && name != name.to_lowercase() {
            causes.extend(names::dns_1035_label(name).iter().map(|fault| invalid(&at, name, fault)));
        }
    }
    let (kind, list) = (text(new, "/spec/names/kind"), text(new, "/spec/names/listKind"));
    if !kind.is_empty() && kind == list {
        causes.push(invalid("spec.names.listKind", list, "kind and listKind may not be the same"));
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in items(new, &format!("/spec/names/{field}")).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            let faults = names::dns_1035_label(name);
            causes.extend(faults.iter().map(|f| invalid(format!("spec.names.{field}[{i}]"), name, f)));
        }
    }
}

fn check_versions(new: &Value, causes: &mut Causes) {
    let versions = items(new, "/spec/versions");
    if versions.is_empty() {
        causes.push(required("spec.versions", "must specify at least one version"));
        return;
    }
    if versions.len() > MAX_VERSIONS {
        causes.push(forbidden("spec.versions", &format!("there may be at most {MAX_VERSIONS}")));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, version) in versions.iter().enumerate() {
        let (name, at) = (text(version, "/name"), format!("spec.versions[{i}]"));
        let faults = names::dns_1035_label(name);
        causes.extend(faults.iter().map(|fault| invalid(format!("{at}.name"), name, fault)));
        if !seen.insert(name) {
            causes.push(invalid("spec.versions", name, "must contain unique version names"));
        }
        let warning = text(version, "/deprecationWarning");
        if !warning.is_empty() && !flag(version, "/deprecated") {
            let why = "can only be set for deprecated versions";
            causes.push(invalid(format!("{at}.deprecationWarning"), warning, why));
        }
    }
    if versions.iter().filter(|v| flag(v, "/storage")).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        causes.push(invalid("spec.versions", names_of(versions), why));
    }
    // What all versions have alike upstream speaks of as the definition's own.
    let alike = |field: &str| versions.iter().all(|v| v.get(field) == versions[0].get(field));
    for (i, version) in versions.iter().enumerate() {
        let own = format!("spec.versions[{i}]");
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            causes.push(required(format!("{own}.schema.openAPIV3Schema"), "schemas are required"));
        } else if alike("schema") && i == 0 {
            causes.extend(structural::check(schema, "spec.validation.openAPIV3Schema"));
        } else if !alike("schema") {
            causes.extend(structural::check(schema, &format!("{own}.schema.openAPIV3Schema")));
        }
        let at = |field: &str| if alike(field) { format!("spec.{field}") } else { format!("{own}.{field}") };
        if i == 0 || !alike("subresources") {
            check_scale(version, &at("subresources"), causes);
        }
        if i == 0 || !alike("additionalPrinterColumns") {
            check_columns(version, &at("additionalPrinterColumns"), causes);
        }
        if i == 0 || !alike("selectableFields") {
            check_selectable(version, &at("selectableFields"), causes);
        }
    }
}

fn names_of(versions: &[Value]) -> Value {
    versions.iter().map(|v| v["name"].clone()).collect::<Vec<_>>().into()
}

fn check_scale(version: &Value, path: &str, causes: &mut Causes) {
    let Some(scale) = version.pointer("/subresources/scale").filter(|s| !s.is_null()) else { return };
    let at = |field: &str| format!("{path}.scale.{field}");
    for (field, roots) in [
        ("specReplicasPath", &[".spec."][..]),
        ("statusReplicasPath", &[".status."]),
        ("labelSelectorPath", &[".spec.", ".status."]),
    ] {
        let found = text(scale, &format!("/{field}"));
        if found.is_empty() {
            if field != "labelSelectorPath" {
                causes.push(required(at(field), ""));
            }
            continue;
        }
        let shaped = found.starts_with('.') && !found.contains(['[', ']', ' ']);
        if !shaped || !roots.iter().any(|root| found.starts_with(root)) {
            let under: Vec<&str> = roots.iter().map(|root| root.trim_end_matches('.')).collect();
            let why = format!("should be a json path under {}", under.join(" or "));
            causes.push(invalid(at(field), found, &why));
        }
    }
}

fn check_columns(version: &Value, path: &str, causes: &mut Causes) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 9] =
        ["byte", "date", "date-time", "double", "float", "int32", "int64", "name", "password"];
    let columns = items(version, "/additionalPrinterColumns");
    if columns.len() > MAX_COLUMNS {
        causes.push(forbidden(path, &format!("there may be at most {MAX_COLUMNS}")));
        return;
    }
    for (i, column) in columns.iter().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        if text(column, "/name").is_empty() {
            causes.push(required(at("name"), ""));
        }
        match text(column, "/type") {
            "" => {
                let all = TYPES.join(",");
                causes.push(required(at("type"), &format!("must be one of {all}")));
            }
            kind if !TYPES.contains(&kind) => {
                causes.push(invalid(at("type"), kind, &format!("must be one of {}", TYPES.join(","))));
            }
            _ => {}
        }
        let format = text(column, "/format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let why = format!("must be one of {}", FORMATS.join(","));
            causes.push(invalid(at("format"), format, &why));
        }
        match text(column, "/jsonPath") {
            "" => causes.push(required(at("jsonPath"), "")),
            found => {
                if let Err(why) = Path::parse(found) {
                    causes.push(invalid(at("jsonPath"), found, &why));
                }
            }
        }
    }
}

fn check_selectable(version: &Value, path: &str, causes: &mut Causes) {
    let fields = items(version, "/selectableFields");
    if fields.len() > MAX_SELECTABLE {
        let message = format!("Too many: {}: must have at most {MAX_SELECTABLE} items", fields.len());
        causes.push(crate::Cause { reason: "FieldValueTooMany", message, field: path.to_owned() });
    }
    let mut seen = BTreeSet::new();
    for (i, field) in fields.iter().enumerate() {
        let (found, at) = (text(field, "/jsonPath"), format!("{path}[{i}].jsonPath"));
        if found.is_empty() {
            causes.push(required(at, ""));
            continue;
        }
        if found.contains(['[', ']']) || !found.starts_with('.') || found.starts_with(".metadata") {
            causes.push(invalid(at, found, "must be a simple path to a field that is not in metadata"));
            continue;
        }
        let schema =
            found.split('.').skip(1).try_fold(&version["schema"]["openAPIV3Schema"], |schema, name| {
                schema.get("properties")?.get(name)
            });
        match schema.map(|schema| text(schema, "/type")) {
            Some("string" | "boolean" | "integer") => {}
            Some(_) => {
                let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                causes.push(invalid(&at, found, why));
            }
            None => causes.push(invalid(&at, found, "the field does not exist in the schema")),
        }
        if !seen.insert(found) {
            causes.push(duplicate(at, found));
        }
    }
}

fn check_change(new: &Value, old: &Value, causes: &mut Causes) {
    let established =
        items(old, "/status/conditions").iter().any(|c| c["type"] == "Established" && c["status"] == "True");
    metadata::immutable(new, Some(old), "/spec/group", "spec.group", causes);
    metadata::immutable(new, Some(old), "/spec/names/plural", "spec.names.plural", causes);
    if established {
        metadata::immutable(new, Some(old), "/spec/scope", "spec.scope", causes);
        metadata::immutable(new, Some(old), "/spec/names/kind", "spec.names.kind", causes);
    }
    let there: Vec<&str> = items(new, "/spec/versions").iter().map(|v| text(v, "/name")).collect();
    for (i, stored) in items(new, "/status/storedVersions").iter().filter_map(Value::as_str).enumerate() {
        if !there.contains(&stored) {
            let why = format!(
                "missing from spec.versions; {stored} was previously a storage version, and must remain in \
                 spec.versions until a storage migration ensures no data remains persisted in {stored} and removes \
                 {stored} from status.storedVersions"
            );
            causes.push(invalid(format!("status.storedVersions[{i}]"), stored, &why));
        }
    }
}

/// Marks a definition that is being deleted as waiting for its objects.
pub fn hold(definition: &mut Value) {
    let Some(meta) = definition.as_object_mut().and_then(|fields| child(fields, "metadata")) else { return };
    let finalizers = meta.entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(all) = finalizers.as_array_mut().filter(|all| !all.iter().any(|f| f == CLEANUP)) {
        all.push(CLEANUP.into());
    }
}
