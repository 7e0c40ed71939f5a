//! ServiceAccount: who a pod is.

use super::BASE;
use super::columns::{AGE, NAME, integer};
use crate::{Descriptor, json, metadata, names};

pub const SERVICE_ACCOUNT: Descriptor = Descriptor {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    columns: &[NAME, integer("Secrets", |object, _| json::items(object, "/secrets").len().into()), AGE],
    validate: |new, old| metadata::validate(new, old, names::dns_subdomain),
    ..BASE
};
