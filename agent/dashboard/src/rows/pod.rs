//! Pods. The status column is the one word that says most: a container's reason where there is one, else the phase.

use super::{Row, Tone};
use crate::known::{Known, Table};
use crate::text::{Moment, word, word_or_empty};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};
use serde::Serialize;

/// A line of the pod table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Ready containers of all, `1/2`.
    pub(crate) ready: String,
    pub(crate) status: String,
    pub(crate) phase: String,
    pub(crate) restart_count: u64,
    pub(crate) node_name: String,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: String,
    pub(crate) creation_timestamp: Moment,
    #[serde(skip)]
    all_ready: bool,
}

impl PodRow {
    /// Whether it has neither succeeded nor failed.
    pub(crate) fn is_active(&self) -> bool {
        !matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(crate) fn tone(&self) -> Tone {
        match self.status.as_str() {
            "Running" if self.all_ready => Tone::Good,
            "Running" | "Pending" | "ContainerCreating" | "PodInitializing" | "Terminating" => Tone::Busy,
            "Completed" | "Succeeded" => Tone::Quiet,
            status if is_plain_init(status) => Tone::Busy,
            _ => Tone::Bad,
        }
    }
}

/// `Init:1/3`, as long as nothing went wrong there.
fn is_plain_init(status: &str) -> bool {
    let counts = status.strip_prefix("Init:").and_then(|counts| counts.split_once('/'));
    counts.is_some_and(|(done, all)| done.parse::<u32>().is_ok() && all.parse::<u32>().is_ok())
}

impl Row for PodRow {
    type Object = Pod;

    fn new(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let wanted = pod.spec.as_ref().map_or(0, |spec| spec.containers.len()).max(containers.len());
        let ready = containers.iter().filter(|container| container.ready).count();
        let inits = status.init_container_statuses.as_deref().unwrap_or_default();
        let restarts = inits.iter().chain(containers).map(|c| u64::try_from(c.restart_count).unwrap_or(0));
        Self {
            namespace: word_or_empty(pod.metadata.namespace.as_deref()),
            name: word_or_empty(pod.metadata.name.as_deref()),
            ready: format!("{ready}/{wanted}"),
            status: word(&state(pod, &status)),
            phase: word_or_empty(status.phase.as_deref()),
            restart_count: restarts.sum(),
            node_name: word_or_empty(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())),
            pod_ip: word_or_empty(status.pod_ip.as_deref()),
            creation_timestamp: pod.metadata.creation_timestamp.as_ref().into(),
            all_ready: ready == wanted,
        }
    }

    fn table(known: &mut Known) -> &mut Table<Self> {
        &mut known.pods
    }
}

fn state(pod: &Pod, status: &PodStatus) -> String {
    let phase = status.phase.as_deref().unwrap_or("Unknown");
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".to_owned();
    }
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let wanted = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).map_or(0, Vec::len);
    if phase == "Pending"
        && let Some(init) = init_state(inits, wanted.max(inits.len()))
    {
        return init;
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let outcome = status.reason.clone().or_else(|| containers.iter().rev().find_map(trouble));
    match outcome {
        // One container of several that is done does not make the pod done.
        Some(reason) if reason == "Completed" && containers.iter().any(is_running) => phase.to_owned(),
        Some(reason) => reason,
        None => phase.to_owned(),
    }
}

/// Why a container does not run; nothing if it does, or if nothing is known of it.
fn trouble(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    waiting(state).or_else(|| ended(state))
}

fn waiting(state: &ContainerState) -> Option<String> {
    state.waiting.as_ref()?.reason.clone().filter(|reason| !reason.is_empty())
}

fn ended(state: &ContainerState) -> Option<String> {
    let end = state.terminated.as_ref()?;
    let reason = end.reason.clone().filter(|reason| !reason.is_empty());
    let signal = end.signal.filter(|signal| *signal != 0);
    Some(reason.unwrap_or_else(|| match signal {
        Some(signal) => format!("Signal:{signal}"),
        None => format!("ExitCode:{}", end.exit_code),
    }))
}

fn is_running(container: &ContainerStatus) -> bool {
    container.ready && container.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// The first init container that is not done, as `Init:...`; nothing when all are.
fn init_state(inits: &[ContainerStatus], wanted: usize) -> Option<String> {
    let done = |init: &&ContainerStatus| {
        let state = init.state.as_ref();
        let succeeded =
            state.and_then(|state| state.terminated.as_ref()).is_some_and(|end| end.exit_code == 0);
        succeeded || (init.started == Some(true) && init.ready)
    };
    let count = inits.iter().take_while(done).count();
    if count == wanted {
        return None;
    }
    let progress = format!("Init:{count}/{wanted}");
    let Some(state) = inits.get(count).and_then(|init| init.state.as_ref()) else { return Some(progress) };
    let reason = waiting(state).filter(|reason| reason != "PodInitializing").or_else(|| ended(state));
    Some(reason.map_or(progress, |reason| format!("Init:{reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn row(object: Value) -> PodRow {
        PodRow::new(&serde_json::from_value(object).unwrap())
    }

    fn container(state: Value, ready: bool, restarts: i32) -> Value {
        json!({ "name": "c", "image": "i", "imageID": "", "ready": ready, "restartCount": restarts, "state": state })
    }

    fn pod(phase: &str, containers: Value) -> Value {
        json!({ "metadata": { "namespace": "default", "name": "web" }, "status": { "phase": phase, "containerStatuses": containers },
            "spec": { "nodeName": "pi-100", "containers": [{ "name": "c", "env": [{ "name": "K", "value": "hidden" }] }] } })
    }

    #[test]
    fn the_status_is_the_word_that_says_most() {
        let running = json!({ "running": {} });
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
        let ended = |end: Value| json!({ "terminated": end });
        let table = [
            (pod("Running", json!([container(running.clone(), true, 0)])), "Running", Tone::Good),
            (pod("Running", json!([container(running.clone(), false, 0)])), "Running", Tone::Busy),
            (
                pod("Running", json!([container(waiting("CrashLoopBackOff"), false, 7)])),
                "CrashLoopBackOff",
                Tone::Bad,
            ),
            (
                pod("Pending", json!([container(waiting("ImagePullBackOff"), false, 0)])),
                "ImagePullBackOff",
                Tone::Bad,
            ),
            (
                pod("Pending", json!([container(waiting("ContainerCreating"), false, 0)])),
                "ContainerCreating",
                Tone::Busy,
            ),
            (pod("Pending", json!([])), "Pending", Tone::Busy),
            (
                pod("Failed", json!([container(ended(json!({ "exitCode": 3 })), false, 0)])),
                "ExitCode:3",
                Tone::Bad,
            ),
            (
                pod("Failed", json!([container(ended(json!({ "exitCode": 137, "signal": 9 })), false, 0)])),
                "Signal:9",
                Tone::Bad,
            ),
            (
                pod(
                    "Running",
                    json!([container(ended(json!({ "exitCode": 137, "reason": "OOMKilled" })), false, 1)]),
                ),
                "OOMKilled",
                Tone::Bad,
            ),
            (
                pod(
                    "Succeeded",
                    json!([container(ended(json!({ "exitCode": 0, "reason": "Completed" })), false, 0)]),
                ),
                "Completed",
                Tone::Quiet,
            ),
            (
                pod(
                    "Running",
                    json!([
                        container(running, true, 0),
                        container(ended(json!({ "exitCode": 0, "reason": "Completed" })), false, 0)
                    ]),
                ),
                "Running",
                Tone::Busy,
            ),
        ];
        for (object, status, tone) in table {
            let row = row(object);
            assert_eq!((row.status.as_str(), row.tone()), (status, tone));
        }
    }

    #[test]
    fn init_containers_come_first() {
        let done = container(json!({ "terminated": { "exitCode": 0, "reason": "Completed" } }), true, 0);
        let check = |inits: Value, expected: &str, tone: Tone| {
            let mut object = pod(
                "Pending",
                json!([container(json!({ "waiting": { "reason": "PodInitializing" } }), false, 0)]),
            );
            object["status"]["initContainerStatuses"] = inits;
            let row = row(object);
            assert_eq!((row.status.as_str(), row.tone()), (expected, tone));
        };
        let running = container(json!({ "running": {} }), false, 0);
        let crashed = container(json!({ "waiting": { "reason": "CrashLoopBackOff" } }), false, 2);
        let failed = container(json!({ "terminated": { "exitCode": 1, "reason": "Error" } }), false, 0);
        check(json!([done, running]), "Init:1/2", Tone::Busy);
        check(json!([crashed]), "Init:CrashLoopBackOff", Tone::Bad);
        check(json!([failed]), "Init:Error", Tone::Bad);
        check(json!([done]), "PodInitializing", Tone::Busy);
    }

    #[test]
    fn deletion_eviction_and_restarts_show() {
        let mut object = pod(
            "Running",
            json!([container(json!({ "running": {} }), true, 2), container(json!({}), false, 3)]),
        );
        assert_eq!(row(object.clone()).restart_count, 5);
        assert_eq!(row(object.clone()).ready, "1/2");
        object["status"]["reason"] = json!("Evicted");
        assert_eq!(row(object.clone()).status, "Evicted");
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(row(object).status, "Terminating");
    }

    #[test]
    fn environment_is_not_kept() {
        let row = row(pod("Running", json!([])));
        assert!(!format!("{row:?}").contains("hidden"));
        assert_eq!(row.node_name, "pi-100");
        assert_eq!(row.ready, "0/1");
    }
}
