//! How `kubectl get pods` shows a pod.

use super::columns::{AGE, NAME, or_none, string, wide};
use crate::json::{int, items, text};
use crate::{Column, time};
use serde_json::Value;

/// The columns of a pod.
pub const COLUMNS: &[Column] = &[
    NAME,
    string("Ready", |pod, _| {
        let summary = summary(pod);
        format!("{}/{}", summary.ready, summary.total).into()
    }),
    string("Status", |pod, _| summary(pod).reason.into()),
    string("Restarts", |pod, context| summary(pod).restarts_text(context.now).into()),
    AGE,
    wide("IP", |pod, _| or_none(ip(pod))),
    wide("Node", |pod, _| or_none(text(pod, "/spec/nodeName"))),
    wide("Nominated Node", |pod, _| or_none(text(pod, "/status/nominatedNodeName"))),
    wide("Readiness Gates", |pod, _| or_none(&gates(pod))),
];

fn ip(pod: &Value) -> &str {
    match text(pod, "/status/podIPs/0/ip") {
        "" => text(pod, "/status/podIP"),
        ip => ip,
    }
}

/// `1/2`: gates passed, and all of them.
fn gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return String::new();
    }
    let passed = gates.iter().filter(|g| condition(pod, text(g, "/conditionType"))).count();
    format!("{passed}/{}", gates.len())
}

fn condition(pod: &Value, kind: &str) -> bool {
    let found = items(pod, "/status/conditions").iter().find(|c| text(c, "/type") == kind);
    found.is_some_and(|c| text(c, "/status") == "True")
}

/// What a pod's containers amount to.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<i64>,
}

impl Summary {
    fn restarts_text(&self, now: i64) -> String {
        match self.last_restart.filter(|_| self.restarts != 0) {
            Some(last) => {
                format!("{} ({} ago)", self.restarts, time::human_duration(now.saturating_sub(last)))
            }
            None => self.restarts.to_string(),
        }
    }

    fn count_restarts(&mut self, container: &Value) {
        self.restarts = self.restarts.saturating_add(int(container, "/restartCount").unwrap_or(0));
        let ended = time::parse(text(container, "/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(ended);
    }
}

fn summary(pod: &Value) -> Summary {
    let sidecars =
        items(pod, "/spec/initContainers").iter().filter(|c| text(c, "/restartPolicy") == "Always");
    let sidecars: Vec<&str> = sidecars.map(|c| text(c, "/name")).collect();
    let reason = match text(pod, "/status/reason") {
        "" => text(pod, "/status/phase"),
        reason => reason,
    };
    let mut summary = Summary {
        ready: 0,
        total: items(pod, "/spec/containers").len() + sidecars.len(),
        reason: reason.to_owned(),
        restarts: 0,
        last_restart: None,
    };
    let gated = |c: &Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
    if items(pod, "/status/conditions").iter().any(gated) {
        summary.reason = "SchedulingGated".to_owned();
    }
    let initializing = of_init_containers(pod, &sidecars, &mut summary);
    if !initializing || condition(pod, "Initialized") {
        of_containers(pod, &sidecars, &mut summary);
    }
    let ended = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        if text(pod, "/status/reason") == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if !ended {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

/// Counts the init containers; whether one of them is still at work.
fn of_init_containers(pod: &Value, sidecars: &[&str], summary: &mut Summary) -> bool {
    let count = items(pod, "/spec/initContainers").len();
    for (i, container) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
        summary.count_restarts(container);
        let terminated = container.pointer("/state/terminated").filter(|t| t.is_object());
        let started = container.pointer("/started") == Some(&Value::Bool(true));
        if sidecars.contains(&text(container, "/name")) && started {
            summary.ready += usize::from(container.pointer("/ready") == Some(&Value::Bool(true)));
            continue;
        }
        summary.reason = match (terminated, text(container, "/state/waiting/reason")) {
            (Some(end), _) if int(end, "/exitCode").unwrap_or(0) == 0 => continue,
            (Some(end), _) => format!("Init:{}", ending(end)),
            (None, "" | "PodInitializing") => format!("Init:{i}/{count}"),
            (None, reason) => format!("Init:{reason}"),
        };
        return true;
    }
    false
}

fn of_containers(pod: &Value, sidecars: &[&str], summary: &mut Summary) {
    summary.restarts = 0;
    summary.last_restart = None;
    for container in items(pod, "/status/initContainerStatuses") {
        if sidecars.contains(&text(container, "/name")) {
            summary.count_restarts(container);
        }
    }
    let mut running = false;
    for container in items(pod, "/status/containerStatuses").iter().rev() {
        summary.count_restarts(container);
        let terminated = container.pointer("/state/terminated").filter(|t| t.is_object());
        match (text(container, "/state/waiting/reason"), terminated) {
            ("", None) => {
                let ready = container.pointer("/ready") == Some(&Value::Bool(true));
                if ready && container.pointer("/state/running").is_some_and(Value::is_object) {
                    running = true;
                    summary.ready += 1;
                }
            }
            ("", Some(end)) => summary.reason = ending(end),
            (reason, _) => summary.reason = reason.to_owned(),
        }
    }
    // One that still runs speaks for a pod in which another has completed.
    if summary.reason == "Completed" && running {
        summary.reason = if condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn ending(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "/exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}, {"name": "j"}]}, "status": status})
    }

    #[test]
    fn states_have_their_words() {
        let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
        let done = json!({"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let crash = json!({"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "1970-01-01T00:00:10Z"}}});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let cases = [
            (json!({"phase": "Pending"}), "0/2 Pending 0"),
            (json!({"phase": "Running", "containerStatuses": [running, running]}), "2/2 Running 0"),
            (
                json!({"phase": "Running", "containerStatuses": [running, crash]}),
                "1/2 CrashLoopBackOff 3 (5m ago)",
            ),
            (json!({"phase": "Running", "containerStatuses": [running, done]}), "1/2 NotReady 0"),
            (
                json!({"phase": "Running", "conditions": ready, "containerStatuses": [running, done]}),
                "1/2 Running 0",
            ),
            (json!({"phase": "Succeeded", "containerStatuses": [done, done]}), "0/2 Completed 0"),
            (
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
                "0/2 Init:1/2 0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]}),
                "0/2 Init:Error 1",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [
                    {"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
                "0/2 Signal:9 0",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0"),
        ];
        for (status, expected) in cases {
            let pod = pod(status);
            let summary = summary(&pod);
            let shown = format!(
                "{}/{} {} {}",
                summary.ready,
                summary.total,
                summary.reason,
                summary.restarts_text(310)
            );
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn a_pod_on_its_way_out_terminates() {
        let mut pod = pod(json!({"phase": "Running"}));
        pod["metadata"]["deletionTimestamp"] = "2016-01-01T00:00:00Z".into();
        assert_eq!(summary(&pod).reason, "Terminating");
        pod["status"]["reason"] = "NodeLost".into();
        assert_eq!(summary(&pod).reason, "Unknown");
    }
}
