use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{batch::v1::JobStatus, core::v1::Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Job, TRACKING, is_tracked};
use crate::{kind::Typed, pod, reconcile::Controller, testing::Stage, write::Propagation, write::Target};

const JOBS: &[Controller] = &[Controller::Job, Controller::JobOrphan];

fn job(more: Value) -> Value {
    let mut job = json!({
        "metadata": {"name": "pi", "namespace": "default"},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 6, "suspend": false,
            "completionMode": "NonIndexed",
            "selector": {"matchLabels": {"job-name": "pi"}},
            "template": {
                "metadata": {"labels": {"job-name": "pi"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    for (key, value) in more.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

fn stage(more: Value) -> Stage {
    let mut stage = Stage::new(JOBS);
    stage.sim.add::<Job>(job(more));
    stage.settle();
    stage
}

fn status(stage: &Stage) -> JobStatus {
    stage.sim.get::<Job>("default", "pi").unwrap().status.unwrap()
}

/// The conditions that hold, with their reasons.
fn conditions(stage: &Stage) -> Vec<(String, String)> {
    let all = status(stage).conditions.unwrap_or_default().into_iter().filter(|c| c.status == "True");
    all.map(|c| (c.type_, c.reason.unwrap())).collect()
}

fn active(stage: &Stage) -> Vec<String> {
    let pods = stage.sim.all::<Pod>().into_iter().filter(pod::is_active);
    pods.filter_map(|p| p.metadata.name).collect()
}

fn tracked(stage: &Stage) -> usize {
    stage.sim.all::<Pod>().iter().filter(|p| is_tracked(p)).count()
}

fn delete(stage: &mut Stage, name: &str) {
    let target = Target::of(&stage.sim.get::<Pod>("default", name).unwrap());
    let _ = stage.sim.delete(&target, None, Propagation::Background);
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn it_completes_when_enough_have_succeeded() {
    let mut stage = stage(json!({"completions": 3, "parallelism": 2}));
    assert_eq!(active(&stage).len(), 2);
    assert!(stage.sim.all::<Pod>().iter().all(is_tracked));
    let first = active(&stage);
    stage.ready(&first[0]);
    stage.settle();
    assert_eq!((status(&stage).active, status(&stage).ready), (Some(2), Some(1)));
    stage.end(&first[0], "Succeeded");
    stage.end(&first[1], "Succeeded");
    stage.settle();
    assert_eq!((active(&stage).len(), status(&stage).succeeded), (1, Some(2)));
    assert!(status(&stage).conditions.is_none());
    let last = active(&stage);
    stage.end(&last[0], "Succeeded");
    stage.settle();
    let done = status(&stage);
    assert_eq!((done.succeeded, done.failed, done.active, done.ready), (Some(3), None, None, Some(0)));
    assert!(done.completion_time.is_some() && tracked(&stage) == 0);
    let reached = "CompletionsReached";
    assert_eq!(conditions(&stage), pairs(&[("SuccessCriteriaMet", reached), ("Complete", reached)]));
    assert_eq!(stage.told.last().unwrap(), "Completed: Job completed");
}

#[test]
fn a_failed_pod_is_replaced_after_a_wait_that_doubles_until_the_limit() {
    let mut stage = stage(json!({"backoffLimit": 2}));
    for wait in [10, 20] {
        let name = active(&stage).remove(0);
        stage.end(&name, "Failed");
        stage.pass(Duration::from_secs(wait - 1));
        assert_eq!(active(&stage).len(), 0, "{wait}");
        stage.pass(Duration::from_secs(1));
        assert_eq!(active(&stage).len(), 1, "{wait}");
    }
    assert_eq!(status(&stage).failed, Some(2));
    let name = active(&stage).remove(0);
    stage.end(&name, "Failed");
    stage.pass(Duration::from_secs(3600));
    let reason = "BackoffLimitExceeded";
    assert_eq!(conditions(&stage), pairs(&[("FailureTarget", reason), ("Failed", reason)]));
    assert_eq!((status(&stage).failed, active(&stage).len(), tracked(&stage)), (Some(3), 0, 0));
    assert!(
        stage.told.contains(&"BackoffLimitExceeded: Job has reached the specified backoff limit".to_owned())
    );
}

#[test]
fn containers_started_again_in_place_count_as_well() {
    let mut stage = stage(json!({"backoffLimit": 2}));
    let name = active(&stage).remove(0);
    stage.sim.edit::<Job>("default", "pi", |j| {
        j["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    });
    let with = |restarts: i32| {
        json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": restarts}]})
    };
    stage.report(&name, with(1));
    stage.settle();
    assert_eq!(conditions(&stage), []);
    stage.report(&name, with(2));
    stage.settle();
    assert_eq!(conditions(&stage)[0].1, "BackoffLimitExceeded");
    assert_eq!(active(&stage).len(), 0);
}

#[test]
fn its_deadline_ends_it_and_its_pods_before_it_has_failed() {
    let mut stage = stage(json!({"activeDeadlineSeconds": 30}));
    let name = active(&stage).remove(0);
    stage.sim.edit::<Pod>("default", &name, |p| p["spec"]["nodeName"] = json!("n1"));
    stage.pass(Duration::from_secs(29));
    assert_eq!(conditions(&stage), []);
    stage.pass(Duration::from_secs(2));
    // The pod is still on its way out.
    assert_eq!(conditions(&stage), pairs(&[("FailureTarget", "DeadlineExceeded")]));
    assert_eq!((status(&stage).terminating, status(&stage).failed), (Some(1), Some(1)));
    stage.sim.remove(&(Pod::KIND, "default".into(), name));
    stage.settle();
    assert_eq!(conditions(&stage)[1], ("Failed".to_owned(), "DeadlineExceeded".to_owned()));
    assert_eq!(status(&stage).failed, Some(1));
}

#[test]
fn a_suspended_job_has_no_pods_and_loses_none() {
    let mut stage = stage(json!({"parallelism": 2, "completions": 2}));
    let set = |stage: &mut Stage, on: bool| {
        stage.sim.edit::<Job>("default", "pi", |j| j["spec"]["suspend"] = json!(on));
        stage.settle();
    };
    set(&mut stage, true);
    assert_eq!((active(&stage).len(), status(&stage).failed), (0, None));
    assert_eq!(conditions(&stage), pairs(&[("Suspended", "JobSuspended")]));
    let before = status(&stage).start_time;
    stage.pass(Duration::from_secs(60));
    set(&mut stage, false);
    assert_eq!((active(&stage).len(), conditions(&stage).len()), (2, 0));
    assert!(status(&stage).start_time > before);
    assert!(stage.told.contains(&"Resumed: Job resumed".to_owned()));
}

#[test]
fn a_work_queue_ends_when_one_has_succeeded_and_the_others_have_ended() {
    let mut stage = stage(json!({"parallelism": 2, "completions": null}));
    let pods = active(&stage);
    stage.end(&pods[0], "Succeeded");
    stage.settle();
    assert_eq!((active(&stage), conditions(&stage)), (vec![pods[1].clone()], vec![]));
    stage.end(&pods[1], "Failed");
    stage.settle();
    assert_eq!(conditions(&stage)[1].0, "Complete");
    assert_eq!((status(&stage).succeeded, status(&stage).failed), (Some(1), Some(1)));
}

#[test]
fn each_pod_of_an_indexed_job_knows_its_number() {
    let mut stage = stage(json!({"parallelism": 3, "completions": 4, "completionMode": "Indexed"}));
    let mut pods = stage.sim.all::<Pod>();
    pods.sort_by_key(super::index_of);
    let hosts: Vec<_> = pods.iter().map(|p| p.spec.as_ref().unwrap().hostname.clone().unwrap()).collect();
    assert_eq!(hosts, ["pi-0", "pi-1", "pi-2"]);
    let second = &pods[1];
    let name = second.metadata.name.clone().unwrap();
    assert!(name.starts_with("pi-1-") && name.len() == 10, "{name}");
    assert_eq!(second.metadata.labels.as_ref().unwrap()[super::INDEX], "1");
    let env = &second.spec.as_ref().unwrap().containers[0].env.as_ref().unwrap()[0];
    assert_eq!(env.name, "JOB_COMPLETION_INDEX");
    let path = &env.value_from.as_ref().unwrap().field_ref.as_ref().unwrap().field_path;
    assert_eq!(path, "metadata.annotations['batch.kubernetes.io/job-completion-index']");
    // A number that failed is tried again.
    stage.end(&name, "Failed");
    stage.end(pods[0].metadata.name.as_ref().unwrap(), "Succeeded");
    stage.pass(Duration::from_secs(11));
    let numbers: BTreeSet<_> =
        stage.sim.all::<Pod>().iter().filter(|p| pod::is_active(p)).filter_map(super::index_of).collect();
    assert_eq!(numbers, BTreeSet::from([1, 2, 3]));
    assert_eq!(status(&stage).completed_indexes.as_deref(), Some("0"));
    for name in active(&stage) {
        stage.end(&name, "Succeeded");
    }
    stage.settle();
    let done = status(&stage);
    assert_eq!((done.completed_indexes.as_deref(), done.succeeded), (Some("0-3"), Some(4)));
    assert_eq!((done.failed, conditions(&stage).len(), tracked(&stage)), (Some(1), 2, 0));
}

#[test]
fn a_finished_job_goes_after_its_time() {
    let mut stage = stage(json!({"ttlSecondsAfterFinished": 100}));
    let name = active(&stage).remove(0);
    stage.end(&name, "Succeeded");
    stage.pass(Duration::from_secs(99));
    assert!(stage.sim.get::<Job>("default", "pi").unwrap().metadata.deletion_timestamp.is_none());
    stage.pass(Duration::from_secs(2));
    let job = stage.sim.get::<Job>("default", "pi").unwrap();
    assert!(job.metadata.deletion_timestamp.is_some(), "it waits for its pods");
}

#[test]
fn pods_of_a_job_that_is_gone_are_let_go() {
    let mut stage = stage(json!({}));
    let name = active(&stage).remove(0);
    stage.sim.remove(&(Job::KIND, "default".into(), "pi".into()));
    stage.settle();
    assert_eq!((tracked(&stage), active(&stage)), (0, vec![name.clone()]));
    // So is one that lost its owner.
    stage.sim.edit::<Pod>("default", &name, |p| {
        p["metadata"]["finalizers"] = json!([TRACKING]);
        p["metadata"]["ownerReferences"] = json!([]);
    });
    stage.settle();
    assert_eq!(tracked(&stage), 0);
}

#[test]
fn a_pod_is_replaced_when_it_has_ended_if_so_wanted() {
    for (policy, at_once) in [("TerminatingOrFailed", 1), ("Failed", 0)] {
        let mut stage = stage(json!({"podReplacementPolicy": policy}));
        let name = active(&stage).remove(0);
        stage.sim.edit::<Pod>("default", &name, |p| p["spec"]["nodeName"] = json!("n1"));
        stage.settle();
        delete(&mut stage, &name);
        stage.pass(Duration::from_secs(15));
        assert_eq!(active(&stage).len(), at_once, "{policy}");
        stage.sim.edit::<Pod>("default", &name, |p| p["status"] = json!({"phase": "Failed"}));
        stage.pass(Duration::from_secs(15));
        assert_eq!((active(&stage).len(), status(&stage).failed), (1, Some(1)), "{policy}");
    }
}

#[test]
fn a_failure_policy_says_which_failures_count() {
    let mut stage = stage(json!({"backoffLimit": 0, "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
    ]}, "podReplacementPolicy": "Failed"}));
    let name = active(&stage).remove(0);
    stage.report(
        &name,
        json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}),
    );
    stage.pass(Duration::from_secs(11));
    assert_eq!((active(&stage).len(), status(&stage).failed, tracked(&stage)), (1, None, 1));
    stage.sim.edit::<Job>("default", "pi", |j| j["spec"]["backoffLimit"] = json!(9));
    let name = active(&stage).remove(0);
    let ended = json!({"terminated": {"exitCode": 42}});
    stage.report(
        &name,
        json!({"phase": "Failed", "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": ended}]}),
    );
    stage.pass(Duration::from_secs(60));
    let reason = "PodFailurePolicy";
    assert_eq!(conditions(&stage), pairs(&[("FailureTarget", reason), ("Failed", reason)]));
    let message = status(&stage).conditions.unwrap().remove(1).message.unwrap();
    let expect = format!(
        "Container c for pod default/{name} failed with exit code 42 matching FailJob rule at index 1"
    );
    assert_eq!((message, status(&stage).failed), (expect, Some(1)));
}

/// What may happen around the controller.
#[derive(Clone, Debug)]
enum Step {
    /// One key, its first so many writes.
    Turn(usize),
    Deliver(usize),
    Succeed(usize),
    Fail(usize),
    Delete(usize),
    Suspend(bool),
    Parallelism(i32),
    NewLeader,
    Later,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop_oneof![Just(usize::MAX), 1..4_usize].prop_map(Step::Turn),
        5 => (0..6_usize).prop_map(Step::Deliver),
        3 => (0..8_usize).prop_map(Step::Succeed),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (0..8_usize).prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Suspend),
        1 => (0..5_i32).prop_map(Step::Parallelism),
        1 => Just(Step::NewLeader),
        2 => Just(Step::Later),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The pods that a kubelet still has something to say about.
fn nth_open(stage: &Stage, index: usize) -> Option<String> {
    let pods = active(stage);
    (!pods.is_empty()).then(|| pods[index % pods.len()].clone())
}

/// What the job should have counted, by its pods' ends.
#[derive(Default)]
struct Ends {
    succeeded: i32,
    numbers: BTreeSet<u32>,
    /// Failed for sure, and perhaps: what is deleted by us while it is being withdrawn does not count.
    failed: i32,
    deleted: i32,
}

fn act(stage: &mut Stage, step: &Step, ends: &mut Ends) {
    let edit = |stage: &mut Stage, field: &str, value: Value| {
        stage.sim.edit::<Job>("default", "pi", |j| j["spec"][field] = value);
    };
    match step {
        Step::Turn(writes) => {
            stage.turn(*writes);
        }
        Step::Deliver(count) => stage.deliver(*count),
        Step::Succeed(i) | Step::Fail(i) => {
            let success = matches!(step, Step::Succeed(_));
            let Some(name) = nth_open(stage, *i) else { return };
            let p = stage.sim.get::<Pod>("default", &name).unwrap();
            // Once it has been withdrawn, its end does not matter.
            if is_tracked(&p) {
                if success {
                    ends.succeeded += 1;
                    ends.numbers.extend(super::index_of(&p));
                } else {
                    ends.failed += 1;
                }
            }
            stage.end(&name, if success { "Succeeded" } else { "Failed" });
        }
        Step::Delete(i) => {
            let Some(name) = nth_open(stage, *i) else { return };
            ends.deleted += i32::from(is_tracked(&stage.sim.get::<Pod>("default", &name).unwrap()));
            delete(stage, &name);
        }
        Step::Suspend(on) => edit(stage, "suspend", json!(on)),
        Step::Parallelism(n) => edit(stage, "parallelism", json!(n)),
        Step::NewLeader => stage.restart(),
        Step::Later => {
            stage.now += Duration::from_secs(700);
        }
    }
}

proptest! {
    /// However late the news, whatever breaks off: nothing is counted twice or lost, there are never too many pods,
    /// and in the end the job is complete and all its pods are let go.
    #[test]
    fn nothing_is_lost_or_counted_twice(steps in steps(), completions in 1..7_i32, indexed in any::<bool>()) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut stage = Stage::new(JOBS);
        stage.sim.add::<Job>(job(json!({
            "completions": completions, "parallelism": 2, "completionMode": mode, "backoffLimit": 1000})));
        let mut ends = Ends::default();
        for step in &steps {
            act(&mut stage, step, &mut ends);
            prop_assert!(active(&stage).len() <= 4, "{} active", active(&stage).len());
        }
        act(&mut stage, &Step::Suspend(false), &mut ends);
        act(&mut stage, &Step::Parallelism(2), &mut ends);
        for _ in 0..40 {
            stage.pass(Duration::from_secs(700));
            act(&mut stage, &Step::Succeed(0), &mut ends);
        }
        stage.pass(Duration::from_secs(700));
        prop_assert_eq!(conditions(&stage).last().map(|c| c.0.clone()), Some("Complete".to_owned()));
        let done = status(&stage);
        prop_assert_eq!(done.uncounted_terminated_pods, Some(Default::default()));
        prop_assert_eq!((active(&stage).len(), tracked(&stage)), (0, 0));
        let succeeded = if indexed { i32::try_from(ends.numbers.len()).unwrap() } else { ends.succeeded };
        prop_assert_eq!(done.succeeded, Some(succeeded));
        let failed = done.failed.unwrap_or(0);
        prop_assert!((ends.failed..=ends.failed + ends.deleted).contains(&failed), "{} failed", failed);
        if indexed {
            let last = completions - 1;
            let all = match last { 0 => "0".to_owned(), 1 => "0,1".to_owned(), n => format!("0-{n}") };
            prop_assert_eq!(done.completed_indexes, Some(all));
        }
    }
}
