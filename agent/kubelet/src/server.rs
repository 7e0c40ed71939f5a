//! The kubelet's HTTP doors. The peer is authorised already; what it names is still checked.
//!
//! Streams begin as requests that are upgraded to what the client offers:
//!
//! ```text
//! exec ────▶ negotiate ─┬─ WebSocket, a channel a byte ──▶ remote::websocket ──┐
//!                       └─ SPDY/3.1 ─▶ spdy::session ────▶ remote::spdy ───────┴─▶ remote::run ◀─▶ runtime::Streams
//! forward ─▶ negotiate ─┬─ SPDY/3.1, or SPDY in WebSocket ─▶ forward ──────────┬─▶ the pod's port
//!                       └─ WebSocket, two channels a port ─▶ forward::websocket ┘
//! ```
//!
//! Every queue is bounded, so whoever is slow is waited for. A client that is gone takes its command along, also while
//! nothing can be read from it: then it is pinged every [`PING`].

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use k8s_openapi::api::core::v1::Pod;
use runtime::Container;

use crate::pods::Node;
use crate::spec::label;

mod exec;
mod forward;
mod logs;
mod negotiate;
mod remote;
mod stats;
mod websocket;

pub use logs::tail_of;

use crate::spdy::session::{LINGER, PING};

/// Bytes are carried in pieces of at most this.
const PIECE_BYTES: usize = 32 << 10;
/// Messages on their way in either direction.
const QUEUE: usize = 8;

pub(crate) fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(stats::pods))
        .route("/stats/summary", get(stats::summary))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::serve))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(exec::attach))
        .route("/portForward/{namespace}/{pod}", any(forward::port_forward))
        .with_state(node)
}

/// An answer that is a text.
fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

/// The pod of that name.
// An answer is made once per request; boxing it would only cost.
#[allow(clippy::result_large_err)]
fn find(node: &Node, namespace: &str, name: &str) -> Result<Arc<Pod>, Response> {
    node.pod(namespace, name).ok_or_else(|| {
        if node.listed() {
            let text = format!("pod \"{name}\" not found in namespace \"{namespace}\"");
            refuse(StatusCode::NOT_FOUND, text)
        } else {
            refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "the kubelet has just started and does not know its pods yet",
            )
        }
    })
}

/// The incarnations of a container that the runtime has, oldest first.
async fn incarnations(
    node: &Node,
    namespace: &str,
    pod: &str,
    name: &str,
) -> Result<Vec<Container>, Response> {
    let found = find(node, namespace, pod)?;
    let known = found.spec.as_ref().is_some_and(|spec| crate::plan::container(spec, name).is_some());
    if !known {
        return Err(refuse(StatusCode::NOT_FOUND, format!("container {name} is not valid for pod {pod}")));
    }
    let mut all = node.runtime.list().await;
    all.retain(|container| {
        container.labels.get(label::UID) == found.metadata.uid.as_ref()
            && container.labels.get(label::CONTAINER).map(String::as_str) == Some(name)
    });
    let attempt =
        |c: &Container| c.labels.get(label::ATTEMPT).and_then(|a| a.parse::<u32>().ok()).unwrap_or(0);
    all.sort_by_key(attempt);
    Ok(all)
}

#[cfg(test)]
mod tests;
