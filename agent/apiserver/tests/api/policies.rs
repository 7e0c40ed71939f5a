//! Policies that have a say in writes.

use super::{World, config_map};
use http::header;
use serde_json::{Value, json};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn policy(spec: Value) -> Value {
    let mut policy = json!({"metadata": {"name": "short"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["configmaps"]}]}}});
    for (name, value) in spec.as_object().unwrap() {
        policy["spec"][name] = value.clone();
    }
    policy
}

fn binding(actions: &[&str]) -> Value {
    json!({"metadata": {"name": "bound"}, "spec": {"policyName": "short", "validationActions": actions}})
}

#[tokio::test]
async fn a_policy_denies_in_upstreams_words() {
    let world = World::new().await;
    let spec = json!({"variables": [{"name": "a", "expression": "object.data.a"}],
        "matchConditions": [{"name": "not-deleted", "expression": "request.operation != 'DELETE'"}],
        "validations": [
            {"expression": "variables.a.size() <= 3"},
            {"expression": "oldObject == null || oldObject.data.a == variables.a", "reason": "Forbidden",
                "messageExpression": "'was ' + oldObject.data.a"}]});
    world.made(POLICIES, policy(spec)).await;
    // Without a binding it says nothing.
    world.made(MAPS, config_map("before", "long enough")).await;
    world.made(BINDINGS, binding(&["Deny"])).await;
    let (reason, message) = world.post(MAPS, config_map("long", "long enough")).await.failure(422);
    assert_eq!(reason, "Invalid");
    assert_eq!(
        message,
        "configmaps \"long\" is forbidden: ValidatingAdmissionPolicy 'short' with binding 'bound' denied request: \
         failed expression: variables.a.size() <= 3"
    );
    world.made(MAPS, config_map("ok", "abc")).await;
    let patch = json!({"data": {"a": "abd"}});
    let (reason, message) = world.patch(&format!("{MAPS}/ok"), "merge", patch).await.failure(403);
    assert_eq!(reason, "Forbidden");
    assert!(message.ends_with("denied request: was abc"), "{message}");
    world.delete(&format!("{MAPS}/before"), Value::Null).await.ok(200);
}

#[tokio::test]
async fn warnings_failures_and_parameters() {
    let world = World::new().await;
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "object.data.a.size() <= int(params.data.a)", "message": "too long"}]});
    world.made(POLICIES, policy(spec)).await;
    world.made(MAPS, config_map("limit", "3")).await;
    let mut bound = binding(&["Warn"]);
    bound["spec"]["paramRef"] =
        json!({"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"});
    world.made(BINDINGS, bound).await;
    let answer = world.post(MAPS, config_map("long", "long enough")).await;
    let warning = answer.headers[header::WARNING].to_str().unwrap().to_owned();
    assert_eq!(
        warning,
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'short' with binding 'bound': too long\""
    );
    answer.ok(201);
    // What has no value is a fault, unless that is to be ignored.
    world
        .patch(&format!("{BINDINGS}/bound"), "merge", json!({"spec": {"validationActions": ["Deny"]}}))
        .await
        .ok(200);
    let empty = json!({"metadata": {"name": "empty"}});
    let (_, message) = world.post(MAPS, empty.clone()).await.failure(422);
    assert!(message.ends_with("resulted in error: no such key: data"), "{message}");
    world
        .patch(&format!("{POLICIES}/short"), "merge", json!({"spec": {"failurePolicy": "Ignore"}}))
        .await
        .ok(200);
    world.made(MAPS, empty).await;
    // A namespace that is not meant.
    let elsewhere = json!({"spec": {"failurePolicy": "Fail", "matchConstraints":
        {"namespaceSelector": {"matchLabels": {"checked": "yes"}}}}});
    world.patch(&format!("{POLICIES}/short"), "merge", elsewhere).await.ok(200);
    world.made(MAPS, config_map("longer", "long enough")).await;
}

#[tokio::test]
async fn a_bad_policy_is_refused() {
    let world = World::new().await;
    let bad = policy(json!({"validations": [{"expression": "object.spec. > 1"}]}));
    let (_, message) = world.post(POLICIES, bad).await.failure(422);
    assert!(message.contains("spec.validations[0].expression: Invalid value: \"object.spec. > 1\": compilation failed: ERROR: <input>:1:14: Syntax error"), "{message}");
    let (_, message) = world.post(BINDINGS, binding(&["Deny", "Warn"])).await.failure(422);
    assert!(message.contains("must not contain both Deny and Warn"), "{message}");
}
