//! Members and votes: a pure plan from who is there to the next membership change.
//!
//! The leader calls [`plan`] whenever something it looks at changed and carries out the one step that comes back.
//! One voter for one or two members, three for three to six, five for seven and more; a voter that stays away is
//! replaced as soon as a healthy member can take its place, never before.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One node of the cluster, as the replicated store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub name: String,
    /// Its Raft id: new with every join, so a wiped disk never speaks with the voice of the old one.
    pub id: u64,
    /// Where the other nodes reach it.
    pub addresses: Vec<IpAddr>,
    /// The API's and Raft's port there.
    pub port: u16,
    /// Whether it may vote.
    pub vote: bool,
    /// SHA-256 of its public key, hex: who it is.
    pub key: String,
    /// The newest format of the store's log that its agent understands (`store::FORMAT`); agents that say nothing
    /// understand the first. The cluster writes what all its members understand.
    #[serde(default)]
    pub format: u32,
}

/// The newest format that all members understand.
pub fn understood(members: &[Member]) -> u32 {
    members.iter().map(|member| member.format).min().unwrap_or(0)
}

/// How long a member must have been healthy before it is given a vote.
pub const STABLE_FOR: Duration = Duration::from_secs(2);
/// How long a voter may be away before another takes its place.
pub const REPLACE_AFTER: Duration = Duration::from_secs(60);

/// A member as the leader sees it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its Raft id.
    pub id: u64,
    /// Whether it may vote.
    pub vote: bool,
    /// How long it has been healthy; `None` while it is not.
    pub healthy_for: Option<Duration>,
    /// How long it has been away; `None` while it is healthy.
    pub away_for: Option<Duration>,
    /// Whether its log has caught up with the leader's.
    pub caught_up: bool,
}

impl Candidate {
    fn stable(&self) -> bool {
        self.healthy_for.is_some_and(|d| d >= STABLE_FOR)
    }

    fn lost(&self) -> bool {
        self.away_for.is_some_and(|d| d >= REPLACE_AFTER)
    }
}

/// What the leader knows when it plans.
#[derive(Clone, Debug)]
pub struct View {
    /// The leader itself.
    pub leader: u64,
    /// Raft's voters.
    pub voters: BTreeSet<u64>,
    /// Raft's learners.
    pub learners: BTreeSet<u64>,
    /// All members, the leader among them.
    pub candidates: Vec<Candidate>,
}

/// The next change of Raft's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start copying the log to this member.
    AddLearner(u64),
    /// Make these the voters, in one joint change; the others become learners or nothing.
    SetVoters(BTreeSet<u64>),
    /// Take this one out of the configuration.
    Remove(u64),
}

/// Voters that a cluster of so many members has.
pub fn voters_for(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3..=6 => 3,
        _ => 5,
    }
}

/// The one next step, or `None` when all is as it should be.
pub fn plan(view: &View) -> Option<Step> {
    let wanted = wanted(view);
    // Nobody may vote: the leader has left and the rest are barred. Nothing good comes of an empty set.
    if wanted.is_empty() {
        return None;
    }
    let member = |id: &u64| view.candidates.iter().find(|c| c.id == *id);
    // The voters change in one joint step, once everyone who is to have a vote holds the log.
    if wanted != view.voters {
        let arriving: Vec<u64> = wanted.difference(&view.voters).copied().collect();
        if let Some(new) = arriving.iter().find(|id| !view.learners.contains(id)) {
            return Some(Step::AddLearner(*new));
        }
        if arriving.iter().all(|id| member(id).is_some_and(|c| c.caught_up)) {
            return Some(Step::SetVoters(wanted));
        }
        return None;
    }
    // Who is no voter and not about to be one holds no log: it costs a card writes for nothing.
    view.learners.iter().find(|id| !wanted.contains(id)).map(|id| Step::Remove(*id))
}

/// Who should vote: as many of the present voters as possible, the leader always.
fn wanted(view: &View) -> BTreeSet<u64> {
    let eligible: Vec<&Candidate> =
        view.candidates.iter().filter(|c| c.vote || c.id == view.leader).collect();
    let size = voters_for(eligible.len());
    let present = |c: &&&Candidate| view.voters.contains(&c.id);
    let mut keep: Vec<&Candidate> = eligible.iter().filter(present).copied().collect();
    // The leader first, then who was healthy longest, then who has been away shortest.
    keep.sort_by_key(|c| (c.id != view.leader, c.healthy_for.is_none(), c.away_for, c.id));
    keep.truncate(size);
    let mut spares: Vec<&Candidate> =
        eligible.iter().filter(|c| !view.voters.contains(&c.id) && c.stable()).copied().collect();
    // A learner that already holds the log before one that would have to copy it.
    spares.sort_by_key(|c| (!view.learners.contains(&c.id), c.id));
    let mut spares = spares.into_iter();
    while let Some(lost) = keep.iter().position(|c| c.id != view.leader && c.lost()) {
        let Some(spare) = spares.next() else { break };
        keep[lost] = spare;
    }
    let mut wanted: BTreeSet<u64> = keep.iter().map(|c| c.id).collect();
    let room = size.saturating_sub(wanted.len());
    wanted.extend(spares.take(room).map(|c| c.id));
    // An even number of voters survives no more losses than one fewer, so wait for the odd one.
    if wanted.len() < size && wanted.len().is_multiple_of(2) {
        let newest = wanted.iter().rev().find(|id| !view.voters.contains(id)).copied();
        if let Some(id) = newest {
            wanted.remove(&id);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn up(id: u64) -> Candidate {
        Candidate { id, vote: true, healthy_for: Some(STABLE_FOR), away_for: None, caught_up: true }
    }

    fn away(id: u64, seconds: u64) -> Candidate {
        Candidate {
            healthy_for: None,
            away_for: Some(Duration::from_secs(seconds)),
            caught_up: false,
            ..up(id)
        }
    }

    fn view(voters: &[u64], learners: &[u64], candidates: Vec<Candidate>) -> View {
        View {
            leader: 1,
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            candidates,
        }
    }

    fn set(ids: &[u64]) -> Option<Step> {
        Some(Step::SetVoters(ids.iter().copied().collect()))
    }

    #[test]
    fn grows_from_one_to_three_at_once() {
        assert_eq!(plan(&view(&[1], &[], vec![up(1)])), None);
        assert_eq!(plan(&view(&[1], &[], vec![up(1), up(2)])), None);
        let three = || vec![up(1), up(2), up(3)];
        assert_eq!(plan(&view(&[1], &[], three())), Some(Step::AddLearner(2)));
        assert_eq!(plan(&view(&[1], &[2], three())), Some(Step::AddLearner(3)));
        assert_eq!(plan(&view(&[1], &[2, 3], three())), set(&[1, 2, 3]));
        assert_eq!(plan(&view(&[1, 2, 3], &[], three())), None);
    }

    #[test]
    fn waits_for_the_log_and_for_stability() {
        let late = Candidate { caught_up: false, ..up(3) };
        assert_eq!(plan(&view(&[1], &[2, 3], vec![up(1), up(2), late])), None);
        let fresh = Candidate { healthy_for: Some(Duration::ZERO), ..up(3) };
        assert_eq!(plan(&view(&[1], &[], vec![up(1), up(2), fresh])), None);
    }

    #[test]
    fn a_lost_voter_is_replaced_only_by_somebody() {
        let members = |seconds, spare: Option<Candidate>| {
            let mut all = vec![up(1), up(2), away(3, seconds)];
            all.extend(spare);
            all
        };
        assert_eq!(plan(&view(&[1, 2, 3], &[], members(600, None))), None);
        assert_eq!(plan(&view(&[1, 2, 3], &[], members(5, Some(up(4))))), None);
        assert_eq!(plan(&view(&[1, 2, 3], &[], members(61, Some(up(4))))), Some(Step::AddLearner(4)));
        assert_eq!(plan(&view(&[1, 2, 3], &[4], members(61, Some(up(4))))), set(&[1, 2, 4]));
    }

    #[test]
    fn a_wiped_node_comes_back_under_a_new_id() {
        // 3 is no member any more, 9 is the same Pi with a new disk.
        let members = || vec![up(1), up(2), up(9)];
        assert_eq!(plan(&view(&[1, 2, 3], &[], members())), Some(Step::AddLearner(9)));
        assert_eq!(plan(&view(&[1, 2, 3], &[9], members())), set(&[1, 2, 9]));
    }

    #[test]
    fn barred_members_never_vote() {
        let barred = |id| Candidate { vote: false, ..up(id) };
        assert_eq!(plan(&view(&[1], &[], vec![up(1), barred(2), barred(3), barred(4)])), None);
    }

    proptest! {
        /// Whatever happens to members, following the plan ends, keeps the leader voting, never makes a voter of one
        /// that is barred or away, and changes voters only to sets that hold the log.
        #[test]
        fn following_the_plan_settles(
            states in proptest::collection::vec((any::<bool>(), 0u8..4), 1..9),
            voters in proptest::collection::btree_set(1u64..9, 1..6),
        ) {
            let candidates: Vec<Candidate> = states.iter().enumerate().map(|(i, (vote, health))| {
                let id = i as u64 + 1;
                let state = match health { 0 => away(id, 5), 1 => away(id, 600), _ => up(id) };
                Candidate { vote: *vote, ..state }
            }).collect();
            let mut now = view(&[1], &[], candidates);
            now.voters = voters;
            now.voters.insert(1);
            if let Some(first) = now.candidates.first_mut() { *first = up(1); }
            for _ in 0..64 {
                match plan(&now) {
                    None => return Ok(()),
                    Some(Step::AddLearner(id)) => {
                        prop_assert!(!now.voters.contains(&id) && now.learners.insert(id));
                    }
                    Some(Step::Remove(id)) => { prop_assert!(now.learners.remove(&id)); }
                    Some(Step::SetVoters(set)) => {
                        prop_assert!(set.contains(&1));
                        for id in set.difference(&now.voters) {
                            let c = now.candidates.iter().find(|c| c.id == *id).unwrap();
                            prop_assert!(c.vote && c.caught_up && c.healthy_for.is_some());
                        }
                        now.learners.retain(|id| !set.contains(id));
                        now.voters = set;
                    }
                }
            }
            prop_assert!(false, "the plan does not settle: {now:?}");
        }
    }
}
