//! Raft's state with names instead of ids, for people.

use dashboard::RaftStatus;
use store::Status;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::roster::Roster;

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

/// Follows a node's store.
pub fn follow(
    mut status: watch::Receiver<Status>,
    roster: Roster,
    me: String,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> watch::Receiver<RaftStatus> {
    let (sender, receiver) = watch::channel(named(&status.borrow().clone(), &roster, &me));
    let shutdown = shutdown.clone();
    let mut members = roster.subscribe();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = status.changed() => if changed.is_err() { return },
                changed = members.changed() => if changed.is_err() { return },
            }
            sender.send_replace(named(&status.borrow_and_update().clone(), &roster, &me));
        }
    });
    receiver
}
