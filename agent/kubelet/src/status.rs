//! A pod's status as the API shows it: a pure function of its machine, its spec and the status before.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::limits::qos_class;
use crate::machine::{Kind, Machine, Step};
use crate::unit::{State, Terminated, Unit};

/// What the status needs besides the machine.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// The pod's address, once it has one.
    pub pod_ip: Option<IpAddr>,
    /// For transition times.
    pub now: Timestamp,
}

/// The status to show, with transition times kept from `before` where nothing changed.
pub fn status(machine: &Machine, pod: &Pod, before: &PodStatus, around: &Surroundings) -> PodStatus {
    let of_kind = |kinds: &[Kind]| -> Option<Vec<ContainerStatus>> {
        let units = machine.units.iter().filter(|unit| kinds.contains(&unit.plan.kind));
        let list: Vec<_> = units.map(|unit| container_status(machine, unit)).collect();
        (!list.is_empty()).then_some(list)
    };
    let phase = phase(machine);
    let pod_ip = around.pod_ip.map(|ip| ip.to_string());
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: machine.failure.as_ref().map(|failure| failure.reason.to_owned()),
        message: machine.failure.as_ref().map(|failure| failure.message.clone()),
        conditions: Some(conditions(machine, pod, before, phase, around.now)),
        init_container_statuses: of_kind(&[Kind::Init, Kind::Sidecar]),
        container_statuses: of_kind(&[Kind::Main]),
        ephemeral_container_statuses: of_kind(&[Kind::Ephemeral]),
        host_ip: around.host_ips.first().map(|ip| ip.to_string()),
        host_ips: Some(around.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        qos_class: Some(qos_class(pod.spec.as_ref()).to_owned()),
        start_time: before.start_time.clone().or(Some(Time(around.now))),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// The pod's phase.
pub fn phase(machine: &Machine) -> &'static str {
    if machine.failure.is_some() && machine.torn_down() {
        return "Failed";
    }
    let mains = || machine.units.iter().filter(|unit| unit.plan.kind == Kind::Main);
    let ended = |unit: &Unit| end_of(machine, unit).map(|end| end.code);
    if machine.units.iter().any(Unit::live) || !machine.ending() {
        let begun = machine.initialized && mains().any(Unit::seen);
        return if begun { "Running" } else { "Pending" };
    }
    let init_failed = machine.units.iter().any(|unit| {
        unit.plan.kind == Kind::Init && !machine.initialized && ended(unit).is_some_and(|code| code != 0)
    });
    if !init_failed && mains().all(|unit| ended(unit) == Some(0)) {
        "Succeeded"
    } else if init_failed
        || machine.failure.is_some()
        || mains().all(|unit| ended(unit).is_some())
        || (machine.torn_down() && mains().any(Unit::seen))
    {
        "Failed"
    } else {
        "Pending"
    }
}

/// How a container ended for good: once the pod ends, waiting for a restart counts as ended.
fn end_of<'a>(machine: &Machine, unit: &'a Unit) -> Option<&'a Terminated> {
    match &unit.state {
        State::Terminated(end) => Some(end),
        State::Waiting { .. } if machine.ending() => unit.last.as_ref(),
        _ => None,
    }
}

fn container_status(machine: &Machine, unit: &Unit) -> ContainerStatus {
    let waiting_end = end_of(machine, unit).filter(|_| matches!(unit.state, State::Waiting { .. }));
    let (state, last) = match (&unit.state, waiting_end) {
        (State::Waiting { .. }, Some(end)) => (terminated(end), None),
        (State::Waiting { reason, message, .. }, None) => {
            (waiting(waiting_reason(machine, unit, reason), message), unit.last.as_ref())
        }
        // Until the next one runs the end of the one before is what there is to see.
        (State::Starting, _) => match &unit.last {
            Some(end) => (terminated(end), None),
            None => (waiting(waiting_reason(machine, unit, "ContainerCreating"), ""), None),
        },
        (State::Running { started_at, .. }, _) => {
            let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, unit.last.as_ref())
        }
        (State::Terminated(end), _) => (terminated(end), unit.last.as_ref().filter(|last| last.id != end.id)),
    };
    let (id, image_id) = match &unit.state {
        State::Running { id, image_id, .. } => (Some(id), Some(image_id)),
        State::Terminated(end) => (Some(&end.id), Some(&end.image_id)),
        _ => (unit.last.as_ref().map(|end| &end.id), unit.last.as_ref().map(|end| &end.image_id)),
    };
    let done_init = unit.plan.kind == Kind::Init && unit.succeeded();
    ContainerStatus {
        name: unit.plan.name.clone(),
        image: unit.plan.image.clone(),
        image_id: image_id.cloned().unwrap_or_default(),
        container_id: id.filter(|id| !id.is_empty()).map(|id| format!("bramble://{id}")),
        ready: unit.ready() || done_init,
        started: Some(unit.has_started()),
        restart_count: i32::try_from(unit.attempt.unwrap_or(0)).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last.map(terminated),
        ..ContainerStatus::default()
    }
}

/// What waits for init containers says so.
fn waiting_reason<'a>(machine: &Machine, unit: &Unit, reason: &'a str) -> &'a str {
    let has_inits = machine.units.iter().any(|unit| matches!(unit.plan.kind, Kind::Init | Kind::Sidecar));
    if reason == "ContainerCreating" && has_inits && (unit.plan.kind != Kind::Main || !machine.initialized) {
        "PodInitializing"
    } else {
        reason
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(end: &Terminated) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id: (!end.id.is_empty()).then(|| format!("bramble://{}", end.id)),
        exit_code: end.code,
        signal: end.signal,
        reason: Some(end.reason.clone()),
        message: (!end.message.is_empty()).then(|| end.message.clone()),
        started_at: end.started_at.map(Time),
        finished_at: end.finished_at.map(Time),
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

struct Verdict {
    kind: &'static str,
    good: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    machine: &Machine,
    pod: &Pod,
    before: &PodStatus,
    phase: &str,
    now: Timestamp,
) -> Vec<PodCondition> {
    let verdicts = verdicts(machine, pod, phase);
    let empty = Vec::new();
    let old = before.conditions.as_ref().unwrap_or(&empty);
    let own = |kind: &str| verdicts.iter().any(|verdict| verdict.kind == kind);
    // Other writers (readiness gates, disruption) keep theirs.
    let foreign = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).unwrap_or(&empty);
    let foreign = foreign.iter().filter(|condition| !own(&condition.type_)).cloned();
    let mine = verdicts.iter().map(|verdict| {
        let status = if verdict.good { "True" } else { "False" };
        let same = old.iter().find(|c| c.type_ == verdict.kind && c.status == status);
        let since = same.and_then(|condition| condition.last_transition_time.clone());
        PodCondition {
            type_: verdict.kind.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.map(str::to_owned),
            message: verdict.message.clone(),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        }
    });
    mine.chain(foreign).collect()
}

fn verdicts(machine: &Machine, pod: &Pod, phase: &str) -> Vec<Verdict> {
    let completed = phase == "Succeeded";
    let names = |units: Vec<&Unit>| units.iter().map(|u| u.plan.name.as_str()).collect::<Vec<_>>().join(" ");
    let serving = machine.units.iter().filter(|u| matches!(u.plan.kind, Kind::Main | Kind::Sidecar));
    let unready: Vec<&Unit> = serving.filter(|unit| !unit.ready()).collect();
    let uninitialized = machine.units.iter().filter(|u| match u.plan.kind {
        Kind::Init => !u.succeeded(),
        Kind::Sidecar => !u.has_started(),
        _ => false,
    });
    let uninitialized: Vec<&Unit> = uninitialized.filter(|_| !machine.initialized).collect();
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let gates_open = gates.into_iter().flatten().all(|gate| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == gate.condition_type && c.status == "True")
    });
    let initialized = uninitialized.is_empty();
    let ready = unready.is_empty() && phase == "Running";
    let not_ready = if completed {
        "PodCompleted"
    } else if phase == "Failed" {
        "PodFailed"
    } else {
        "ContainersNotReady"
    };
    let ready_text =
        (!completed && !ready).then(|| format!("containers with unready status: [{}]", names(unready)));
    let gate_reason = if ready { "ReadinessGatesNotReady" } else { not_ready };
    vec![
        plain("PodReadyToStartContainers", machine.sandbox.step == Step::Done && !machine.torn_down()),
        Verdict {
            kind: "Initialized",
            good: initialized,
            reason: if completed {
                Some("PodCompleted")
            } else {
                (!initialized).then_some("ContainersNotInitialized")
            },
            message: (!initialized)
                .then(|| format!("containers with incomplete status: [{}]", names(uninitialized))),
        },
        Verdict {
            kind: "Ready",
            good: ready && gates_open,
            reason: (!(ready && gates_open)).then_some(gate_reason),
            message: ready_text.clone(),
        },
        Verdict {
            kind: "ContainersReady",
            good: ready,
            reason: (!ready).then_some(not_ready),
            message: ready_text,
        },
        plain("PodScheduled", true),
    ]
}

fn plain(kind: &'static str, good: bool) -> Verdict {
    Verdict { kind, good, reason: None, message: None }
}
