//! What the node of an upgrade and whoever asks for it tell each other: two annotations of the Node.
//!
//! Only who may change nodes can ask, and what is installed is signed all the same. The agent of the node answers
//! ([`decide`]); its answer survives the reboot that an upgrade is.

use serde::{Deserialize, Serialize};
use slots::{Slot, State};

/// Asks a node to upgrade itself: a [`Request`].
pub const REQUEST: &str = "bramble.io/upgrade";
/// What came of it: an [`Answer`].
pub const ANSWER: &str = "bramble.io/upgrade-result";

/// One upgrade of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Tells this upgrade from the ones before.
    pub id: String,
    /// Where the bundle is.
    pub from: String,
    /// Let pods back onto the node once it is done; not if somebody else had cordoned it.
    pub uncordon: bool,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// The other slot is being written, or the new system is on trial.
    Running,
    /// The new system is the good one.
    Done,
    /// The old one is, with the reason.
    Failed(String),
}

/// A node's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's.
    pub id: String,
    /// The boot in which it was begun (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// The slot that ran then, `a` or `b`.
    pub slot: String,
    /// How far it is.
    pub progress: Progress,
}

/// This boot of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its id.
    pub boot: String,
    /// The slot that runs.
    pub running: Slot,
    /// The card's boot state.
    pub state: State,
}

/// What the agent does about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Say that it runs, then run it.
    Begin,
    /// Look again later: the new system is on trial.
    Later,
    /// Say what came of it.
    Say(Progress),
}

/// Decides, from what was asked, what was answered, and what runs now.
#[must_use]
pub fn decide(request: &Request, answer: Option<&Answer>, here: &Here) -> Act {
    let Some(answer) = answer.filter(|answer| answer.id == request.id) else { return Act::Begin };
    if answer.progress != Progress::Running {
        return Act::Nothing;
    }
    if answer.boot == here.boot {
        return Act::Say(Progress::Failed("the agent was stopped while it wrote the update".to_owned()));
    }
    if Slot::from_letter(&answer.slot) == Some(here.running) {
        let why = "the new system did not become healthy; the old one runs again (journalctl --list-boots)";
        return Act::Say(Progress::Failed(why.to_owned()));
    }
    if here.state.good == here.running { Act::Say(Progress::Done) } else { Act::Later }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(boot: &str, running: Slot, state: State) -> Here {
        Here { boot: boot.to_owned(), running, state }
    }

    #[test]
    fn an_upgrade_through_its_reboot() {
        let request = Request { id: "1".into(), from: "http://x".into(), uncordon: true };
        let state = State::new(Slot::A);
        assert_eq!(decide(&request, None, &here("x", Slot::A, state)), Act::Begin);
        let running =
            Answer { id: "1".into(), boot: "x".into(), slot: "a".into(), progress: Progress::Running };
        let older = Answer { id: "0".into(), progress: Progress::Done, ..running.clone() };
        assert_eq!(decide(&request, Some(&older), &here("x", Slot::A, state)), Act::Begin);
        let trial = state.stage();
        let after = |slot, state| decide(&request, Some(&running), &here("y", slot, state));
        assert_eq!(after(Slot::B, trial), Act::Later);
        assert_eq!(after(Slot::B, trial.commit(Slot::B).unwrap()), Act::Say(Progress::Done));
        assert!(matches!(after(Slot::A, trial), Act::Say(Progress::Failed(_))));
        let stopped = decide(&request, Some(&running), &here("x", Slot::A, state));
        assert!(matches!(stopped, Act::Say(Progress::Failed(_))));
        let done = Answer { progress: Progress::Done, ..running.clone() };
        assert_eq!(decide(&request, Some(&done), &here("y", Slot::B, state)), Act::Nothing);
    }
}
