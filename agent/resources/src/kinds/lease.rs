//! Lease: who holds what, renewed all the time, and so never written to a card.

use super::BASE;
use super::columns::{AGE, NAME, string};
use crate::cause::{Causes, invalid};
use crate::json::{int, text};
use crate::{Builtin, metadata, names};
use serde_json::Value;

pub const LEASE: Builtin = Builtin {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    volatile: true,
    columns: &[NAME, string("Holder", |object, _| text(object, "/spec/holderIdentity").into()), AGE],
    validate,
    ..BASE
};

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    if let Some(seconds) = int(new, "/spec/leaseDurationSeconds").filter(|s| *s <= 0) {
        causes.push(invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(count) = int(new, "/spec/leaseTransitions").filter(|c| *c < 0) {
        causes.push(invalid("spec.leaseTransitions", count, "must be greater than or equal to 0"));
    }
    causes
}
