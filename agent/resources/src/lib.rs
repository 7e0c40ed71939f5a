//! What a Kubernetes object is: pure data and rules, without I/O and without a clock.
//!
//! An object is a [`serde_json::Value`] throughout: one engine serves all kinds. A kind is a [`Descriptor`]: names,
//! defaults, validation, selectable fields and Table columns. An object flows in as bytes
//! ([`protobuf::decode`], or JSON), is changed ([`patch`]), held against its fields ([`schema::conform`]), gets its
//! defaults and is validated (the descriptor's functions), and flows out as itself or as a row of a [`table`].
//!
//! Input is hostile: nothing here panics on any value, recursion is bounded, and sizes are bounded where one input
//! could grow into a much bigger one. Nothing here is kept, so nothing has to hold after power loss.

pub mod apply;
mod cause;
pub mod cel;
pub mod custom;
mod descriptor;
pub mod fields;
mod json;
mod kinds;
pub mod labels;
mod marks;
mod metadata;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod table;
pub mod time;

pub use cause::field_path;
pub use descriptor::*;
pub use kinds::{all, cron, measured, validate_ephemeral};

use std::sync::Arc;

/// The built-in kind served at `/apis/<group>/<version>/<plural>` (or `/api/<version>/<plural>` with an empty group).
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Descriptor>> {
    all().iter().find(|d| d.is(group, version, plural))
}

/// The built-in kind an object with this `apiVersion` and `kind` is of.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Arc<Descriptor>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    all().iter().find(|d| d.group == group && d.version == version && d.kind == kind)
}
