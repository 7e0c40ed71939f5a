//! The status pages of a node: what the cluster is doing, over plain HTTP, read only.

use axum::Router;
use axum::extract::State;
use axum::response::{Html, Json};
use axum::routing::get;
use std::sync::Arc;
use tokio::sync::watch;

/// What this node knows about the Raft group; the agent publishes it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct RaftStatus {
    /// The leader's node name, when there is one.
    pub leader: Option<String>,
    /// The current term.
    pub term: u64,
    /// Names of the nodes that vote.
    pub voters: Vec<String>,
    /// Names of the nodes that receive the log without a vote.
    pub learners: Vec<String>,
    /// The highest log index known to be on disk at a majority.
    pub committed: u64,
    /// The highest log index applied here.
    pub applied: u64,
    /// The last log index on this node.
    pub last_index: u64,
    /// This node's name.
    pub this_node: String,
    /// `Leader`, `Follower`, `Candidate`, `PreCandidate` or `Learner`.
    pub this_role: String,
    /// Why this node cannot write its disk, when it cannot.
    pub disk_error: Option<String>,
}

/// What the pages say about the node that serves them.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// The agent's version.
    pub version: String,
}

#[derive(askama::Template)]
#[template(
    ext = "html",
    source = r#"<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Bramble on {{ config.node_name }}</title>
<h1>Bramble {{ config.version }} on {{ config.node_name }}</h1>
<p>Raft: term {{ raft.term }}, leader {{ raft.leader.as_deref().unwrap_or("none") }}, applied {{ raft.applied }}
of {{ raft.last_index }}</p></html>"#
)]
struct Page<'a> {
    config: &'a Config,
    raft: &'a RaftStatus,
}

struct Shared {
    config: Config,
    _client: kube::Client,
    raft: watch::Receiver<RaftStatus>,
}

/// The routes of the status pages: `/`, `/api/status` and `/healthz`.
pub fn router(config: Config, client: kube::Client, raft: watch::Receiver<RaftStatus>) -> Router {
    let shared = Arc::new(Shared { config, _client: client, raft });
    Router::new()
        .route("/", get(page))
        .route("/api/status", get(status))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(shared)
}

async fn page(State(shared): State<Arc<Shared>>) -> Result<Html<String>, http::StatusCode> {
    let raft = shared.raft.borrow().clone();
    let page = Page { config: &shared.config, raft: &raft };
    askama::Template::render(&page).map(Html).map_err(|_| http::StatusCode::INTERNAL_SERVER_ERROR)
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<RaftStatus> {
    Json(shared.raft.borrow().clone())
}
