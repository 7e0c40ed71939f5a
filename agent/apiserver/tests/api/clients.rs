//! What clients of all ages need besides objects: discovery, bodies, forms, permissions.

use super::*;
use bytes::Bytes;
use http::Request;

fn as_user(method: Method, path: &str, name: &str, group: &str) -> Request<Body> {
    let mut request = request(method, path, Body::empty());
    let user = User { name: name.into(), groups: vec![group.into()], ..User::default() };
    request.extensions_mut().insert(user);
    request
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
    let (_, message) = world.send(as_user(Method::GET, PODS, "eve", "people")).await.failure(403);
    assert_eq!(
        message,
        r#"pods is forbidden: User "eve" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    assert_eq!(world.send(as_user(Method::GET, "/apis", "eve", "people")).await.code, 200);
    assert_eq!(world.send(as_user(Method::GET, PODS, "system:node:n1", "system:nodes")).await.code, 200);
    let theirs = as_user(Method::DELETE, "/api/v1/nodes/n1", "system:node:n1", "system:nodes");
    assert_eq!(world.send(theirs).await.code, 403);
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
async fn bodies_come_as_yaml_and_protobuf_too() {
    let world = World::new().await;
    let mut yaml = request(Method::POST, MAPS, Body::from("metadata:\n  name: a\ndata:\n  k: v\n"));
    yaml.headers_mut().insert(header::CONTENT_TYPE, "application/yaml".parse().unwrap());
    assert_eq!(world.send(yaml).await.ok(201)["data"]["k"], "v");
    // runtime.Unknown{typeMeta{v1, Namespace}, raw: Namespace{metadata{name: "home"}}}
    let raw = b"\x0a\x06\x0a\x04home";
    let mut bytes = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12".to_vec();
    bytes.push(u8::try_from(raw.len()).unwrap());
    bytes.extend_from_slice(raw);
    let mut protobuf = request(Method::POST, "/api/v1/namespaces", Body::from(bytes));
    protobuf
        .headers_mut()
        .insert(header::CONTENT_TYPE, "application/vnd.kubernetes.protobuf".parse().unwrap());
    assert_eq!(world.send(protobuf).await.ok(201)["metadata"]["name"], "home");
}

#[tokio::test]
async fn hostile_bodies_are_refused() {
    let world = World::new().await;
    let (_, message) =
        world.send(request(Method::POST, MAPS, Body::from("{\"a\": nope}"))).await.failure(400);
    assert!(message.contains("line 1 column"), "{message}");
    let deep = format!("{{\"data\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(world.send(request(Method::POST, MAPS, Body::from(deep))).await.code, 400);
    let mut text_body = request(Method::POST, MAPS, Body::from("x"));
    text_body.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    assert_eq!(world.send(text_body).await.failure(415).0, "UnsupportedMediaType");
    assert_eq!(world.send(request(Method::POST, MAPS, Body::empty())).await.code, 400);
    assert_eq!(world.send(request(Method::POST, MAPS, Body::from("[1]"))).await.code, 400);
}

#[tokio::test]
async fn a_body_that_never_ends_is_not_read_on() {
    let world = World::new().await;
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 65_536])));
    let refused = world.send(request(Method::POST, MAPS, Body::from_stream(endless))).await;
    assert_eq!(refused.failure(413).0, "RequestEntityTooLarge");
}

#[tokio::test]
async fn objects_are_shown_in_the_form_asked_for() {
    let world = World::new().await;
    world.made(PODS, pod("web")).await;
    let mut table = request(Method::GET, PODS, Body::empty());
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    table.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
    let table = world.send(table).await.ok(200);
    let names: Vec<String> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| text(&c["name"])).take(5).collect();
    assert_eq!(names, ["Name", "Ready", "Status", "Restarts", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "web");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let mut html = request(Method::GET, PODS, Body::empty());
    html.headers_mut().insert(header::ACCEPT, "text/html".parse().unwrap());
    assert_eq!(world.send(html).await.code, 406);
}

#[tokio::test]
async fn large_lists_are_compressed_for_those_who_ask() {
    let world = World::new().await;
    for i in 0..4 {
        world.made(MAPS, config_map(&format!("m{i}"), &"x".repeat(60_000))).await;
    }
    let mut zipped = request(Method::GET, MAPS, Body::empty());
    zipped.headers_mut().insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let response = world.api.handle(zipped).await;
    assert_eq!(response.headers().get(header::CONTENT_ENCODING).unwrap(), "gzip");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.len() < 20_000, "{}", bytes.len());
    assert!(!world.get(MAPS).await.headers.contains_key(header::CONTENT_ENCODING));
}

#[tokio::test]
async fn old_and_new_clients_discover_the_same() {
    let world = World::new().await;
    assert_eq!(world.get("/api").await.ok(200)["versions"], json!(["v1"]));
    let groups = world.get("/apis").await.ok(200);
    let names: Vec<String> = groups["groups"].as_array().unwrap().iter().map(|g| text(&g["name"])).collect();
    assert!(
        names.contains(&"apps".to_owned()) && names.contains(&"coordination.k8s.io".to_owned()),
        "{names:?}"
    );
    let apps = world.get("/apis/apps/v1").await.ok(200);
    let deployments =
        apps["resources"].as_array().unwrap().iter().find(|r| r["name"] == "deployments").unwrap();
    assert_eq!(deployments["shortNames"], json!(["deploy"]));
    for form in ["v2", "v2beta1"] {
        let media_type = format!("application/json;g=apidiscovery.k8s.io;v={form};as=APIGroupDiscoveryList");
        let ask = |tag: Option<http::HeaderValue>| {
            let mut request = request(Method::GET, "/apis", Body::empty());
            request
                .headers_mut()
                .insert(header::ACCEPT, format!("{media_type},application/json").parse().unwrap());
            if let Some(tag) = tag {
                request.headers_mut().insert(header::IF_NONE_MATCH, tag);
            }
            request
        };
        let answer = world.send(ask(None)).await;
        assert_eq!(answer.headers.get(header::CONTENT_TYPE).unwrap().to_str().unwrap(), media_type);
        let tag = answer.headers.get(header::ETAG).cloned();
        let list = answer.ok(200);
        assert_eq!(list["apiVersion"], format!("apidiscovery.k8s.io/{form}"));
        let apps =
            list["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        assert!(
            apps["versions"][0]["resources"]
                .as_array()
                .unwrap()
                .iter()
                .any(|r| r["resource"] == "deployments")
        );
        assert_eq!(world.send(ask(tag)).await.code, 304);
    }
    assert_eq!(world.get("/apis/example.com").await.code, 404);
    assert_eq!(world.get("/version").await.ok(200)["minor"], "36");
}

#[tokio::test]
async fn what_kubectl_reads_before_it_sends() {
    let world = World::new().await;
    let mut v2 = request(Method::GET, "/openapi/v2", Body::empty());
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    v2.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
    let response = world.api.handle(v2).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(bytes.as_ref(), b"\x0a\x032.0\x12\x06\x0a\x01k\x12\x011B\x00");
    let index = world.get("/openapi/v3").await.ok(200);
    let url = text(&index["paths"]["apis/apps/v1"]["serverRelativeURL"]);
    let document = world.get(&url).await.ok(200);
    let paths = document["paths"].as_object().unwrap();
    let patch = paths
        .values()
        .map(|p| &p["patch"])
        .find(|p| p["x-kubernetes-group-version-kind"]["kind"] == "Deployment");
    let parameters = patch.unwrap()["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
}
