//! Who may do what, and in which words the others are refused.

use super::*;

fn as_user(method: Method, path: &str, name: &str, group: &str, body: Value) -> Request<Body> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = request(method, path, body);
    let user = User { name: name.into(), groups: vec![group.into()], ..User::default() };
    request.extensions_mut().insert(user);
    request
}

async fn node(world: &World, method: Method, path: &str) -> Answer {
    let body = if method == Method::PATCH { json!({}) } else { Value::Null };
    let mut request = as_user(method, path, "system:node:n1", "system:nodes", body);
    request.headers_mut().insert(header::CONTENT_TYPE, "application/merge-patch+json".parse().unwrap());
    world.send(request).await
}

#[tokio::test]
async fn nobody_is_let_in_and_users_only_where_they_may() {
    let world = World::new().await;
    let anonymous = |path: &str| Request::builder().uri(path).body(Body::empty()).unwrap();
    for path in ["/healthz", "/livez", "/readyz?verbose", "/version"] {
        assert_eq!(world.send(anonymous(path)).await.code, 200, "{path}");
    }
    for path in ["/api", PODS, "/apis/apps/v1", "/openapi/v2", "/"] {
        assert_eq!(world.send(anonymous(path)).await.failure(401).0, "Unauthorized", "{path}");
    }
    let mut token = anonymous(PODS);
    token.headers_mut().insert(header::AUTHORIZATION, "Bearer guess".parse().unwrap());
    assert_eq!(world.send(token).await.code, 401);
    let eve = |path: &str| as_user(Method::GET, path, "eve", "people", Value::Null);
    let (_, message) = world.send(eve(PODS)).await.failure(403);
    assert_eq!(
        message,
        r#"pods is forbidden: User "eve" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    assert_eq!(world.send(eve("/apis")).await.code, 200);
    let (_, message) = world.send(eve("/metrics")).await.failure(403);
    assert_eq!(message, r#"forbidden: User "eve" cannot get path "/metrics""#);
}

#[tokio::test]
async fn one_may_ask_who_one_is_and_what_one_may() {
    let world = World::new().await;
    let me = world.made("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(me["status"]["userInfo"]["username"], "system:admin");
    let question = json!({"spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(world.made(path, question).await["status"]["allowed"], true);
}

async fn eve(world: &World, method: Method, path: &str, body: Value) -> Answer {
    let mut request = as_user(method, path, "eve", "people", body);
    request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    world.send(request).await
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn roles_let_users_in_as_far_as_they_go() {
    let world = World::new().await;
    world.made(PODS, pod("web")).await;
    assert_eq!(eve(&world, Method::GET, PODS, Value::Null).await.code, 403);
    let home = format!("{RBAC}/namespaces/default");
    let subject = json!([{"kind": "User", "name": "eve"}]);
    let view = json!({"metadata": {"name": "eve"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": subject});
    world.made(&format!("{home}/rolebindings"), view).await;
    assert_eq!(eve(&world, Method::GET, &format!("{PODS}/web"), Value::Null).await.code, 200);
    assert_eq!(eve(&world, Method::GET, "/api/v1/namespaces/default", Value::Null).await.code, 200);
    for (method, path) in [
        (Method::DELETE, format!("{PODS}/web")),
        (Method::GET, "/api/v1/pods".to_owned()),
        (Method::GET, "/api/v1/namespaces/kube-system/pods".to_owned()),
        (Method::GET, "/api/v1/namespaces/default/secrets".to_owned()),
        (Method::GET, format!("{home}/roles")),
    ] {
        assert_eq!(eve(&world, method, &path, Value::Null).await.failure(403).0, "Forbidden", "{path}");
    }
    world.delete(&format!("{home}/rolebindings/eve"), Value::Null).await.ok(200);
    assert_eq!(eve(&world, Method::GET, PODS, Value::Null).await.code, 403);
}

#[tokio::test]
async fn whoever_may_write_roles_gains_nothing_by_it() {
    let world = World::new().await;
    let everything = json!([{"apiGroups": [GROUP], "resources": ["*"], "verbs": ["*"]}]);
    world
        .made(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": "roles"}, "rules": everything}))
        .await;
    let subject = json!([{"kind": "Group", "name": "people"}]);
    let bind = |name: &str, role: &str| json!({"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}, "subjects": subject});
    let mut write = json!([{"apiGroups": [GROUP], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["create", "update", "patch", "get"]}]);
    world
        .made(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": "writer"}, "rules": write}))
        .await;
    world.made(&format!("{RBAC}/clusterrolebindings"), bind("writers", "writer")).await;
    let (_, message) =
        eve(&world, Method::POST, &format!("{RBAC}/clusterrolebindings"), bind("mine", "cluster-admin"))
            .await
            .failure(403);
    assert!(message.contains("attempting to grant RBAC permissions not currently held"), "{message}");
    assert_eq!(
        eve(&world, Method::POST, &format!("{RBAC}/clusterrolebindings"), bind("mine", "writer")).await.code,
        201
    );
    write[0]["resources"] = json!(["*"]);
    let wider = json!({"metadata": {"name": "writer"}, "rules": write});
    let path = format!("{RBAC}/clusterroles/writer");
    assert_eq!(eve(&world, Method::PUT, &path, wider.clone()).await.failure(403).0, "Forbidden");
    let mut patch = as_user(Method::PATCH, &path, "eve", "people", json!({"rules": wider["rules"]}));
    patch.headers_mut().insert(header::CONTENT_TYPE, "application/merge-patch+json".parse().unwrap());
    assert_eq!(world.send(patch).await.code, 403);
    let mut labels =
        as_user(Method::PATCH, &path, "eve", "people", json!({"metadata": {"labels": {"a": "b"}}}));
    labels.headers_mut().insert(header::CONTENT_TYPE, "application/merge-patch+json".parse().unwrap());
    assert_eq!(world.send(labels).await.code, 200);
}

const GROUP: &str = "rbac.authorization.k8s.io";

#[tokio::test]
async fn one_may_ask_for_ones_rules_and_masters_about_others() {
    let world = World::new().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let question = json!({"spec": {"namespace": "default"}});
    let mine = eve(&world, Method::POST, path, question.clone()).await.ok(201);
    assert_eq!(mine["status"]["resourceRules"][0]["verbs"], json!(["create"]));
    assert_eq!(mine["status"]["incomplete"], false);
    let all = world.made(path, question).await;
    assert!(
        all["status"]["resourceRules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|rule| rule["resources"] == json!(["*"]))
    );
    let about = json!({"spec": {"user": "eve", "groups": ["people"], "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(world.made(path, about.clone()).await["status"], json!({"allowed": false}));
    assert_eq!(eve(&world, Method::POST, path, about).await.code, 403);
}

#[tokio::test]
async fn one_acts_as_another_if_one_may() {
    let world = World::new().await;
    let acting = |name: &str, group: &str, headers: &[(&'static str, &'static str)]| {
        let mut request = as_user(Method::GET, PODS, name, group, Value::Null);
        for (header, value) in headers {
            request.headers_mut().append(*header, value.parse().unwrap());
        }
        world.send(request)
    };
    let masters = "system:masters";
    assert_eq!(acting("admin", masters, &[]).await.code, 200);
    let (_, message) = acting("admin", masters, &[("impersonate-user", "eve")]).await.failure(403);
    assert!(message.contains("User \"eve\" cannot list resource \"pods\""), "{message}");
    let as_master =
        [("impersonate-user", "eve"), ("impersonate-group", "people"), ("impersonate-group", masters)];
    assert_eq!(acting("admin", masters, &as_master).await.code, 200);
    let (_, message) = acting("eve", "people", &as_master).await.failure(403);
    assert_eq!(
        message,
        r#"users "eve" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
    assert_eq!(acting("admin", masters, &[("impersonate-group", "people")]).await.code, 400);
    // Who may be one user only is not that user with a group added.
    let rule = json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["bob"]}]);
    world.made(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": "be-bob"}, "rules": rule})).await;
    let bind = json!({"metadata": {"name": "be-bob"}, "roleRef": {"kind": "ClusterRole", "name": "be-bob"},
        "subjects": [{"kind": "User", "name": "eve"}]});
    world.made(&format!("{RBAC}/clusterrolebindings"), bind).await;
    let bob = acting("eve", "people", &[("impersonate-user", "bob")]).await.failure(403).1;
    assert!(bob.contains("User \"bob\" cannot list"), "{bob}");
    let more = [("impersonate-user", "bob"), ("impersonate-group", masters)];
    let (_, message) = acting("eve", "people", &more).await.failure(403);
    assert!(message.contains("cannot impersonate resource \"groups\""), "{message}");
}

#[tokio::test]
async fn a_node_reads_the_secrets_of_its_own_pods_alone() {
    let world = World::new().await;
    const SECRETS: &str = "/api/v1/namespaces/default/secrets";
    for name in ["mine", "theirs", "nobodys"] {
        world.made(SECRETS, json!({"metadata": {"name": name}})).await;
    }
    for (host, secret) in [("n1", "mine"), ("n2", "theirs")] {
        let mut pod = pod(&format!("on-{host}"));
        pod["spec"]["nodeName"] = host.into();
        pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": secret}}]);
        world.made(PODS, pod).await;
    }
    assert_eq!(node(&world, Method::GET, &format!("{SECRETS}/mine")).await.code, 200);
    let one = format!("{SECRETS}?fieldSelector=metadata.name%3Dmine");
    assert_eq!(node(&world, Method::GET, &one).await.ok(200)["items"].as_array().unwrap().len(), 1);
    for name in ["theirs", "nobodys", "absent"] {
        let (reason, message) = node(&world, Method::GET, &format!("{SECRETS}/{name}")).await.failure(403);
        assert_eq!(reason, "Forbidden");
        assert_eq!(
            message,
            format!(
                "secrets {name:?} is forbidden: User \"system:node:n1\" cannot get resource \"secrets\" in API group \
                 \"\" in the namespace \"default\": no relationship found between node 'n1' and this object"
            )
        );
    }
    assert_eq!(node(&world, Method::GET, SECRETS).await.code, 403);
    assert_eq!(node(&world, Method::GET, "/api/v1/secrets").await.code, 403);
    // The pod goes, and with it the reason.
    world.delete(&format!("{PODS}/on-n1?gracePeriodSeconds=0"), Value::Null).await.ok(200);
    assert_eq!(node(&world, Method::GET, &format!("{SECRETS}/mine")).await.code, 403);
}

#[tokio::test]
async fn a_node_changes_itself_alone_and_is_told_so() {
    let world = World::new().await;
    for name in ["n1", "n2"] {
        world.made("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
        let mut pod = pod(&format!("on-{name}"));
        pod["spec"]["nodeName"] = name.into();
        world.made(PODS, pod).await;
    }
    node(&world, Method::PATCH, "/api/v1/nodes/n1/status").await.ok(200);
    node(&world, Method::PATCH, &format!("{PODS}/on-n1/status")).await.ok(200);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    for (method, path, why) in [
        (Method::PATCH, "/api/v1/nodes/n2", r#"nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2""#.to_owned()),
        (
            Method::PATCH,
            &format!("{PODS}/on-n2/status"),
            r#"pods "on-n2" is forbidden: node "n1" can only update pod status for pods with spec.nodeName set to itself"#.to_owned(),
        ),
        (
            Method::DELETE,
            &format!("{PODS}/on-n2"),
            r#"pods "on-n2" is forbidden: node "n1" can only delete pods with spec.nodeName set to itself"#.to_owned(),
        ),
        (
            Method::PATCH,
            &format!("{leases}/n2"),
            r#"leases.coordination.k8s.io "n2" is forbidden: node "n1" can only access node lease with the same name as the requesting node"#.to_owned(),
        ),
        (
            Method::DELETE,
            "/api/v1/nodes/n1",
            r#"nodes "n1" is forbidden: User "system:node:n1" cannot delete resource "nodes" in API group "" at the cluster scope"#.to_owned(),
        ),
    ] {
        assert_eq!(node(&world, method, path).await.failure(403), ("Forbidden".to_owned(), why));
    }
}
