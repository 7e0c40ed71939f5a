//! What is written: bindings, the reason why a pod waits, and events.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, Event, EventSource, ObjectReference, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::sync::mpsc;

/// Events waiting to be written; more are dropped, they are hints.
pub(crate) const EVENT_BOUND: usize = 256;

/// Gives a pod its node.
pub(crate) async fn bind(client: Client, pod: &Pod, node: &str) -> kube::Result<()> {
    let meta = &pod.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let binding = Binding {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client, meta.namespace.as_deref().unwrap_or_default());
    let _: serde_json::Value =
        api.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    Ok(())
}

/// The status of a pod that fits nowhere, and for which room is being made on a node or not; `None` if it already says
/// so.
pub(crate) fn refused(pod: &Pod, message: &str, nominated: Option<&str>, now: Timestamp) -> Option<Pod> {
    let mut pod = pod.clone();
    let told = pod.status.get_or_insert_default().nominated_node_name.take().filter(|node| !node.is_empty());
    let same = told.as_deref() == nominated;
    pod.status.get_or_insert_default().nominated_node_name = nominated.map(str::to_owned);
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let old = conditions.iter().position(|c| c.type_ == "PodScheduled").map(|at| conditions.remove(at));
    let since = old.as_ref().filter(|c| c.status == "False");
    if same && since.is_some_and(|c| c.message.as_deref() == Some(message)) {
        return None;
    }
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: since.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        ..PodCondition::default()
    });
    Some(pod)
}

/// The status of a pod that makes room for another.
pub(crate) fn preempted(pod: &Pod, by: &str, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("PreemptionByScheduler".to_owned()),
        message: Some(format!("{by}: preempting to accommodate a higher priority pod")),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    pod
}

/// Makes a pod go.
pub(crate) async fn remove(client: Client, pod: &Pod) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
    let uid = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
    let how = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
    match api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &how).await {
        // Gone, or another of its name.
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()),
        done => done.map(drop),
    }
}

/// Writes a pod's status. A conflict is no loss: the pod's news brings it here again.
pub(crate) async fn write_status(client: Client, pod: Pod) {
    let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
    let name = pod.metadata.name.clone().unwrap_or_default();
    if let Err(error) = api.replace_status(&name, &PostParams::default(), &pod).await {
        tracing::debug!(%error, pod = name, "reason for waiting not written");
    }
}

/// An event about a pod.
pub(crate) struct Note {
    pub(crate) pod: Arc<Pod>,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Writes events until the channel closes.
pub(crate) async fn write_events(client: Client, scheduler: String, mut notes: mpsc::Receiver<Note>) {
    while let Some(note) = notes.recv().await {
        let event = event(&note, &scheduler, Timestamp::now());
        let api: Api<Event> =
            Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::debug!(%error, reason = note.reason, "event not written");
        }
    }
}

fn event(note: &Note, scheduler: &str, now: Timestamp) -> Event {
    let meta = &note.pod.metadata;
    Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{:016x}",
                meta.name.as_deref().unwrap_or_default(),
                rand::random::<u64>()
            )),
            namespace: meta.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        },
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(scheduler.to_owned()), host: None }),
        reporting_component: Some(scheduler.to_owned()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}
