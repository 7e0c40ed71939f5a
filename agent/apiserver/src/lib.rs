//! The Kubernetes API over the store: one generic engine for every kind.
//!
//! A request's way: `path` says what the URL means, `authn` who sends it, `auth` whether this user may, `body` turns JSON, YAML or protobuf
//! into one JSON object, `write` fills in, checks and settles it by the kind's descriptor, the store commits it, and
//! `respond` gives it the form the client asked for. `read` and `watch` go the other way. A kind is data (in
//! `resources`); nothing here is about one kind but what must be unique in the cluster (`allocate`) and what only a
//! node can answer (`kubelet`).
//!
//! The API is served by the leader alone. It keeps nothing: all state is in the store, so what was acknowledged
//! survives power loss as the store promises, and a new leader goes on at once.

mod admission;
mod allocate;
mod audit;
mod auth;
mod authn;
mod body;
mod certificates;
mod custom;
mod delete;
mod discovery;
mod engine;
mod eviction;
mod health;
mod impersonate;
mod jwt;
mod kubelet;
mod managed;
mod measure;
mod metrics;
mod object;
mod openapi;
mod outside;
mod patch;
mod path;
mod policy;
mod proxy;
mod query;
mod rbac;
mod read;
mod respond;
mod review;
mod roles;
mod serve;
mod service_account;
mod static_tokens;
mod status;
mod subresource;
mod watch;
mod webhook;
mod write;

pub use admission::ADMISSION;
pub use audit::{Audit, Limits, Policy, Remote};
pub use auth::User;
pub use engine::Config;
pub use kubelet::{Kubelets, Stream, relay};
pub use static_tokens::StaticTokens;

use axum::body::Body;
use engine::Engine;
use http::{Request, Response};
use metrics::Metrics;
use path::Target;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use store::Kv;
use write::Options;

/// The API server; cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Engine>);

/// The first objects could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct BootstrapError {
    /// Which object.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Api {
    /// Over two spaces: the replicated one and the leader's volatile one. Requests are refused with 503 unless
    /// `leading`.
    pub fn new(
        config: Config,
        durable: Arc<dyn Kv>,
        volatile: Arc<dyn Kv>,
        leading: tokio::sync::watch::Receiver<bool>,
        kubelets: Arc<dyn Kubelets>,
    ) -> Self {
        Self(Arc::new(Engine {
            config,
            durable,
            volatile,
            leading,
            kubelets,
            documents: openapi::Documents::default(),
            kinds: custom::Kinds::default(),
            signer: OnceLock::new(),
            bootstrapped: AtomicBool::new(false),
            metrics: Metrics::default(),
            trust: outside::Trust::default(),
        }))
    }

    /// Answers one request. The [`User`] is among its extensions; without one it is nobody's.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let response = self.0.serve(request).await;
        if self.0.kinds.take_ending() {
            let engine = Arc::clone(&self.0);
            tokio::spawn(async move { engine.sweep().await });
        }
        response
    }

    /// A client in the same process.
    pub fn client(&self, user: User) -> kube::Client {
        kube::Client::new(Local { api: self.clone(), user }, "default")
    }

    /// Makes what every cluster has, if it is not there: four namespaces, the API's own Service, the system's priorities
    /// and the usual roles.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            self.ensure("", "namespaces", None, json!({"metadata": {"name": name}})).await?;
        }
        let config = &self.0.config;
        let first = u32::from(config.service_cidr.network()).saturating_add(1);
        let ip = std::net::Ipv4Addr::from(first).to_string();
        let service = json!({
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.port}]},
        });
        self.ensure("", "services", Some("default"), service).await?;
        for (name, value) in
            [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000_i64)]
        {
            let class = json!({"metadata": {"name": name}, "value": value});
            self.ensure("scheduling.k8s.io", "priorityclasses", None, class).await?;
        }
        for (plural, object) in roles::defaults() {
            self.ensure(rbac::GROUP, plural, None, object).await?;
        }
        // A leader before may have been ending kinds.
        self.0.kinds.end();
        let failed = |why: String| BootstrapError { what: "the service accounts' signing key".into(), why };
        self.0.make_signing_key().await.map_err(failed)?;
        self.0.bootstrapped.store(true, Ordering::Release);
        Ok(())
    }

    async fn ensure(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<(), BootstrapError> {
        let what = format!("{plural}/{}", object::name(&object));
        let failed = |why: String| BootstrapError { what: what.clone(), why };
        let kind = resources::find(group, "v1", plural).ok_or_else(|| failed("no such kind".into()))?;
        let target = Target {
            kind: Arc::clone(kind),
            namespace: namespace.map(str::to_owned),
            name: None,
            subresource: None,
        };
        if self.0.get(&target, object::name(&object)).is_ok() {
            return Ok(());
        }
        let options = Options::own();
        match self.0.create(&target, object, &options).await {
            Ok(_) => Ok(()),
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            Err(status) => Err(failed(status.message)),
        }
    }
}

/// The router as a client's transport.
#[derive(Clone)]
struct Local {
    api: Api,
    user: User,
}

impl tower::Service<Request<kube::client::Body>> for Local {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(this.user);
            Ok(this.api.handle(request).await)
        })
    }
}
