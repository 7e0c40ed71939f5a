//! The scheduler: gives every pod a node.
//!
//! It runs on the leader only, as an ordinary client of the API:
//!
//! ```text
//! watch pods, nodes, services, budgets ──▶ Cluster (one task owns it) ──▶ filter + score (pure) ──▶ pods/binding
//! ```
//!
//! What fits nowhere may make less important pods go (`preempt`): it is nominated for their node, which is kept for it
//! while they end.
//!
//! A pod that was given a node is counted there at once, before the API has heard of it, so that many bindings in a
//! row do not overcommit a node; if the binding fails, the pod comes back into the queue. What fits nowhere waits
//! until something changes. Nothing is decided before pods and nodes have been listed once.
//!
//! Nothing is kept on disk: after power loss or on a new leader, all is learnt anew by listing. A binding that was
//! acknowledged is in the store, any other is decided again.

mod affinity;
mod bind;
mod cluster;
mod decide;
mod filter;
mod preempt;
mod quantity;
mod request;
mod runner;
mod score;
mod selector;
mod snapshot;
#[cfg(test)]
mod tests;

use kube::Client;
use tokio_util::sync::CancellationToken;

/// What the scheduler is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods with this `schedulerName` (or none) are ours.
    pub name: String,
    /// Chooses between equally good nodes; `None` takes one from the system.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "default-scheduler".to_owned(), seed: None }
    }
}

/// Why the scheduler cannot run at all. A failing API is not among these: it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Without a name no pod can be ours.
    #[error("the scheduler has no name")]
    NoName,
}

/// Runs the scheduler until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    if config.name.is_empty() {
        return Err(Error::NoName);
    }
    runner::Runner::new(config, client).run(shutdown).await;
    Ok(())
}
