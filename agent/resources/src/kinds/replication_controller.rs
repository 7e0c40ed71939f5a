//! ReplicationController: what a ReplicaSet was in 2016.

use super::BASE;
use super::columns::{AGE, CONTAINERS, CURRENT, DESIRED, IMAGES, NAME, READY, labels, wide};
use super::workload::{Place, check_template, fill_replicas, not_negative};
use crate::cause::{Causes, required};
use crate::json::{child, fields};
use crate::labels::Selector;
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const REPLICATION_CONTROLLER: Builtin = Builtin {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: &[
        NAME,
        DESIRED,
        CURRENT,
        READY,
        AGE,
        CONTAINERS,
        IMAGES,
        wide("Selector", |object, _| labels(object, "/spec/selector")),
    ],
    selectable: &[("status.replicas", "/status/replicas")],
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

/// The template's labels stand in for a selector and labels that are not given.
fn defaults(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").filter(|l| l.is_object()).cloned();
    if let (Some(labels), Some(controller)) = (labels, object.as_object_mut()) {
        for (parent, name) in [("spec", "selector"), ("metadata", "labels")] {
            if let Some(own) = child(controller, parent).and_then(|p| child(p, name))
                && own.is_empty()
            {
                own.extend(labels.as_object().cloned().unwrap_or_default());
            }
        }
    }
    fill_replicas(object);
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    not_negative(new, "spec.replicas", &mut causes);
    not_negative(new, "spec.minReadySeconds", &mut causes);
    if fields(new, "/spec/selector").is_none_or(|s| s.is_empty()) {
        causes.push(required("spec.selector", ""));
    }
    let selector = Selector::from_map(new.pointer("/spec/selector").unwrap_or(&Value::Null));
    check_template(new, Place::Template("ReplicationController"), Some(&selector), &mut causes);
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_template_gives_the_selector() {
        let mut controller = json!({"metadata": {"name": "web"}, "spec": {"template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}}});
        defaults(&mut controller);
        assert_eq!(controller["spec"]["selector"], json!({"app": "web"}));
        assert_eq!(controller["metadata"]["labels"], json!({"app": "web"}));
        assert_eq!(controller["spec"]["replicas"], 1);
        assert_eq!(validate(&controller, None), []);
        controller["spec"]["selector"] = json!({"app": "other"});
        assert_eq!(validate(&controller, None)[0].field, "spec.template.metadata.labels");
    }
}
