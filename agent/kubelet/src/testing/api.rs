//! As much of an API server as the kubelet uses, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

#[derive(Default)]
pub struct Objects {
    /// By path.
    pub objects: BTreeMap<String, Value>,
    pub revision: u64,
    /// Requests fail.
    pub away: bool,
    /// Writes of a status that came through.
    pub status_writes: u64,
}

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<Objects>>,
    changed: Arc<watch::Sender<u64>>,
    news: broadcast::Sender<(String, Value)>,
}

pub const POD: &str = "/api/v1/namespaces/default/pods/p";

impl Api {
    pub fn new() -> Api {
        let changed = Arc::new(watch::Sender::new(0));
        Api { state: Arc::default(), changed, news: broadcast::channel(1024).0 }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub fn lock(&self) -> MutexGuard<'_, Objects> {
        self.state.lock().unwrap()
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut state = self.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let kind = if state.objects.insert(path.to_owned(), object.clone()).is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        drop(state);
        self.tell(path, kind, &object);
        object
    }

    pub fn remove(&self, path: &str) -> Option<Value> {
        let mut state = self.lock();
        state.revision += 1;
        let mut object = state.objects.remove(path)?;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        drop(state);
        self.tell(path, "DELETED", &object);
        Some(object)
    }

    fn tell(&self, path: &str, kind: &str, object: &Value) {
        // Nobody need be watching.
        let _ = self.news.send((collection(path), json!({"type": kind, "object": object})));
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn set_away(&self, away: bool) {
        self.lock().away = away;
    }

    /// Waits until an object (null: none) is as wanted.
    pub async fn until(&self, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                let object = self.get(path).unwrap_or_default();
                if good(&object) {
                    return object;
                }
                changed.changed().await.unwrap();
            }
        };
        // The tests' clock is paused: this passes only when nothing else is left to happen.
        match tokio::time::timeout(std::time::Duration::from_secs(3600), wait).await {
            Ok(object) => object,
            Err(_) => panic!("{path} never was {what}: {:#}", self.get(path).unwrap_or_default()),
        }
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if self.lock().away {
            return reply(StatusCode::SERVICE_UNAVAILABLE, &json!({}));
        }
        let body = body.collect_bytes().await.unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        let object = path.trim_end_matches("/status").to_owned();
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path),
            Method::GET => self.read(&path),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                reply(StatusCode::CREATED, &self.put(&format!("{path}/{name}"), body))
            }
            Method::PATCH => {
                let Some(mut stored) = self.get(&object) else { return missing() };
                let uid = &body["metadata"]["uid"];
                if !uid.is_null() && stored["metadata"]["uid"] != *uid {
                    return reply(
                        StatusCode::CONFLICT,
                        &json!({"kind": "Status", "code": 409, "status": "Failure", "message": "uid"}),
                    );
                }
                merge(&mut stored, &body);
                if path.ends_with("/status") {
                    self.lock().status_writes += 1;
                }
                reply(StatusCode::OK, &self.put(&object, stored))
            }
            Method::DELETE => {
                self.remove(&path).map_or_else(missing, |object| reply(StatusCode::OK, &object))
            }
            _ => missing(),
        }
    }

    fn read(&self, path: &str) -> Response<Body> {
        let state = self.lock();
        if let Some(object) = state.objects.get(path) {
            return reply(StatusCode::OK, object);
        }
        if !path.ends_with('s') {
            return missing();
        }
        let items: Vec<_> =
            state.objects.iter().filter(|(key, _)| collection(key) == *path).map(|(_, o)| o).collect();
        let list = json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
        reply(StatusCode::OK, &list)
    }

    fn watch(&self, path: &str) -> Response<Body> {
        let news = self.news.subscribe();
        let path = path.to_owned();
        let lines = futures::stream::unfold((news, path), |(mut news, path)| async move {
            loop {
                let (collection, event) = news.recv().await.ok()?;
                if collection == path {
                    return Some((Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))), (news, path)));
                }
            }
        });
        Response::new(Body::from_stream(lines.boxed()))
    }
}

/// `/api/v1/namespaces/n/pods/p` is in `/api/v1/pods`, `/api/v1/nodes/x` in `/api/v1/nodes`.
fn collection(path: &str) -> String {
    let parts: Vec<_> = path.split('/').collect();
    match parts.iter().position(|part| *part == "namespaces") {
        Some(at) => [&parts[..at], &parts[at + 2..parts.len() - 1]].concat().join("/"),
        None => parts[..parts.len() - 1].join("/"),
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn missing() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "not found", "reason": "NotFound", "code": 404});
    reply(StatusCode::NOT_FOUND, &status)
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(body.to_string())).unwrap()
}
