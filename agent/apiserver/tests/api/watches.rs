//! Lists, pages and watches.

use super::*;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};

/// A running watch, read line by line.
struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// The next event's type and object's name.
    async fn told(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

impl World {
    async fn watch(&self, path: &str) -> Lines {
        self.watch_as(path, "application/json").await
    }

    async fn watch_as(&self, path: &str, accept: &str) -> Lines {
        let mut request = request(Method::GET, path, Body::empty());
        request.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
        let response = self.api.handle(request).await;
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), buffer: Vec::new() }
    }
}

fn event(what: &str, name: &str) -> (String, String) {
    (what.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_goes_on_where_the_list_ended() {
    let world = World::new().await;
    world.made(MAPS, config_map("a", "1")).await;
    let version = text(&world.get(MAPS).await.ok(200)["metadata"]["resourceVersion"]);
    let mut watch = world.watch(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
    world.made(MAPS, config_map("b", "1")).await;
    world.patch(&format!("{MAPS}/b"), "merge", json!({"data": {"a": "2"}})).await.ok(200);
    world.delete(&format!("{MAPS}/b"), Value::Null).await.ok(200);
    // Another namespace's objects are not told.
    world.made("/api/v1/namespaces/kube-system/configmaps", config_map("x", "1")).await;
    world.made(MAPS, config_map("c", "1")).await;
    for expected in [event("ADDED", "b"), event("MODIFIED", "b"), event("DELETED", "b"), event("ADDED", "c")]
    {
        assert_eq!(watch.told().await, expected);
    }
}

#[tokio::test]
async fn a_watch_list_ends_its_first_part_with_a_mark() {
    let world = World::new().await;
    world.made(PODS, pod("a")).await;
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = world.watch(&format!("{PODS}?{query}")).await;
    assert_eq!(watch.told().await, event("ADDED", "a"));
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let version = text(&mark["object"]["metadata"]["resourceVersion"]);
    assert_eq!(version, text(&world.get(PODS).await.ok(200)["metadata"]["resourceVersion"]));
    let wrong = world.get(&format!("{PODS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(wrong.failure(422).0, "Invalid");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_is_marked_now_and_then_and_ends_in_time() {
    let world = World::new().await;
    let mut watch =
        world.watch(&format!("{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=100")).await;
    // Only what others do moves the revision on.
    world.made(PODS, pod("a")).await;
    let mut told = Vec::new();
    while let Some(event) = watch.next().await {
        told.push(text(&event["type"]));
    }
    assert_eq!(told, ["BOOKMARK"]);
}

#[tokio::test]
async fn whoever_starts_or_stops_to_match_comes_and_goes() {
    let world = World::new().await;
    let mut watch = world.watch(&format!("{PODS}?watch=true&labelSelector=run%3Da")).await;
    world.made(PODS, pod("a")).await;
    world.made(PODS, pod("b")).await;
    let path = format!("{PODS}/a");
    world.patch(&path, "merge", json!({"metadata": {"labels": {"run": "z"}}})).await.ok(200);
    world.patch(&path, "merge", json!({"metadata": {"labels": {"run": "a"}}})).await.ok(200);
    for expected in [event("ADDED", "a"), event("DELETED", "a"), event("ADDED", "a")] {
        assert_eq!(watch.told().await, expected);
    }
    let mut one = world.watch(&format!("{PODS}?watch=true&fieldSelector=metadata.name%3Db")).await;
    assert_eq!(one.told().await, event("ADDED", "b"));
}

#[tokio::test]
async fn a_history_that_is_gone_is_said_to_be() {
    let world = World::with(Arc::new(NoKubelets), 8).await;
    let version = text(&world.get(MAPS).await.ok(200)["metadata"]["resourceVersion"]);
    for i in 0..20 {
        world.made(MAPS, config_map(&format!("m{i}"), "1")).await;
    }
    let old = world.get(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
    assert_eq!(old.failure(410).0, "Expired");
    let future = u64::MAX;
    assert_eq!(world.get(&format!("{MAPS}?resourceVersion={future}")).await.failure(504).0, "Timeout");
}

#[tokio::test]
async fn a_watch_ends_with_leadership() {
    let world = World::new().await;
    let mut watch =
        world.watch(&format!("{MAPS}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3Dx")).await;
    world.leading.send_replace(false);
    assert!(watch.next().await.is_none());
    let refused = world.get(MAPS).await;
    assert_eq!(refused.headers.get(header::RETRY_AFTER).unwrap(), "1");
    assert_eq!(refused.failure(503).0, "ServiceUnavailable");
}

#[tokio::test]
async fn pages_follow_one_another() {
    let world = World::new().await;
    for i in 0..7 {
        world.made(PODS, pod(&format!("p{i}"))).await;
    }
    let (mut names, mut token, mut versions) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = world.get(&format!("{PODS}?limit=3&continue={token}")).await.ok(200);
        names.extend(page["items"].as_array().unwrap().iter().map(|p| text(&p["metadata"]["name"])));
        versions.push(text(&page["metadata"]["resourceVersion"]));
        token = text(&page["metadata"]["continue"]);
        if names.len() == 3 {
            assert_eq!(page["metadata"]["remainingItemCount"], 4);
            world.made(PODS, pod("p9")).await;
        }
        if token.is_empty() {
            break;
        }
    }
    // All pages show what the first one's revision held, so that a watch from there misses and repeats nothing.
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);
    assert!(versions.windows(2).all(|pair| pair[0] == pair[1]), "{versions:?}");
    assert_eq!(world.get(&format!("{PODS}?limit=3&continue=xyz")).await.code, 400);
    let chosen = world.get(&format!("{PODS}?limit=1&labelSelector=run+in+(p2,p5)")).await.ok(200);
    let token = text(&chosen["metadata"]["continue"]);
    let rest =
        world.get(&format!("{PODS}?limit=1&labelSelector=run+in+(p2,p5)&continue={token}")).await.ok(200);
    assert_eq!(rest["items"][0]["metadata"]["name"], "p5");
}

#[tokio::test]
async fn fields_select() {
    let world = World::new().await;
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "")] {
        let mut pod = pod(name);
        if !node.is_empty() {
            pod["spec"]["nodeName"] = node.into();
        }
        world.made(PODS, pod).await;
    }
    world.made("/api/v1/namespaces/kube-system/pods", pod("a")).await;
    let names = async |path: String| {
        let list = world.get(&path).await.ok(200);
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| text(&p["metadata"]["name"]))
            .collect::<Vec<_>>()
            .join(",")
    };
    for (selector, expected) in [
        ("spec.nodeName%3Dn1", "a"),
        ("spec.nodeName%3D", "c"),
        ("spec.nodeName!%3Dn1", "b,c"),
        ("metadata.name%3Db", "b"),
        ("metadata.name%3Db,spec.nodeName%3Dn1", ""),
        ("metadata.name!%3Db,status.phase%3DPending", "a,c"),
    ] {
        assert_eq!(names(format!("{PODS}?fieldSelector={selector}")).await, expected, "{selector}");
    }
    assert_eq!(names("/api/v1/pods?fieldSelector=metadata.name%3Da".into()).await, "a,a");
    assert_eq!(names("/api/v1/pods?fieldSelector=metadata.namespace%3Dkube-system".into()).await, "a");
    let (reason, message) = world.get(&format!("{PODS}?fieldSelector=spec.x%3D1")).await.failure(400);
    assert_eq!((reason.as_str(), message.as_str()), ("BadRequest", "field label not supported: spec.x"));
}

#[tokio::test]
async fn the_past_can_be_listed_while_it_is_remembered() {
    let world = World::with(Arc::new(NoKubelets), 16).await;
    for name in ["a", "b", "c"] {
        world.made(MAPS, config_map(name, "1")).await;
    }
    let first = world.get(&format!("{MAPS}?limit=1")).await.ok(200);
    let (version, token) =
        (text(&first["metadata"]["resourceVersion"]), text(&first["metadata"]["continue"]));
    world.patch(&format!("{MAPS}/b"), "merge", json!({"data": {"a": "2"}})).await.ok(200);
    world.delete(&format!("{MAPS}/c"), Value::Null).await.ok(200);
    let rest = world.get(&format!("{MAPS}?limit=5&continue={token}")).await.ok(200);
    let data: Vec<String> = rest["items"].as_array().unwrap().iter().map(|m| text(&m["data"]["a"])).collect();
    assert_eq!(data, ["1", "1"]);
    let exact = format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact");
    let then = world.get(&exact).await.ok(200);
    assert_eq!(
        (then["items"].as_array().unwrap().len(), text(&then["metadata"]["resourceVersion"])),
        (3, version)
    );
    assert_eq!(world.get(MAPS).await.ok(200)["items"].as_array().unwrap().len(), 2);
    for i in 0..20 {
        world.made(MAPS, config_map(&format!("m{i}"), "1")).await;
    }
    assert_eq!(world.get(&exact).await.failure(410).0, "Expired");
    let (reason, message) = world.get(&format!("{MAPS}?limit=5&continue={token}")).await.failure(410);
    assert_eq!(reason, "Expired");
    assert!(message.contains("The provided continue parameter is too old"), "{message}");
}

#[tokio::test]
async fn tables_and_metadata_are_watched_too() {
    let world = World::new().await;
    world.made(PODS, pod("a")).await;
    let path = format!("{PODS}?watch=true");
    let mut tables = world.watch_as(&path, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    let first = tables.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert!(!first["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    let mut partial =
        world.watch_as(&path, "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await;
    let first = partial.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "PartialObjectMetadata");
    assert_eq!((&first["object"]["metadata"]["name"], first["object"].get("spec")), (&json!("a"), None));
}

#[tokio::test]
async fn a_client_in_the_same_process_keeps_a_mirror() {
    let world = World::new().await;
    world.made(MAPS, config_map("a", "1")).await;
    let api: kube::Api<ConfigMap> = kube::Api::namespaced(world.api.client(User::admin()), "default");
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher(api.clone(), config).applied_objects().boxed();
        let name = |map: Option<ConfigMap>| map.and_then(|m| m.metadata.name).unwrap_or_default();
        let first = stream.try_next().await.unwrap();
        assert_eq!(name(first), "a");
        world
            .put(&format!("{MAPS}/a"), config_map("a", &format!("{:?}", std::time::Instant::now())))
            .await
            .ok(200);
        assert_eq!(name(stream.try_next().await.unwrap()), "a");
    }
}
