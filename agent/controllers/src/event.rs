//! Events about objects, and the task that writes them: best effort, counted instead of repeated.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event as CoreEvent, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::kind::Typed;

/// Events waiting to be written. More than this are dropped: they are hints, not state.
pub(crate) const EVENT_BOUND: usize = 256;
/// Events remembered so that a repetition becomes a count.
const REMEMBERED: usize = 512;

/// Something worth telling about an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) component: &'static str,
    pub(crate) about: Box<ObjectReference>,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Event {
    /// An event of type Normal.
    pub(crate) fn normal<K: Typed>(
        component: &'static str,
        object: &K,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { component, about: Box::new(reference(object)), warning: false, reason, message }
    }

    /// An event of type Warning.
    pub(crate) fn warning<K: Typed>(
        component: &'static str,
        object: &K,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { warning: true, ..Self::normal(component, object, reason, message) }
    }
}

/// A reference to an object, complete enough for `kubectl describe`.
pub(crate) fn reference<K: Typed>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Writes events until the channel closes.
pub(crate) async fn write_events(client: Client, mut events: mpsc::Receiver<Event>) {
    let mut memory = Memory::default();
    while let Some(event) = events.recv().await {
        let namespace = event.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<CoreEvent> = Api::namespaced(client.clone(), &namespace);
        let now = Timestamp::now();
        let result = match memory.repeat(&event) {
            Some((name, count)) => {
                let patch = json!({ "count": count, "lastTimestamp": Time(now) });
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
            }
            None => {
                let object = core_event(&event, &namespace, now);
                let name = object.metadata.name.clone().unwrap_or_default();
                let result = api.create(&PostParams::default(), &object).await.map(|_| ());
                if result.is_ok() {
                    memory.remember(&event, name);
                }
                result
            }
        };
        if let Err(error) = result {
            memory.forget(&event);
            tracing::debug!(%error, reason = event.reason, "event not written");
        }
    }
}

type Fingerprint = (Option<String>, &'static str, String);

/// The last events and how often each happened.
#[derive(Default)]
struct Memory {
    seen: HashMap<Fingerprint, (String, i32)>,
    order: VecDeque<Fingerprint>,
}

impl Memory {
    fn fingerprint(event: &Event) -> Fingerprint {
        (event.about.uid.clone(), event.reason, event.message.clone())
    }

    fn repeat(&mut self, event: &Event) -> Option<(String, i32)> {
        let (name, count) = self.seen.get_mut(&Self::fingerprint(event))?;
        *count += 1;
        Some((name.clone(), *count))
    }

    fn remember(&mut self, event: &Event, name: String) {
        let fingerprint = Self::fingerprint(event);
        if self.seen.insert(fingerprint.clone(), (name, 1)).is_none() {
            self.order.push_back(fingerprint);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, event: &Event) {
        self.seen.remove(&Self::fingerprint(event));
    }
}

fn core_event(event: &Event, namespace: &str, now: Timestamp) -> CoreEvent {
    let subject = event.about.name.as_deref().unwrap_or("unknown");
    CoreEvent {
        metadata: ObjectMeta {
            name: Some(format!("{subject}.{:016x}", rand::random::<u64>())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: (*event.about).clone(),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.to_owned()),
        message: Some(event.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(event.component.to_owned()), host: None }),
        reporting_component: Some(event.component.to_owned()),
        reporting_instance: Some(String::new()),
        ..CoreEvent::default()
    }
}
