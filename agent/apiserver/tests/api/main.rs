//! The API as clients see it: requests into `Api::handle`, over spaces in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

mod access;
mod admission;
mod apply;
mod audit;
mod bodies;
mod bounds;
mod clients;
mod custom;
mod fuzz;
mod kubelet;
mod measured;
mod namespaces;
mod objects;
mod openapi;
mod page;
mod pods;
mod policies;
mod proxies;
mod services;
mod tokens;
mod watches;
mod webhooks;

use apiserver::{Api, Config, Kubelets, Stream, User};
use axum::body::Body;
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use store::{Kv, Volatile};
use tokio::sync::watch;

/// Nodes that cannot be reached.
struct NoKubelets;

#[async_trait::async_trait]
impl Kubelets for NoKubelets {
    async fn connect(&self, _: &Value) -> std::io::Result<Box<dyn Stream>> {
        Err(std::io::Error::other("no route to host"))
    }
}

/// A server with its first objects.
struct World {
    api: Api,
    durable: Arc<dyn Kv>,
    leading: watch::Sender<bool>,
}

/// What came back.
struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Value,
}

impl World {
    async fn new() -> Self {
        Self::with(Arc::new(NoKubelets), 4096).await
    }

    async fn with(kubelets: Arc<dyn Kubelets>, history: usize) -> Self {
        Self::over(Arc::new(Volatile::new(history)), kubelets).await
    }

    async fn over(durable: Arc<dyn Kv>, kubelets: Arc<dyn Kubelets>) -> Self {
        Self::configured(Config::default(), durable, kubelets).await
    }

    async fn configured(config: Config, durable: Arc<dyn Kv>, kubelets: Arc<dyn Kubelets>) -> Self {
        let (leading, led) = watch::channel(true);
        let api = Api::new(config, durable.clone(), Arc::new(Volatile::new(4096)), led, kubelets);
        api.bootstrap().await.unwrap();
        Self { api, durable, leading }
    }

    /// The same objects, served by a server with other nodes.
    async fn with_kubelets(&self, kubelets: Arc<dyn Kubelets>) -> Self {
        Self::over(self.durable.clone(), kubelets).await
    }

    /// A client's connection, which may be upgraded.
    async fn connection(&self) -> hyper::client::conn::http1::SendRequest<Body> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let api = self.api.clone();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let api = api.clone();
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(User::admin());
                Ok::<_, std::convert::Infallible>(api.handle(request).await)
            }
        });
        let served =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        tokio::spawn(served.with_upgrades());
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.api.handle(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn call(&self, method: Method, path: &str, media_type: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let mut request = request(method, path, body);
        if !media_type.is_empty() {
            request.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        }
        self.send(request).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "", &Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, "application/json", &body).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, "application/json", &body).await
    }

    async fn delete(&self, path: &str, body: Value) -> Answer {
        self.call(Method::DELETE, path, "application/json", &body).await
    }

    /// `form`: `json`, `merge`, `strategic-merge`.
    async fn patch(&self, path: &str, form: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path, &format!("application/{form}-patch+json"), &body).await
    }

    async fn made(&self, path: &str, body: Value) -> Value {
        self.post(path, body).await.ok(201)
    }
}

impl Answer {
    /// The body, of an answer that must have this code.
    #[track_caller]
    fn ok(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{:#}", self.body);
        self.body
    }

    /// The reason and message of a failure with this code.
    #[track_caller]
    fn failure(self, code: u16) -> (String, String) {
        let body = self.ok(code);
        assert_eq!(body["kind"], "Status");
        assert_eq!(body["code"], code);
        (text(&body["reason"]), text(&body["message"]))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A request by the user that may do all.
fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
    request.extensions_mut().insert(User::admin());
    request
}

fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": data}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"run": name}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"run": name}}, "template": {
            "metadata": {"labels": {"run": name}},
            "spec": {"containers": [{"name": "main", "image": "nginx"}]}}}})
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
