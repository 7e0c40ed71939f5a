//! Making, changing and deleting objects.

use super::*;

#[tokio::test]
async fn a_new_object_has_what_the_server_owns() {
    let world = World::new().await;
    let made = world.made(PODS, pod("web")).await;
    let meta = &made["metadata"];
    assert_eq!((&meta["namespace"], &meta["generation"]), (&json!("default"), &json!(1)));
    assert!(!text(&meta["uid"]).is_empty() && !text(&meta["creationTimestamp"]).is_empty());
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(world.get(&format!("{PODS}/web")).await.ok(200), made);
    let (reason, message) = world.post(PODS, pod("web")).await.failure(409);
    assert_eq!((reason.as_str(), message.as_str()), ("AlreadyExists", "pods \"web\" already exists"));
    let (_, message) = world.get(&format!("{DEPLOYMENTS}/x")).await.failure(404);
    assert_eq!(message, "deployments.apps \"x\" not found");
}

#[tokio::test]
async fn a_name_can_be_generated() {
    let world = World::new().await;
    let body = json!({"metadata": {"generateName": "web-"}});
    let one = text(&world.made(MAPS, body.clone()).await["metadata"]["name"]);
    let two = text(&world.made(MAPS, body).await["metadata"]["name"]);
    assert!(one.starts_with("web-") && one.len() == 9 && one != two, "{one} {two}");
}

#[tokio::test]
async fn a_body_must_be_what_its_url_says() {
    let world = World::new().await;
    let (reason, message) = world.post(PODS, deployment("x")).await.failure(400);
    assert_eq!(reason, "BadRequest");
    assert!(message.contains("Deployment in version \"apps/v1\" cannot be handled as a Pod"), "{message}");
    world.made(MAPS, config_map("a", "1")).await;
    let (_, message) = world.put(&format!("{MAPS}/a"), config_map("b", "1")).await.failure(400);
    assert_eq!(message, "the name of the object (b) does not match the name on the URL (a)");
    let mut elsewhere = config_map("c", "1");
    elsewhere["metadata"]["namespace"] = "kube-system".into();
    let (_, message) = world.post(MAPS, elsewhere).await.failure(400);
    assert!(message.contains("namespace of the provided object does not match"), "{message}");
    // Without a namespace in the URL nothing is made, and nothing is deleted everywhere.
    assert_eq!(world.post("/api/v1/configmaps", config_map("a", "1")).await.code, 405);
    assert_eq!(world.delete("/api/v1/configmaps", Value::Null).await.code, 405);
}

#[tokio::test]
async fn what_is_wrong_is_told_field_by_field() {
    let world = World::new().await;
    let mut bad = pod("web");
    bad["spec"]["containers"][0].as_object_mut().unwrap().remove("image");
    let status = world.post(PODS, bad).await.ok(422);
    assert_eq!(status["reason"], "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "spec.containers[0].image");
    assert_eq!(status["message"], "Pod \"web\" is invalid: spec.containers[0].image: Required value");
}

#[tokio::test]
async fn fields_a_kind_does_not_have_are_refused_told_or_dropped() {
    let world = World::new().await;
    let mut body = pod("web");
    body["spec"]["replicas"] = 3.into();
    let strict = world.post(&format!("{PODS}?fieldValidation=Strict"), body.clone()).await;
    let (_, message) = strict.failure(400);
    assert_eq!(message, "strict decoding error: unknown field \"spec.replicas\"");
    let warned = world.post(PODS, body).await;
    let warning = warned.headers.get(header::WARNING).unwrap().to_str().unwrap().to_owned();
    assert!(warning.starts_with("299 ") && warning.contains("spec.replicas"), "{warning}");
    assert_eq!(warned.ok(201)["spec"]["replicas"], Value::Null);
}

#[tokio::test]
async fn a_stale_update_is_a_conflict_and_one_without_version_is_not() {
    let world = World::new().await;
    let first = world.made(MAPS, config_map("a", "1")).await;
    let path = format!("{MAPS}/a");
    let mut second = first.clone();
    second["data"]["a"] = "2".into();
    let second = world.put(&path, second).await.ok(200);
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (reason, message) = world.put(&path, first.clone()).await.failure(409);
    assert_eq!(reason, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
    assert_eq!(world.put(&path, config_map("a", "3")).await.ok(200)["data"]["a"], "3");
    // What changes nothing is not written.
    let same = world.put(&path, config_map("a", "3")).await.ok(200);
    assert_eq!(same, world.get(&path).await.ok(200));
    let mut other = config_map("a", "4");
    other["metadata"]["uid"] = "someone-else".into();
    assert!(world.put(&path, other).await.failure(409).1.contains("Precondition failed: UID"));
}

#[tokio::test]
async fn status_and_the_rest_do_not_touch_each_other() {
    let world = World::new().await;
    let made = world.made(DEPLOYMENTS, deployment("web")).await;
    let path = format!("{DEPLOYMENTS}/web");
    let mut both = made.clone();
    both["spec"]["replicas"] = 5.into();
    both["status"] = json!({"replicas": 9});
    let after = world.put(&format!("{path}/status"), both.clone()).await.ok(200);
    assert_eq!((&after["spec"]["replicas"], &after["status"]["replicas"]), (&json!(3), &json!(9)));
    assert_eq!(after["metadata"]["generation"], 1);
    both["metadata"]["resourceVersion"] = Value::Null;
    both["status"] = json!({"replicas": 1});
    let after = world.put(&path, both).await.ok(200);
    assert_eq!((&after["spec"]["replicas"], &after["status"]["replicas"]), (&json!(5), &json!(9)));
    assert_eq!(after["metadata"]["generation"], 2);
}

#[tokio::test]
async fn three_forms_of_patch() {
    let world = World::new().await;
    world.made(DEPLOYMENTS, deployment("web")).await;
    let path = format!("{DEPLOYMENTS}/web");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "nginx:2"}, {"name": "side", "image": "b"}]}}}});
    let after = world.patch(&path, "strategic-merge", strategic).await.ok(200);
    let containers = &after["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().unwrap().len(), 2);
    let after = world.patch(&path, "merge", json!({"metadata": {"labels": {"a": "b"}}})).await.ok(200);
    assert_eq!(after["metadata"]["labels"], json!({"a": "b"}));
    let operations = json!([{"op": "replace", "path": "/spec/replicas", "value": 7}]);
    assert_eq!(world.patch(&path, "json", operations).await.ok(200)["spec"]["replicas"], 7);
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 1}});
    assert_eq!(world.patch(&path, "merge", stale).await.failure(409).0, "Conflict");
    let test = json!([{"op": "test", "path": "/spec/replicas", "value": 1}]);
    assert_eq!(world.patch(&path, "json", test).await.code, 422);
    let other = world.call(Method::PATCH, &path, "application/odd-patch+json", &json!({})).await;
    assert_eq!(other.failure(415).0, "UnsupportedMediaType");
}

#[tokio::test]
async fn patches_at_the_same_time_all_count() {
    let world = Arc::new(World::new().await);
    world.made(MAPS, config_map("a", "1")).await;
    let patches = (0..30).map(|i| {
        let world = world.clone();
        tokio::spawn(async move {
            let patch = json!({"data": {format!("key-{i}"): "x"}});
            world.patch(&format!("{MAPS}/a"), "merge", patch).await.ok(200);
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        patch.await.unwrap();
    }
    let map = world.get(&format!("{MAPS}/a")).await.ok(200);
    assert_eq!(map["data"].as_object().unwrap().len(), 31);
}

#[tokio::test]
async fn finalizers_and_preconditions_hold_a_delete_up() {
    let world = World::new().await;
    let mut held = config_map("a", "1");
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    world.made(MAPS, held).await;
    let path = format!("{MAPS}/a");
    let wrong = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "x"}});
    assert!(world.delete(&path, wrong).await.failure(409).1.contains("Precondition failed: UID"));
    let version = text(&world.get(&path).await.ok(200)["metadata"]["resourceVersion"]);
    let wrong = json!({"preconditions": {"resourceVersion": "1"}});
    let (reason, message) = world.delete(&path, wrong).await.failure(409);
    assert_eq!(reason, "Conflict");
    let why = format!("ResourceVersion in precondition: 1, ResourceVersion in object meta: {version}");
    assert!(message.contains(&why), "{message}");
    let right = json!({"preconditions": {"resourceVersion": version}});
    let marked = world.delete(&path, right).await.ok(200);
    assert!(!text(&marked["metadata"]["deletionTimestamp"]).is_empty());
    let more = json!({"metadata": {"finalizers": ["example.com/wait", "example.com/more"]}});
    let (_, message) = world.patch(&path, "merge", more).await.failure(422);
    assert!(message.contains("no new finalizers can be added"), "{message}");
    world.patch(&path, "merge", json!({"metadata": {"finalizers": null}})).await.ok(200);
    assert_eq!(world.get(&path).await.code, 404);
    world.made(MAPS, config_map("b", "1")).await;
    let gone = world.delete(&format!("{MAPS}/b"), json!({"propagationPolicy": "Background"})).await.ok(200);
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("b")));
    world.made(MAPS, config_map("c", "1")).await;
    let marked = world.delete(&format!("{MAPS}/c"), json!({"propagationPolicy": "Foreground"})).await.ok(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn a_pod_on_a_node_is_given_time_and_the_kubelet_ends_it() {
    let world = World::new().await;
    world.made(PODS, pod("web")).await;
    let path = format!("{PODS}/web");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    world.post(&format!("{path}/binding?dryRun=All"), binding.clone()).await.ok(201);
    assert_eq!(world.get(&path).await.body["spec"]["nodeName"], Value::Null);
    world.post(&format!("{path}/binding"), binding.clone()).await.ok(201);
    let bound = world.get(&path).await.ok(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let (_, message) = world.post(&format!("{path}/binding"), binding).await.failure(409);
    assert!(message.contains("pod web is already assigned to node \"n1\""), "{message}");
    let marked = world.delete(&path, Value::Null).await.ok(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    // A second delete may shorten the time, never lengthen it.
    world.delete(&path, json!({"gracePeriodSeconds": 60})).await.ok(200);
    assert_eq!(world.get(&path).await.ok(200)["metadata"]["deletionGracePeriodSeconds"], 30);
    world.delete(&path, json!({"gracePeriodSeconds": 0})).await.ok(200);
    assert_eq!(world.get(&path).await.code, 404);
}

#[tokio::test]
async fn a_scale_is_another_view() {
    let world = World::new().await;
    world.made(DEPLOYMENTS, deployment("web")).await;
    let path = format!("{DEPLOYMENTS}/web/scale");
    let scale = world.get(&path).await.ok(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!(scale["status"]["selector"], "run=web");
    let patched = world.patch(&path, "merge", json!({"spec": {"replicas": 5}})).await.ok(200);
    assert_eq!(patched["spec"]["replicas"], 5);
    let mut stale = scale.clone();
    assert_eq!(world.put(&path, scale).await.code, 409);
    stale["metadata"]["resourceVersion"] = patched["metadata"]["resourceVersion"].clone();
    stale["spec"]["replicas"] = 4.into();
    let put = world.put(&path, stale).await.ok(200);
    assert_eq!((&put["kind"], &put["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    assert_eq!(world.get(&format!("{DEPLOYMENTS}/web")).await.ok(200)["metadata"]["generation"], 3);
    world.patch(&path, "merge", json!({"spec": {"replicas": 5}})).await.ok(200);
    assert_eq!(world.get(&format!("{DEPLOYMENTS}/web")).await.ok(200)["spec"]["replicas"], 5);
    assert_eq!(world.patch(&path, "merge", json!({"spec": {"replicas": -1}})).await.code, 422);
}

#[tokio::test]
async fn nothing_is_kept_of_a_dry_run() {
    let world = World::new().await;
    world.post(&format!("{MAPS}?dryRun=All"), config_map("a", "1")).await.ok(201);
    assert_eq!(world.get(&format!("{MAPS}/a")).await.code, 404);
    world.made(MAPS, config_map("b", "1")).await;
    let dry = world.patch(&format!("{MAPS}/b?dryRun=All"), "merge", json!({"data": {"a": "2"}})).await;
    assert_eq!(dry.ok(200)["data"]["a"], "2");
    world.delete(&format!("{MAPS}/b?dryRun=All"), Value::Null).await.ok(200);
    assert_eq!(world.get(&format!("{MAPS}/b")).await.ok(200)["data"]["a"], "1");
}

#[tokio::test]
async fn a_selected_part_of_a_collection_is_deleted() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.made(PODS, pod(name)).await;
    }
    let gone = world.delete(&format!("{PODS}?labelSelector=run+in+(a,b)"), Value::Null).await.ok(200);
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    let left = world.get(PODS).await.ok(200);
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_eviction_deletes() {
    let world = World::new().await;
    for name in ["a", "b"] {
        world.made(PODS, pod(name)).await;
    }
    let eviction = |name: &str, options: Value| {
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"},
            "deleteOptions": options})
    };
    let wrong = json!({"preconditions": {"uid": "another"}});
    assert_eq!(
        world.post(&format!("{PODS}/a/eviction"), eviction("a", wrong)).await.failure(409).0,
        "Conflict"
    );
    let done = world.post(&format!("{PODS}/a/eviction"), eviction("a", json!({}))).await.ok(201);
    assert_eq!((&done["kind"], &done["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(world.get(&format!("{PODS}/a")).await.code, 404);
    assert_eq!(world.get(&format!("{PODS}/b")).await.code, 200);
    assert_eq!(world.post(&format!("{PODS}/a/eviction"), eviction("a", json!({}))).await.code, 404);
    assert_eq!(world.get(&format!("{PODS}/b/eviction")).await.code, 405);
}

#[tokio::test]
async fn an_event_has_two_forms() {
    let world = World::new().await;
    const OLD: &str = "/api/v1/namespaces/default/events";
    const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
    let old = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web"},
        "reason": "Started", "message": "It did.", "source": {"component": "kubelet"}, "type": "Normal"});
    let made = world.made(OLD, old).await;
    let shown = world.get(&format!("{NEW}/e")).await.ok(200);
    assert_eq!((&shown["apiVersion"], &shown["note"]), (&json!("events.k8s.io/v1"), &json!("It did.")));
    assert_eq!((&shown["regarding"]["name"], shown.get("message")), (&json!("web"), None));
    assert_eq!(shown["metadata"], made["metadata"]);
    world.patch(&format!("{NEW}/e"), "merge", json!({"deprecatedCount": 7})).await.ok(200);
    assert_eq!(world.get(&format!("{OLD}/e")).await.ok(200)["count"], 7);
    let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "f"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": {"kind": "Pod", "namespace": "default", "name": "db"},
        "reason": "Started", "action": "Start", "type": "Normal", "note": "It did too.",
        "reportingController": "example.com/starter", "reportingInstance": "x"});
    world.made(NEW, new.clone()).await;
    assert_eq!(world.post(NEW, new).await.failure(409).0, "AlreadyExists");
    let found = world.get(&format!("{OLD}?fieldSelector=involvedObject.name%3Ddb")).await.ok(200);
    assert_eq!(found["items"][0]["message"], "It did too.");
    assert_eq!(found["items"][0]["apiVersion"], "v1");
    let found = world.get(&format!("{NEW}?fieldSelector=regarding.name%3Dweb")).await.ok(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    world.delete(&format!("{NEW}/e"), Value::Null).await.ok(200);
    assert_eq!(world.get(&format!("{OLD}/e")).await.code, 404);
}

#[tokio::test]
async fn whoever_makes_what_nothing_acts_on_is_told() {
    let world = World::new().await;
    let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
    let scaler = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5, "scaleTargetRef": target}});
    let scalers = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let made = world.post(scalers, scaler).await;
    let warning = made.headers.get(header::WARNING).unwrap().to_str().unwrap().to_owned();
    let about = "horizontalpodautoscalers.autoscaling are kept, but nothing in this cluster acts on them yet";
    assert_eq!(warning, format!("299 - \"{about}\""));
    made.ok(201);
    let patch = json!({"spec": {"maxReplicas": 2}});
    let changed = world.patch(&format!("{scalers}/web"), "strategic-merge", patch).await;
    assert!(!changed.headers.contains_key(header::WARNING));
}

#[tokio::test]
async fn a_job_selects_its_pods_by_its_uid() {
    let world = World::new().await;
    let job = json!({"metadata": {"name": "pi"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "a", "image": "a"}]}}}});
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let made = world.post(jobs, job).await.ok(201);
    let uid = text(&made["metadata"]["uid"]);
    assert_eq!(made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    let patch = json!({"spec": {"parallelism": 2}});
    let changed = world.patch(&format!("{jobs}/pi"), "strategic-merge", patch).await;
    assert_eq!(changed.ok(200)["metadata"]["generation"], 2);
}

#[tokio::test]
async fn an_autoscaler_has_two_versions() {
    let world = World::new().await;
    const OLD: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    const NEW: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
    let old = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5, "scaleTargetRef": target}});
    world.made(OLD, old).await;
    let new = world.get(&format!("{NEW}/web")).await.ok(200);
    assert_eq!(new["apiVersion"], "autoscaling/v2");
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    world
        .patch(
            &format!("{NEW}/web"),
            "json",
            json!([{"op": "add", "path": "/spec/metrics/-", "value": memory}]),
        )
        .await
        .ok(200);
    let cpu = json!({"spec": {"targetCPUUtilizationPercentage": 50}});
    world.patch(&format!("{OLD}/web"), "merge", cpu).await.ok(200);
    let new = world.get(&format!("{NEW}/web")).await.ok(200);
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    assert_eq!(new["spec"]["metrics"][1], memory);
    let groups = world.get("/apis/autoscaling").await.ok(200);
    assert_eq!(groups["preferredVersion"]["version"], "v2");
    let wrong = json!({"spec": {"maxReplicas": 0}});
    let (_, message) = world.patch(&format!("{OLD}/web"), "merge", wrong).await.failure(422);
    assert!(message.contains("spec.maxReplicas: Invalid value: 0: must be greater than 0"), "{message}");
}

#[tokio::test]
async fn limits_and_priorities_shape_new_pods() {
    let world = World::new().await;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container",
        "default": {"cpu": "500m"}, "max": {"cpu": "1"}}]}});
    world.made("/api/v1/namespaces/default/limitranges", range).await;
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    world.made("/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    let mut important = pod("a");
    important["spec"]["priorityClassName"] = "high".into();
    let made = world.made(PODS, important).await;
    assert_eq!(made["spec"]["priority"], 1000);
    assert_eq!(made["spec"]["containers"][0]["resources"]["limits"]["cpu"], "500m");
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let mut greedy = pod("b");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    let (reason, message) = world.post(PODS, greedy).await.failure(403);
    assert_eq!(reason, "Forbidden");
    assert_eq!(message, "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2");
    let mut unknown = pod("c");
    unknown["spec"]["priorityClassName"] = "none".into();
    let (_, message) = world.post(PODS, unknown).await.failure(403);
    assert_eq!(message, "pods \"c\" is forbidden: no PriorityClass with name none was found");
    world.made("/api/v1/namespaces/kube-system/pods", pod("b")).await;
}

#[tokio::test]
async fn a_claim_gets_the_default_class() {
    let world = World::new().await;
    let marked = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    let class =
        json!({"metadata": {"name": "fast", "annotations": marked}, "provisioner": "example.com/disk"});
    world.made("/apis/storage.k8s.io/v1/storageclasses", class).await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let made = world.made("/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    assert_eq!(
        (&made["spec"]["storageClassName"], &made["status"]["phase"]),
        (&json!("fast"), &json!("Pending"))
    );
}

#[tokio::test]
async fn a_list_shows_the_same_however_it_is_made() {
    let world = World::new().await;
    for name in ["a", "b"] {
        world.made(MAPS, config_map(name, "1")).await;
    }
    for path in [MAPS, "/api/v1/configmaps", "/api/v1/namespaces", "/apis/apps/v1/deployments"] {
        let quick = world.get(path).await.ok(200);
        let read = world.get(&format!("{path}?labelSelector=!none")).await.ok(200);
        assert_eq!(quick, read, "{path}");
    }
}
