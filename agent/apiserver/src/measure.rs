//! metrics.k8s.io: what nodes and pods use. Nothing of it is kept: whoever asks has the nodes asked.

use crate::engine::Engine;
use crate::object::{self, list, name, text};
use crate::path::Target;
use crate::query::Query;
use crate::read::Selection;
use crate::respond::Format;
use crate::status::{Result, Status};
use futures::{FutureExt, StreamExt};
use resources::Descriptor;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// How long a node has to answer; one that does not is left out.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nodes asked at the same time.
const AT_ONCE: usize = 16;

impl Engine {
    /// One measurement, by the name of what is measured.
    pub async fn measured(&self, target: &Target, wanted: &str) -> Result<Value> {
        let object = self.get(&whole(target)?, wanted)?;
        let all = self.measure(&target.kind, &[object]).await;
        // As upstream: what has not been measured yet is not there.
        all.into_iter().next().ok_or_else(|| Status::not_found(&target.kind, wanted))
    }

    /// Measurements of a whole collection.
    pub async fn measurements(&self, target: &Target, query: &Query, format: &Format) -> Result<Value> {
        let selection = Selection::read(&target.kind, query)?;
        let objects = self.select(&whole(target)?, &Query::default(), &selection)?.items;
        let all = self.measure(&target.kind, &objects).await;
        Ok(format.list(&target.kind, all, json!({})))
    }

    async fn measure(&self, kind: &Descriptor, objects: &[Value]) -> Vec<Value> {
        let of_pods = kind.namespaced;
        let hosts: BTreeSet<&str> =
            objects.iter().map(|o| if of_pods { text(o, "/spec/nodeName") } else { name(o) }).collect();
        let asked: Vec<_> = hosts
            .into_iter()
            .filter(|host| !host.is_empty())
            .map(|host| self.summary(host).boxed())
            .collect();
        let summaries = futures::stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(std::future::ready);
        let summaries: HashMap<String, Value> = summaries.collect().await;
        if of_pods {
            let pods = by_uid(&summaries);
            objects
                .iter()
                .filter_map(|pod| of_pod(kind, pod, pods.get(text(pod, "/metadata/uid"))?))
                .collect()
        } else {
            objects
                .iter()
                .filter_map(|node| of_node(kind, node, &summaries.get(name(node))?["node"]))
                .collect()
        }
    }
}

impl Engine {
    /// What a node's kubelet says of it and its pods.
    async fn summary(&self, host: &str) -> Option<(String, Value)> {
        let node = self.one("", "nodes", "", host)?;
        let answer = tokio::time::timeout(PATIENCE, self.ask_kubelet(&node, "/stats/summary")).await;
        match answer.unwrap_or_else(|_| Err(Status::internal("no answer in time"))) {
            Ok(said) => Some((host.to_owned(), said)),
            Err(why) => {
                tracing::debug!(node = host, why = why.message, "what a node uses is not known");
                None
            }
        }
    }
}

/// The objects that are measured: those of the core kind of the same plural.
fn whole(target: &Target) -> Result<Target> {
    let kind = resources::find("", "v1", &target.kind.plural).ok_or_else(Status::no_resource)?;
    Ok(Target { kind: kind.clone(), name: None, subresource: None, ..target.clone() })
}

fn by_uid(summaries: &HashMap<String, Value>) -> HashMap<&str, &Value> {
    let pods = summaries.values().flat_map(|said| list(said, "/pods"));
    pods.map(|pod| (text(pod, "/podRef/uid"), pod)).collect()
}

fn of_node(kind: &Descriptor, node: &Value, said: &Value) -> Option<Value> {
    let (usage, window) = usage(said)?;
    let mut measured = head(kind, node, text(said, "/cpu/time"), window);
    measured["usage"] = usage;
    Some(measured)
}

/// A pod counts once all of its containers that run do.
fn of_pod(kind: &Descriptor, pod: &Value, said: &Value) -> Option<Value> {
    let mut containers = Vec::new();
    let mut longest = 0.0_f64;
    let mut time = "";
    for container in list(said, "/containers") {
        let (usage, window) = usage(container)?;
        (longest, time) = (longest.max(window), text(container, "/cpu/time"));
        containers.push(json!({"name": container["name"], "usage": usage}));
    }
    if containers.is_empty() {
        return None;
    }
    let mut measured = head(kind, pod, time, longest);
    measured["containers"] = containers.into();
    Some(measured)
}

fn head(kind: &Descriptor, of: &Value, time: &str, window: f64) -> Value {
    let meta = &of["metadata"];
    let mut head = json!({"kind": kind.kind, "apiVersion": kind.api_version(),
        "metadata": {"name": meta["name"], "creationTimestamp": object::timestamp(0)},
        "timestamp": seconds_of(time), "window": format!("{}s", (window * 1000.0).round() / 1000.0)});
    for field in ["namespace", "labels"] {
        if let Some(value) = meta.get(field) {
            head["metadata"][field] = value.clone();
        }
    }
    head
}

/// A time without its fractions of a second, as objects have it.
fn seconds_of(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(seconds, _)| format!("{seconds}Z"))
}

/// CPU and memory, and over how many seconds the CPU was measured; `None` while that is not known.
fn usage(said: &Value) -> Option<(Value, f64)> {
    let cpu = said.pointer("/cpu/usageNanoCores")?.as_u64()?;
    let memory = said.pointer("/memory/workingSetBytes")?.as_u64()?;
    let window = said.pointer("/cpu/windowSeconds")?.as_f64()?;
    Some((json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}), window))
}
