//! A pod that is more important than others finds room where there is none.

use serde_json::json;
use tests::Lab;

#[test]
fn the_important_find_room() {
    let lab = Lab::up("priority", "--nodes 1");
    let node = &lab.get("nodes")["items"][0];
    let name = node["metadata"]["name"].as_str().expect("a name").to_owned();
    let cpu = node["status"]["allocatable"]["cpu"].as_str().expect("allocatable cpu");
    let milli: u64 = match cpu.strip_suffix('m') {
        Some(milli) => milli.parse().expect("a number"),
        None => cpu.parse::<u64>().expect("a number") * 1000,
    };
    let pod = |name: &str, class: Option<&str>, share: u64| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 8, "priorityClassName": class, "containers": [{"name": "main",
                "image": "busybox", "command": ["sleep", "1000000"],
                "resources": {"requests": {"cpu": format!("{}m", milli * share / 100)}}}]}})
    };
    let class = |name: &str, value: u64, policy: &str| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "preemptionPolicy": policy})
    };
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "kept"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}});
    let apply = |items: &[serde_json::Value]| {
        lab.write("list.json", &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
        lab.ok(1, "kubectl apply -f /root/list.json");
    };
    apply(&[
        class("important", 1000, "PreemptLowerPriority"),
        class("patient", 2000, "Never"),
        budget,
        pod("kept", None, 40),
        pod("spare", None, 40),
    ]);
    lab.ok(1, "kubectl wait pod kept spare --for=condition=Ready --timeout=90s");
    lab.says(1, "kubectl get pdb kept -o jsonpath={.status.currentHealthy}", "1", 20);

    apply(&[pod("patient", Some("patient"), 50)]);
    lab.says(1, "kubectl describe pod patient", "not eligible due to preemptionPolicy=Never.", 20);
    lab.ok(1, "kubectl delete pod patient --now");

    apply(&[pod("urgent", Some("important"), 50)]);
    // While the other one ends, its room is kept.
    lab.says(1, "kubectl get pod urgent -o jsonpath={.status.nominatedNodeName}", &name, 20);
    let target = "-o jsonpath='{.status.conditions[?(@.type==\"DisruptionTarget\")].reason}'";
    assert_eq!(lab.ok(1, &format!("kubectl get pod spare {target}")), "PreemptionByScheduler");
    apply(&[pod("late", None, 40)]);
    lab.ok(1, "kubectl wait pod urgent --for=condition=Ready --timeout=60s");
    assert!(lab.fails(1, "kubectl get pod spare").contains("NotFound"));
    assert_eq!(lab.ok(1, "kubectl get pod kept -o jsonpath={.status.phase}"), "Running");
    assert_eq!(lab.ok(1, "kubectl get pod late -o jsonpath={.status.phase}"), "Pending");
    lab.says(1, "kubectl get events --field-selector reason=Preempted", "Preempted by pod", 20);
}
