//! Keys, and what every reconcile gets.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::{
    Config, cidr, cron_job, daemon_set, deployment, disruption, endpoints, furnishing, gc, job, namespace,
    node, podgc, quota, replicas, slices, stateful_set, world::World, write::Outcome,
};

/// Which controller.
// A replication controller is called so.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Controller {
    /// By deployment.
    Deployment,
    /// By replica set.
    ReplicaSet,
    /// By replication controller.
    ReplicationController,
    /// By daemon set.
    DaemonSet,
    /// By stateful set.
    StatefulSet,
    /// By cron job.
    CronJob,
    /// By job.
    Job,
    /// By pod, of a job that may be gone.
    JobOrphan,
    /// Endpoints, by service.
    Endpoints,
    /// Endpoint slices, by service.
    EndpointSlices,
    /// By namespace.
    Namespace,
    /// By budget.
    Disruption,
    /// By quota.
    Quota,
    /// By namespace: what each has.
    Furnishing,
    /// By uid.
    Garbage,
    /// By node.
    NodeLifecycle,
    /// One for all nodes, so that no two allocations run at a time.
    NodeCidr,
    /// By pod.
    PodGarbage,
    /// One for all.
    FinishedPods,
    /// By uid.
    EventTtl,
}

/// One thing to reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) controller: Controller,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(controller: Controller, namespace: &str, name: &str) -> Self {
        Self { controller, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// Why the last try of a key failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What a reconcile may use. Clocks and chance come from here only.
pub(crate) struct Context<'a> {
    pub(crate) world: &'a World,
    pub(crate) config: &'a Config,
    /// For what people read.
    pub(crate) wall: Timestamp,
    /// For what is decided.
    pub(crate) now: Instant,
    pub(crate) rng: &'a mut StdRng,
    pub(crate) failure: Option<&'a Failure>,
}

impl Context<'_> {
    /// The wall clock as the API wants it.
    pub(crate) fn time(&self) -> Time {
        Time(self.wall)
    }
}

/// Decides what a key needs.
pub(crate) fn reconcile(key: &Key, cx: &mut Context<'_>) -> Outcome {
    let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
    match key.controller {
        Controller::Deployment => deployment::reconcile(namespace, name, cx),
        Controller::ReplicaSet => replicas::reconcile_replica_set(namespace, name, cx),
        Controller::ReplicationController => replicas::reconcile_replication_controller(namespace, name, cx),
        Controller::DaemonSet => daemon_set::reconcile(namespace, name, cx),
        Controller::StatefulSet => stateful_set::reconcile(namespace, name, cx),
        Controller::CronJob => cron_job::reconcile(namespace, name, cx),
        Controller::Job => job::reconcile(namespace, name, cx),
        Controller::JobOrphan => job::reconcile_orphan(namespace, name, cx),
        Controller::Endpoints => endpoints::reconcile(namespace, name, cx),
        Controller::EndpointSlices => slices::reconcile(namespace, name, cx),
        Controller::Namespace => namespace::reconcile(name, cx),
        Controller::Disruption => disruption::reconcile(namespace, name, cx),
        Controller::Quota => quota::reconcile(namespace, name, cx),
        Controller::Furnishing => furnishing::reconcile(name, cx),
        Controller::Garbage => gc::reconcile(name, cx),
        Controller::NodeLifecycle => node::reconcile(name, cx),
        Controller::NodeCidr => cidr::reconcile(cx),
        Controller::PodGarbage => podgc::reconcile(namespace, name, cx),
        Controller::FinishedPods => podgc::reconcile_finished(cx),
        Controller::EventTtl => podgc::reconcile_event(name, cx),
    }
}
