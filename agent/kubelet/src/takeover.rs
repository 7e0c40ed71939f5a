//! What an earlier agent left: containers of pods that are still wanted, and pods that are not.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use kube::ResourceExt;
use runtime::Container;

use crate::files::PodDir;
use crate::machine::{Found, Known};
use crate::pods::Node;
use crate::spec::label;
use crate::start::{self, SIGKILL};
use crate::unit::Terminated;
use crate::worker;

const GRACE: u64 = 30;

/// What runs or ran of a pod: by the runtime where it knows, by the API's status where it does not.
pub async fn known(node: &Node, pod: &Pod, dir: &PodDir) -> Known {
    let uid = pod.uid().unwrap_or_default();
    let mut mine = node.runtime.list().await;
    mine.retain(|container| container.labels.get(label::UID) == Some(&uid));
    mine.sort_by_key(attempt_of);
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let mut containers = Vec::new();
    let spec = pod.spec.clone().unwrap_or_default();
    for (_, container) in crate::plan::containers(&spec) {
        let own: Vec<_> =
            mine.iter().filter(|c| c.labels.get(label::CONTAINER) == Some(&container.name)).collect();
        let reported = reported(status, &container.name);
        if let Some(newest) = own.last() {
            let reported_count =
                reported.map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0));
            let running = newest.exit.is_none().then(|| running(newest));
            let ended = match running {
                Some(_) => own.iter().rev().nth(1),
                None => own.last(),
            };
            let ended = match ended.and_then(|ended| ended.exit.clone().map(|exit| (ended, exit))) {
                Some((ended, exit)) => {
                    Some(start::end_of(node, dir, Some(&container), &ended.id, Ok(exit)).await)
                }
                None => None,
            };
            let attempt = attempt_of(newest).max(reported_count);
            containers.push(Found { name: container.name, attempt, running, ended });
        } else if let Some(found) = reported.and_then(of_report) {
            containers.push(found);
        }
    }
    let sandbox = node.runtime.sandboxes().await.contains(&uid);
    Known { sandbox, finished, containers }
}

fn attempt_of(container: &Container) -> u32 {
    container.labels.get(label::ATTEMPT).and_then(|attempt| attempt.parse().ok()).unwrap_or(0)
}

fn running(container: &Container) -> (String, String, jiff::Timestamp) {
    let at = container.started_at.as_deref().and_then(|at| at.parse().ok());
    let image = container.labels.get(label::IMAGE_ID).cloned().unwrap_or_else(|| container.image.clone());
    (container.id.clone(), image, at.unwrap_or_else(jiff::Timestamp::now))
}

fn reported<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

/// A container that only the API remembers: it has ended, if it had started.
fn of_report(status: &ContainerStatus) -> Option<Found> {
    let id =
        |text: &Option<String>| text.clone().unwrap_or_default().trim_start_matches("bramble://").to_owned();
    let state = status.state.as_ref()?;
    let past = state.terminated.as_ref().or_else(|| status.last_state.as_ref()?.terminated.as_ref());
    let ended = if let Some(running) = &state.running {
        Terminated {
            id: id(&status.container_id),
            image_id: status.image_id.clone(),
            code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was taken over".to_owned(),
            started_at: running.started_at.as_ref().map(|time| time.0),
            finished_at: None,
        }
    } else {
        let past = past?;
        Terminated {
            id: id(&past.container_id),
            image_id: status.image_id.clone(),
            code: past.exit_code,
            signal: past.signal,
            reason: past.reason.clone().unwrap_or_default(),
            message: past.message.clone().unwrap_or_default(),
            started_at: past.started_at.as_ref().map(|time| time.0),
            finished_at: past.finished_at.as_ref().map(|time| time.0),
        }
    };
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    Some(Found { name: status.name.clone(), attempt, running: None, ended: Some(ended) })
}

/// Takes down whatever belongs to none of these pods. Only to be called once the API gave a whole list.
pub async fn remove_orphans(node: Arc<Node>, alive: HashSet<String>) {
    let mut found: BTreeSet<String> = node.runtime.sandboxes().await.into_iter().collect();
    let containers = node.runtime.list().await;
    found.extend(containers.iter().filter_map(|container| container.labels.get(label::UID).cloned()));
    let folders = std::fs::read_dir(node.config.state_dir.join("pods"));
    let folders = folders.into_iter().flatten().flatten();
    found.extend(folders.filter_map(|entry| entry.file_name().into_string().ok()));
    found.extend(node.network.attached().await);
    for uid in found.into_iter().filter(|uid| !alive.contains(uid)) {
        tracing::info!(pod = uid, "the API no longer has this pod; taking it down");
        let own: Vec<_> =
            containers.iter().filter(|c| c.labels.get(label::UID) == Some(&uid)).cloned().collect();
        remove_orphan(&node, &uid, own).await;
    }
}

async fn remove_orphan(node: &Node, uid: &str, containers: Vec<Container>) {
    let stops = containers.iter().filter(|container| container.exit.is_none()).map(|c| stop(node, c));
    futures::future::join_all(stops).await;
    let dir = PodDir::new(&node.config.state_dir, uid);
    let cgroup = containers.first().and_then(|container| container.labels.get(label::CGROUP));
    if let Err(why) = worker::tear_down(node, uid, &dir, cgroup.map(String::as_str), true).await {
        // Its folder stays, and so the next start of the agent finds it again.
        tracing::warn!(pod = uid, why, "not taken down");
        return;
    }
    worker::remove(node, uid, &dir).await;
}

async fn stop(node: &Node, container: &Container) {
    let grace = container.labels.get(label::GRACE).and_then(|grace| grace.parse().ok()).unwrap_or(GRACE);
    let signal = start::stop_signal(node, &container.id).await;
    // Failing to signal shows as a container that does not end.
    let _ = node.runtime.kill(&container.id, signal).await;
    let ended = tokio::time::timeout(Duration::from_secs(grace), node.runtime.wait(&container.id)).await;
    if ended.is_err() {
        let _ = node.runtime.kill(&container.id, SIGKILL).await;
        let _ = node.runtime.wait(&container.id).await;
    }
}
