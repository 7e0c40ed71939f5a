//! CustomResourceDefinition: a kind of which each object is a kind.

use super::BASE;
use super::columns::{CREATED_AT, NAME};
use crate::custom::definition;
use crate::{Builtin, Subresource};

pub const CUSTOM_RESOURCE_DEFINITION: Builtin = Builtin {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[NAME, CREATED_AT],
    defaults: definition::defaults,
    validate: definition::validate,
    generation: "spec",
    ..BASE
};
