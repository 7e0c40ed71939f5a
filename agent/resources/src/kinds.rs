//! Every kind, each in its own file.

mod admission;
mod autoscaler;
mod certificate;
mod class;
mod columns;
mod config;
pub mod cron;
mod cron_job;
mod custom;
mod daemon_set;
mod deployment;
mod disruption_budget;
mod endpoint_slice;
mod endpoints;
mod event;
mod ingress;
mod job;
mod lease;
mod metrics;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
mod pod;
mod pod_columns;
mod pod_spec;
mod quota;
mod rbac;
mod replica_set;
mod replication_controller;
mod revision;
mod service;
mod service_account;
mod service_validate;
mod stateful_set;
mod storage_class;
mod webhook;
mod workload;

pub use pod::validate_ephemeral;

use crate::{Builtin, Descriptor};
use serde_json::Value;
use std::sync::{Arc, LazyLock};

static ALL: &[Builtin] = &[
    pod::POD,
    service::SERVICE,
    endpoints::ENDPOINTS,
    node::NODE,
    namespace::NAMESPACE,
    replication_controller::REPLICATION_CONTROLLER,
    config::CONFIG_MAP,
    config::SECRET,
    service_account::SERVICE_ACCOUNT,
    persistent_volume::PERSISTENT_VOLUME,
    persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    quota::RESOURCE_QUOTA,
    quota::LIMIT_RANGE,
    revision::POD_TEMPLATE,
    event::EVENT,
    event::EVENT_V1,
    deployment::DEPLOYMENT,
    replica_set::REPLICA_SET,
    daemon_set::DAEMON_SET,
    stateful_set::STATEFUL_SET,
    revision::CONTROLLER_REVISION,
    job::JOB,
    cron_job::CRON_JOB,
    autoscaler::HORIZONTAL_POD_AUTOSCALER,
    autoscaler::HORIZONTAL_POD_AUTOSCALER_V1,
    certificate::CERTIFICATE_SIGNING_REQUEST,
    disruption_budget::POD_DISRUPTION_BUDGET,
    network_policy::NETWORK_POLICY,
    ingress::INGRESS,
    ingress::INGRESS_CLASS,
    rbac::ROLE,
    rbac::CLUSTER_ROLE,
    rbac::ROLE_BINDING,
    rbac::CLUSTER_ROLE_BINDING,
    class::PRIORITY_CLASS,
    class::RUNTIME_CLASS,
    storage_class::STORAGE_CLASS,
    endpoint_slice::ENDPOINT_SLICE,
    lease::LEASE,
    custom::CUSTOM_RESOURCE_DEFINITION,
    admission::VALIDATING_ADMISSION_POLICY,
    admission::VALIDATING_ADMISSION_POLICY_BINDING,
    webhook::MUTATING_WEBHOOK_CONFIGURATION,
    webhook::VALIDATING_WEBHOOK_CONFIGURATION,
];

/// Every built-in kind.
pub fn all() -> &'static [Arc<Descriptor>] {
    static DESCRIPTORS: LazyLock<Vec<Arc<Descriptor>>> =
        LazyLock::new(|| ALL.iter().map(|kind| Arc::new(Descriptor::from(kind))).collect());
    &DESCRIPTORS
}

/// Kinds whose objects nobody keeps: they are measured when asked for.
pub fn measured() -> &'static [Arc<Descriptor>] {
    static DESCRIPTORS: LazyLock<[Arc<Descriptor>; 2]> =
        LazyLock::new(|| [&metrics::NODE_METRICS, &metrics::POD_METRICS].map(|kind| Arc::new(kind.into())));
    &*DESCRIPTORS
}

/// What most descriptors have in common; each overrides what differs.
const BASE: Builtin = Builtin {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    volatile: false,
    measured: false,
    subresources: &[],
    columns: &[],
    selectable: &[],
    defaults: |_| (),
    validate: |_, _| Vec::new(),
    generation: "",
    stored: None,
    idle: false,
    grace: no_grace,
};

fn no_grace(_: &Value) -> Option<i64> {
    None
}

#[cfg(test)]
mod tests;
