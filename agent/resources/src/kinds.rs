//! Every kind, each in its own file.

mod columns;
mod config;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod lease;
mod namespace;
mod node;
mod pod;
mod pod_columns;
mod pod_spec;
mod replica_set;
mod replication_controller;
mod service;
mod service_account;
mod service_validate;
mod workload;

use crate::Descriptor;
use serde_json::Value;

static ALL: [Descriptor; 15] = [
    pod::POD,
    service::SERVICE,
    endpoints::ENDPOINTS,
    node::NODE,
    namespace::NAMESPACE,
    replication_controller::REPLICATION_CONTROLLER,
    config::CONFIG_MAP,
    config::SECRET,
    service_account::SERVICE_ACCOUNT,
    event::EVENT,
    event::EVENT_V1,
    deployment::DEPLOYMENT,
    replica_set::REPLICA_SET,
    endpoint_slice::ENDPOINT_SLICE,
    lease::LEASE,
];

/// Every kind that is served.
pub fn all() -> &'static [Descriptor] {
    &ALL
}

/// What most descriptors have in common; each overrides what differs.
const BASE: Descriptor = Descriptor {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    volatile: false,
    subresources: &[],
    columns: &[],
    selectable: &[],
    defaults: |_| (),
    validate: |_, _| Vec::new(),
    generation: "",
    stored: None,
    grace: no_grace,
};

fn no_grace(_: &Value) -> Option<i64> {
    None
}

#[cfg(test)]
mod tests;
