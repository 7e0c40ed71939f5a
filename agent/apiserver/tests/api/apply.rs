//! Server-side apply, and who manages what.

use crate::{Answer, World, request};
use axum::body::Body;
use http::{Method, header};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

impl World {
    async fn apply(&self, path: &str, query: &str, body: &str) -> Answer {
        let path = format!("{path}?{query}");
        self.call_text(Method::PATCH, &path, "application/apply-patch+yaml", body).await
    }

    async fn call_text(&self, method: Method, path: &str, media_type: &str, body: &str) -> Answer {
        let mut request = request(method, path, Body::from(body.to_owned()));
        request.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        request.headers_mut().insert(header::USER_AGENT, "tester/1.0 (linux)".parse().unwrap());
        self.send(request).await
    }
}

fn map(data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}).to_string()
}

fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|e| format!("{} {} {}", text(e, "manager"), text(e, "operation"), text(e, "subresource")))
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[tokio::test]
async fn what_is_applied_is_made_and_changed() {
    let world = World::new().await;
    let path = format!("{MAPS}/a");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  x: \"1\"\n  y: \"2\"\n";
    let made = world.apply(&path, "fieldManager=one", yaml).await.ok(201);
    assert_eq!(managers(&made), ["one Apply"]);
    assert!(made["metadata"]["uid"].is_string());
    let again = world.apply(&path, "fieldManager=one", yaml).await.ok(200);
    assert_eq!(again, made);
    let less = world.apply(&path, "fieldManager=one", &map(&json!({"y": "3"}))).await.ok(200);
    assert_eq!(less["data"], json!({"y": "3"}));
    let (reason, message) =
        world.apply(&path, "fieldManager=two", &map(&json!({"y": "4"}))).await.failure(409);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("Conflict", "Apply failed with 1 conflict: conflict with \"one\": .data.y")
    );
    let refused = world.apply(&path, "fieldManager=two", &map(&json!({"y": "4"}))).await;
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.y"}])
    );
    let forced = world.apply(&path, "fieldManager=two&force=true", &map(&json!({"y": "4"}))).await.ok(200);
    assert_eq!((forced["data"]["y"].as_str(), managers(&forced)), (Some("4"), vec!["two Apply".to_owned()]));
    let dry = world.apply(&path, "fieldManager=two&dryRun=All", &map(&json!({"y": "5"}))).await.ok(200);
    assert_eq!(dry["data"]["y"], "5");
    assert_eq!(world.get(&path).await.ok(200)["data"]["y"], "4");
}

#[tokio::test]
async fn every_write_says_who_it_is_by() {
    let world = World::new().await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    let json_type = "application/json";
    let made = world.call_text(Method::POST, DEPLOYMENTS, json_type, &deployment.to_string()).await.ok(201);
    assert_eq!(managers(&made), ["tester Update"]);
    let fields = &made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    assert!(fields.get("f:progressDeadlineSeconds").is_some() && fields.get(".").is_none(), "{fields:#}");
    let path = format!("{DEPLOYMENTS}/a");
    let status = json!({"status": {"replicas": 1}}).to_string();
    let merge = "application/merge-patch+json";
    let named = format!("{path}/status?fieldManager=reporter");
    world.call_text(Method::PATCH, &named, merge, &status).await.ok(200);
    let scale = json!({"spec": {"replicas": 3}}).to_string();
    world.call_text(Method::PATCH, &format!("{path}/scale"), merge, &scale).await.ok(200);
    let now = world.get(&path).await.ok(200);
    let mut found = managers(&now);
    found.sort();
    assert_eq!(found, ["reporter Update status", "tester Update", "tester Update scale"]);
    let apply = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 4}});
    let (_, message) = world.apply(&path, "fieldManager=me", &apply.to_string()).await.failure(409);
    assert!(message.starts_with("Apply failed with 1 conflict: conflict with \"tester\" with subresource \"scale\" using apps/v1 at 20"), "{message}");
    assert!(message.ends_with(": .spec.replicas"), "{message}");
    let generation = now["metadata"]["generation"].clone();
    let reset = world.patch(&path, "merge", json!({"metadata": {"managedFields": [{}]}})).await.ok(200);
    assert!(reset["metadata"].get("managedFields").is_none());
    assert_eq!(reset["metadata"]["generation"], generation);
    let (first, applied) = (
        apply.to_string(),
        world.apply(&path, "fieldManager=me&force=true", &apply.to_string()).await.ok(200),
    );
    assert_eq!(managers(&applied), ["me Apply", "before-first-apply Update"]);
    assert_eq!(world.apply(&path, "fieldManager=me", &first).await.ok(200), applied);
    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "status": {"replicas": 2}});
    let applied = world
        .apply(&format!("{path}/status"), "fieldManager=me&force=true", &status.to_string())
        .await
        .ok(200);
    assert_eq!(
        (applied["status"]["replicas"].as_i64(), applied["spec"]["replicas"].as_i64()),
        (Some(2), Some(4))
    );
    assert!(managers(&applied).contains(&"me Apply status".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_applied_is_said() {
    let world = World::new().await;
    let path = format!("{MAPS}/a");
    let (_, message) = world.apply(&path, "", &map(&json!({}))).await.failure(422);
    assert_eq!(
        message,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let odd =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dataa": {}}).to_string();
    let refused = world.apply(&path, "fieldManager=me", &odd).await.ok(500);
    assert_eq!(
        refused["message"],
        "failed to create typed patch object (default/a; v1, Kind=ConfigMap): .dataa: field not declared in schema"
    );
    assert!(refused.get("reason").is_none());
    let (_, message) = world
        .call(Method::PATCH, &format!("{path}?force=true"), "application/merge-patch+json", &json!({}))
        .await
        .failure(422);
    assert!(message.ends_with("force: Forbidden: may not be specified for non-apply patch"), "{message}");
    let fields =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": []}})
            .to_string();
    let (_, message) = world.apply(&path, "fieldManager=me", &fields).await.failure(400);
    assert_eq!(message, "metadata.managedFields must be nil");
    let uid =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": "7"}}).to_string();
    let (_, message) = world.apply(&path, "fieldManager=me", &uid).await.failure(409);
    assert!(message.contains("uid mismatch"), "{message}");
    let (reason, _) = world
        .apply(
            &format!("{DEPLOYMENTS}/none/status"),
            "fieldManager=me",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "none"}}).to_string(),
        )
        .await
        .failure(404);
    assert_eq!(reason, "NotFound");
}
