use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{kind::Typed, reconcile::Controller, testing::Stage};

const CRONS: &[Controller] = &[Controller::CronJob];
/// Minutes since the epoch when a stage begins: 2026-01-01T00:00:00Z.
const BEGIN: i64 = 29_453_760;

fn cron(more: Value) -> Value {
    let mut cron = json!({
        "metadata": {"name": "tick", "namespace": "default"},
        "spec": {
            "schedule": "*/5 * * * *", "concurrencyPolicy": "Allow", "suspend": false,
            "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
            "jobTemplate": {
                "metadata": {"labels": {"app": "tick"}, "annotations": {"a": "b"}},
                "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
            },
        },
    });
    for (key, value) in more.as_object().unwrap() {
        cron["spec"][key] = value.clone();
    }
    cron
}

fn stage(more: Value) -> Stage {
    let mut stage = Stage::new(CRONS);
    stage.sim.add::<CronJob>(cron(more));
    stage.settle();
    stage
}

fn minutes(stage: &mut Stage, minutes: u64) {
    stage.pass(Duration::from_secs(60 * minutes));
}

/// The minutes of the runs that are there, counted from the beginning.
fn runs(stage: &Stage) -> Vec<i64> {
    let name = |j: &Job| j.metadata.name.clone().unwrap();
    let minute = |name: String| name.strip_prefix("tick-").unwrap().parse::<i64>().unwrap() - BEGIN;
    stage.sim.all::<Job>().iter().map(|j| minute(name(j))).collect()
}

fn status(stage: &Stage) -> CronJobStatus {
    stage.sim.get::<CronJob>("default", "tick").unwrap().status.unwrap_or_default()
}

fn end(stage: &mut Stage, minute: i64, kind: &str) {
    let at = stage.wall.to_string();
    let status = json!({"startTime": at, "completionTime": at, "conditions": [
        {"type": kind, "status": "True", "lastTransitionTime": at}]});
    stage.sim.edit::<Job>("default", &format!("tick-{}", minute + BEGIN), |j| j["status"] = status);
}

#[test]
fn it_runs_at_its_times_and_forgets_the_oldest() {
    let mut stage = stage(json!({}));
    minutes(&mut stage, 4);
    assert!(runs(&stage).is_empty());
    minutes(&mut stage, 1);
    assert_eq!(runs(&stage), [5]);
    let job = &stage.sim.all::<Job>()[0];
    let meta = &job.metadata;
    assert_eq!(meta.labels.as_ref().unwrap()["app"], "tick");
    let annotations = meta.annotations.as_ref().unwrap();
    assert_eq!(annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2026-01-01T00:05:00Z");
    assert_eq!(annotations["a"], "b");
    assert_eq!(status(&stage).active.unwrap()[0].name.as_deref(), meta.name.as_deref());
    for minute in [5, 10, 15, 20, 25] {
        end(&mut stage, minute, "Complete");
        minutes(&mut stage, 5);
    }
    assert_eq!(runs(&stage), [15, 20, 25, 30]);
    end(&mut stage, 30, "Failed");
    minutes(&mut stage, 5);
    end(&mut stage, 35, "Failed");
    minutes(&mut stage, 5);
    assert_eq!(runs(&stage), [15, 20, 25, 35, 40]);
    assert_eq!(status(&stage).active.unwrap().len(), 1);
    assert_eq!(status(&stage).last_successful_time.unwrap().0.to_string(), "2026-01-01T00:25:00Z");
    assert_eq!(status(&stage).last_schedule_time.unwrap().0.to_string(), "2026-01-01T00:40:00Z");
}

#[test]
fn of_the_missed_only_the_last_is_made_up_for() {
    for (deadline, expect) in [(json!(null), vec![1000]), (json!(60), vec![]), (json!(180), vec![1000])] {
        let mut stage = stage(json!({"startingDeadlineSeconds": deadline}));
        stage.now += Duration::from_secs(60 * 1002);
        stage.wall += Duration::from_secs(60 * 1002);
        stage.restart();
        stage.settle();
        assert_eq!(runs(&stage), expect, "{deadline}");
    }
}

#[test]
fn runs_may_overlap_wait_or_replace_one_another() {
    for (policy, expect) in [("Allow", vec![5, 10]), ("Forbid", vec![5]), ("Replace", vec![10])] {
        let mut stage = stage(json!({"concurrencyPolicy": policy}));
        minutes(&mut stage, 11);
        assert_eq!(runs(&stage), expect, "{policy}");
        if policy == "Forbid" {
            assert!(stage.told.iter().any(|t| t.starts_with("JobAlreadyActive: ")));
            // As soon as it may: what was missed meanwhile.
            end(&mut stage, 5, "Complete");
            stage.settle();
            assert_eq!(runs(&stage), [5, 10]);
        }
    }
}

#[test]
fn a_suspended_one_does_not_run() {
    let mut stage = stage(json!({"suspend": true}));
    minutes(&mut stage, 30);
    assert!(runs(&stage).is_empty());
}

#[test]
fn its_time_zone_is_kept() {
    let mut stage = stage(json!({"schedule": "30 5 * * *", "timeZone": "Asia/Kolkata"}));
    minutes(&mut stage, 24 * 60);
    // Half past five is midnight there.
    assert_eq!(runs(&stage), [24 * 60]);
    let job = &stage.sim.all::<Job>()[0];
    let scheduled =
        &job.metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(scheduled, "2026-01-02T05:30:00+05:30");
    stage.sim.edit::<CronJob>("default", "tick", |c| c["spec"]["timeZone"] = json!("Mars/Olympus"));
    minutes(&mut stage, 24 * 60);
    assert_eq!(runs(&stage), [24 * 60]);
    assert!(stage.told.iter().any(|t| t.starts_with("UnknownTimeZone: ")));
}

#[derive(Clone, Debug)]
enum Step {
    Turn(usize),
    Deliver(usize),
    End(usize, bool),
    Later(u64),
    Delete(usize),
    NewLeader,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => prop_oneof![Just(usize::MAX), 1..3_usize].prop_map(Step::Turn),
        4 => (0..6_usize).prop_map(Step::Deliver),
        2 => (0..4_usize, any::<bool>()).prop_map(|(i, ok)| Step::End(i, ok)),
        3 => (0..900_u64).prop_map(Step::Later),
        1 => (0..4_usize).prop_map(Step::Delete),
        1 => Just(Step::NewLeader),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever breaks off: no time is run twice, none before it is due, and where it is forbidden no two at a time.
    #[test]
    fn no_time_is_run_twice(steps in steps()) {
        let mut stage = stage(json!({"concurrencyPolicy": "Forbid"}));
        let (mut made, mut seen) = (Vec::new(), 0);
        for step in &steps {
            let open: Vec<i64> = {
                let all = stage.sim.all::<Job>();
                let open = all.iter().filter(|j| crate::job::result(j).is_none());
                open.map(|j| j.metadata.name.as_ref().unwrap()[5..].parse::<i64>().unwrap() - BEGIN).collect()
            };
            prop_assert!(open.len() <= 1, "{open:?}");
            match step {
                Step::Turn(writes) => { stage.turn(*writes); }
                Step::Deliver(count) => stage.deliver(*count),
                Step::End(i, ok) if !open.is_empty() => {
                    end(&mut stage, open[i % open.len()], if *ok { "Complete" } else { "Failed" });
                }
                Step::Later(seconds) => {
                    stage.now += Duration::from_secs(*seconds);
                    stage.wall += Duration::from_secs(*seconds);
                }
                Step::Delete(i) if !open.is_empty() => {
                    let name = format!("tick-{}", open[i % open.len()] + BEGIN);
                    stage.sim.remove(&(Job::KIND, "default".into(), name));
                }
                Step::NewLeader => stage.restart(),
                Step::End(..) | Step::Delete(_) => {}
            }
            for (kind, verb, value) in &stage.sim.log[seen..] {
                if (*kind, *verb) == (Job::KIND, "ADDED") {
                    let name = value["metadata"]["name"].as_str().unwrap().to_owned();
                    let minute: i64 = name[5..].parse().unwrap();
                    prop_assert!(minute % 5 == 0 && minute * 60 <= stage.wall.as_second());
                    made.push(minute);
                }
            }
            seen = stage.sim.log.len();
        }
        // One that was deleted before it was noted that it had been made may be made again; nothing else.
        if !steps.iter().any(|s| matches!(s, Step::Delete(_))) {
            prop_assert!(made.windows(2).all(|w| w[0] < w[1]), "{made:?}");
        }
    }
}
