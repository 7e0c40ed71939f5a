//! Whole pods against a runtime, a network and an API in memory, with a paused clock.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::FakeRuntime;
use crate::testing::api::{Api as FakeApi, POD};
use crate::{Config, Kubelet};

const NODE: &str = "/api/v1/nodes/n1";

struct Lab {
    api: FakeApi,
    runtime: Arc<FakeRuntime>,
    state: tempfile::TempDir,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<Result<(), crate::Error>>>,
}

impl Lab {
    fn new() -> Lab {
        let mut lab = Lab {
            api: FakeApi::new(),
            runtime: Arc::new(FakeRuntime::new()),
            state: tempfile::tempdir().unwrap(),
            shutdown: CancellationToken::new(),
            task: None,
        };
        lab.start();
        lab
    }

    fn start(&mut self) {
        let config = Config {
            node_name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            state_dir: self.state.path().to_owned(),
            mounts: false,
            ..Config::default()
        };
        let kubelet = Kubelet::new(config, self.api.client(), self.runtime.clone(), self.runtime.clone());
        kubelet.set_ready(Ok(()));
        self.shutdown = CancellationToken::new();
        self.task = Some(tokio::spawn(kubelet.run(self.shutdown.clone())));
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    fn run_pod(&self, spec: Value) {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
            "spec": spec,
            "status": {"phase": "Pending", "conditions": [{"type": "Mine", "status": "True"}]},
        });
        self.api.put(POD, pod);
    }

    fn delete_pod(&self, grace: i64) {
        let mut pod = self.api.get(POD).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.api.put(POD, pod);
    }

    async fn running(&self) -> Value {
        self.api.until(POD, "ready", |pod| condition(pod, "Ready") == "True").await
    }
}

fn condition(pod: &Value, kind: &str) -> String {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let one = all.iter().find(|condition| condition["type"] == kind);
    one.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

fn one(command: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "img", "args": [command]}]})
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted() {
    let lab = Lab::new();
    lab.run_pod(one("serve"));
    let pod = lab.running().await;
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.1.0.5");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["containerStatuses"][0]["imageID"], "img@sha256:1");
    let id = lab.runtime.running("c").unwrap();
    assert_eq!(status["containerStatuses"][0]["containerID"], format!("bramble://{id}"));
    for kind in ["PodScheduled", "Initialized", "ContainersReady", "PodReadyToStartContainers", "Mine"] {
        assert_eq!(condition(&pod, kind), "True", "{kind}");
    }
    let hosts = std::fs::read_to_string(lab.state.path().join("pods/u1/etc/hosts")).unwrap();
    assert!(hosts.contains("10.1.0.5\tp\n"), "{hosts}");

    lab.delete_pod(30);
    lab.api.until(POD, "deleted", Value::is_null).await;
    lab.api.until(POD, "deleted", |_| !lab.state.path().join("pods/u1").exists()).await;
    let state = lab.runtime.state();
    assert_eq!(state.signals, [(id, 15)]);
    assert!(state.sandboxes.is_empty() && state.attached.is_empty());
    assert_eq!(state.removed_cgroups, ["/kubepods/besteffort/podu1"]);
}

#[tokio::test(start_paused = true)]
async fn a_stubborn_container_is_killed_after_its_grace() {
    let lab = Lab::new();
    lab.run_pod(one("stubborn"));
    lab.running().await;
    let begun = Instant::now();
    lab.delete_pod(20);
    lab.api.until(POD, "deleted", Value::is_null).await;
    assert_eq!(lab.runtime.state().signals.iter().map(|(_, s)| *s).collect::<Vec<_>>(), [15, 9]);
    assert!((20..22).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn crashes_are_reported_and_backed_off() {
    let lab = Lab::new();
    lab.run_pod(one("serve"));
    lab.running().await;
    lab.runtime.exit(&lab.runtime.running("c").unwrap(), 3);
    let again = |count: u64| {
        move |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["restartCount"] == count && !status["state"]["running"].is_null()
        }
    };
    let pod = lab.api.until(POD, "restarted", again(1)).await;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")));
    lab.runtime.exit(&lab.runtime.running("c").unwrap(), 0);
    let waiting = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    };
    let pod = lab.api.until(POD, "backing off", waiting).await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(condition(&pod, "Ready"), "False");
    lab.api.until(POD, "restarted", again(2)).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_missing_is_named_and_tried_again() {
    let lab = Lab::new();
    lab.runtime.state().missing.insert("img".into());
    lab.run_pod(one("serve"));
    let waiting = |reason: &'static str| {
        move |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    lab.api.until(POD, "failing", waiting("ErrImagePull")).await;
    let pod = lab.api.until(POD, "waiting", waiting("ImagePullBackOff")).await;
    let message =
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("img: not found"), "{message}");
    lab.runtime.state().missing.clear();
    let pod = lab.running().await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_restarts_ends() {
    for (code, phase, reason) in [(0, "Succeeded", "Completed"), (2, "Failed", "Error")] {
        let lab = Lab::new();
        let mut spec = one("work");
        spec["restartPolicy"] = json!("Never");
        lab.run_pod(spec);
        lab.running().await;
        let id = lab.runtime.running("c").unwrap();
        std::fs::write(lab.state.path().join("pods/u1/termination").join(&id), "last words").unwrap();
        lab.runtime.exit(&id, code);
        let pod = lab.api.until(POD, phase, |pod| pod["status"]["phase"] == phase).await;
        let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(end["reason"], reason);
        assert_eq!(end["message"], "last words");
        assert!(lab.runtime.state().containers.contains_key(&id), "its log can still be read");
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_is_missing_counts_as_an_end() {
    let lab = Lab::new();
    let mut spec = one("broken");
    spec["restartPolicy"] = json!("Never");
    lab.run_pod(spec);
    let pod = lab.api.until(POD, "failed", |pod| pod["status"]["phase"] == "Failed").await;
    let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((end["exitCode"].as_i64(), end["reason"].as_str()), (Some(128), Some("StartError")));
    assert!(end["message"].as_str().unwrap().contains("not found in $PATH"));
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_missing_is_waited_for() {
    let lab = Lab::new();
    let mut spec = one("serve");
    spec["containers"][0]["env"] =
        json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "a"}}}]);
    lab.run_pod(spec);
    let waiting = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    };
    let pod = lab.api.until(POD, "waiting", waiting).await;
    let message = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(message, "configmap \"conf\" not found");
    let conf = json!({"metadata": {"name": "conf", "namespace": "default"}, "data": {"a": "1"}});
    lab.api.put("/api/v1/namespaces/default/configmaps/conf", conf);
    lab.running().await;
    let id = lab.runtime.running("c").unwrap();
    assert!(lab.runtime.state().specs[&id].env.contains(&"A=1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_takes_over_and_cleans_up() {
    let mut lab = Lab::new();
    lab.run_pod(json!({"containers": [
        {"name": "c", "image": "img", "args": ["serve"]}, {"name": "d", "image": "img", "args": ["serve"]}]}));
    lab.running().await;
    let (kept, ended) = (lab.runtime.running("c").unwrap(), lab.runtime.running("d").unwrap());
    lab.stop().await;
    lab.runtime.exit(&ended, 9);
    let mut orphan = lab.runtime.state().containers[&kept].clone();
    orphan.id = "orphan".into();
    orphan.labels.insert(label::UID.into(), "gone".into());
    let mut spec = lab.runtime.state().specs[&kept].clone();
    spec.args.clear();
    lab.runtime.state().specs.insert("orphan".into(), spec);
    lab.runtime.state().containers.insert("orphan".into(), orphan);
    lab.runtime.state().sandboxes.insert("gone".into());

    lab.api.set_away(true);
    lab.start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.runtime.state().signals, [], "nothing is taken down before the API has spoken");
    lab.api.set_away(false);
    let restarted = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][1];
        status["restartCount"] == 1 && status["lastState"]["terminated"]["exitCode"] == 9
    };
    lab.api.until(POD, "taken over", restarted).await;
    assert_eq!(lab.runtime.running("c"), Some(kept));
    lab.api.until(POD, "alone", |_| !lab.runtime.state().sandboxes.contains("gone")).await;
    let signals = lab.runtime.state().signals.clone();
    assert_eq!(signals, [("orphan".to_owned(), 15)]);
}

#[tokio::test(start_paused = true)]
async fn restarts_go_on_while_the_api_is_away() {
    let lab = Lab::new();
    lab.run_pod(one("serve"));
    lab.running().await;
    let first = lab.runtime.running("c").unwrap();
    lab.api.set_away(true);
    lab.runtime.exit(&first, 1);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let second = lab.runtime.running("c").unwrap();
    assert_ne!(first, second);
    lab.api.set_away(false);
    let reported =
        |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"] == format!("bramble://{second}");
    lab.api.until(POD, "reported", reported).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_once_per_change_and_again_when_overwritten() {
    let lab = Lab::new();
    lab.run_pod(one("serve"));
    lab.running().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let before = lab.api.lock().status_writes;
    tokio::time::sleep(Duration::from_secs(250)).await;
    let mut pod = lab.api.get(POD).unwrap();
    let node_writes = lab.api.lock().status_writes - before;
    assert!(node_writes <= 1, "{node_writes} writes while nothing happened");
    for condition in pod["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Ready" {
            condition["status"] = json!("False");
        }
    }
    lab.api.put(POD, pod);
    lab.running().await;
}

#[tokio::test(start_paused = true)]
async fn the_node_is_registered_and_comes_back() {
    let lab = Lab::new();
    let ready = |node: &Value| condition(node, "Ready") == "True";
    let node = lab.api.until(NODE, "ready", ready).await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(node["status"]["addresses"][0], json!({"type": "InternalIP", "address": "192.0.2.1"}));
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = lab.api.until(lease, "there", |lease| !lease.is_null()).await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 10);
    lab.api.remove(NODE);
    lab.api.until(NODE, "there again", ready).await;
}

/// `kubectl debug`: a container beside those that run, in the processes of one of them.
#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_joins_a_running_pod() {
    let lab = Lab::new();
    lab.run_pod(one("serve"));
    let mut pod = lab.running().await;
    let debugger = |name: &str, target: &str| json!({"name": name, "image": "img", "args": ["sh"], "stdin": true, "targetContainerName": target});
    pod["spec"]["ephemeralContainers"] = json!([debugger("debug", "c"), debugger("lost", "c2")]);
    lab.api.put(POD, pod);
    let states = |pod: &Value| {
        let state = |i: usize| pod["status"]["ephemeralContainerStatuses"][i]["state"].clone();
        (state(0), state(1))
    };
    let pod = lab
        .api
        .until(POD, "debugged", |pod| {
            let (debug, lost) = states(pod);
            debug["running"].is_object() && lost["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(states(&pod).1["waiting"]["message"], "unable to find target container c2");
    assert_eq!(condition(&pod, "Ready"), "True", "the pod is as ready as before");
    let id = lab.runtime.running("debug").unwrap();
    assert_eq!(lab.runtime.state().specs[&id].pid_of, Some(1));
    let main = lab.runtime.running("c").unwrap();
    assert_eq!(lab.runtime.state().specs[&main].pid_of, None);
}
