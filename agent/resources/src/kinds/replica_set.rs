//! ReplicaSet: a number of equal pods.

use super::BASE;
use super::columns::{AGE, NAME, containers, images, integer, number, selector, wide};
use super::workload::{check_selector, check_template, fill_template, not_negative};
use crate::cause::Causes;
use crate::json::{child, default, spec};
use crate::{Column, Descriptor, Subresource, metadata, names};
use serde_json::Value;

pub const REPLICA_SET: Descriptor = Descriptor {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: COLUMNS,
    selectable: &[("status.replicas", "/status/replicas")],
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

const COLUMNS: &[Column] = &[
    NAME,
    integer("Desired", |object, _| number(object, "/spec/replicas")),
    integer("Current", |object, _| number(object, "/status/replicas")),
    integer("Ready", |object, _| number(object, "/status/readyReplicas")),
    AGE,
    wide("Containers", containers),
    wide("Images", images),
    wide("Selector", |object, _| selector(object, "/spec/selector")),
];

fn defaults(object: &mut Value) {
    if let Some(spec) = spec(object) {
        default(spec, "replicas", 1);
        fill_template(spec);
    }
    if let Some(status) = object.as_object_mut().and_then(|o| child(o, "status")) {
        default(status, "replicas", 0);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    not_negative(new, "spec.replicas", &mut causes);
    not_negative(new, "spec.minReadySeconds", &mut causes);
    let selector = check_selector(new, old, "replicaset", &mut causes);
    check_template(new, selector.as_ref(), &mut causes);
    causes
}
