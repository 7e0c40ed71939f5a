//! The whole crate against an API in memory, over HTTP requests as a client makes them.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::stream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Endpoints, Node, Pod, Service},
};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    kind::KindId,
    pod,
    testing::{Refusal, Sim},
    write::{Propagation, Target},
};

type Out = UnsyncBoxBody<bytes::Bytes, Infallible>;

/// The API, and a bell that rings with every change.
#[derive(Clone)]
struct Api {
    sim: Arc<Mutex<Sim>>,
    bell: Arc<watch::Sender<usize>>,
    /// Every so many-th write is refused, as by a leader that has just lost its place.
    failing: usize,
    writes: Arc<Mutex<usize>>,
}

/// What a path is about.
struct Route {
    kind: KindId,
    namespace: String,
    name: Option<String>,
    part: Option<String>,
}

impl Api {
    fn new(failing: usize) -> Self {
        let bell = Arc::new(watch::Sender::new(0));
        Self { sim: Arc::new(Mutex::new(Sim::new())), bell, failing, writes: Arc::default() }
    }

    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn with<T>(&self, act: impl FnOnce(&mut Sim) -> T) -> T {
        let mut sim = self.sim.lock().unwrap();
        let result = act(&mut sim);
        self.bell.send_replace(sim.log.len());
        result
    }

    async fn answer(&self, request: Request<Body>) -> Response<Out> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = parts.uri.path();
        if let Some(answer) = self.discovery(path) {
            return reply(200, &answer);
        }
        let Some(route) = self.route(path) else {
            return reply(404, &status(404, "NotFound"));
        };
        let query = parts.uri.query().unwrap_or_default();
        if parts.method == Method::GET {
            return self.read(&route, query);
        }
        let turn = {
            let mut writes = self.writes.lock().unwrap();
            *writes += 1;
            *writes
        };
        if self.failing > 0 && turn % self.failing == 0 {
            return reply(503, &status(503, "ServiceUnavailable"));
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match self.with(|sim| write(sim, &parts.method, &route, body)) {
            Ok(value) => reply(200, &value),
            Err((code, reason)) => reply(code, &status(code, reason)),
        }
    }

    fn read(&self, route: &Route, query: &str) -> Response<Out> {
        if let Some(name) = &route.name {
            let place = (route.kind, route.namespace.clone(), name.clone());
            let found = self.with(|sim| sim.objects.get(&place).cloned());
            return found.map_or_else(|| reply(404, &status(404, "NotFound")), |value| reply(200, &value));
        }
        let parameters: BTreeMap<&str, &str> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if parameters.contains_key("watch") {
            let from: u64 = parameters.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            return self.watch(route.kind, from);
        }
        let (items, revision) = self.with(|sim| {
            let of_kind = sim.objects.iter().filter(|(place, _)| place.0 == route.kind);
            (of_kind.map(|(_, v)| v.clone()).collect::<Vec<_>>(), sim.revision)
        });
        reply(
            200,
            &json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": revision.to_string()}, "items": items}),
        )
    }

    fn watch(&self, kind: KindId, from: u64) -> Response<Out> {
        let state = (self.sim.clone(), self.bell.subscribe(), 0_usize);
        let lines = stream::unfold(state, move |(sim, mut bell, mut at)| async move {
            loop {
                let mut lines = String::new();
                {
                    let sim = sim.lock().unwrap();
                    for (_, verb, object) in
                        sim.log[at..].iter().filter(|(k, _, v)| *k == kind && version(v) > from)
                    {
                        lines.push_str(&json!({"type": verb, "object": object}).to_string());
                        lines.push('\n');
                    }
                    at = sim.log.len();
                }
                if !lines.is_empty() {
                    let frame = hyper::body::Frame::data(bytes::Bytes::from(lines));
                    return Some((Ok::<_, Infallible>(frame), (sim, bell, at)));
                }
                bell.changed().await.ok()?;
            }
        });
        Response::new(Out::new(StreamBody::new(lines)))
    }

    fn discovery(&self, path: &str) -> Option<Value> {
        let kinds = self.with(|sim| sim.kinds.clone());
        let all = (0..kinds.len()).filter_map(|i| kinds.get(KindId(i)));
        let resources = |group: &str| {
            let list: Vec<Value> = all
                .clone()
                .filter(|info| info.resource.group == group)
                .map(|info| {
                    json!({"name": info.resource.plural, "singularName": "", "namespaced": info.namespaced,
                    "kind": info.resource.kind, "verbs": ["create", "delete", "get", "list", "watch"]})
                })
                .collect();
            list
        };
        let groups = ["apps", "coordination.k8s.io", "discovery.k8s.io"];
        match path {
            "/api" => {
                Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
            }
            "/apis" => {
                let list: Vec<Value> = groups
                    .iter()
                    .map(|g| {
                        let v = json!({"groupVersion": format!("{g}/v1"), "version": "v1"});
                        json!({"name": g, "versions": [v], "preferredVersion": v})
                    })
                    .collect();
                Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}))
            }
            "/api/v1" => {
                Some(json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": resources("")}))
            }
            _ => {
                let group = path.strip_prefix("/apis/")?.strip_suffix("/v1")?;
                let version = format!("{group}/v1");
                Some(
                    json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources(group)}),
                )
            }
        }
    }

    fn route(&self, path: &str) -> Option<Route> {
        let rest = path.strip_prefix("/api/v1/").map(|rest| ("", rest)).or_else(|| {
            let (group, rest) = path.strip_prefix("/apis/")?.split_once("/v1/")?;
            Some((group, rest))
        });
        let (group, rest) = rest?;
        let mut segments: Vec<&str> = rest.split('/').collect();
        let mut namespace = String::new();
        if segments.len() > 2 && segments[0] == "namespaces" && !matches!(segments[2], "status" | "finalize")
        {
            namespace = segments[1].to_owned();
            segments.drain(..2);
        }
        let kinds = self.with(|sim| sim.kinds.clone());
        let is = |i: &usize| {
            kinds
                .get(KindId(*i))
                .is_some_and(|k| k.resource.group == group && k.resource.plural == segments[0])
        };
        let kind = KindId((0..kinds.len()).find(is)?);
        let text = |i: usize| segments.get(i).map(|s| (*s).to_owned());
        Some(Route { kind, namespace, name: text(1), part: text(2) })
    }
}

fn write(sim: &mut Sim, method: &Method, route: &Route, body: Value) -> Result<Value, Refusal> {
    let name = route.name.clone().unwrap_or_default();
    match method.as_str() {
        "POST" if route.kind.0 < sim.kinds.len() && route.name.is_none() => sim.create(route.kind, body),
        "PUT" => sim.replace(route.kind, body, route.part.as_deref()),
        "PATCH" => sim.patch(route.kind, &route.namespace, &name, &body),
        "DELETE" => {
            let uid = body["preconditions"]["uid"].as_str().unwrap_or_default().to_owned();
            let target = Target { kind: route.kind, namespace: route.namespace.clone(), name, uid };
            let grace = body["gracePeriodSeconds"].as_u64().and_then(|g| u32::try_from(g).ok());
            sim.delete(&target, grace, Propagation::Background)?;
            Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 200}))
        }
        _ => Err((405, "MethodNotAllowed")),
    }
}

fn version(value: &Value) -> u64 {
    value["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse().unwrap_or(0)
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code})
}

fn reply(code: u16, value: &Value) -> Response<Out> {
    Response::builder().status(code).body(Out::new(Full::new(bytes::Bytes::from(value.to_string())))).unwrap()
}

/// Waits until something holds of the API's objects, looking after every change.
async fn until(api: &Api, what: &str, holds: impl Fn(&Sim) -> bool) {
    let mut bell = api.bell.subscribe();
    let wait = async {
        while !holds(&api.sim.lock().unwrap()) {
            bell.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
        let sim = api.sim.lock().unwrap();
        panic!("never: {what}\n{:#?}", sim.objects.keys().collect::<Vec<_>>());
    }
}

/// A kubelet for all: every pod runs as soon as it is there.
async fn start_pods(api: Api) {
    let mut bell = api.bell.subscribe();
    loop {
        let waiting: Vec<Pod> = {
            let sim = api.sim.lock().unwrap();
            sim.all::<Pod>().into_iter().filter(|p| !pod::is_ready(p)).collect()
        };
        for (i, p) in waiting.into_iter().enumerate() {
            let name = p.metadata.name.unwrap();
            api.with(|sim| {
                let octet = sim.revision % 250 + u64::try_from(i).unwrap();
                sim.edit::<Pod>("default", &name, |v| {
                    v["status"] = json!({"phase": "Running", "podIP": format!("10.1.0.{octet}"),
                        "conditions": [{"type": "Ready", "status": "True"}]});
                });
            });
        }
        if bell.changed().await.is_err() {
            return;
        }
    }
}

async fn from_deployment_to_endpoints(failing: usize) {
    let api = Api::new(failing);
    api.with(|sim| {
        sim.add::<Node>(json!({"metadata": {"name": "n1"}, "spec": {}}));
        sim.add::<Service>(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
            "clusterIP": "10.0.0.9", "selector": {"app": "web"}, "ports": [{"port": 80}]}}));
        sim.add::<Deployment>(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}));
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(crate::run(
        Config::new("10.1.0.0/16".parse().unwrap(), 6443),
        api.client(),
        shutdown.clone(),
    ));
    let kubelet = tokio::spawn(start_pods(api.clone()));
    until(&api, "three available replicas", |sim| {
        let status = sim.get::<Deployment>("default", "web").and_then(|d| d.status);
        status.is_some_and(|s| s.available_replicas == Some(3) && s.observed_generation.is_some())
    })
    .await;
    until(&api, "three endpoints", |sim| {
        let endpoints = sim.get::<Endpoints>("default", "web").and_then(|e| e.subsets);
        endpoints.is_some_and(|s| s.iter().flat_map(|s| s.addresses.iter().flatten()).count() == 3)
    })
    .await;
    until(&api, "a pod CIDR", |sim| {
        sim.get::<Node>("", "n1").and_then(|n| n.spec?.pod_cidr).as_deref() == Some("10.1.0.0/24")
    })
    .await;
    let made = |sim: &Sim| {
        sim.log.iter().filter(|(_, verb, v)| *verb == "ADDED" && v["kind"] == json!("Pod")).count()
    };
    assert_eq!(api.with(|sim| made(sim)), 3, "not one pod too many");
    api.with(|sim| {
        let target = Target::of(&sim.get::<Deployment>("default", "web").unwrap());
        sim.delete(&target, None, Propagation::Background).unwrap();
    });
    until(&api, "all pods collected", |sim| sim.all::<Pod>().is_empty()).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    kubelet.abort();
}

#[tokio::test]
async fn a_deployment_becomes_endpoints_and_goes_without_trace() {
    from_deployment_to_endpoints(0).await;
}

#[tokio::test]
async fn the_same_when_every_third_write_is_refused() {
    from_deployment_to_endpoints(3).await;
}
