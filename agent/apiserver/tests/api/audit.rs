//! What is written down of requests.

use super::*;
use apiserver::{Audit, Policy, Remote};
use std::net::IpAddr;
use tokio::sync::mpsc;

struct Log(mpsc::Receiver<Vec<u8>>);

impl Log {
    /// The next event.
    async fn next(&mut self) -> Value {
        serde_json::from_slice(&self.0.recv().await.unwrap()).unwrap()
    }

    fn is_empty(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

async fn audited(rules: &str) -> (World, Log) {
    let policy = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
    let (sender, receiver) = mpsc::channel(64);
    let audit = Audit::new(Policy::parse(&policy).unwrap(), sender);
    let config = Config { audit: Some(Arc::new(audit)), ..Config::default() };
    let world = World::configured(config, Arc::new(Volatile::new(4096)), Arc::new(NoKubelets)).await;
    (world, Log(receiver))
}

fn by(name: &str, mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(User {
        name: name.into(),
        groups: vec!["team".into()],
        ..User::default()
    });
    request
}

#[tokio::test]
async fn who_asked_for_what_and_what_became_of_it() {
    let (world, mut log) = audited("omitStages: [RequestReceived]\nrules: [{level: Metadata}]").await;
    let mut post =
        request(Method::POST, &format!("{MAPS}?pretty=true"), Body::from(config_map("a", "x").to_string()));
    post.headers_mut().insert("audit-id", "mine".parse().unwrap());
    post.headers_mut().insert(header::USER_AGENT, "kubectl/v1.36".parse().unwrap());
    post.extensions_mut().insert(Remote(IpAddr::from([192, 0, 2, 7])));
    let answer = world.send(post).await;
    assert_eq!(answer.headers["audit-id"], "mine");
    answer.ok(201);
    let event = log.next().await;
    for (field, value) in [
        ("kind", json!("Event")),
        ("apiVersion", json!("audit.k8s.io/v1")),
        ("level", json!("Metadata")),
        ("auditID", json!("mine")),
        ("stage", json!("ResponseComplete")),
        ("requestURI", json!(format!("{MAPS}?pretty=true"))),
        ("verb", json!("create")),
        ("user", json!({"username": "system:admin", "groups": ["system:masters", "system:authenticated"]})),
        ("sourceIPs", json!(["192.0.2.7"])),
        ("userAgent", json!("kubectl/v1.36")),
        (
            "objectRef",
            json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"}),
        ),
        ("responseStatus", json!({"metadata": {}, "code": 201})),
        ("annotations", json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""})),
    ] {
        assert_eq!(event[field], value, "{field}");
    }
    assert!(event["requestObject"].is_null());
    for time in ["requestReceivedTimestamp", "stageTimestamp"] {
        assert_eq!(text(&event[time]).len(), "2026-01-01T00:00:00.000000Z".len(), "{event}");
    }
    // Refused, and not let in.
    world.send(by("eve", request(Method::GET, &format!("{PODS}/x/log"), Body::empty()))).await.failure(403);
    let event = log.next().await;
    assert_eq!((&event["verb"], &event["objectRef"]["subresource"]), (&json!("get"), &json!("log")));
    assert_eq!(event["responseStatus"]["reason"], "Forbidden");
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    let stranger = Request::builder().uri("/api/v1/nodes").body(Body::empty()).unwrap();
    world.send(stranger).await.failure(401);
    let event = log.next().await;
    assert_eq!(
        (&event["user"]["username"], &event["responseStatus"]["code"]),
        (&json!("system:anonymous"), &json!(401))
    );
    assert!(log.is_empty());
}

#[tokio::test]
async fn which_rule_allowed_it_and_who_acted() {
    let (world, mut log) = audited("rules: [{level: Metadata, users: [adam], verbs: [list]}]").await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({"metadata": {"name": "readers"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "eve"}, {"kind": "Group", "name": "team"}]});
    world.made(&format!("{rbac}/namespaces/default/rolebindings"), binding).await;
    world.send(by("adam", request(Method::GET, PODS, Body::empty()))).await.ok(200);
    assert_eq!(log.next().await["stage"], "RequestReceived");
    assert_eq!(
        log.next().await["annotations"]["authorization.k8s.io/reason"],
        "RBAC: allowed by RoleBinding \"readers/default\" of ClusterRole \"view\" to Group \"team\""
    );
    let mut as_other = by("adam", request(Method::GET, PODS, Body::empty()));
    as_other.headers_mut().insert("impersonate-user", "bob".parse().unwrap());
    world.send(as_other).await.failure(403);
    log.next().await;
    let event = log.next().await;
    assert_eq!((&event["user"]["username"], &event["responseStatus"]["code"]), (&json!("adam"), &json!(403)));
    // Only whoever is another is noted as one: this one was not allowed to be.
    assert!(event["impersonatedUser"].is_null());
    let mut admin = request(Method::GET, PODS, Body::empty());
    admin.headers_mut().insert("impersonate-user", "adam".parse().unwrap());
    world.send(admin).await.failure(403);
    assert!(log.is_empty(), "the policy is about who sent it");
}

#[tokio::test]
async fn a_level_says_how_much() {
    let rules = "omitStages: [RequestReceived]
rules:
- level: None
  namespaces: [kube-system]
- level: Metadata
  resources: [{resources: [secrets]}]
- level: Request
  verbs: [patch, delete]
- level: RequestResponse
  omitManagedFields: true
";
    let (world, mut log) = audited(rules).await;
    world.made("/api/v1/namespaces/kube-system/configmaps", config_map("a", "x")).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    world.made("/api/v1/namespaces/default/secrets", secret).await;
    let line = String::from_utf8(log.0.recv().await.unwrap()).unwrap();
    assert!(
        line.contains("\"secrets\"") && !line.contains("hunter2") && !line.contains("aHVudGVyMg"),
        "{line}"
    );
    let made = world.made(MAPS, config_map("a", "x")).await;
    assert!(made["metadata"]["managedFields"].is_array());
    let event = log.next().await;
    assert_eq!(event["requestObject"], config_map("a", "x"));
    assert_eq!(event["responseObject"]["metadata"]["uid"], made["metadata"]["uid"]);
    assert!(event["responseObject"]["metadata"]["managedFields"].is_null());
    world.patch(&format!("{MAPS}/a"), "merge", json!({"data": {"a": "y"}})).await.ok(200);
    let event = log.next().await;
    assert_eq!((&event["requestObject"], &event["level"]), (&json!({"data": {"a": "y"}}), &json!("Request")));
    assert!(event["responseObject"].is_null());
    // What is too much goes without what was sent and answered.
    world.made(MAPS, config_map("big", &"x".repeat(200 << 10))).await;
    let event = log.next().await;
    assert_eq!(event["annotations"]["audit.k8s.io/truncated"], "true");
    assert!(event["requestObject"].is_null() && event["responseObject"].is_null());
    assert_eq!(event["objectRef"]["name"], "big");
    world.delete(&format!("{MAPS}/big"), Value::Null).await.ok(200);
    assert_eq!(log.next().await["verb"], "delete");
    assert!(log.is_empty());
}

#[tokio::test]
async fn a_watch_is_written_down_when_it_begins_and_when_it_ends() {
    let (world, mut log) = audited("rules: [{level: Metadata}]").await;
    let watch = request(Method::GET, &format!("{MAPS}?watch=true"), Body::empty());
    let response = world.api.handle(watch).await;
    for stage in ["RequestReceived", "ResponseStarted"] {
        let event = log.next().await;
        assert_eq!((text(&event["stage"]).as_str(), &event["verb"]), (stage, &json!("watch")));
    }
    assert!(log.is_empty(), "it goes on");
    drop(response);
    let event = log.next().await;
    assert_eq!(
        (&event["stage"], &event["responseStatus"]["code"]),
        (&json!("ResponseComplete"), &json!(200))
    );
    assert!(log.is_empty());
}
