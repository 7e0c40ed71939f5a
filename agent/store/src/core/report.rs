//! What a core says of itself.

use raft::StateRole;

use super::Core;
use crate::status::{Progress, Role, Status};

impl Core {
    pub(crate) fn role(&self) -> Role {
        if self.halted.is_some() {
            return Role::Halted;
        }
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.conf_state.voters.contains(&self.config.id) => Role::Follower,
            StateRole::Follower if self.conf_state.learners.contains(&self.config.id) => Role::Learner,
            StateRole::Follower if self.conf_state.voters.is_empty() => Role::Dormant,
            StateRole::Follower => Role::Follower,
        }
    }

    pub(crate) fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let role = self.role();
        let mut progress = Vec::new();
        if role == Role::Leader {
            progress.extend(
                raft.prs().iter().filter(|(id, _)| **id != self.config.id).map(|(id, p)| Progress {
                    id: *id,
                    matched: p.matched,
                    recent_active: self.is_active(*id),
                }),
            );
            progress.sort_by_key(|p| p.id);
        }
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        let conf = &self.conf_state;
        let leaving = conf.voters_outgoing.iter().filter(|id| !conf.voters.contains(id));
        let leaving: Vec<u64> = leaving.copied().collect();
        Status {
            id: self.config.id,
            role,
            leader: Some(raft.leader_id).filter(|id| *id != 0 && self.halted.is_none()),
            leading: role == Role::Leader && self.applied.term == raft.term,
            term: raft.term,
            committed: raft.raft_log.committed,
            applied: self.applied.index,
            first_index: self.raw.store().base().index + 1,
            last_index: raft.raft_log.last_index(),
            revision: self.space.revision(),
            voters: sorted(&self.conf_state.voters),
            learners: sorted(&self.conf_state.learners),
            leaving: sorted(&leaving),
            progress,
            disk_error: None,
            halted: self.halted.clone(),
        }
    }
}
