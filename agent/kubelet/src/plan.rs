//! Reads out of a pod's spec what its [`Machine`](crate::machine::Machine) decides by, and names containers.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Probe};

use crate::machine::{ContainerPlan, Kind, Plan, Restart, Threshold};

const GRACE: i64 = 30;

/// Everything about a pod's containers that decides.
pub fn plan(pod: &Pod, now: Timestamp) -> Plan {
    let spec = pod.spec.clone().unwrap_or_default();
    let policy = restart(spec.restart_policy.as_deref());
    let inits = spec.init_containers.iter().flatten().map(|container| init(container, policy));
    let mains = spec.containers.iter().map(|container| {
        let policy = container.restart_policy.as_deref().map_or(policy, |own| restart(Some(own)));
        container_plan(container, Kind::Main, policy)
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|e| container_plan(&as_container(e), Kind::Ephemeral, Restart::Never));
    Plan {
        pod: title(pod),
        containers: inits.chain(mains).chain(ephemeral).collect(),
        grace: seconds(spec.termination_grace_period_seconds.unwrap_or(GRACE)),
        deadline: spec.active_deadline_seconds.map(|limit| left_of(pod, seconds(limit), now)),
    }
}

/// `name_namespace(uid)`.
pub fn title(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// All containers of a pod with their kinds, ephemeral ones as ordinary ones.
pub fn containers(spec: &PodSpec) -> Vec<(Kind, Container)> {
    let inits = spec.init_containers.iter().flatten().map(|c| (init_kind(c), c.clone()));
    let mains = spec.containers.iter().map(|c| (Kind::Main, c.clone()));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (Kind::Ephemeral, as_container(c)));
    inits.chain(mains).chain(ephemeral).collect()
}

/// The container of that name.
pub fn container(spec: &PodSpec, name: &str) -> Option<Container> {
    containers(spec).into_iter().map(|(_, container)| container).find(|container| container.name == name)
}

fn left_of(pod: &Pod, limit: Duration, now: Timestamp) -> Duration {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let passed = started.map_or(0, |at| now.duration_since(at.0).as_secs().max(0));
    limit.saturating_sub(Duration::from_secs(passed.unsigned_abs()))
}

fn init_kind(container: &Container) -> Kind {
    if container.restart_policy.as_deref() == Some("Always") { Kind::Sidecar } else { Kind::Init }
}

fn init(container: &Container, pod_policy: Restart) -> ContainerPlan {
    let kind = init_kind(container);
    let policy = match (kind, container.restart_policy.as_deref()) {
        (Kind::Sidecar, _) => Restart::Always,
        (_, Some(own)) => restart(Some(own)),
        (_, None) if pod_policy == Restart::Never => Restart::Never,
        (_, None) => Restart::OnFailure,
    };
    container_plan(container, kind, policy)
}

fn container_plan(container: &Container, kind: Kind, restart: Restart) -> ContainerPlan {
    // Only what keeps running is probed.
    let probed = matches!(kind, Kind::Main | Kind::Sidecar);
    let threshold_of = |probe: &Option<Probe>| probe.as_ref().filter(|_| probed).map(threshold);
    ContainerPlan {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        kind,
        restart,
        pre_stop: container.lifecycle.as_ref().is_some_and(|hooks| hooks.pre_stop.is_some()),
        liveness: threshold_of(&container.liveness_probe),
        readiness: threshold_of(&container.readiness_probe),
        startup: threshold_of(&container.startup_probe),
    }
}

fn threshold(probe: &Probe) -> Threshold {
    let count = |value: Option<i32>, default: u32| {
        value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    Threshold {
        success: count(probe.success_threshold, 1),
        failure: count(probe.failure_threshold, 3),
        grace: probe.termination_grace_period_seconds.map(seconds),
    }
}

fn restart(policy: Option<&str>) -> Restart {
    match policy {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        _ => Restart::Always,
    }
}

/// A count of seconds from the API; negative ones are none.
pub fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

fn as_container(from: &EphemeralContainer) -> Container {
    Container {
        args: from.args.clone(),
        command: from.command.clone(),
        env: from.env.clone(),
        env_from: from.env_from.clone(),
        image: from.image.clone(),
        image_pull_policy: from.image_pull_policy.clone(),
        name: from.name.clone(),
        resources: from.resources.clone(),
        security_context: from.security_context.clone(),
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path.clone(),
        termination_message_policy: from.termination_message_policy.clone(),
        tty: from.tty,
        volume_mounts: from.volume_mounts.clone(),
        working_dir: from.working_dir.clone(),
        ..Container::default()
    }
}
