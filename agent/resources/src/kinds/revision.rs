//! ControllerRevision and PodTemplate: what a controller remembers of a template.

use super::BASE;
use super::columns::{AGE, NAME, integer, labels, number, or_none, string};
use super::pod_spec;
use super::workload::fill_pod_template;
use crate::cause::{Causes, invalid, required};
use crate::json::{child, default, int, items, text};
use crate::{Builtin, CellContext, metadata, names};
use serde_json::Value;

pub const CONTROLLER_REVISION: Builtin = Builtin {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    columns: &[
        NAME,
        string("Controller", controller),
        integer("Revision", |o, _| number(o, "/revision")),
        AGE,
    ],
    defaults: |object| {
        if let Some(revision) = object.as_object_mut() {
            default(revision, "revision", 0);
        }
    },
    validate: validate_revision,
    ..BASE
};

pub const POD_TEMPLATE: Builtin = Builtin {
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    columns: &[
        NAME,
        string("Containers", |object, _| of_containers(object, "/name")),
        string("Images", |object, _| of_containers(object, "/image")),
        string("Pod Labels", |object, _| labels(object, "/template/metadata/labels")),
    ],
    defaults: |object| {
        if let Some(template) = object.as_object_mut().and_then(|o| child(o, "template")) {
            fill_pod_template(template);
        }
    },
    validate: validate_template,
    generation: "template",
    ..BASE
};

/// `statefulset.apps/web`.
fn controller(revision: &Value, _: &CellContext) -> Value {
    let owners = items(revision, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|o| o["controller"] == true) else { return or_none("") };
    let kind = text(owner, "/kind").to_lowercase();
    let name = text(owner, "/name");
    match text(owner, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{name}").into(),
        None => format!("{kind}/{name}").into(),
    }
}

fn of_containers(object: &Value, pointer: &str) -> Value {
    let all = items(object, "/template/spec/containers").iter();
    all.map(|c| text(c, pointer)).collect::<Vec<_>>().join(",").into()
}

fn validate_revision(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    if new.get("data").is_none_or(Value::is_null) {
        causes.push(required("data", "data is mandatory"));
    }
    if let Some(number) = int(new, "/revision").filter(|n| *n < 0) {
        causes.push(invalid("revision", number, "must be greater than or equal to 0"));
    }
    metadata::immutable(new, old, "/data", "data", &mut causes);
    causes
}

fn validate_template(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    metadata::labels(new, "/template/metadata/labels", "template.labels", &mut causes);
    let spec = new.pointer("/template/spec").unwrap_or(&Value::Null);
    pod_spec::check(spec, "template.spec", pod_spec::Place::Pod, &mut causes);
    causes
}
