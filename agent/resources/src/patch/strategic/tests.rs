use crate::patch::{PatchError, strategic_merge};
use serde_json::{Value, json};

fn patched(plural: &str, mut doc: Value, patch: Value) -> Value {
    let kind = crate::all().iter().find(|d| d.plural == plural).expect("kind");
    strategic_merge(kind, &mut doc, &patch).expect("patch");
    doc
}

/// A pod with these containers.
fn pod(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

#[test]
fn containers_merge_by_name() {
    let old = pod(json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}]));
    let patch =
        pod(json!([{"name": "b", "image": "b"}, {"name": "a", "image": "a:2", "env": [{"name": "Y"}]}]));
    let new = pod(json!([
        {"name": "a", "image": "a:2", "env": [{"name": "X", "value": "1"}, {"name": "Y"}]},
        {"name": "b", "image": "b"},
    ]));
    let once = patched("pods", old, patch.clone());
    assert_eq!(once, new);
    assert_eq!(patched("pods", once, patch), new);
}

#[test]
fn items_are_deleted_and_lists_replaced() {
    let old = pod(json!([{"name": "a"}, {"name": "b"}]));
    let gone = patched("pods", old.clone(), pod(json!([{"name": "a", "$patch": "delete"}])));
    assert_eq!(gone, pod(json!([{"name": "b"}])));
    let replaced =
        patched("pods", old.clone(), pod(json!([{"name": "c", "image": "c"}, {"$patch": "replace"}])));
    assert_eq!(replaced, pod(json!([{"name": "c", "image": "c"}])));
    let emptied = patched("pods", old, json!({"spec": {"$patch": "replace", "nodeName": "pi"}}));
    assert_eq!(emptied, json!({"spec": {"nodeName": "pi"}}));
}

#[test]
fn objects_are_deleted() {
    let old = json!({"spec": {"securityContext": {"runAsUser": 1}, "nodeName": "pi"}});
    let new = patched("pods", old.clone(), json!({"spec": {"securityContext": {"$patch": "delete"}}}));
    assert_eq!(new, json!({"spec": {"nodeName": "pi"}}));
    assert_eq!(patched("pods", old, json!({"spec": {"securityContext": null}})), new);
}

#[test]
fn only_named_keys_stay() {
    let old = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let new = json!({"spec": {"strategy": {"type": "Recreate"}}});
    assert_eq!(patched("deployments", old, patch), new);
}

#[test]
fn order_follows_the_patch() {
    let old = pod(json!([{"name": "a"}, {"name": "own"}, {"name": "b"}]));
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
        "containers": [{"name": "c", "image": "c"}]}});
    let names: Vec<String> = patched("pods", old, patch)["spec"]["containers"]
        .as_array()
        .expect("list")
        .iter()
        .map(|c| c["name"].as_str().expect("name").to_owned())
        .collect();
    assert_eq!(names, ["own", "c", "b", "a"]);
}

#[test]
fn plain_values_are_added_and_deleted() {
    let old = json!({"metadata": {"finalizers": ["a/a", "b/b"]}});
    let patch = json!({"metadata": {"finalizers": ["c/c"], "$deleteFromPrimitiveList/finalizers": ["a/a"]}});
    let new = json!({"metadata": {"finalizers": ["b/b", "c/c"]}});
    assert_eq!(patched("pods", old, patch), new);
}

#[test]
fn atomic_lists_are_replaced() {
    let old = json!({"spec": {"tolerations": [{"key": "a"}], "taints": [{"key": "x"}]}});
    let patch = json!({"spec": {"tolerations": [{"key": "b"}]}});
    assert_eq!(patched("pods", old.clone(), patch)["spec"]["tolerations"], json!([{"key": "b"}]));
    let taints = json!({"spec": {"taints": [{"key": "y", "effect": "NoSchedule"}]}});
    assert_eq!(patched("nodes", old, taints.clone())["spec"]["taints"], taints["spec"]["taints"]);
}

#[test]
fn service_ports_merge_by_port() {
    let old = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
    let patch = json!({"spec": {"ports": [{"port": 80, "nodePort": 30080}, {"port": 443, "name": "tls"}]}});
    let new = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080},
        {"port": 443, "name": "tls"}]}});
    assert_eq!(patched("services", old, patch), new);
}

#[test]
fn conditions_merge_by_type() {
    let old = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}});
    assert_eq!(patched("nodes", old, patch.clone()), patch);
}

#[test]
fn faults_are_told() {
    let kind = crate::find("", "v1", "pods").expect("pods");
    let mut doc = pod(json!([{"name": "a"}]));
    let error = strategic_merge(kind, &mut doc, &pod(json!([{"image": "x"}]))).expect_err("no key");
    assert_eq!(error.to_string(), "map: {\"image\":\"x\"} does not contain declared merge key: name");
    let unknown = json!({"spec": {"$patch": "explode"}});
    assert!(matches!(strategic_merge(kind, &mut doc, &unknown), Err(PatchError::Malformed(_))));
    assert!(matches!(strategic_merge(kind, &mut doc, &json!([])), Err(PatchError::Malformed(_))));
    let order =
        json!({"spec": {"containers": [{"name": "z"}], "$setElementOrder/containers": [{"name": "a"}]}});
    assert!(matches!(strategic_merge(kind, &mut doc, &order), Err(PatchError::Malformed(_))));
}
