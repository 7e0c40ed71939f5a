//! The agent's own socket: `kube-config` on one end, root only. JSON in, JSON lines out ([`kube_config::wire`]).

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::Response;
use kube_config::wire::{DisableNode, EnableMaster, EnableWorker, Line, Load};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::agent::Agent;

/// Where a command says what it did.
#[derive(Clone)]
pub struct Say(mpsc::UnboundedSender<Line>);

impl Say {
    /// One plain line for the user.
    pub fn line(&self, text: impl Into<String>) {
        // A user who went away does not stop the work.
        let _ = self.0.send(Line::Progress(text.into()));
    }
}

/// Makes the socket; who connects from now on waits to be served.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let _ = std::fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves it until the agent ends.
pub async fn serve(agent: Arc<Agent>, listener: UnixListener) -> Result<()> {
    let router = Router::new()
        .route("/enable-master", post(enable_master))
        .route("/enable-worker", post(enable_worker))
        .route("/disable-node", post(disable_node))
        .route("/load", post(load))
        .route("/token", post(token))
        .route("/info", get(info))
        .with_state(agent);
    Ok(axum::serve(listener, router).await?)
}

async fn enable_master(State(agent): State<Arc<Agent>>, Json(ask): Json<EnableMaster>) -> Response<Body> {
    run(move |say| async move { agent.enable_master(ask, &say).await })
}

async fn enable_worker(State(agent): State<Arc<Agent>>, Json(ask): Json<EnableWorker>) -> Response<Body> {
    run(move |say| async move { agent.enable_worker(ask, &say).await })
}

async fn disable_node(State(agent): State<Arc<Agent>>, Json(ask): Json<DisableNode>) -> Response<Body> {
    run(move |say| async move { agent.disable_node(ask, &say).await })
}

async fn load(State(agent): State<Arc<Agent>>, Json(ask): Json<Load>) -> Response<Body> {
    run(move |_| async move { agent.load(&ask.path).await })
}

async fn token(State(agent): State<Arc<Agent>>) -> Response<Body> {
    run(move |_| async move { agent.token().await })
}

async fn info(State(agent): State<Arc<Agent>>) -> Response<Body> {
    run(move |_| async move { agent.info().await })
}

type Work = Pin<Box<dyn Future<Output = Result<Value>> + Send>>;

/// Runs a command to its end, whether or not the user stays, and streams what it says.
fn run<F: Future<Output = Result<Value>> + Send + 'static>(command: impl FnOnce(Say) -> F) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let work: Work = Box::pin(command(Say(sender.clone())));
    tokio::spawn(async move {
        let last = match work.await {
            Ok(value) => Line::Done(value),
            Err(error) => Line::Error(format!("{error:#}")),
        };
        let _ = sender.send(last);
    });
    let lines = futures::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(text), receiver))
    });
    Response::new(Body::from_stream(lines))
}
