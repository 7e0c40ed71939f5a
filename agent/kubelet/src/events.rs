//! Kubernetes events about pods and the node: the same one again raises its count, and an object that has too much to
//! say is cut off.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::machine::Occurrence;

/// Waiting to be written; what comes on top is dropped rather than held.
const QUEUE: usize = 256;
/// Different events remembered for counting.
const REMEMBERED: usize = 1024;
/// Events that an object may send at once, and how soon another is granted.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(60);
const COMPONENT: &str = "kubelet";

struct Job {
    about: ObjectReference,
    what: Occurrence,
}

/// Records events; cheap to clone, never blocks.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Job>,
}

impl Recorder {
    /// A recorder and the task that writes what it is given.
    pub fn new(client: Client, node: &str) -> (Recorder, impl Future<Output = ()> + Send + use<>) {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = Writer { client, node: node.to_owned(), seen: HashMap::new(), buckets: HashMap::new() };
        (Recorder { queue }, writer.run(jobs))
    }

    /// Records that something happened to an object.
    pub fn record(&self, about: ObjectReference, what: Occurrence) {
        if self.queue.try_send(Job { about, what }).is_err() {
            tracing::debug!("too many events; one is dropped");
        }
    }
}

struct Seen {
    name: String,
    count: i32,
}

type Key = (String, &'static str, String, Option<String>);

struct Writer {
    client: Client,
    node: String,
    seen: HashMap<Key, Seen>,
    buckets: HashMap<String, (f64, Instant)>,
}

impl Writer {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            if !self.granted(&job) {
                continue;
            }
            if let Err(error) = self.write(job).await {
                tracing::debug!(%error, "an event was not recorded");
            }
        }
    }

    fn granted(&mut self, job: &Job) -> bool {
        let now = Instant::now();
        if self.buckets.len() > REMEMBERED {
            self.buckets.clear();
        }
        let key = format!("{:?}{:?}", job.about.namespace, job.about.name);
        let (tokens, at) = self.buckets.entry(key).or_insert((BURST, now));
        let earned = now.duration_since(*at).as_secs_f64() / REFILL.as_secs_f64();
        (*tokens, *at) = ((*tokens + earned).min(BURST), now);
        let granted = *tokens >= 1.0;
        if granted {
            *tokens -= 1.0;
        }
        granted
    }

    async fn write(&mut self, job: Job) -> Result<(), kube::Error> {
        let namespace = job.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let about = job.about.uid.clone().unwrap_or_default();
        let key = (about, job.what.reason, job.what.message.clone(), job.about.field_path.clone());
        let now = Timestamp::now();
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count = seen.count.saturating_add(1);
            let patch = serde_json::json!({"count": seen.count, "lastTimestamp": Time(now)});
            match api.patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.seen.remove(&key);
                }
                other => return other.map(drop),
            }
        }
        let event = self.event(&namespace, job, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(key, Seen { name, count: 1 });
        Ok(())
    }

    fn event(&self, namespace: &str, job: Job, now: Timestamp) -> Event {
        let name = job.about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:016x}", rand::random::<u64>())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: job.about,
            type_: Some(if job.what.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(job.what.reason.to_owned()),
            message: Some(job.what.message.chars().take(1024).collect()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(COMPONENT.to_owned()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        }
    }
}
