//! What goes into a pod's [`Machine`](crate::machine::Machine) and what comes out.

use std::time::Duration;

use jiff::Timestamp;

use crate::unit::{Probe, StartFailure, Terminated};

/// The two clocks: delays follow `mono` (boards without a battery jump in wall time), the status shows `wall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since an arbitrary start.
    pub mono: Duration,
    /// For people.
    pub wall: Timestamp,
}

/// What kind of container decides when it starts and whether the pod waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to completion before the next.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// An ordinary container.
    Main,
    /// Added to a running pod by `kubectl debug`.
    Ephemeral,
}

/// When an ended container starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Always,
    /// When its exit code is not 0.
    OnFailure,
    /// Never.
    Never,
}

/// How often a probe must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Successes in a row that make it good.
    pub success: u32,
    /// Failures in a row that make it bad.
    pub failure: u32,
    /// The probe's own grace period for the stop it causes.
    pub grace: Option<Duration>,
}

/// What a container's spec says that decides anything here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Its name.
    pub name: String,
    /// Its image: a change restarts it.
    pub image: String,
    /// See [`Kind`].
    pub kind: Kind,
    /// See [`Restart`].
    pub restart: Restart,
    /// It has a preStop hook.
    pub pre_stop: bool,
    /// Liveness probe.
    pub liveness: Option<Threshold>,
    /// Readiness probe.
    pub readiness: Option<Threshold>,
    /// Startup probe.
    pub startup: Option<Threshold>,
}

/// What a pod's spec says that decides anything here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `name_namespace(uid)`, for messages.
    pub pod: String,
    /// Init containers and sidecars in order, then the others.
    pub containers: Vec<ContainerPlan>,
    /// terminationGracePeriodSeconds.
    pub grace: Duration,
    /// activeDeadlineSeconds, less what had passed when the machine was made.
    pub deadline: Option<Duration>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The spec as the API has it now.
    Plan(Plan),
    /// The API wants the pod to end within this time.
    Delete(Duration),
    /// The API no longer has the pod.
    Gone,
    /// Volumes are there, or not.
    Volumes(Result<(), String>),
    /// The sandbox is there with its address, or not.
    Sandbox(Result<(), String>),
    /// The container's process runs.
    Started {
        /// Container name.
        container: String,
        /// Container id.
        id: String,
        /// Image id.
        image_id: String,
    },
    /// It could not be started.
    StartFailed {
        /// Container name.
        container: String,
        /// Why.
        why: StartFailure,
    },
    /// It ended.
    Exited {
        /// Container name.
        container: String,
        /// How; its id says which incarnation.
        end: Terminated,
    },
    /// The preStop hook is through (well or not).
    PreStopped {
        /// Container name.
        container: String,
        /// Container id.
        id: String,
    },
    /// A probe was made.
    Probed {
        /// Container name.
        container: String,
        /// Container id.
        id: String,
        /// Which probe.
        probe: Probe,
        /// What it found.
        result: Result<(), String>,
    },
    /// Sandbox, network, volumes and cgroup are gone, or not.
    TornDown(Result<(), String>),
    /// The object is gone from the API.
    Deleted,
    /// What the pod left on disk is gone.
    Removed,
    /// The time asked for by [`Machine::next_wake`] has come.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the volumes; answer [`Event::Volumes`].
    MountVolumes,
    /// Make the sandbox and connect it; answer [`Event::Sandbox`].
    CreateSandbox,
    /// Get the image and start; answer [`Event::Started`] or [`Event::StartFailed`], later [`Event::Exited`].
    Start {
        /// Container name.
        container: String,
        /// Restart count of this incarnation.
        attempt: u32,
    },
    /// Run the preStop hook for at most this long; answer [`Event::PreStopped`].
    PreStop {
        /// Container name.
        container: String,
        /// Container id.
        id: String,
        /// Time there is.
        within: Duration,
    },
    /// Send the image's stop signal, or SIGKILL.
    Signal {
        /// Container name.
        container: String,
        /// Container id.
        id: String,
        /// SIGKILL.
        kill: bool,
    },
    /// Undo sandbox, network, volumes, cgroup; answer [`Event::TornDown`].
    TearDown,
    /// Write the last status and delete the object; answer [`Event::Deleted`].
    DeleteObject,
    /// Remove container records, logs and the pod's folder; answer [`Event::Removed`].
    Remove,
    /// Record a Kubernetes event.
    Emit(Occurrence),
}

/// A Kubernetes event to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// Warning, not Normal.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The container it is about.
    pub container: Option<String>,
}
