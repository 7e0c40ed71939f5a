//! Raft's state with names instead of ids, for people.

use std::time::Duration;

use anyhow::Result;
use axum::body::Body;
use dashboard::RaftStatus;
use http::Request;
use http_body_util::BodyExt;
use store::Status;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::NodeClient;
use crate::gate;
use crate::roster::Roster;

/// Between two questions to the leader, on a node that hears nothing by itself.
const AGAIN: Duration = Duration::from_secs(2);
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names the members of a status.
pub fn named(status: &Status, roster: &Roster, me: &str) -> RaftStatus {
    let name = |id: &u64| roster.by_id(*id).map_or_else(|| format!("{id:x}"), |m| m.name);
    let names = |ids: &[u64]| {
        let mut names: Vec<String> = ids.iter().map(name).collect();
        names.sort();
        names
    };
    RaftStatus {
        leader: status.leader.as_ref().map(name),
        term: status.term,
        voters: names(&status.voters),
        learners: names(&status.learners),
        committed: status.committed,
        applied: status.applied,
        last_index: status.last_index,
        this_node: me.to_owned(),
        this_role: format!("{:?}", status.role).to_lowercase(),
        // To whoever looks both are the same: this node's copy of the state stands still.
        disk_error: status.halted.clone().or_else(|| status.disk_error.clone()),
    }
}

/// Whether a node holds a replica that Raft keeps up to date. Else only the leader knows what is what.
pub fn fed(status: &Status) -> bool {
    (status.voters.contains(&status.id) || status.learners.contains(&status.id)) && status.leader.is_some()
}

/// What to follow, and whom to ask where nothing comes by itself.
pub struct Follower {
    /// What the store says.
    pub status: watch::Receiver<Status>,
    /// Who there is.
    pub roster: Roster,
    /// This node's name.
    pub me: String,
    /// The way to the leader.
    pub client: NodeClient,
}

impl Follower {
    /// Follows a node's store, and on a node that is not [`fed`] the leader's.
    pub fn start(self, tasks: &TaskTracker, shutdown: &CancellationToken) -> watch::Receiver<RaftStatus> {
        let (sender, receiver) = watch::channel(self.own());
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(self.run(sender)));
        receiver
    }

    fn own(&self) -> RaftStatus {
        named(&self.status.borrow(), &self.roster, &self.me)
    }

    async fn run(self, sender: watch::Sender<RaftStatus>) {
        let (mut members, mut status) = (self.roster.subscribe(), self.status.clone());
        let publish = |now: RaftStatus| {
            sender.send_if_modified(|last| std::mem::replace(last, now.clone()) != now);
        };
        let mut was_fed = true;
        loop {
            members.borrow_and_update();
            let fed = fed(&status.borrow_and_update());
            // A leader that is lost is known at once; what the leader of others says stays until it says otherwise.
            if fed || was_fed {
                publish(self.own());
            }
            was_fed = fed;
            let ask = async {
                if fed {
                    return std::future::pending().await;
                }
                publish(self.asked().await);
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = members.changed() => if changed.is_err() { return },
                () = ask => {}
            }
        }
    }

    /// What the leader says of the cluster, with what is so on this node; without a leader only that.
    async fn asked(&self) -> RaftStatus {
        let own = self.own();
        match timeout(PATIENCE, ask(&self.client)).await {
            Ok(Ok(theirs)) => beside(own, theirs),
            Ok(Err(error)) => {
                tracing::debug!(error = format!("{error:#}"), "the leader cannot be asked how Raft is");
                own
            }
            Err(_) => own,
        }
    }
}

/// The leader's view of the cluster from a node that has none.
fn beside(own: RaftStatus, theirs: RaftStatus) -> RaftStatus {
    RaftStatus {
        applied: own.applied,
        last_index: own.last_index,
        this_node: own.this_node,
        this_role: "none".to_owned(),
        disk_error: own.disk_error,
        ..theirs
    }
}

async fn ask(client: &NodeClient) -> Result<RaftStatus> {
    let request = Request::get(format!("{}raft", gate::PREFIX)).body(Body::empty())?;
    let answer = client.request(request).await.map_err(|e| anyhow::anyhow!(e))?;
    anyhow::ensure!(answer.status().is_success(), "{}", answer.status());
    Ok(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_no_replica_or_a_left_one_is_not_fed() {
        let status =
            |id, leader| Status { id, voters: vec![1, 2, 3], learners: vec![4], leader, ..Status::default() };
        for (id, leader, is) in
            [(1, Some(2), true), (4, Some(2), true), (5, Some(2), false), (1, None, false)]
        {
            assert_eq!(fed(&status(id, leader)), is, "{id} {leader:?}");
        }
        assert!(!fed(&Status { id: 1, ..Status::default() }), "nothing has come yet");
    }

    #[test]
    fn a_node_without_a_replica_shows_the_leaders_cluster_and_its_own_disk() {
        let own =
            RaftStatus { this_node: "d".into(), disk_error: Some("full".into()), ..RaftStatus::default() };
        let theirs = RaftStatus {
            leader: Some("a".into()),
            voters: vec!["a".into()],
            committed: 7,
            applied: 7,
            this_node: "a".into(),
            this_role: "leader".into(),
            ..RaftStatus::default()
        };
        let shown = beside(own, theirs);
        assert_eq!((shown.leader.as_deref(), shown.committed, shown.applied), (Some("a"), 7, 0));
        assert_eq!((&*shown.this_node, &*shown.this_role), ("d", "none"));
        assert_eq!(shown.disk_error.as_deref(), Some("full"));
    }
}
