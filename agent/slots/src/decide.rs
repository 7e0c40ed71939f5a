//! What is decided from the boot state.

use crate::state::{Slot, Spare, State, TRIES};

/// What the initramfs does with the boot that it was given: first the write, then the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Put this on the card before anything else.
    pub write: Option<State>,
    /// And then.
    pub then: Then,
}

/// How a boot goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Boot the slot that the firmware chose.
    Boot {
        /// It is on trial: have the watchdog running before its root is touched, so that a hang is a failed try.
        watchdog: bool,
    },
    /// Make `config.txt` name this slot and reboot. If that cannot be written, booting what there is beats rebooting
    /// for ever.
    Repair(Slot),
}

/// Decides about a boot of the slot `running`. `state` is `None` when neither copy can be read.
#[must_use]
pub fn on_boot(state: Option<State>, running: Slot) -> Boot {
    let Some(state) = state else {
        // Both copies lost: what the firmware booted is all there is to go by.
        return Boot { write: Some(State::new(running)), then: Then::Boot { watchdog: false } };
    };
    let as_it_is = Boot { write: None, then: Then::Boot { watchdog: false } };
    if running == state.good {
        return as_it_is;
    }
    match state.spare {
        // Somebody edited config.txt by hand to get at the older system.
        Spare::Whole => as_it_is,
        Spare::Empty | Spare::Trial { tries_left: 0 } => Boot { write: None, then: Then::Repair(state.good) },
        Spare::Trial { tries_left } => Boot {
            write: Some(state.then(state.good, Spare::Trial { tries_left: tries_left - 1 })),
            then: Then::Boot { watchdog: true },
        },
    }
}

/// Why a step is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Writing the slot that runs, or the only good one.
    #[error(
        "this is slot {running}, on trial: wait until it is committed (`kube-config upgrade --status`), or leave it \
         with `kube-config upgrade --fall-back`"
    )]
    OnTrial {
        /// The slot that runs.
        running: Slot,
    },
    /// There is no other system to go to.
    #[error("slot {0} holds no complete system: there is nothing to fall back to")]
    NothingThere(Slot),
}

impl State {
    /// The spare slot is about to be written: from here on it holds nothing.
    ///
    /// # Errors
    /// If the running system is not the good one: the only good system would be overwritten.
    pub fn begin(self, running: Slot) -> Result<Self, Refusal> {
        if running != self.good {
            return Err(Refusal::OnTrial { running });
        }
        Ok(self.then(self.good, Spare::Empty))
    }

    /// The spare slot was written and synced (or is whole from before): try it from the next boot on.
    #[must_use]
    pub fn stage(self) -> Self {
        self.then(self.good, Spare::Trial { tries_left: TRIES })
    }

    /// The running system is healthy. `None`: it is the good one already.
    #[must_use]
    pub fn commit(self, running: Slot) -> Option<Self> {
        (running != self.good).then(|| self.then(running, Spare::Whole))
    }

    /// Leaves the running system for the other one: the slot that `config.txt` must name, and the state to write. From
    /// a trial it is back to the good slot (`config.txt` first, then the state); from the good slot it is a new trial
    /// of the older system (the state first, then `config.txt`), so that this, too, is undone if it does not run.
    ///
    /// # Errors
    /// If the other slot holds no complete system.
    pub fn fall_back(self, running: Slot) -> Result<(Slot, Self), Refusal> {
        if running != self.good {
            return Ok((self.good, self.then(self.good, Spare::Whole)));
        }
        match self.spare {
            Spare::Empty => Err(Refusal::NothingThere(running.other())),
            Spare::Whole | Spare::Trial { .. } => Ok((running.other(), self.stage())),
        }
    }
}
