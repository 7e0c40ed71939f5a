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
