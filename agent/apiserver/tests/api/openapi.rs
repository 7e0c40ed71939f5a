//! What clients are told of the kinds: OpenAPI in both versions, for old clients in protobuf.

use crate::{World, request};
use axum::body::Body;
use http::{Method, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::io::Read;

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

async fn bytes(world: &World, path: &str, accept: &str, encoding: &str) -> (http::response::Parts, Vec<u8>) {
    let mut request = request(Method::GET, path, Body::empty());
    for (name, value) in [(header::ACCEPT, accept), (header::ACCEPT_ENCODING, encoding)] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let (parts, body) = world.api.handle(request).await.into_parts();
    (parts, body.collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn old_clients_find_the_marks() {
    let world = World::new().await;
    let v2 = world.get("/openapi/v2").await.ok(200);
    let pod = &v2["definitions"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(
        pod["x-kubernetes-group-version-kind"],
        json!([{"group": "", "kind": "Pod", "version": "v1"}])
    );
    let spec = &v2["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(spec["affinity"]["$ref"], "#/definitions/io.k8s.api.core.v1.Affinity");
    let port = &v2["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
    assert_eq!(port, &json!({"format": "int-or-string", "type": "string"}));
    let patch = &v2["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
}

#[tokio::test]
async fn whoever_unpacks_gets_it_packed() {
    let world = World::new().await;
    for (path, accept) in [
        ("/openapi/v2", "application/json"),
        ("/openapi/v2", V2_PROTOBUF),
        ("/openapi/v3/apis/apps/v1", "*/*"),
    ] {
        let (parts, plain) = bytes(&world, path, accept, "identity").await;
        assert!(parts.headers.get(header::CONTENT_ENCODING).is_none());
        let (parts, packed) = bytes(&world, path, accept, "gzip").await;
        assert_eq!(parts.headers[header::CONTENT_ENCODING], "gzip");
        let mut unpacked = Vec::new();
        flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == plain && packed.len() * 4 < plain.len(), "{path} {accept}");
        let mut again = request(Method::GET, path, Body::empty());
        again.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
        again.headers_mut().insert(header::IF_NONE_MATCH, parts.headers[header::ETAG].clone());
        assert_eq!(world.send(again).await.code, 304, "{path} {accept}");
    }
}

#[tokio::test]
async fn a_custom_kind_is_described_too() {
    let world = World::new().await;
    let before = world.get("/openapi/v3").await.ok(200);
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat"}, "versions": [{"name": "v1", "served": true,
                "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
                    "type": "object", "description": "What it is.", "properties": {"length": {"type": "integer"}}}}}}}]}});
    world.made("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    let v3 = world.get("/openapi/v3").await.ok(200);
    let url = v3["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(v3["paths"]["apis/apps/v1"], before["paths"]["apis/apps/v1"]);
    let document = world.get(url).await.ok(200);
    let boat = &document["components"]["schemas"]["com.example.v1.Boat"];
    assert_eq!(boat["properties"]["spec"]["properties"]["length"]["type"], "integer");
    assert_eq!(boat["x-kubernetes-group-version-kind"][0]["kind"], "Boat");
    assert!(boat["properties"]["metadata"]["allOf"][0]["$ref"].as_str().unwrap().ends_with("ObjectMeta"));
    let v2 = world.get("/openapi/v2").await.ok(200);
    assert_eq!(v2["definitions"]["com.example.v1.Boat"]["properties"]["spec"]["description"], "What it is.");
    assert!(v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let (_, protobuf) = bytes(&world, "/openapi/v2", V2_PROTOBUF, "identity").await;
    let text = String::from_utf8_lossy(&protobuf);
    assert!(text.contains("com.example.v1.Boat") && text.contains("io.k8s.api.core.v1.Pod"));
    assert!(matches!(v2["paths"], Value::Object(_)));
}
