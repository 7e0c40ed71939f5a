//! ReplicaSet: a number of equal pods.

use super::BASE;
use super::columns::{AGE, CONTAINERS, CURRENT, DESIRED, IMAGES, NAME, READY, SELECTOR};
use super::workload::{Place, check_selector, check_template, fill_replicas, not_negative};
use crate::cause::Causes;
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const REPLICA_SET: Builtin = Builtin {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR],
    selectable: &[("status.replicas", "/status/replicas")],
    defaults: fill_replicas,
    validate,
    generation: "spec",
    ..BASE
};

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    not_negative(new, "spec.replicas", &mut causes);
    not_negative(new, "spec.minReadySeconds", &mut causes);
    let selector = check_selector(new, old, "replicaset", &mut causes);
    check_template(new, Place::Template("ReplicaSet"), selector.as_ref(), &mut causes);
    causes
}
