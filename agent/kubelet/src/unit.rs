//! One container inside a pod's [`Machine`](crate::machine::Machine).

use std::time::Duration;

use jiff::Timestamp;

use crate::machine::{Action, ContainerPlan, Found, Kind, Now, Occurrence, Restart, Threshold};

/// The first wait after a crash; doubled with each one that follows.
pub const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
/// The longest wait.
pub const BACK_OFF_MOST: Duration = Duration::from_secs(300);
/// A container that ran this long starts over without a wait.
pub const BACK_OFF_RESET: Duration = Duration::from_secs(600);
/// How long a failed pull is shown as such before it is shown as waiting for the next.
const SHOW_PULL_ERROR: Duration = Duration::from_secs(3);
/// How long after SIGKILL it is sent again.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// What a preStop hook that used up the grace period leaves to the process.
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Until it succeeds the others wait.
    Startup,
    /// Its failure restarts.
    Liveness,
    /// Its failure takes the pod out of services.
    Readiness,
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// No image: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`.
    Image {
        /// CamelCase.
        reason: &'static str,
        /// The runtime's text.
        message: String,
    },
    /// The spec cannot be fulfilled yet: `CreateContainerConfigError`.
    Config {
        /// CamelCase.
        reason: &'static str,
        /// What is missing.
        message: String,
    },
    /// It was made, but its process did not come up: counts as an end.
    Start(Box<Terminated>),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminated {
    /// Container id.
    pub id: String,
    /// Image id.
    pub image_id: String,
    /// Exit code.
    pub code: i32,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` ...
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not running, and may start once `until` has come.
    Waiting {
        /// CamelCase.
        reason: &'static str,
        /// For people.
        message: String,
        /// Not before.
        until: Option<Duration>,
    },
    /// The worker is at it.
    Starting,
    /// It runs.
    Running {
        /// Container id.
        id: String,
        /// Image id.
        image_id: String,
        /// Wall time of the start.
        started_at: Timestamp,
        /// The same on the other clock.
        since: Duration,
        /// It is being stopped.
        stop: Option<Stop>,
    },
    /// It ended, and does not start again unless policy says so.
    Terminated(Terminated),
}

/// A stop under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    deadline: Duration,
    phase: StopPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopPhase {
    Hook,
    Asked,
    Killed { again: Duration },
}

#[derive(Clone, Debug, Default)]
struct Counter {
    good: u32,
    bad: u32,
}

impl Counter {
    /// Counts; `Some(verdict)` while a threshold is met.
    fn count(&mut self, good: bool, threshold: Threshold) -> Option<bool> {
        if good {
            (self.good, self.bad) = (self.good + 1, 0);
            (self.good >= threshold.success).then_some(true)
        } else {
            (self.good, self.bad) = (0, self.bad + 1);
            (self.bad >= threshold.failure).then_some(false)
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Unit {
    pub(crate) plan: ContainerPlan,
    pub(crate) state: State,
    /// The end before the present state.
    pub(crate) last: Option<Terminated>,
    /// Restart count of the newest container; `None` before the first.
    pub(crate) attempt: Option<u32>,
    pub(crate) image_changed: bool,
    started: bool,
    readiness: bool,
    crash_delay: Duration,
    pull_delay: Duration,
    counters: [Counter; 3],
}

impl Unit {
    pub(crate) fn new(plan: ContainerPlan) -> Unit {
        Unit {
            plan,
            state: State::Waiting { reason: "ContainerCreating", message: String::new(), until: None },
            last: None,
            attempt: None,
            image_changed: false,
            started: false,
            readiness: false,
            crash_delay: Duration::ZERO,
            pull_delay: Duration::ZERO,
            counters: Default::default(),
        }
    }

    pub(crate) fn take_over(&mut self, found: Found, now: Now) {
        self.attempt = Some(found.attempt);
        // Whoever crashed before is not let off by a restart of the agent.
        let doublings = found.attempt.min(6);
        self.crash_delay = (1..=doublings).fold(Duration::ZERO, |delay, _| next_delay(delay));
        match (found.running, found.ended) {
            (Some((id, image_id, started_at)), ended) => {
                self.last = ended;
                self.state = State::Running { id, image_id, started_at, since: now.mono, stop: None };
                // Not to flap: a container that an earlier agent ran was past its startup.
                self.started = true;
                self.readiness = self.plan.readiness.is_none();
            }
            (None, Some(ended)) => self.state = State::Terminated(ended),
            (None, None) => {}
        }
    }

    /// After its sandbox was lost an init container has to run again.
    pub(crate) fn forget_completion(&mut self) {
        if self.plan.kind == Kind::Init
            && let State::Terminated(end) = &self.state
        {
            self.last = Some(end.clone());
            self.state = State::Waiting { reason: "PodInitializing", message: String::new(), until: None };
        }
    }

    pub(crate) fn seen(&self) -> bool {
        self.attempt.is_some()
    }

    pub(crate) fn running(&self) -> Option<&str> {
        match &self.state {
            State::Running { id, .. } => Some(id),
            _ => None,
        }
    }

    pub(crate) fn live(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Starting)
    }

    pub(crate) fn succeeded(&self) -> bool {
        matches!(&self.state, State::Terminated(end) if end.code == 0)
    }

    pub(crate) fn has_started(&self) -> bool {
        self.running().is_some() && self.started
    }

    pub(crate) fn ready(&self) -> bool {
        self.has_started() && self.readiness
    }

    /// A start that never came to a container does not count.
    fn next_attempt(&self) -> u32 {
        self.attempt.map_or(0, |attempt| attempt + 1)
    }

    fn restarts(&self, code: i32) -> bool {
        match self.plan.restart {
            Restart::Always => true,
            Restart::OnFailure => code != 0,
            Restart::Never => false,
        }
    }

    /// It ended and policy does not start it again.
    pub(crate) fn over(&self) -> bool {
        matches!(&self.state, State::Terminated(end) if !self.restarts(end.code))
    }

    pub(crate) fn start_if_due(&mut self, now: Now, out: &mut Vec<Action>) {
        let due = match &self.state {
            State::Waiting { until, .. } => until.is_none_or(|until| now.mono >= until),
            State::Terminated(end) => self.restarts(end.code),
            State::Starting | State::Running { .. } => false,
        };
        if !due {
            self.show_back_off(now);
            return;
        }
        if let State::Terminated(end) = &self.state {
            self.last = Some(end.clone());
        }
        let attempt = self.next_attempt();
        self.state = State::Starting;
        out.push(Action::Start { container: self.plan.name.clone(), attempt });
    }

    /// Once the error was shown for a moment, say that a next try is waited for.
    fn show_back_off(&mut self, now: Now) {
        let (image, delay) = (self.plan.image.clone(), self.pull_delay);
        if let State::Waiting { reason, message, until: Some(until) } = &mut self.state
            && *reason == "ErrImagePull"
            && now.mono + delay >= *until + SHOW_PULL_ERROR
        {
            *reason = "ImagePullBackOff";
            *message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
        }
    }

    pub(crate) fn started(&mut self, now: Now, id: String, image_id: String) {
        self.attempt = Some(self.next_attempt());
        self.begin_counting();
        self.pull_delay = Duration::ZERO;
        self.state = State::Running { id, image_id, started_at: now.wall, since: now.mono, stop: None };
    }

    fn begin_counting(&mut self) {
        self.started = self.plan.startup.is_none();
        self.readiness = self.plan.readiness.is_none();
        self.image_changed = false;
        self.counters = Default::default();
    }

    pub(crate) fn start_failed(
        &mut self,
        now: Now,
        why: StartFailure,
        ending: bool,
        pod: &str,
        out: &mut Vec<Action>,
    ) {
        if self.state != State::Starting {
            return;
        }
        match why {
            StartFailure::Image { reason, message } | StartFailure::Config { reason, message } => {
                self.pull_delay = next_delay(self.pull_delay);
                self.state = State::Waiting { reason, message, until: Some(now.mono + self.pull_delay) };
            }
            StartFailure::Start(end) => {
                self.attempt = Some(self.next_attempt());
                self.begin_counting();
                self.ended(now, *end, Duration::ZERO, ending, pod, out);
            }
        }
    }

    pub(crate) fn exited(
        &mut self,
        now: Now,
        end: Terminated,
        ending: bool,
        pod: &str,
        out: &mut Vec<Action>,
    ) {
        let State::Running { id, since, image_id, started_at, .. } = &self.state else { return };
        if *id != end.id {
            return;
        }
        let ran = now.mono.saturating_sub(*since);
        let end = Terminated { image_id: image_id.clone(), started_at: Some(*started_at), ..end };
        self.ended(now, end, ran, ending, pod, out);
    }

    fn ended(
        &mut self,
        now: Now,
        end: Terminated,
        ran: Duration,
        ending: bool,
        pod: &str,
        out: &mut Vec<Action>,
    ) {
        if ran >= BACK_OFF_RESET {
            self.crash_delay = Duration::ZERO;
        }
        (self.started, self.readiness) = (false, false);
        let delay = self.crash_delay;
        if ending || !self.restarts(end.code) || delay.is_zero() {
            self.crash_delay = next_delay(delay);
            self.state = State::Terminated(end);
            return;
        }
        self.crash_delay = next_delay(delay);
        let name = &self.plan.name;
        let message = format!("back-off {} restarting failed container={name} pod={pod}", span(delay));
        out.push(self.emit(
            true,
            "BackOff",
            format!("Back-off restarting failed container {name} in pod {pod}"),
        ));
        self.last = Some(end);
        self.state = State::Waiting { reason: "CrashLoopBackOff", message, until: Some(now.mono + delay) };
    }

    /// Begins a stop, or shortens one.
    pub(crate) fn stop(&mut self, now: Now, deadline: Duration, why: &str, out: &mut Vec<Action>) {
        let (container, pre_stop) = (self.plan.name.clone(), self.plan.pre_stop);
        let State::Running { id, stop, .. } = &mut self.state else { return };
        if let Some(stop) = stop {
            stop.deadline = stop.deadline.min(deadline);
            return;
        }
        let id = id.clone();
        let within = deadline.saturating_sub(now.mono);
        let phase = if pre_stop && !within.is_zero() { StopPhase::Hook } else { StopPhase::Asked };
        *stop = Some(Stop { deadline, phase });
        out.push(self.emit(false, "Killing", why.to_owned()));
        out.push(match phase {
            StopPhase::Hook => Action::PreStop { container, id, within },
            _ => Action::Signal { container, id, kill: false },
        });
    }

    pub(crate) fn pre_stopped(&mut self, hook_of: &str, out: &mut Vec<Action>) {
        let container = self.plan.name.clone();
        if let State::Running { id, stop: Some(stop), .. } = &mut self.state
            && id == hook_of
            && stop.phase == StopPhase::Hook
        {
            stop.phase = StopPhase::Asked;
            out.push(Action::Signal { container, id: id.clone(), kill: false });
        }
    }

    /// Goes from asking to SIGKILL when the time is up, and repeats it.
    pub(crate) fn advance_stop(&mut self, now: Now, out: &mut Vec<Action>) {
        let container = self.plan.name.clone();
        let State::Running { id, stop: Some(stop), .. } = &mut self.state else { return };
        let id = id.clone();
        let due = match stop.phase {
            StopPhase::Hook if now.mono >= stop.deadline => {
                // The hook ate the grace period: the process still gets a moment of its own.
                stop.phase = StopPhase::Asked;
                stop.deadline = now.mono + LEAST_AFTER_HOOK;
                out.push(Action::Signal { container, id, kill: false });
                return;
            }
            StopPhase::Hook => return,
            StopPhase::Asked => stop.deadline,
            StopPhase::Killed { again } => again,
        };
        if now.mono >= due {
            stop.phase = StopPhase::Killed { again: now.mono + KILL_AGAIN };
            out.push(Action::Signal { container, id, kill: true });
        }
    }

    pub(crate) fn probed(
        &mut self,
        now: Now,
        of: &str,
        probe: Probe,
        result: Result<(), String>,
        grace: Duration,
        out: &mut Vec<Action>,
    ) {
        if self.running() != Some(of) {
            return;
        }
        let (threshold, name) = match probe {
            Probe::Startup => (self.plan.startup, "Startup"),
            Probe::Liveness => (self.plan.liveness, "Liveness"),
            Probe::Readiness => (self.plan.readiness, "Readiness"),
        };
        let Some(threshold) = threshold else { return };
        let verdict = self.counters[probe as usize].count(result.is_ok(), threshold);
        if let Err(message) = &result {
            out.push(self.emit(true, "Unhealthy", format!("{name} probe failed: {message}")));
        }
        match (probe, verdict) {
            (Probe::Startup, Some(true)) => self.started = true,
            (Probe::Readiness, Some(good)) => self.readiness = good,
            (Probe::Liveness | Probe::Startup, Some(false)) => {
                let why = format!(
                    "Container {} failed {} probe, will be restarted",
                    self.plan.name,
                    name.to_lowercase()
                );
                self.stop(now, now.mono + threshold.grace.unwrap_or(grace), &why, out);
            }
            _ => {}
        }
    }

    /// When this container needs a [`Event::Tick`](crate::machine::Event::Tick).
    pub(crate) fn wake(&self, ending: bool) -> Option<Duration> {
        match &self.state {
            State::Waiting { reason, until: Some(until), .. } if !ending => {
                let shown = (until.saturating_sub(self.pull_delay)) + SHOW_PULL_ERROR;
                Some(if *reason == "ErrImagePull" { shown.min(*until) } else { *until })
            }
            State::Running { stop: Some(stop), .. } => Some(match stop.phase {
                StopPhase::Killed { again } => again,
                _ => stop.deadline,
            }),
            _ => None,
        }
    }

    fn emit(&self, warning: bool, reason: &'static str, message: String) -> Action {
        Action::Emit(Occurrence { warning, reason, message, container: Some(self.plan.name.clone()) })
    }
}

fn next_delay(delay: Duration) -> Duration {
    (delay * 2).clamp(BACK_OFF_FIRST, BACK_OFF_MOST)
}

/// `10s`, `2m40s`, as people know them from `kubectl get pods`.
fn span(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}
