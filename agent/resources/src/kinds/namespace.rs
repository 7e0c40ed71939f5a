//! Namespace: where objects live.

use super::BASE;
use super::columns::{AGE, NAME, string};
use crate::cause::{Causes, invalid};
use crate::json::{child, default, items, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::{Value, json};

pub const NAMESPACE: Builtin = Builtin {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Finalize],
    columns: &[NAME, string("Status", |object, _| text(object, "/status/phase").into()), AGE],
    selectable: &[("status.phase", "/status/phase"), ("name", "/metadata/name")],
    defaults,
    validate,
    ..BASE
};

fn defaults(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    let leaving = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    let Some(namespace) = object.as_object_mut() else { return };
    if !name.is_empty()
        && let Some(labels) = child(namespace, "metadata").and_then(|m| child(m, "labels"))
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
    // A namespace on its way out loses its finalizer for good.
    if !leaving && let Some(spec) = child(namespace, "spec") {
        default(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = child(namespace, "status") {
        default(status, "phase", "Active");
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_label);
    for (i, finalizer) in items(new, "/spec/finalizers").iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let field = format!("spec.finalizers[{i}]");
        causes.extend(names::qualified_name(name).iter().map(|f| invalid(field.as_str(), name, f)));
        if !name.contains('/') && name != "kubernetes" {
            causes.push(invalid(
                field,
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_labelled_and_active() {
        let mut namespace = json!({"metadata": {"name": "home"}});
        defaults(&mut namespace);
        let expected = json!({
            "metadata": {"name": "home", "labels": {"kubernetes.io/metadata.name": "home"}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        assert_eq!(namespace, expected);
        assert_eq!(validate(&namespace, None), []);
    }

    #[test]
    fn names_are_labels() {
        let causes = validate(&json!({"metadata": {"name": "a.b"}}), None);
        assert_eq!(causes[0].field, "metadata.name");
    }
}
