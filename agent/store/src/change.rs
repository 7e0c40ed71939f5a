//! Changes of who is a member.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfState};

/// A change of the members. Applied by joint consensus: at no moment can two majorities disagree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new member that receives the log and does not vote.
    AddLearner(u64),
    /// Learners that vote from now on.
    Promote(Vec<u64>),
    /// Members that are gone.
    Remove(Vec<u64>),
    /// Exactly these members.
    Set {
        /// Who votes.
        voters: Vec<u64>,
        /// Who receives the log without voting.
        learners: Vec<u64>,
    },
}

/// Why the members did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead, or is handing leadership over.
    #[error("this node is not the leader")]
    NotLeader,
    /// Another change is under way.
    #[error("another membership change is under way")]
    InProgress,
    /// The change makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Leadership was lost while the change was under way: it may or may not happen.
    #[error("the leader changed while the membership change was under way")]
    Lost,
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

impl Change {
    /// The single steps that lead there from `conf`; none when it is so already.
    pub(crate) fn steps(&self, conf: &ConfState) -> Result<Vec<ConfChangeSingle>, ChangeError> {
        let mut voters = conf.voters.clone();
        let mut learners = conf.learners.clone();
        match self {
            Change::AddLearner(id) if voters.contains(id) || learners.contains(id) => {}
            Change::AddLearner(id) => learners.push(*id),
            Change::Promote(ids) => {
                for id in ids.iter().filter(|id| !conf.voters.contains(id)) {
                    if !learners.contains(id) {
                        return Err(ChangeError::Invalid(format!("{id} is not a learner")));
                    }
                    learners.retain(|l| l != id);
                    voters.push(*id);
                }
            }
            Change::Remove(ids) => {
                voters.retain(|id| !ids.contains(id));
                learners.retain(|id| !ids.contains(id));
            }
            Change::Set { voters: new_voters, learners: new_learners } => {
                voters.clone_from(new_voters);
                learners.clone_from(new_learners);
            }
        }
        if voters.is_empty() {
            return Err(ChangeError::Invalid("a cluster needs a voter".into()));
        }
        if voters.iter().chain(&learners).any(|id| *id == 0) {
            return Err(ChangeError::Invalid("0 is not an id".into()));
        }
        if let Some(id) = voters.iter().find(|id| learners.contains(id)) {
            return Err(ChangeError::Invalid(format!("{id} cannot be both voter and learner")));
        }
        Ok(difference(conf, &voters, &learners))
    }
}

fn difference(conf: &ConfState, voters: &[u64], learners: &[u64]) -> Vec<ConfChangeSingle> {
    let step = |kind: ConfChangeType, id: u64| ConfChangeSingle { change_type: kind as i32, node_id: id };
    let mut steps = Vec::new();
    for id in voters.iter().filter(|id| !conf.voters.contains(id)) {
        steps.push(step(ConfChangeType::AddNode, *id));
    }
    for id in learners.iter().filter(|id| !conf.learners.contains(id)) {
        steps.push(step(ConfChangeType::AddLearnerNode, *id));
    }
    for id in conf.voters.iter().chain(&conf.learners) {
        if !voters.contains(id) && !learners.contains(id) {
            steps.push(step(ConfChangeType::RemoveNode, *id));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: Change, expect: Result<usize, &str>) {
        let conf = ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() };
        let steps = change.steps(&conf).map(|s| s.len()).map_err(|e| e.to_string());
        assert_eq!(steps, expect.map_err(str::to_owned), "{change:?}");
    }

    #[test]
    fn changes_are_differences() {
        check(Change::AddLearner(3), Ok(0));
        check(Change::AddLearner(4), Ok(1));
        check(Change::AddLearner(0), Err("0 is not an id"));
        check(Change::Promote(vec![1, 3]), Ok(1));
        check(Change::Promote(vec![9]), Err("9 is not a learner"));
        check(Change::Remove(vec![1, 2]), Err("a cluster needs a voter"));
        check(Change::Remove(vec![2, 3, 7]), Ok(2));
        check(Change::Set { voters: vec![3], learners: vec![2] }, Ok(3));
        check(
            Change::Set { voters: vec![1, 3], learners: vec![3] },
            Err("3 cannot be both voter and learner"),
        );
    }
}
