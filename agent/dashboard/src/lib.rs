//! The status pages of a node: what the cluster is doing, over plain HTTP, read only.
//!
//! ```text
//!   API ──watch──▶ rows ──▶ known ──┐
//!   Raft ──────────────────────────┴▶ view (pure) ──▶ page, /api/status, /metrics
//!                                        └─ 500 ms ──▶ fragments ──▶ /events, every viewer
//! ```
//!
//! The crate is an ordinary Kubernetes client that reads four kinds: nodes, pods, services, events. It watches them
//! only while somebody looks and for a minute after, so that an idle node pays nothing. An object becomes a row as it
//! arrives and the rest of it is dropped: what must not be seen is never there.
//!
//! When the API is away, the pages show what was known last and say since when.
//!
//! Nothing is kept on disk; after power loss the rows come from the API again.
//!
//! **Invariants:** nothing can be changed through these pages; what comes from the cluster is text, never markup; every
//! table, every string and the number of streams is bounded.

mod hub;
mod known;
mod live;
mod metrics;
mod page;
mod rows;
mod text;
mod view;
mod web;

use tokio::sync::watch;

/// What this node knows about the Raft group; the agent publishes it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
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
    /// What this node is in Raft: `leader`, `follower`, `candidate`; `none` for one without a replica.
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

/// The status pages: `/`, `/events`, `/api/status`, `/metrics`, `/healthz`. Requests must be served inside a tokio
/// runtime. When the sender of `raft` is dropped, open streams end: that lets a server stop gracefully.
pub fn router(config: Config, client: kube::Client, raft: watch::Receiver<RaftStatus>) -> axum::Router {
    web::router(config, hub::Hub::new(client, raft))
}
