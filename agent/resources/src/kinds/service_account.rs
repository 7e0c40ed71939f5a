//! ServiceAccount: who a pod is.

use super::BASE;
use super::columns::{AGE, NAME, integer};
use crate::{Builtin, Subresource, json, metadata, names};

pub const SERVICE_ACCOUNT: Builtin = Builtin {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    columns: &[NAME, integer("Secrets", |object, _| json::items(object, "/secrets").len().into()), AGE],
    validate: |new, old| metadata::validate(new, old, names::dns_subdomain),
    ..BASE
};
