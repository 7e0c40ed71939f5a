//! Admission webhooks: real HTTPS servers that have a say in writes.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Mutex;
use tokio::net::TcpListener;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// Whose certificate a server has.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Certificate {
    /// One that an authority signed, which the bundle holds.
    Signed,
    /// Its own, which calls itself an authority: what `openssl req -x509` makes.
    Own,
}

/// A server that answers questions and remembers them.
struct Server {
    client: Value,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    /// `answer` makes the response out of the request; `null`: there is none, ever.
    async fn new(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        Self::with(Certificate::Signed, answer).await
    }

    async fn with(
        certificate: Certificate,
        answer: impl Fn(&Value) -> Value + Send + Sync + 'static,
    ) -> Self {
        let (config, bundle) = tls(certificate, "127.0.0.1");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/ask", listener.local_addr().unwrap());
        let client = json!({"url": url, "caBundle": STANDARD.encode(bundle)});
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen, answer) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(
                        move |request: Request<hyper::body::Incoming>| {
                            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                            async move {
                                assert!(request.uri().query().unwrap().starts_with("timeout="));
                                let bytes = request.into_body().collect().await?.to_bytes();
                                let mut review: Value = serde_json::from_slice(&bytes).unwrap();
                                let question = review["request"].take();
                                let mut response = answer(&question);
                                if response.is_null() {
                                    std::future::pending::<()>().await;
                                }
                                response["uid"] = question["uid"].clone();
                                seen.lock().unwrap().push(question);
                                review = json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "response": response});
                                Ok::<_, hyper::Error>(http::Response::new(Body::from(review.to_string())))
                            }
                        },
                    );
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { client, asked }
    }

    /// A configuration of one webhook that asks it about these resources of any group.
    fn configuration(&self, name: &str, resources: &[&str]) -> Value {
        json!({"metadata": {"name": name}, "webhooks": [{"name": format!("{name}.example.com"),
            "clientConfig": self.client, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}]}]})
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// A server's settings, and the bundle its clients need.
pub(super) fn tls(certificate: Certificate, address: &str) -> (rustls::ServerConfig, String) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let key = KeyPair::generate().unwrap();
    let (chain, bundle) = if certificate == Certificate::Own {
        let own = authority(address).self_signed(&key).unwrap();
        (own.der().clone(), own.pem())
    } else {
        let ca_key = KeyPair::generate().unwrap();
        let ca = authority("ca").self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(authority("ca"), ca_key);
        let signed =
            CertificateParams::new(vec![address.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (signed.der().clone(), ca.pem())
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    (config, bundle)
}

fn yes() -> Value {
    json!({"allowed": true})
}

fn no(status: Value) -> Value {
    json!({"allowed": false, "status": status})
}

fn patched(patch: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
}

impl World {
    async fn mutating(&self, configuration: Value) -> Value {
        self.made(&format!("{GROUP}/mutatingwebhookconfigurations"), configuration).await
    }

    async fn validating(&self, configuration: Value) -> Value {
        self.made(&format!("{GROUP}/validatingwebhookconfigurations"), configuration).await
    }
}

fn header_text(answer: &Answer) -> String {
    answer.headers.get(header::WARNING).map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_webhook_refuses_and_warns() {
    let world = World::new().await;
    let server = Server::with(Certificate::Own, |request| {
        if request["object"]["data"]["a"] == "bad" {
            let status = json!({"code": 403, "reason": "Forbidden", "message": "the data is bad", "details": {"name": "x"}});
            return no(status);
        }
        if request["operation"] == "DELETE" { no(Value::Null) } else { json!({"allowed": true, "warnings": ["careful"]}) }
    })
    .await;
    world.validating(server.configuration("judge", &["configmaps"])).await;
    let denied = world.post(MAPS, config_map("m", "bad")).await.ok(403);
    assert_eq!(
        denied["message"],
        "admission webhook \"judge.example.com\" denied the request: the data is bad"
    );
    assert_eq!((&denied["reason"], &denied["details"]["name"]), (&json!("Forbidden"), &json!("x")));
    let asked = server.asked();
    let request = &asked[0];
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["requestResource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&request["name"], &request["namespace"]), (&json!("m"), &json!("default")));
    assert_eq!(request["userInfo"]["username"], "system:admin");
    assert_eq!((&request["oldObject"], &request["dryRun"]), (&Value::Null, &json!(false)));
    assert_eq!(request["options"]["kind"], "CreateOptions");
    let warned = world.post(MAPS, config_map("m", "good")).await;
    assert_eq!(header_text(&warned), "299 - \"careful\"");
    warned.ok(201);
    let (_, message) = world.put(&format!("{MAPS}/m"), config_map("m", "bad")).await.failure(403);
    assert!(message.ends_with("the data is bad"), "{message}");
    server.asked();
    let (reason, message) = world.delete(&format!("{MAPS}/m"), Value::Null).await.failure(400);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("", "admission webhook \"judge.example.com\" denied the request without explanation")
    );
    let deleted = server.asked().remove(0);
    assert_eq!((&deleted["object"], &deleted["oldObject"]["data"]["a"]), (&Value::Null, &json!("good")));
    // Other kinds are none of its business.
    world.made("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn what_is_added_to_a_pod_gets_what_every_container_gets() {
    let world = World::new().await;
    let sidecar = json!({"name": "side", "image": "proxy"});
    let server = Server::new(move |request| {
        let has = request["object"]["spec"]["containers"].as_array().unwrap().len() > 1;
        if has {
            yes()
        } else {
            patched(json!([{"op": "add", "path": "/spec/containers/-", "value": sidecar}]))
        }
    })
    .await;
    let mut configuration = server.configuration("injector", &["pods"]);
    configuration["webhooks"][0]["reinvocationPolicy"] = "IfNeeded".into();
    world.mutating(configuration).await;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", "defaultRequest": {"cpu": "100m"}}]}});
    world.made("/api/v1/namespaces/default/limitranges", range).await;
    let made = world.made(PODS, pod("p")).await;
    let side = &made["spec"]["containers"][1];
    assert_eq!((&side["name"], &side["imagePullPolicy"]), (&json!("side"), &json!("Always")));
    assert_eq!(side["resources"]["requests"]["cpu"], "100m");
    assert_eq!(side["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(made["status"]["qosClass"], "Burstable");
    // The server filled the container in after the webhook had seen it, so it was asked again.
    assert_eq!(server.asked().len(), 2);
    let changes = json!({"metadata": {"labels": {"x": "y"}}});
    let changed = world.patch(&format!("{PODS}/p"), "merge", changes).await.ok(200);
    assert_eq!(changed["metadata"]["labels"]["x"], "y");
    assert_eq!(server.asked()[0]["oldObject"]["metadata"]["labels"], json!({"run": "p"}));
}

#[tokio::test]
async fn webhooks_see_what_others_changed_if_they_want() {
    let world = World::new().await;
    let add = |key: &'static str| {
        move |request: &Value| match &request["object"]["data"][key] {
            Value::Null => patched(json!([{"op": "add", "path": format!("/data/{key}"), "value": "x"}])),
            _ => yes(),
        }
    };
    let (first, second) = (Server::new(add("first")).await, Server::new(add("second")).await);
    let mut eager = first.configuration("a", &["configmaps"]);
    eager["webhooks"][0]["reinvocationPolicy"] = "IfNeeded".into();
    world.mutating(eager).await;
    world.mutating(second.configuration("b", &["configmaps"])).await;
    let made = world.made(MAPS, config_map("m", "v")).await;
    assert_eq!(made["data"], json!({"a": "v", "first": "x", "second": "x"}));
    let asked = first.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1]["object"]["data"]["second"], "x");
    assert_eq!(second.asked().len(), 1);
    // An update is changed as well, and what is not for a client to change stays.
    let rename =
        Server::new(|_| patched(json!([{"op": "replace", "path": "/metadata/creationTimestamp", "value": "2016-01-01T00:00:00Z"}]))).await;
    world.mutating(rename.configuration("c", &["configmaps"])).await;
    let changed = world.put(&format!("{MAPS}/m"), config_map("m", "w")).await.ok(200);
    assert_eq!(changed["data"], json!({"a": "w", "first": "x", "second": "x"}));
    let time = |object: &Value| object["metadata"]["creationTimestamp"].clone();
    assert_eq!(time(&changed), time(&made));
}

#[tokio::test]
async fn a_webhook_that_cannot_be_asked() {
    let world = World::new().await;
    let silent = Server::new(|_| Value::Null).await;
    let mut configuration = silent.configuration("silent", &["configmaps"]);
    configuration["webhooks"][0]["timeoutSeconds"] = 1.into();
    let path = format!("{GROUP}/validatingwebhookconfigurations/silent");
    world.validating(configuration).await;
    let (reason, message) = world.post(MAPS, config_map("m", "v")).await.failure(500);
    assert_eq!(reason, "InternalError");
    let url = silent.client["url"].as_str().unwrap();
    let expected = format!(
        "Internal error occurred: failed calling webhook \"silent.example.com\": failed to call webhook: \
         Post \"{url}?timeout=1s\": context deadline exceeded"
    );
    assert_eq!(message, expected);
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    world.patch(&path, "json", ignore).await.ok(200);
    world.made(MAPS, config_map("m", "v")).await;
    // A certificate that the bundle does not vouch for, and a service that is not there.
    let other = Server::new(|_| yes()).await;
    let strange = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"},
        {"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": other.client["caBundle"]}]);
    world.patch(&path, "json", strange).await.ok(200);
    let (_, message) = world.post(MAPS, config_map("n", "v")).await.failure(500);
    assert!(message.contains("tls: invalid peer certificate"), "{message}");
    let service = json!([{"op": "replace", "path": "/webhooks/0/clientConfig", "value":
        {"service": {"name": "none", "namespace": "default"}}}]);
    world.patch(&path, "json", service).await.ok(200);
    let (_, message) = world.post(MAPS, config_map("n", "v")).await.failure(500);
    assert!(
        message.ends_with("Post \"https://none.default.svc:443/?timeout=1s\": service \"none\" not found"),
        "{message}"
    );
    // It has no say in what would take it away.
    let all = json!([{"op": "replace", "path": "/webhooks/0/rules/0/resources", "value": ["*/*"]}]);
    world.patch(&path, "json", all).await.ok(200);
    world.post(MAPS, config_map("n", "v")).await.failure(500);
    world.delete(&path, Value::Null).await.ok(200);
    world.made(MAPS, config_map("n", "v")).await;
}

#[tokio::test]
async fn only_what_is_chosen_is_asked_about() {
    let world = World::new().await;
    let server = Server::new(|_| no(Value::Null)).await;
    let mut configuration = server.configuration("chooser", &["configmaps"]);
    let hook = &mut configuration["webhooks"][0];
    hook["objectSelector"] = json!({"matchLabels": {"checked": "yes"}});
    hook["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": "default"}});
    hook["matchConditions"] =
        json!([{"name": "not-skipped", "expression": "!has(object.data) || object.data.a != 'skip'"}]);
    world.validating(configuration).await;
    let labelled = |name: &str, data: &str| {
        let mut map = config_map(name, data);
        map["metadata"]["labels"] = json!({"checked": "yes"});
        map
    };
    world.post(MAPS, labelled("a", "b")).await.failure(400);
    world.made(MAPS, labelled("a", "skip")).await;
    world.made(MAPS, config_map("b", "c")).await;
    world.made("/api/v1/namespaces/kube-public/configmaps", labelled("a", "b")).await;
    assert_eq!(server.asked().len(), 1);
    // A condition without a value lets nothing pass, unless failures are ignored.
    let path = format!("{GROUP}/validatingwebhookconfigurations/chooser");
    let odd = json!([{"op": "replace", "path": "/webhooks/0/matchConditions/0/expression", "value": "object.data.b == 'c'"}]);
    world.patch(&path, "json", odd).await.ok(200);
    let (_, message) = world.post(MAPS, labelled("c", "d")).await.failure(403);
    assert!(message.contains("match condition 'not-skipped' failed: no such key: b"), "{message}");
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    world.patch(&path, "json", ignore).await.ok(200);
    world.made(MAPS, labelled("c", "d")).await;
    // Who cannot tell a dry run from another is not asked, and the run is refused.
    let bad = json!([{"op": "replace", "path": "/webhooks/0/sideEffects", "value": "Some"}]);
    world.patch(&path, "json", bad).await.failure(422);
}

#[tokio::test]
async fn other_versions_and_subresources_are_shown_as_they_are_asked_for() {
    let world = World::new().await;
    let server = Server::new(|_| yes()).await;
    let mut configuration = server.configuration("versions", &["horizontalpodautoscalers"]);
    configuration["webhooks"][0]["rules"][0]["apiVersions"] = json!(["v2"]);
    let mut exact = configuration.clone();
    world.validating(configuration).await;
    exact["metadata"]["name"] = "exact".into();
    exact["webhooks"][0]["matchPolicy"] = "Exact".into();
    world.validating(exact).await;
    let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    world.made("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", scaler).await;
    let asked = server.asked();
    assert_eq!(asked.len(), 1, "the exact one is not asked");
    assert_eq!(
        (&asked[0]["resource"]["version"], &asked[0]["requestResource"]["version"]),
        (&json!("v2"), &json!("v1"))
    );
    assert_eq!(asked[0]["object"]["apiVersion"], "autoscaling/v2");
    assert_eq!(asked[0]["object"]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);

    let scales = Server::new(|request| {
        assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
        match request["object"]["spec"]["replicas"].as_i64() {
            Some(7) => patched(json!([{"op": "replace", "path": "/spec/replicas", "value": 5}])),
            _ => yes(),
        }
    })
    .await;
    world.mutating(scales.configuration("scales", &["*/scale"])).await;
    world.made(DEPLOYMENTS, deployment("d")).await;
    let scale = world
        .patch(&format!("{DEPLOYMENTS}/d/scale"), "merge", json!({"spec": {"replicas": 7}}))
        .await
        .ok(200);
    assert_eq!(scale["spec"]["replicas"], 5);
    let asked = scales.asked();
    assert_eq!(
        (&asked[0]["subResource"], &asked[0]["oldObject"]["spec"]["replicas"]),
        (&json!("scale"), &json!(3))
    );

    let connections = Server::new(|_| no(json!({"message": "no way in"}))).await;
    world.validating(connections.configuration("connections", &["pods/exec", "pods/binding"])).await;
    world.made(PODS, pod("p")).await;
    let path = format!("{PODS}/p/exec?command=ls&command=-l&stdout=true");
    let (_, message) = world.post(&path, Value::Null).await.failure(400);
    assert_eq!(message, "admission webhook \"connections.example.com\" denied the request: no way in");
    let asked = connections.asked().remove(0);
    assert_eq!((&asked["operation"], &asked["kind"]["kind"]), (&json!("CONNECT"), &json!("PodExecOptions")));
    assert_eq!(
        asked["object"],
        json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdout": true, "command": ["ls", "-l"]})
    );
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    world.post(&format!("{PODS}/p/binding"), binding).await.failure(400);
}

#[tokio::test]
async fn a_configuration_is_checked_and_filled_in() {
    let world = World::new().await;
    let server = Server::new(|_| yes()).await;
    let made = world.mutating(server.configuration("whole", &["pods"])).await;
    let hook = &made["webhooks"][0];
    for (field, value) in [
        ("failurePolicy", json!("Fail")),
        ("matchPolicy", json!("Equivalent")),
        ("reinvocationPolicy", json!("Never")),
        ("timeoutSeconds", json!(10)),
        ("namespaceSelector", json!({})),
    ] {
        assert_eq!(hook[field], value, "{field}");
    }
    assert_eq!((&hook["rules"][0]["scope"], &made["metadata"]["generation"]), (&json!("*"), &json!(1)));
    let mut bad = server.configuration("bad", &["pods"]);
    bad["webhooks"][0]["timeoutSeconds"] = 0.into();
    let (_, message) = world.post(&format!("{GROUP}/mutatingwebhookconfigurations"), bad).await.failure(422);
    assert_eq!(
        message,
        "MutatingWebhookConfiguration.admissionregistration.k8s.io \"bad\" is invalid: webhooks[0].timeoutSeconds: \
         Invalid value: 0: the timeout value must be between 1 and 30 seconds"
    );
}
