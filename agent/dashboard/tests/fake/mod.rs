//! An API in this process: lists and watches of what is put in, over the same HTTP paths as the real one.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use dashboard::{Config, RaftStatus};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use tokio::sync::watch;

/// The objects and what happened to them.
#[derive(Default)]
pub struct World {
    objects: BTreeMap<(String, String), Value>,
    /// Revision, plural, event.
    log: Vec<(usize, String, Value)>,
    /// Set while it answers nothing.
    down: bool,
    /// What was asked for.
    pub asked: BTreeSet<String>,
    /// Watches that are open.
    pub open: usize,
}

/// A handle; clones are the same API.
#[derive(Clone, Default)]
pub struct Api(pub watch::Sender<World>);

impl Api {
    /// A client of this API.
    pub fn client(&self) -> kube::Client {
        let router = Router::new().route("/api/v1/{plural}", get(answer)).with_state(self.clone());
        kube::Client::new(router, "default")
    }

    /// Adds or changes an object.
    pub fn put(&self, plural: &str, mut object: Value) {
        self.0.send_modify(|world| {
            let revision = world.log.len() + 1;
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
            let place = (plural.to_owned(), object["metadata"]["name"].to_string());
            let known = world.objects.insert(place, object.clone()).is_some();
            let kind = if known { "MODIFIED" } else { "ADDED" };
            world.log.push((revision, plural.to_owned(), json!({ "type": kind, "object": object })));
        });
    }

    /// Down: every watch breaks, every request fails. Up again: as before.
    pub fn set_down(&self, down: bool) {
        self.0.send_modify(|world| world.down = down);
    }
}

async fn answer(
    State(api): State<Api>,
    Path(plural): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    api.0.send_modify(|world| {
        world.asked.insert(plural.clone());
    });
    if api.0.borrow().down {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 503,
            "reason": "ServiceUnavailable", "message": "no leader" });
        return (StatusCode::SERVICE_UNAVAILABLE, Json(status)).into_response();
    }
    if query.contains_key("watch") {
        let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        return watching(api, plural, since);
    }
    let world = api.0.borrow();
    let items: Vec<&Value> =
        world.objects.iter().filter(|(place, _)| place.0 == plural).map(|(_, object)| object).collect();
    Json(json!({ "kind": "List", "apiVersion": "v1", "items": items,
        "metadata": { "resourceVersion": world.log.len().to_string() } }))
    .into_response()
}

struct Open(Api);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|world| world.open -= 1);
    }
}

fn watching(api: Api, plural: String, since: usize) -> Response {
    api.0.send_modify(|world| world.open += 1);
    let changes = api.0.subscribe();
    let start = (changes, since, Open(api));
    let lines = stream::unfold(start, move |(mut changes, since, open)| {
        let plural = plural.clone();
        async move {
            let next =
                |world: &World| world.log.iter().find(|(at, of, _)| *at > since && *of == plural).cloned();
            let world = changes.wait_for(|world| world.down || next(world).is_some()).await.ok()?;
            let (at, _, event) = next(&world).filter(|_| !world.down)?;
            drop(world);
            Some((format!("{event}\n"), (changes, at, open)))
        }
    });
    Body::from_stream(lines.map(Ok::<_, Infallible>)).into_response()
}

/// What a node of a test says about itself.
pub fn config() -> Config {
    Config { node_name: "pi-102".into(), version: "v1.36.0".into() }
}

/// A group of three with a leader.
pub fn raft() -> RaftStatus {
    RaftStatus {
        leader: Some("pi-102".into()),
        term: 4,
        voters: vec!["pi-100".into(), "pi-101".into(), "pi-102".into()],
        learners: Vec::new(),
        committed: 1841,
        applied: 1841,
        last_index: 1842,
        this_node: "pi-102".into(),
        this_role: "leader".into(),
        disk_error: None,
    }
}

/// A node as a kubelet reports it.
pub fn node(name: &str, address: &str, ready: &str, roles: &[&str], created: &str) -> Value {
    let labels: serde_json::Map<_, _> =
        roles.iter().map(|role| (format!("node-role.kubernetes.io/{role}"), json!(""))).collect();
    json!({ "metadata": { "name": name, "creationTimestamp": created, "labels": labels }, "status": {
        "conditions": [{ "type": "Ready", "status": ready }],
        "addresses": [{ "type": "InternalIP", "address": address }],
        "capacity": { "cpu": "4", "memory": "3884052Ki" },
        "nodeInfo": { "kubeletVersion": "v1.36.0", "architecture": "arm64", "bootID": "", "machineID": "",
            "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "osImage": "",
            "operatingSystem": "linux", "systemUUID": "" } } })
}

/// A pod of one container in the state given.
pub fn pod(name: &str, node: &str, phase: &str, state: Value, ready: bool, created: &str) -> Value {
    json!({ "metadata": { "namespace": "default", "name": name, "creationTimestamp": created },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "env": [{ "name": "PASSWORD", "value": "hunter2" }] }] },
        "status": { "phase": phase, "podIP": "10.1.2.7", "containerStatuses": [{ "name": "c", "image": "i",
            "imageID": "", "ready": ready, "restartCount": if ready { 0 } else { 6 }, "state": state }] } })
}

/// An event about a pod.
pub fn event(name: &str, kind: &str, reason: &str, message: &str, seen: &str) -> Value {
    json!({ "metadata": { "namespace": "default", "name": name }, "type": kind, "reason": reason, "message": message,
        "lastTimestamp": seen, "count": 3, "involvedObject": { "kind": "Pod", "namespace": "default", "name": "web-1" } })
}
