//! What only pods have.

use super::kubelet::{Played, bound};
use super::*;

/// As `kubectl debug` asks for it.
fn debugger(name: &str) -> Value {
    json!({"spec": {"ephemeralContainers": [{"name": name, "image": "busybox", "stdin": true, "tty": true,
        "targetContainerName": "main", "resources": {}, "terminationMessagePolicy": "File",
        "imagePullPolicy": "Always"}]}})
}

#[tokio::test]
async fn ephemeral_containers_are_added() {
    let world = World::with(Arc::new(Played::default()), 64).await;
    bound(&world, "web", pod("web")).await;
    let door = format!("{PODS}/web/ephemeralcontainers");
    let before = world.get(&door).await.ok(200);
    assert_eq!(before["kind"], "Pod");
    for name in ["one", "two"] {
        world.patch(&door, "strategic-merge", debugger(name)).await.ok(200);
    }
    let pod = world.get(&format!("{PODS}/web")).await.ok(200);
    let mut names: Vec<String> =
        pod["spec"]["ephemeralContainers"].as_array().unwrap().iter().map(|c| text(&c["name"])).collect();
    names.sort();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(pod["spec"]["ephemeralContainers"][0]["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(pod["metadata"]["generation"], 3);
    assert_eq!(world.get(&format!("{PODS}/web/log?container=two")).await.ok(200), "a line\n");
}

#[tokio::test]
async fn nothing_else_comes_through_that_door() {
    let world = World::new().await;
    let made = world.made(PODS, pod("web")).await;
    let door = format!("{PODS}/web/ephemeralcontainers");
    let mut sent = made.clone();
    sent["metadata"]["labels"]["run"] = "other".into();
    sent["spec"]["containers"][0]["image"] = "other".into();
    sent["spec"]["ephemeralContainers"] = debugger("one")["spec"]["ephemeralContainers"].clone();
    let got = world.put(&door, sent).await.ok(200);
    assert_eq!(got["metadata"]["labels"], made["metadata"]["labels"]);
    assert_eq!(got["spec"]["containers"], made["spec"]["containers"]);
    assert_eq!(got["spec"]["ephemeralContainers"][0]["name"], "one");
    let (reason, message) = world.put(&door, made.clone()).await.failure(409);
    assert_eq!(reason, "Conflict", "{message}");
    let gone = json!([{"op": "remove", "path": "/spec/ephemeralContainers/0"}]);
    let (_, message) = world.patch(&door, "json", gone).await.failure(422);
    assert!(message.contains("existing ephemeral containers \"one\" may not be removed"), "{message}");
    let (_, message) =
        world.patch(&format!("{PODS}/web"), "strategic-merge", debugger("two")).await.failure(422);
    assert!(message.contains("pod updates may not change fields other than"), "{message}");
}

#[tokio::test]
async fn a_namespace_allows_them_no_more_than_others() {
    let world = World::new().await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
    world.made("/api/v1/namespaces", json!({"metadata": {"name": "strict", "labels": labels}})).await;
    let pods = "/api/v1/namespaces/strict/pods";
    world.made(pods, pod("web")).await;
    let mut sent = debugger("one");
    sent["spec"]["ephemeralContainers"][0]["securityContext"] = json!({"privileged": true});
    let (_, message) =
        world.patch(&format!("{pods}/web/ephemeralcontainers"), "strategic-merge", sent).await.failure(403);
    assert!(message.contains("violates PodSecurity") && message.contains("privileged"), "{message}");
}
