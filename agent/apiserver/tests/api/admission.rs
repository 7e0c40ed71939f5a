//! What a namespace allows: quotas, pod security levels, disruption budgets; and who approves a certificate.

use super::*;

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

fn asking(name: &str, cpu: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
    pod
}

#[tokio::test]
async fn a_quota_is_kept() {
    let world = World::new().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.cpu": "1", "count/deployments.apps": "1"}}});
    world.made(QUOTAS, quota).await;
    let (_, message) = world.post(PODS, pod("silent")).await.failure(403);
    assert_eq!(
        message,
        r#"pods "silent" is forbidden: failed quota: q: must specify requests.cpu for: main"#
    );
    world.made(PODS, asking("one", "700m")).await;
    let (reason, message) = world.post(PODS, asking("big", "400m")).await.failure(403);
    assert_eq!(reason, "Forbidden");
    assert_eq!(
        message,
        r#"pods "big" is forbidden: exceeded quota: q, requested: requests.cpu=400m, used: requests.cpu=700m, limited: requests.cpu=1"#
    );
    world.made(PODS, asking("two", "100m")).await;
    let (_, message) = world.post(PODS, asking("three", "100m")).await.failure(403);
    assert!(message.contains("requested: pods=1, used: pods=2, limited: pods=2"), "{message}");
    world.made(DEPLOYMENTS, deployment("a")).await;
    assert!(
        world.post(DEPLOYMENTS, deployment("b")).await.failure(403).1.contains("count/deployments.apps=1")
    );
    // What goes gives back what it took.
    world.delete(&format!("{PODS}/two"), json!({"gracePeriodSeconds": 0})).await.ok(200);
    world.made(PODS, asking("three", "100m")).await;
}

#[tokio::test]
async fn two_that_fit_alone_do_not_both_fit() {
    let world = World::new().await;
    world.made(QUOTAS, json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}})).await;
    let all = (0..20).map(|i| world.post(MAPS, config_map(&format!("m{i}"), "x")));
    let answers = futures::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|answer| answer.code == 201).count(), 5);
}

#[tokio::test]
async fn a_level_refuses_and_warns() {
    let world = World::new().await;
    let level = |mode: &str, level: &str| json!({"metadata": {"labels": {format!("pod-security.kubernetes.io/{mode}"): level}}});
    let home = "/api/v1/namespaces/default";
    world.patch(home, "merge", level("warn", "restricted")).await.ok(200);
    let answer = world.post(DEPLOYMENTS, deployment("web")).await;
    let warning = answer.headers[header::WARNING].to_str().unwrap().to_owned();
    assert!(
        warning.contains("would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation"),
        "{warning}"
    );
    answer.ok(201);
    world.patch(home, "merge", level("enforce", "baseline")).await.ok(200);
    let mut bold = pod("bold");
    bold["spec"]["hostNetwork"] = true.into();
    let (_, message) = world.post(PODS, bold).await.failure(403);
    assert_eq!(
        message,
        r#"pods "bold" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)"#
    );
    world.made(PODS, pod("meek")).await;
}

#[tokio::test]
async fn a_budget_stands_in_the_way_of_evictions() {
    let world = World::new().await;
    for name in ["a", "b"] {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"app": "web"});
        pod["spec"]["nodeName"] = "n1".into();
        world.made(PODS, pod).await;
        let status =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        world.patch(&format!("{PODS}/{name}/status"), "merge", status).await.ok(200);
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    world.made(budgets, budget).await;
    let evict = async |name: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        world.post(&format!("{PODS}/{name}/eviction"), eviction).await
    };
    // Nobody has counted yet.
    let early = evict("a").await;
    assert_eq!(early.headers[header::RETRY_AFTER], "10");
    assert_eq!(early.failure(429).0, "TooManyRequests");
    let counted = json!({"status": {"observedGeneration": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2, "disruptionsAllowed": 1}});
    world.patch(&format!("{budgets}/b/status"), "merge", counted).await.ok(200);
    evict("a").await.ok(201);
    let refused = evict("b").await.ok(429);
    assert_eq!(refused["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(
        refused["details"]["causes"][0]["message"],
        "The disruption budget b needs 1 healthy pods and has 2 currently"
    );
}

#[tokio::test]
async fn a_request_is_stamped_and_approved_by_those_who_may() {
    let world = World::new().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = json!({"metadata": {"name": "eve"}, "spec": {"username": "somebody else", "usages": ["client auth"],
        "request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K", "signerName": "example.com/mine"}});
    let made = world.made(requests, request).await;
    assert_eq!(made["spec"]["username"], "system:admin");
    let mut verdict = made.clone();
    verdict["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Trusted"}], "certificate": "eA=="});
    let approved = world.put(&format!("{requests}/eve/approval"), verdict.clone()).await.ok(200);
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
    assert!(approved["status"]["certificate"].is_null(), "an approver signs nothing");
    // A role for the resource alone does not let anybody approve for a signer.
    let role = json!({"metadata": {"name": "clerk"}, "rules": [{"apiGroups": ["certificates.k8s.io"],
        "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    world.made(&format!("{rbac}/clusterroles"), role).await;
    let binding = json!({"metadata": {"name": "clerk"}, "roleRef": {"kind": "ClusterRole", "name": "clerk"},
        "subjects": [{"kind": "User", "name": "adam"}]});
    world.made(&format!("{rbac}/clusterrolebindings"), binding).await;
    let mut put =
        super::request(Method::PUT, &format!("{requests}/eve/approval"), Body::from(verdict.to_string()));
    put.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    put.extensions_mut().insert(User { name: "adam".into(), ..User::default() });
    let (_, message) = world.send(put).await.failure(403);
    assert!(
        message.contains(r#"user not permitted to approve requests with signerName "example.com/mine""#),
        "{message}"
    );
}
