//! What to do about one pod: a pure state machine.
//!
//! Events (what the API says, what the runtime answered, time) go in by [`Machine::step`], [`Action`]s come out. It
//! knows no clock, no file and no socket: the worker carries the actions out and reports back. Every action has at
//! most one in flight, because the state that asked for it says so.

use std::time::Duration;

use jiff::Timestamp;

pub use crate::event::*;
use crate::unit::{Terminated, Unit};

/// Something that is done once, and again later if it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Idle,
    Working,
    Done,
    Failed { message: String, retry_at: Duration, delay: Duration },
}

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

impl Step {
    fn due(&self, now: Now) -> bool {
        match self {
            Step::Idle => true,
            Step::Failed { retry_at, .. } => now.mono >= *retry_at,
            Step::Working | Step::Done => false,
        }
    }

    fn fail(&mut self, now: Now, message: String, before: Option<Duration>) {
        let delay = before.map_or(RETRY_FIRST, |delay| (delay * 2).min(RETRY_MOST));
        *self = Step::Failed { message, retry_at: now.mono + delay, delay };
    }

    fn wake(&self) -> Option<Duration> {
        match self {
            Step::Failed { retry_at, .. } => Some(*retry_at),
            _ => None,
        }
    }
}

/// A step and the delay of its last failure, which outlives the retry.
#[derive(Clone, Debug)]
pub(crate) struct Retried {
    pub(crate) step: Step,
    delay: Option<Duration>,
}

impl Retried {
    fn new(done: bool) -> Retried {
        Retried { step: if done { Step::Done } else { Step::Idle }, delay: None }
    }

    fn begin(&mut self, now: Now) -> bool {
        if !self.step.due(now) {
            return false;
        }
        if let Step::Failed { delay, .. } = self.step {
            self.delay = Some(delay);
        }
        self.step = Step::Working;
        true
    }

    fn end(&mut self, now: Now, result: Result<(), String>) {
        match result {
            Ok(()) => *self = Retried::new(true),
            Err(message) => self.step.fail(now, message, self.delay),
        }
    }

    pub(crate) fn done(&self) -> bool {
        self.step == Step::Done
    }
}

/// Why a pod ends although nobody deleted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// How far the deletion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deletion {
    No,
    Asked,
    Deleting,
    Deleted,
    Removing,
    Removed,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) pod: String,
    pub(crate) units: Vec<Unit>,
    pub(crate) volumes: Retried,
    pub(crate) sandbox: Retried,
    torn: Retried,
    pub(crate) failure: Option<Failure>,
    /// All that should run has run.
    pub(crate) complete: bool,
    /// The init containers are through.
    pub(crate) initialized: bool,
    grace: Duration,
    active_deadline: Option<Duration>,
    stop_deadline: Option<Duration>,
    deletion: Deletion,
    gone: bool,
}

/// What is known of a pod that an earlier agent ran.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its sandbox still stands.
    pub sandbox: bool,
    /// The API says Succeeded or Failed: nothing starts again.
    pub finished: bool,
    /// Containers: name, restart count, state.
    pub containers: Vec<Found>,
}

/// A container that an earlier agent ran.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its restart count.
    pub attempt: u32,
    /// It runs since: id, image id, when.
    pub running: Option<(String, String, Timestamp)>,
    /// How it (or, when it runs, the one before) ended.
    pub ended: Option<Terminated>,
}

impl Machine {
    /// A machine for a pod, taking over what `known` says is there.
    pub fn new(plan: Plan, known: Known, now: Now) -> Machine {
        let mut units: Vec<Unit> = plan.containers.into_iter().map(Unit::new).collect();
        let mut alive = false;
        for found in known.containers {
            if let Some(unit) = units.iter_mut().find(|unit| unit.plan.name == found.name) {
                alive |= found.running.is_some();
                unit.take_over(found, now);
            }
        }
        let same_sandbox = known.sandbox || alive;
        let initialized =
            same_sandbox && units.iter().any(|unit| unit.plan.kind == Kind::Main && unit.seen());
        if !same_sandbox && !known.finished {
            units.iter_mut().for_each(Unit::forget_completion);
        }
        Machine {
            pod: plan.pod,
            units,
            // A running pod's volumes are in use and complete.
            volumes: Retried::new(alive),
            sandbox: Retried::new(false),
            torn: Retried::new(false),
            failure: None,
            complete: known.finished,
            initialized: initialized || known.finished,
            grace: plan.grace,
            active_deadline: plan.deadline.map(|left| now.mono + left),
            stop_deadline: None,
            deletion: Deletion::No,
            gone: false,
        }
    }

    /// Takes an event in and says what to do.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.apply(now, event, &mut out);
        self.decide(now, &mut out);
        out
    }

    /// Nothing is left to do, ever.
    pub fn finished(&self) -> bool {
        self.deletion == Deletion::Removed
    }

    /// The pod is being stopped or has stopped for good.
    pub fn ending(&self) -> bool {
        self.complete || self.failure.is_some() || self.deletion != Deletion::No
    }

    /// Nothing runs and the sandbox is gone.
    pub fn torn_down(&self) -> bool {
        self.torn.done()
    }

    /// When [`Event::Tick`] is wanted, if nothing happens before.
    pub fn next_wake(&self) -> Option<Duration> {
        let steps = [&self.volumes.step, &self.sandbox.step];
        let steps = steps.into_iter().filter(|_| !self.ending()).filter_map(Step::wake);
        let deadline = self.active_deadline.filter(|_| !self.ending());
        let units = self.units.iter().filter_map(|unit| unit.wake(self.ending()));
        steps.chain(self.torn.step.wake()).chain(deadline).chain(units).min()
    }

    fn unit(&mut self, name: &str) -> Option<&mut Unit> {
        self.units.iter_mut().find(|unit| unit.plan.name == name)
    }

    fn apply(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Plan(plan) => self.replan(plan, now),
            Event::Delete(grace) => self.delete(now, grace),
            Event::Gone => {
                self.gone = true;
                self.delete(now, self.grace);
            }
            Event::Volumes(result) => {
                warn_of(&result, "FailedMount", out);
                self.volumes.end(now, result);
            }
            Event::Sandbox(result) => {
                warn_of(&result, "FailedCreatePodSandBox", out);
                self.sandbox.end(now, result);
            }
            Event::TornDown(result) => {
                warn_of(&result, "FailedKillPod", out);
                self.torn.end(now, result);
            }
            Event::Deleted => {
                if self.deletion == Deletion::Deleting {
                    self.deletion = Deletion::Deleted;
                }
            }
            Event::Removed => {
                if self.deletion == Deletion::Removing {
                    self.deletion = Deletion::Removed;
                }
            }
            Event::Tick => {}
            other => self.apply_container(now, other, out),
        }
    }

    fn apply_container(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        let (ending, pod, grace) = (self.ending(), self.pod.clone(), self.grace);
        match event {
            Event::Started { container, id, image_id } => {
                if let Some(unit) = self.unit(&container) {
                    unit.started(now, id, image_id);
                }
            }
            Event::StartFailed { container, why } => {
                if let Some(unit) = self.unit(&container) {
                    unit.start_failed(now, why, ending, &pod, out);
                }
            }
            Event::Exited { container, end } => {
                if let Some(unit) = self.unit(&container) {
                    unit.exited(now, end, ending, &pod, out);
                }
            }
            Event::PreStopped { container, id } => {
                if let Some(unit) = self.unit(&container) {
                    unit.pre_stopped(&id, out);
                }
            }
            Event::Probed { container, id, probe, result } => {
                if let Some(unit) = self.unit(&container) {
                    unit.probed(now, &id, probe, result, grace, out);
                }
            }
            _ => {}
        }
    }

    fn delete(&mut self, now: Now, grace: Duration) {
        let deadline = now.mono + grace;
        self.stop_deadline = Some(self.stop_deadline.map_or(deadline, |old| old.min(deadline)));
        if self.deletion == Deletion::No {
            self.deletion = Deletion::Asked;
        }
    }

    /// Takes over what may change in a running pod: images, ephemeral containers, the deadline's shortening.
    fn replan(&mut self, plan: Plan, now: Now) {
        self.grace = plan.grace;
        if let Some(left) = plan.deadline {
            self.active_deadline = Some(now.mono + left);
        }
        for container in plan.containers {
            match self.unit(&container.name) {
                Some(unit) => {
                    unit.image_changed |= unit.plan.image != container.image && unit.running().is_some();
                    unit.plan = container;
                }
                None if container.kind == Kind::Ephemeral => self.units.push(Unit::new(container)),
                None => {}
            }
        }
    }

    fn decide(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.active_deadline.is_some_and(|at| now.mono >= at) && !self.ending() {
            self.failure = Some(Failure {
                reason: "DeadlineExceeded",
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
            out.push(Action::Emit(Occurrence {
                warning: false,
                reason: "DeadlineExceeded",
                message: "Pod was active on the node longer than the specified deadline".into(),
                container: None,
            }));
        }
        if !self.ending() {
            self.start_next(now, out);
        }
        if self.ending() {
            self.stop_all(now, out);
            self.wind_up(now, out);
        } else {
            let grace = self.grace;
            for unit in self.units.iter_mut().filter(|unit| unit.image_changed) {
                let why = format!("Container {} definition changed, will be restarted", unit.plan.name);
                unit.stop(now, now.mono + grace, &why, out);
            }
        }
        self.units.iter_mut().for_each(|unit| unit.advance_stop(now, out));
    }

    fn start_next(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.volumes.begin(now) {
            out.push(Action::MountVolumes);
        }
        if !self.volumes.done() {
            return;
        }
        if self.sandbox.begin(now) {
            out.push(Action::CreateSandbox);
        }
        if !self.sandbox.done() || !self.run_inits(now, out) {
            return;
        }
        for unit in self.units.iter_mut().filter(|u| matches!(u.plan.kind, Kind::Main | Kind::Ephemeral)) {
            unit.start_if_due(now, out);
        }
        let mut mains = self.units.iter().filter(|unit| unit.plan.kind == Kind::Main);
        self.complete = mains.all(Unit::over);
    }

    /// Moves the init containers on; says whether the main ones may run.
    fn run_inits(&mut self, now: Now, out: &mut Vec<Action>) -> bool {
        for unit in self.units.iter_mut().filter(|u| matches!(u.plan.kind, Kind::Init | Kind::Sidecar)) {
            if unit.plan.kind == Kind::Sidecar {
                unit.start_if_due(now, out);
                if !self.initialized && !unit.has_started() {
                    return false;
                }
            } else if !self.initialized && !unit.succeeded() {
                unit.start_if_due(now, out);
                self.complete = unit.over();
                return false;
            }
        }
        self.initialized = true;
        true
    }

    /// Stops ordinary containers at once, then the sidecars, last first.
    fn stop_all(&mut self, now: Now, out: &mut Vec<Action>) {
        let deadline = *self.stop_deadline.get_or_insert(now.mono + self.grace);
        let mut blocked = false;
        for unit in self.units.iter_mut().filter(|unit| unit.plan.kind != Kind::Sidecar) {
            blocked |= unit.live();
            let why = format!("Stopping container {}", unit.plan.name);
            unit.stop(now, deadline, &why, out);
        }
        for unit in self.units.iter_mut().rev().filter(|unit| unit.plan.kind == Kind::Sidecar) {
            if !blocked || now.mono >= deadline {
                let why = format!("Stopping container {}", unit.plan.name);
                unit.stop(now, deadline, &why, out);
            }
            blocked |= unit.live();
        }
    }

    fn wind_up(&mut self, now: Now, out: &mut Vec<Action>) {
        let busy = self.volumes.step == Step::Working || self.sandbox.step == Step::Working;
        if busy || self.units.iter().any(Unit::live) {
            return;
        }
        if self.torn.begin(now) {
            out.push(Action::TearDown);
        }
        if !self.torn.done() {
            return;
        }
        match self.deletion {
            Deletion::Asked if !self.gone => {
                self.deletion = Deletion::Deleting;
                out.push(Action::DeleteObject);
            }
            Deletion::Asked | Deletion::Deleted => {
                self.deletion = Deletion::Removing;
                out.push(Action::Remove);
            }
            Deletion::Deleting if self.gone => {
                self.deletion = Deletion::Removing;
                out.push(Action::Remove);
            }
            _ => {}
        }
    }

    /// Containers that run, with their ids: whom to watch after a takeover.
    pub fn running(&self) -> Vec<(String, String)> {
        let ids =
            self.units.iter().filter_map(|u| u.running().map(|id| (u.plan.name.clone(), id.to_owned())));
        ids.collect()
    }
}

fn warn_of(result: &Result<(), String>, reason: &'static str, out: &mut Vec<Action>) {
    if let Err(message) = result {
        out.push(Action::Emit(Occurrence {
            warning: true,
            reason,
            message: message.clone(),
            container: None,
        }));
    }
}

#[cfg(test)]
mod tests;
