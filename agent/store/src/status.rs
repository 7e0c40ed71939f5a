//! What a node knows of itself and, when it leads, of the others.

/// A node's part in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Belongs to no cluster yet: it waits to be bootstrapped or added.
    #[default]
    Dormant,
    /// Receives the log, does not vote.
    Learner,
    /// Votes, follows a leader.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Takes no part: the log holds entries that are newer than this code.
    Halted,
}

/// How far another member is, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub id: u64,
    /// The last entry it is known to have on disk.
    pub matched: u64,
    /// Whether it was heard within two election timeouts.
    pub recent_active: bool,
}

/// A node's state. Published when it changes: at once for roles and members, twice a second for log positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: u64,
    /// Its part in the cluster.
    pub role: Role,
    /// Who leads, as far as known.
    pub leader: Option<u64>,
    /// This node leads and has applied an entry of its own term: it knows all that was committed and may serve.
    pub leading: bool,
    /// The Raft term.
    pub term: u64,
    /// The last entry known to be committed.
    pub committed: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The first entry in the log.
    pub first_index: u64,
    /// The last entry in the log.
    pub last_index: u64,
    /// The newest applied revision.
    pub revision: u64,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who receives the log without voting.
    pub learners: Vec<u64>,
    /// Who votes no more once the change that is under way is over. Until then nothing is decided without them.
    pub leaving: Vec<u64>,
    /// The other members' progress; empty unless this node leads.
    pub progress: Vec<Progress>,
    /// Why the disk takes no writes at the moment.
    pub disk_error: Option<String>,
    /// Why this node takes no part any more: it is older than what the others have written.
    pub halted: Option<String>,
}

impl Status {
    /// Whether `other` differs in more than log positions.
    pub(crate) fn differs_in_kind(&self, other: &Status) -> bool {
        let progress = |s: &Status| s.progress.iter().map(|p| (p.id, p.recent_active)).collect::<Vec<_>>();
        self.role != other.role
            || self.leader != other.leader
            || self.leading != other.leading
            || self.term != other.term
            || self.voters != other.voters
            || self.learners != other.learners
            || self.leaving != other.leaving
            || self.disk_error != other.disk_error
            || self.halted != other.halted
            || progress(self) != progress(other)
    }
}
