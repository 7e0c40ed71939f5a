//! Service accounts and their tokens: who gets one, and how long it is worth anything.

use super::*;

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

fn bearer(path: &str, token: &str) -> Request<Body> {
    let value = format!("Bearer {token}");
    Request::builder().uri(path).header(header::AUTHORIZATION, value).body(Body::empty()).unwrap()
}

impl World {
    async fn as_node(&self, name: &str, path: &str, body: Value) -> Answer {
        let mut request = request(Method::POST, path, Body::from(body.to_string()));
        request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        let user = User {
            name: format!("system:node:{name}"),
            groups: vec!["system:nodes".into()],
            ..User::default()
        };
        request.extensions_mut().insert(user);
        self.send(request).await
    }

    async fn token(&self, account: &str, spec: Value) -> String {
        let made = self.made(&format!("{ACCOUNTS}/{account}/token"), json!({"spec": spec})).await;
        text(&made["status"]["token"])
    }

    async fn review(&self, token: &str, audiences: Value) -> Value {
        let question = json!({"spec": {"token": token, "audiences": audiences}});
        self.made("/apis/authentication.k8s.io/v1/tokenreviews", question).await["status"].clone()
    }
}

/// A pod that is on this node.
async fn on_node(world: &World, name: &str, node: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = node.into();
    world.made(PODS, pod).await
}

#[tokio::test]
async fn a_pod_runs_as_an_account_and_gets_its_token() {
    let world = World::new().await;
    let made = world.made(PODS, pod("web")).await;
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    let volume = &made["spec"]["volumes"][0];
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["path"], "token");
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    // The account came with its first pod.
    world.get(&format!("{ACCOUNTS}/default")).await.ok(200);
    let mut other = pod("other");
    other["spec"]["serviceAccountName"] = "robot".into();
    let (reason, message) = world.post(PODS, other.clone()).await.failure(403);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        (
            "Forbidden",
            r#"pods "other" is forbidden: error looking up service account default/robot: serviceaccount "robot" not found"#
        )
    );
    world.made(ACCOUNTS, json!({"metadata": {"name": "robot"}, "automountServiceAccountToken": false})).await;
    assert_eq!(world.made(PODS, other).await["spec"]["volumes"], Value::Null);
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let world = World::new().await;
    let web = on_node(&world, "web", "n1").await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": web["metadata"]["uid"]});
    let token = world.token("default", json!({"boundObjectRef": bound})).await;
    let who = world.review(&token, Value::Null).await;
    assert_eq!(who["authenticated"], true, "{who}");
    assert_eq!(who["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(who["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["web"]));
    assert_eq!(world.send(bearer("/apis", &token)).await.code, 200);
    let (_, message) = world.send(bearer(PODS, &token)).await.failure(403);
    assert!(
        message.contains(r#"User "system:serviceaccount:default:default" cannot list resource "pods""#),
        "{message}"
    );
    world.delete(&format!("{PODS}/web"), json!({"gracePeriodSeconds": 0})).await.ok(200);
    assert_eq!(world.send(bearer("/apis", &token)).await.failure(401).0, "Unauthorized");
    let who = world.review(&token, Value::Null).await;
    assert!(who["authenticated"].is_null() && text(&who["error"]).contains("gone"), "{who}");
    // Another pod of that name is another.
    let wrong = json!({"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "made-up"});
    on_node(&world, "web", "n1").await;
    let path = format!("{ACCOUNTS}/default/token");
    let (reason, message) = world.post(&path, json!({"spec": {"boundObjectRef": wrong}})).await.failure(409);
    assert!(reason == "Conflict" && message.contains("does not match the UID in record"), "{message}");
}

#[tokio::test]
async fn a_token_ends_with_its_account_and_is_for_its_audience() {
    let world = World::new().await;
    world.made(ACCOUNTS, json!({"metadata": {"name": "robot"}})).await;
    let token = world.token("robot", json!({"audiences": ["vault"], "expirationSeconds": 900})).await;
    assert_eq!(world.send(bearer("/apis", &token)).await.code, 401);
    assert_eq!(world.review(&token, json!(["db", "vault"])).await["audiences"], json!(["vault"]));
    assert!(world.review(&token, json!(["db"])).await["authenticated"].is_null());
    let own = world.token("robot", json!({})).await;
    assert_eq!(world.send(bearer("/apis", &own)).await.code, 200);
    world.delete(&format!("{ACCOUNTS}/robot"), Value::Null).await.ok(200);
    world.made(ACCOUNTS, json!({"metadata": {"name": "robot"}})).await;
    assert_eq!(world.send(bearer("/apis", &own)).await.code, 401, "another account of that name");
    let path = format!("{ACCOUNTS}/robot/token");
    let (reason, message) = world.post(&path, json!({"spec": {"expirationSeconds": 10}})).await.failure(422);
    assert_eq!(reason, "Invalid");
    assert_eq!(
        message,
        r#"TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes"#
    );
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_own_pods() {
    let world = World::new().await;
    let here = on_node(&world, "here", "n1").await;
    let there = on_node(&world, "there", "n2").await;
    let path = format!("{ACCOUNTS}/default/token");
    let spec = |pod: &Value| {
        json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1",
        "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}}})
    };
    world.as_node("n1", &path, spec(&here)).await.ok(201);
    let (_, message) = world.as_node("n1", &path, spec(&there)).await.failure(403);
    assert!(message.contains("bound to a pod scheduled on a different node"), "{message}");
    let (_, message) = world.as_node("n1", &path, json!({})).await.failure(403);
    assert!(message.contains("not bound to a pod"), "{message}");
    // A node cannot borrow an account by making a pod that runs as it.
    let mirror = json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}},
        "spec": {"nodeName": "n3", "containers": [{"name": "c", "image": "i"}]}});
    let made = world.as_node("n3", PODS, mirror).await.ok(201);
    assert_eq!(made["spec"]["serviceAccountName"], Value::Null);
    // No pod of this account is on the node.
    let (_, message) = world.as_node("n3", &path, spec(&here)).await.failure(403);
    assert!(message.contains("no relationship found between node 'n3' and this object"), "{message}");
}

#[tokio::test]
async fn a_secret_holds_a_token_that_ends_with_it() {
    let world = World::new().await;
    world.made(ACCOUNTS, json!({"metadata": {"name": "robot"}})).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    let made = world.made(secrets, secret).await;
    use base64::Engine as _;
    let token = base64::engine::general_purpose::STANDARD.decode(text(&made["data"]["token"])).unwrap();
    let token = String::from_utf8(token).unwrap();
    assert_eq!(made["data"]["namespace"], "ZGVmYXVsdA==");
    assert!(!text(&made["metadata"]["annotations"]["kubernetes.io/service-account.uid"]).is_empty());
    assert_eq!(world.send(bearer("/apis", &token)).await.code, 200);
    world.delete(&format!("{secrets}/robot-token"), Value::Null).await.ok(200);
    assert_eq!(world.send(bearer("/apis", &token)).await.code, 401);
}
