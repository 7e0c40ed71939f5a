//! What clients of all ages need besides objects: discovery and the forms of answers.

use super::*;
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
async fn metadata_alone_is_shown_to_who_asks() {
    let world = World::new().await;
    let made = world.made(PODS, pod("web")).await;
    let ask = |path: &str, kind: &str| {
        let mut request = request(Method::GET, path, Body::empty());
        let accept = format!("application/json;as={kind};g=meta.k8s.io;v=v1,application/json");
        request.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
        world.send(request)
    };
    let one = ask(&format!("{PODS}/web"), "PartialObjectMetadata").await.ok(200);
    let expected = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": made["metadata"]});
    assert_eq!(one, expected);
    let list = ask(PODS, "PartialObjectMetadataList").await.ok(200);
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("PartialObjectMetadataList"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(list["items"], json!([expected]));
    assert_eq!(
        list["metadata"]["resourceVersion"],
        world.get(PODS).await.ok(200)["metadata"]["resourceVersion"]
    );
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
    assert!(bytes.starts_with(b"\x0a\x032.0\x12\x1d\x0a\x0aKubernetes"), "{:?}", bytes.get(..32));
    let index = world.get("/openapi/v3").await.ok(200);
    let url = text(&index["paths"]["apis/apps/v1"]["serverRelativeURL"]);
    let document = world.get(&url).await.ok(200);
    let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(pod["hostNetwork"]["type"], "boolean");
    let paths = document["paths"].as_object().unwrap();
    let patch = paths
        .values()
        .map(|p| &p["patch"])
        .find(|p| p["x-kubernetes-group-version-kind"]["kind"] == "Deployment");
    let parameters = patch.unwrap()["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
}
