use proptest::prelude::*;

use super::*;
use crate::unit::{Probe, StartFailure, State};

fn container(name: &str, kind: Kind, restart: Restart) -> ContainerPlan {
    ContainerPlan {
        name: name.to_owned(),
        image: "img".to_owned(),
        kind,
        restart,
        pre_stop: false,
        liveness: None,
        readiness: None,
        startup: None,
    }
}

fn plan(containers: Vec<ContainerPlan>) -> Plan {
    Plan { pod: "p_n(u)".to_owned(), containers, grace: Duration::from_secs(30), deadline: None }
}

/// A machine and a clock; work is answered as the test says.
struct World {
    machine: Machine,
    clock: Duration,
    ids: u32,
}

impl World {
    fn new(plan: Plan, known: Known) -> World {
        let machine = Machine::new(plan, known, now(Duration::ZERO));
        World { machine, clock: Duration::ZERO, ids: 0 }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = self.machine.step(now(self.clock), event);
        actions.into_iter().filter(|action| !matches!(action, Action::Emit(_))).collect()
    }

    fn later(&mut self, seconds: u64) -> Vec<Action> {
        self.clock += Duration::from_secs(seconds);
        self.step(Event::Tick)
    }

    /// Through volumes and sandbox to the first starts.
    fn begin(&mut self) -> Vec<Action> {
        assert_eq!(self.step(Event::Tick), [Action::MountVolumes]);
        assert_eq!(self.step(Event::Volumes(Ok(()))), [Action::CreateSandbox]);
        self.step(Event::Sandbox(Ok(())))
    }

    fn started(&mut self, name: &str) -> Vec<Action> {
        self.ids += 1;
        let id = format!("id{}", self.ids);
        self.step(Event::Started { container: name.to_owned(), id, image_id: "img".to_owned() })
    }

    fn exited(&mut self, name: &str, code: i32) -> Vec<Action> {
        let id = self.id(name);
        self.step(Event::Exited { container: name.to_owned(), end: end(&id, code) })
    }

    fn id(&self, name: &str) -> String {
        let running = self.machine.running();
        running
            .into_iter()
            .find(|(n, _)| n == name)
            .map(|(_, id)| id)
            .unwrap_or_else(|| panic!("{name} does not run"))
    }

    fn state(&self, name: &str) -> &State {
        &self.machine.units.iter().find(|unit| unit.plan.name == name).unwrap().state
    }

    fn waits(&self, name: &str) -> &'static str {
        match self.state(name) {
            State::Waiting { reason, .. } => reason,
            other => panic!("{name} is {other:?}"),
        }
    }
}

fn now(mono: Duration) -> Now {
    let wall = Timestamp::UNIX_EPOCH + jiff::SignedDuration::try_from(mono).unwrap();
    Now { mono, wall }
}

fn end(id: &str, code: i32) -> Terminated {
    Terminated {
        id: id.to_owned(),
        image_id: String::new(),
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: None,
        finished_at: None,
    }
}

fn start(name: &str, attempt: u32) -> Action {
    Action::Start { container: name.to_owned(), attempt }
}

fn signal(name: &str, id: &str, kill: bool) -> Action {
    Action::Signal { container: name.to_owned(), id: id.to_owned(), kill }
}

#[test]
fn crashes_back_off_from_ten_seconds_to_five_minutes() {
    let mut world = World::new(plan(vec![container("c", Kind::Main, Restart::Always)]), Known::default());
    assert_eq!(world.begin(), [start("c", 0)]);
    world.started("c");
    assert_eq!(world.exited("c", 1), [start("c", 1)], "the first restart does not wait");
    for (attempt, delay) in (2..).zip([10, 20, 40, 80, 160, 300, 300]) {
        world.started("c");
        assert_eq!(world.exited("c", 1), []);
        assert_eq!(world.waits("c"), "CrashLoopBackOff");
        assert_eq!(world.later(delay - 1), []);
        assert_eq!(world.later(1), [start("c", attempt)]);
    }
    world.started("c");
    world.later(601);
    assert_eq!(world.exited("c", 0), [start("c", 9)], "ten good minutes forgive");
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let containers = vec![
        container("i", Kind::Init, Restart::OnFailure),
        container("s", Kind::Sidecar, Restart::Always),
        container("j", Kind::Init, Restart::OnFailure),
        container("m", Kind::Main, Restart::Never),
    ];
    let mut world = World::new(plan(containers), Known::default());
    assert_eq!(world.begin(), [start("i", 0)]);
    world.started("i");
    assert_eq!(world.exited("i", 0), [start("s", 0)]);
    assert_eq!(world.started("s"), [start("j", 0)]);
    world.started("j");
    assert_eq!(world.exited("j", 3), [start("j", 1)]);
    world.started("j");
    assert_eq!(world.exited("j", 0), [start("m", 0)]);
    world.started("m");
    let sidecar = world.id("s");
    assert_eq!(
        world.exited("m", 0),
        [signal("s", &sidecar, false)],
        "when the main ones are through it is stopped"
    );
    assert_eq!(world.exited("s", 143), [Action::TearDown]);
    assert_eq!(crate::status::phase(&world.machine), "Succeeded");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let containers =
        vec![container("i", Kind::Init, Restart::Never), container("m", Kind::Main, Restart::Never)];
    let mut world = World::new(plan(containers), Known::default());
    world.begin();
    world.started("i");
    assert_eq!(world.exited("i", 1), [Action::TearDown]);
    assert_eq!(crate::status::phase(&world.machine), "Failed");
}

#[test]
fn deletion_asks_then_kills_then_cleans_up() {
    let mut world = World::new(plan(vec![container("c", Kind::Main, Restart::Always)]), Known::default());
    world.begin();
    world.started("c");
    assert_eq!(world.step(Event::Delete(Duration::from_secs(5))), [signal("c", "id1", false)]);
    assert_eq!(world.later(4), []);
    assert_eq!(world.later(1), [signal("c", "id1", true)]);
    assert_eq!(world.exited("c", 137), [Action::TearDown]);
    assert_eq!(world.step(Event::TornDown(Err("busy".into()))), []);
    assert_eq!(world.later(1), [Action::TearDown]);
    assert_eq!(world.step(Event::TornDown(Ok(()))), [Action::DeleteObject]);
    assert_eq!(world.step(Event::Deleted), [Action::Remove]);
    world.step(Event::Removed);
    assert!(world.machine.finished());
}

#[test]
fn a_pod_that_is_gone_needs_no_deletion() {
    let mut world = World::new(plan(vec![container("c", Kind::Main, Restart::Always)]), Known::default());
    world.begin();
    world.started("c");
    world.step(Event::Gone);
    assert_eq!(world.exited("c", 0), [Action::TearDown]);
    assert_eq!(world.step(Event::TornDown(Ok(()))), [Action::Remove]);
}

#[test]
fn a_start_under_way_is_waited_for_before_the_stop() {
    let mut world = World::new(plan(vec![container("c", Kind::Main, Restart::Always)]), Known::default());
    world.begin();
    assert_eq!(world.step(Event::Delete(Duration::from_secs(5))), []);
    assert_eq!(world.started("c"), [signal("c", "id1", false)]);
}

#[test]
fn a_hook_that_takes_too_long_leaves_the_process_two_seconds() {
    let hooked = ContainerPlan { pre_stop: true, ..container("c", Kind::Main, Restart::Always) };
    let mut world = World::new(plan(vec![hooked]), Known::default());
    world.begin();
    world.started("c");
    let hook = Action::PreStop { container: "c".into(), id: "id1".into(), within: Duration::from_secs(5) };
    assert_eq!(world.step(Event::Delete(Duration::from_secs(5))), [hook]);
    assert_eq!(world.later(5), [signal("c", "id1", false)]);
    assert_eq!(world.later(2), [signal("c", "id1", true)]);
}

#[test]
fn pulls_back_off_and_say_so() {
    let mut world = World::new(plan(vec![container("c", Kind::Main, Restart::Always)]), Known::default());
    world.begin();
    let why = StartFailure::Image { reason: "ErrImagePull", message: "no route to registry".into() };
    assert_eq!(world.step(Event::StartFailed { container: "c".into(), why: why.clone() }), []);
    assert_eq!(world.waits("c"), "ErrImagePull");
    world.later(3);
    assert_eq!(world.waits("c"), "ImagePullBackOff");
    let State::Waiting { message, .. } = world.state("c") else { unreachable!() };
    assert!(message.contains("no route to registry"), "{message}");
    assert_eq!(world.later(7), [start("c", 0)], "what never ran is not a restart");
    world.step(Event::StartFailed { container: "c".into(), why });
    assert_eq!(world.later(10), []);
    assert_eq!(world.later(10), [start("c", 0)]);
}

#[test]
fn probes_count_to_their_thresholds() {
    let threshold = Some(Threshold { success: 1, failure: 2, grace: None });
    let probed = ContainerPlan {
        readiness: threshold,
        liveness: threshold,
        ..container("c", Kind::Main, Restart::Always)
    };
    let mut world = World::new(plan(vec![probed]), Known::default());
    world.begin();
    world.started("c");
    let probed = |probe, good: bool| Event::Probed {
        container: "c".into(),
        id: "id1".into(),
        probe,
        result: if good { Ok(()) } else { Err("refused".into()) },
    };
    assert!(!world.machine.units[0].ready());
    world.step(probed(Probe::Readiness, true));
    assert!(world.machine.units[0].ready());
    world.step(probed(Probe::Readiness, false));
    assert!(world.machine.units[0].ready());
    world.step(probed(Probe::Readiness, false));
    assert!(!world.machine.units[0].ready());
    assert_eq!(world.step(probed(Probe::Liveness, false)), []);
    assert_eq!(world.step(probed(Probe::Liveness, false)), [signal("c", "id1", false)]);
    assert_eq!(world.exited("c", 143), [start("c", 1)]);
}

#[test]
fn an_active_deadline_fails_the_pod() {
    let limited = Plan {
        deadline: Some(Duration::from_secs(60)),
        ..plan(vec![container("c", Kind::Main, Restart::Always)])
    };
    let mut world = World::new(limited, Known::default());
    world.begin();
    world.started("c");
    assert_eq!(world.later(59), []);
    assert_eq!(world.later(1), [signal("c", "id1", false)]);
    world.exited("c", 0);
    world.step(Event::TornDown(Ok(())));
    assert_eq!(crate::status::phase(&world.machine), "Failed");
}

#[test]
fn what_an_earlier_agent_ran_is_taken_over() {
    let found = |running: bool| Found {
        name: "c".into(),
        attempt: 3,
        running: running.then(|| ("old".into(), "img".into(), Timestamp::UNIX_EPOCH)),
        ended: (!running).then(|| end("old", 7)),
    };
    let pod = || plan(vec![container("c", Kind::Main, Restart::OnFailure)]);
    let known = |running| Known { sandbox: true, finished: false, containers: vec![found(running)] };

    let mut world = World::new(pod(), known(true));
    assert_eq!(world.step(Event::Tick), [Action::CreateSandbox], "its volumes are in use");
    assert_eq!(world.step(Event::Sandbox(Ok(()))), []);
    assert_eq!(world.id("c"), "old");
    assert_eq!(world.exited("c", 1), [], "it had crashed thrice already");
    assert_eq!(world.later(39), []);
    assert_eq!(world.later(1), [start("c", 4)]);

    let mut world = World::new(pod(), known(false));
    assert_eq!(world.begin(), [start("c", 4)]);
}

#[test]
fn init_containers_run_again_only_in_a_new_sandbox() {
    let containers =
        vec![container("i", Kind::Init, Restart::OnFailure), container("m", Kind::Main, Restart::Always)];
    let found =
        |name: &str| Found { name: name.into(), attempt: 0, running: None, ended: Some(end(name, 0)) };
    let known = |sandbox| Known { sandbox, finished: false, containers: vec![found("i"), found("m")] };
    let mut world = World::new(plan(containers.clone()), known(true));
    assert_eq!(world.begin(), [start("m", 1)]);
    let mut world = World::new(plan(containers), known(false));
    assert_eq!(world.begin(), [start("i", 1)]);
}

#[derive(Clone, Debug)]
enum Move {
    Answer(usize, bool),
    Exit(usize, i32),
    Wait(u64),
    Delete(u64),
    Gone,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..8usize, prop::bool::weighted(0.8)).prop_map(|(which, good)| Move::Answer(which, good)),
        3 => (0..4usize, 0..3i32).prop_map(|(which, code)| Move::Exit(which, code)),
        2 => (0..400u64).prop_map(Move::Wait),
        1 => (0..60u64).prop_map(Move::Delete),
        1 => Just(Move::Gone),
    ];
    proptest::collection::vec(one, 0..60)
}

fn pods() -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![Just(Kind::Init), Just(Kind::Sidecar)];
    let policy = prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)];
    (proptest::collection::vec((kind, any::<bool>()), 0..3), 1..3usize, policy).prop_map(
        |(inits, mains, policy)| {
            let inits = inits.into_iter().enumerate().map(|(index, (kind, pre_stop))| {
                let restart = if kind == Kind::Sidecar { Restart::Always } else { Restart::OnFailure };
                ContainerPlan { pre_stop, ..container(&format!("i{index}"), kind, restart) }
            });
            let mains = (0..mains).map(|index| container(&format!("m{index}"), Kind::Main, policy));
            plan(inits.chain(mains).collect())
        },
    )
}

/// Carries actions out in any order, and checks what may never happen.
struct Player {
    world: World,
    pending: Vec<Action>,
    deleted_at: Option<(Duration, Duration)>,
    removed: bool,
}

impl Player {
    fn take(&mut self, event: Event) {
        for action in self.world.step(event) {
            if let Action::Start { container, .. } = &action {
                let same =
                    |other: &Action| matches!(other, Action::Start { container: c, .. } if c == container);
                assert!(!self.pending.iter().any(same), "{container} is started twice");
                assert!(!self.world.machine.running().iter().any(|(name, _)| name == container));
                assert!(self.deleted_at.is_none(), "{container} is started in a pod that ends");
            }
            if matches!(action, Action::TearDown | Action::Remove) {
                assert_eq!(self.world.machine.running(), [], "{action:?} under running containers");
            }
            self.pending.push(action);
        }
        let phase = crate::status::phase(&self.world.machine);
        if matches!(phase, "Succeeded" | "Failed") {
            assert_eq!(self.world.machine.running(), [], "{phase} with running containers");
        }
    }

    fn answer(&mut self, which: usize, good: bool) {
        if self.pending.is_empty() {
            return;
        }
        let action = self.pending.remove(which % self.pending.len());
        let result = if good { Ok(()) } else { Err("no".to_owned()) };
        match action {
            Action::MountVolumes => self.take(Event::Volumes(result)),
            Action::CreateSandbox => self.take(Event::Sandbox(result)),
            Action::TearDown => self.take(Event::TornDown(result)),
            Action::DeleteObject => self.take(Event::Deleted),
            Action::Remove => {
                self.removed = true;
                self.take(Event::Removed);
            }
            Action::PreStop { container, id, .. } => self.take(Event::PreStopped { container, id }),
            Action::Start { container, .. } if good => {
                self.world.ids += 1;
                let id = format!("id{}", self.world.ids);
                self.take(Event::Started { container, id, image_id: "img".into() });
            }
            Action::Start { container, .. } => {
                let why = StartFailure::Image { reason: "ErrImagePull", message: "no".into() };
                self.take(Event::StartFailed { container, why });
            }
            Action::Signal { container, id, kill } => {
                if kill || good {
                    self.take(Event::Exited { container, end: end(&id, if kill { 137 } else { 143 }) });
                }
            }
            Action::Emit(_) => {}
        }
    }

    fn play(&mut self, step: Move) {
        match step {
            Move::Answer(which, good) => self.answer(which, good),
            Move::Exit(which, code) => {
                let running = self.world.machine.running();
                if let Some((name, id)) = running.get(which) {
                    self.take(Event::Exited { container: name.clone(), end: end(id, code) });
                }
            }
            Move::Wait(seconds) => {
                self.world.clock += Duration::from_secs(seconds);
                self.take(Event::Tick);
            }
            Move::Delete(grace) => {
                let grace = Duration::from_secs(grace);
                self.deleted_at.get_or_insert((self.world.clock, grace));
                self.take(Event::Delete(grace));
            }
            Move::Gone => {
                self.deleted_at.get_or_insert((self.world.clock, Duration::from_secs(30)));
                self.take(Event::Gone);
            }
        }
    }

    /// From here on all work succeeds, but processes ignore all signals but SIGKILL.
    fn drain(&mut self) {
        for _ in 0..400 {
            if self.world.machine.finished() {
                return;
            }
            while let Some(at) =
                self.pending.iter().position(|a| !matches!(a, Action::Signal { kill: false, .. }))
            {
                self.answer(at, true);
            }
            self.pending.clear();
            if let Some(wake) = self.world.machine.next_wake() {
                self.world.clock = self.world.clock.max(wake);
            }
            self.take(Event::Tick);
        }
        panic!("it never ends: {:?}", self.world.machine);
    }
}

proptest! {
    #[test]
    fn any_pod_is_sane_and_can_be_ended(pod in pods(), steps in moves()) {
        let mut player = Player {
            world: World::new(pod, Known::default()),
            pending: Vec::new(),
            deleted_at: None,
            removed: false,
        };
        player.take(Event::Tick);
        for step in steps {
            player.play(step);
        }
        let begun = player.world.clock;
        player.play(Move::Delete(10));
        player.drain();
        prop_assert!(player.removed);
        // Ten seconds, or thirty of an earlier stop, a hook's two, and a failed clean-up's retries (at most a minute).
        prop_assert!(player.world.clock - begun <= Duration::from_secs(10 + 2 + 5 + 60 + 30), "{:?}", player.world.clock - begun);
    }
}
