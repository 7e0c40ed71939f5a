//! Kinds that somebody made.

use super::{World, request, text};
use axum::body::Body;
use http::{Method, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TOYS: &str = "/apis/example.com/v1/namespaces/default/toys";

fn schema() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["color"], "properties": {
            "color": {"type": "string", "enum": ["red", "blue"]},
            "size": {"type": "integer", "minimum": 1, "maximum": 10, "default": 3},
            "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5, "nullable": true},
            "port": {"x-kubernetes-int-or-string": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "weight": {"type": "number", "default": 1.5}}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "selector": {"type": "string"}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "phase": {"type": "string"}}}}})
}

/// A definition with everything.
fn toys() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "toys.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "toys", "kind": "Toy", "shortNames": ["ty"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                        "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".spec.selector"}},
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                    "additionalPrinterColumns": [
                        {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                        {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]},
                {"name": "v1alpha1", "served": true, "storage": false, "deprecated": true,
                    "schema": {"openAPIV3Schema": schema()}}]}})
}

fn toy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Toy", "metadata": {"name": name}, "spec": spec})
}

async fn world() -> World {
    let world = World::new().await;
    world.made(DEFINITIONS, toys()).await;
    world
}

#[tokio::test]
async fn a_definition_is_served_at_once() {
    let world = World::new().await;
    assert_eq!(world.get(TOYS).await.failure(404).0, "NotFound");
    let made = world.made(DEFINITIONS, toys()).await;
    assert_eq!(made["status"]["acceptedNames"]["listKind"], "ToyList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    let conditions: Vec<_> = made["status"]["conditions"].as_array().unwrap().iter().collect();
    assert!(conditions.iter().all(|c| c["status"] == "True") && conditions.len() == 2, "{conditions:?}");
    let list = world.get(TOYS).await.ok(200);
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("ToyList"), &json!("example.com/v1")));

    let groups = world.get("/apis").await.ok(200);
    let group = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "example.com").unwrap();
    assert_eq!(group["preferredVersion"]["version"], "v1");
    assert_eq!(group["versions"].as_array().unwrap().len(), 2);
    let resources = world.get("/apis/example.com/v1").await.ok(200);
    let names: Vec<_> = resources["resources"].as_array().unwrap().iter().map(|r| text(&r["name"])).collect();
    assert_eq!(names, ["toys", "toys/status", "toys/scale"]);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["ty"]));
    let mut ask = request(Method::GET, "/apis", Body::empty());
    let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    ask.headers_mut().insert(header::ACCEPT, form.parse().unwrap());
    let new = world.send(ask).await.ok(200);
    let found =
        new["items"].as_array().unwrap().iter().find(|i| i["metadata"]["name"] == "example.com").unwrap();
    assert_eq!(found["versions"][0]["resources"][0]["responseKind"]["kind"], "Toy");
}

#[tokio::test]
async fn a_custom_kind_is_described() {
    let world = world().await;
    let index = world.get("/openapi/v3").await.ok(200);
    let url = text(&index["paths"]["apis/example.com/v1"]["serverRelativeURL"]);
    let document = world.get(&url).await.ok(200);
    let schema = &document["components"]["schemas"]["com.example.v1.Toy"];
    assert_eq!(schema["properties"]["spec"]["properties"]["color"]["enum"], json!(["red", "blue"]));
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Toy");
    assert!(document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let path = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/toys"];
    assert_eq!(path["post"]["x-kubernetes-group-version-kind"]["kind"], "Toy");
    // Another schema has another hash.
    let at = "/spec/versions/0/schema/openAPIV3Schema/description";
    let patch = json!([{"op": "add", "path": at, "value": "A toy."}]);
    world.patch(&format!("{DEFINITIONS}/toys.example.com"), "json", patch).await.ok(200);
    let index = world.get("/openapi/v3").await.ok(200);
    assert_ne!(text(&index["paths"]["apis/example.com/v1"]["serverRelativeURL"]), url);
}

#[tokio::test]
async fn objects_get_defaults_lose_what_is_unknown_and_are_checked() {
    let world = world().await;
    let given = json!({"color": "red", "extra": 1, "free": {"any": {"thing": true}}, "port": "http", "name": null,
        "parts": [{"name": "a", "more": 1}, {"name": "b", "weight": 2}], "labels": {"x": "y"}});
    let answer = world.post(TOYS, toy("a", given)).await;
    let warnings: Vec<_> =
        answer.headers.get_all(header::WARNING).iter().map(|w| w.to_str().unwrap()).collect();
    assert_eq!(
        warnings,
        [r#"299 - "unknown field \"spec.extra\"""#, r#"299 - "unknown field \"spec.parts[0].more\"""#]
    );
    let made = answer.ok(201);
    assert_eq!(
        made["spec"],
        json!({"color": "red", "size": 3, "free": {"any": {"thing": true}}, "port": "http", "name": null,
            "parts": [{"name": "a", "weight": 1.5}, {"name": "b", "weight": 2}], "labels": {"x": "y"}})
    );
    assert_eq!(made["metadata"]["generation"], 1);

    let strict = format!("{TOYS}?fieldValidation=Strict");
    let (_, message) = world.post(&strict, toy("b", json!({"color": "red", "extra": 1}))).await.failure(400);
    assert!(message.contains(r#"strict decoding error: unknown field "spec.extra""#), "{message}");

    for (spec, expected) in [
        (json!({}), "spec.color: Required value"),
        (
            json!({"color": "pink"}),
            r#"spec.color: Unsupported value: "pink": supported values: "red", "blue""#,
        ),
        (
            json!({"color": "red", "size": "big"}),
            r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
        ),
        (
            json!({"color": "red", "size": 11}),
            "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
        ),
        (
            json!({"color": "red", "name": "AB"}),
            r#"spec.name: Invalid value: "AB": spec.name in body should match '^[a-z]+$'"#,
        ),
        (json!({"color": "red", "name": "abcdef"}), "spec.name: Too long: may not be more than 5 bytes"),
        (
            json!({"color": "red", "parts": [{"name": "a"}, {"name": "a"}]}),
            r#"spec.parts[1]: Duplicate value: {"name":"a"}"#,
        ),
        (
            json!({"color": "red", "port": true}),
            r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
        ),
    ] {
        let (reason, message) = world.post(TOYS, toy("bad", spec)).await.failure(422);
        assert_eq!(reason, "Invalid");
        assert_eq!(message, format!(r#"Toy.example.com "bad" is invalid: {expected}"#));
    }
    let (_, message) = world.post(TOYS, toy("Bad_Name", json!({"color": "red"}))).await.failure(422);
    assert!(message.contains("a lowercase RFC 1123 subdomain"), "{message}");
}

#[tokio::test]
async fn objects_are_changed_as_others_are() {
    let world = world().await;
    let path = format!("{TOYS}/a");
    let made = world.made(TOYS, toy("a", json!({"color": "red"}))).await;
    let merged = world.patch(&path, "merge", json!({"spec": {"size": 4}})).await.ok(200);
    assert_eq!((&merged["spec"]["size"], &merged["metadata"]["generation"]), (&json!(4), &json!(2)));
    let patch = json!([{"op": "replace", "path": "/spec/color", "value": "blue"}]);
    assert_eq!(world.patch(&path, "json", patch).await.ok(200)["spec"]["color"], "blue");
    let (reason, message) = world.patch(&path, "strategic-merge", json!({"spec": {}})).await.failure(415);
    assert_eq!(reason, "UnsupportedMediaType");
    assert!(message.starts_with("the body of the request was in an unknown format"), "{message}");
    assert_eq!(world.put(&path, made).await.failure(409).0, "Conflict");
    let labelled = world.patch(&path, "merge", json!({"metadata": {"labels": {"a": "b"}}})).await.ok(200);
    assert_eq!(labelled["metadata"]["generation"], 3);

    // Status and main part do not touch one another.
    let status = json!({"spec": {"size": 9}, "status": {"phase": "Ready", "replicas": 2}});
    let changed = world.patch(&format!("{path}/status"), "merge", status).await.ok(200);
    assert_eq!((&changed["spec"]["size"], &changed["status"]["phase"]), (&json!(4), &json!("Ready")));
    assert_eq!(changed["metadata"]["generation"], 3);
    let main = world.patch(&path, "merge", json!({"status": {"phase": "Broken"}})).await.ok(200);
    assert_eq!(main["status"]["phase"], "Ready");

    let scale = world.get(&format!("{path}/scale")).await.ok(200);
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(4), &json!(2)));
    world.patch(&format!("{path}/scale"), "merge", json!({"spec": {"replicas": 5}})).await.ok(200);
    assert_eq!(world.get(&path).await.ok(200)["spec"]["size"], 5);
    let too_big = world.patch(&format!("{path}/scale"), "merge", json!({"spec": {"replicas": 50}})).await;
    assert_eq!(too_big.failure(422).0, "Invalid");
}

#[tokio::test]
async fn versions_show_the_same_objects() {
    let world = world().await;
    world.made(TOYS, toy("a", json!({"color": "red"}))).await;
    let old = "/apis/example.com/v1alpha1/namespaces/default/toys";
    let answer = world.get(&format!("{old}/a")).await;
    let warning = answer.headers[header::WARNING].to_str().unwrap().to_owned();
    assert_eq!(warning, r#"299 - "example.com/v1alpha1 Toy is deprecated""#);
    let seen = answer.ok(200);
    assert_eq!(
        (&seen["apiVersion"], &seen["spec"]["color"]),
        (&json!("example.com/v1alpha1"), &json!("red"))
    );
    let changed = world.patch(&format!("{old}/a"), "merge", json!({"spec": {"color": "blue"}})).await.ok(200);
    assert_eq!(changed["apiVersion"], "example.com/v1alpha1");
    let seen = world.get(&format!("{TOYS}/a")).await.ok(200);
    assert_eq!((&seen["apiVersion"], &seen["spec"]["color"]), (&json!("example.com/v1"), &json!("blue")));
    // No longer served.
    let path = format!("{DEFINITIONS}/toys.example.com");
    let patch = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]);
    world.patch(&path, "json", patch).await.ok(200);
    assert_eq!(world.get(old).await.code, 404);
}

#[tokio::test]
async fn tables_selectors_and_watches() {
    let world = world().await;
    world.made(TOYS, toy("a", json!({"color": "red"}))).await;
    world.made(TOYS, toy("b", json!({"color": "blue"}))).await;
    let mut ask = request(Method::GET, TOYS, Body::empty());
    ask.headers_mut().insert(header::ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io".parse().unwrap());
    let table = world.send(ask).await.ok(200);
    let names: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| text(&c["name"])).collect();
    assert_eq!(names, ["Name", "Color", "Size", "Age"]);
    assert_eq!(table["rows"][0]["cells"], json!(["a", "red", 3, "0s"]));
    let list = world.get(&format!("{TOYS}?fieldSelector=spec.color%3Dblue")).await.ok(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let refused = world.get(&format!("{TOYS}?fieldSelector=spec.size%3D3")).await.failure(400);
    assert_eq!(refused.1, "field label not supported: spec.size");

    let watch = world.api.handle(request(Method::GET, &format!("{TOYS}?watch=1"), Body::empty())).await;
    let mut lines = watch.into_body();
    let frame = lines.frame().await.unwrap().unwrap().into_data().unwrap();
    let first: Value = serde_json::from_slice(frame.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Toy")));
}

#[tokio::test]
async fn objects_outlive_nothing_of_their_definition() {
    let world = world().await;
    world.made(TOYS, toy("a", json!({"color": "red"}))).await;
    let mut held = toy("held", json!({"color": "red"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.made(TOYS, held).await;
    let path = format!("{DEFINITIONS}/toys.example.com");
    let ending = world.delete(&path, Value::Null).await.ok(200);
    assert_eq!(ending["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert!(ending["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Terminating"));
    until(&world, &format!("{TOYS}/a"), 404).await;
    let (reason, message) = world.post(TOYS, toy("new", json!({"color": "red"}))).await.failure(405);
    assert_eq!(reason, "MethodNotAllowed");
    assert_eq!(message, "create not allowed while custom resource definition is terminating");
    // What a finalizer holds is waited for.
    assert!(world.get(&format!("{TOYS}/held")).await.ok(200)["metadata"]["deletionTimestamp"].is_string());
    world.patch(&format!("{TOYS}/held"), "merge", json!({"metadata": {"finalizers": null}})).await.ok(200);
    until(&world, &path, 404).await;
    assert_eq!(world.get(TOYS).await.code, 404);
    // A new one begins with nothing.
    world.made(DEFINITIONS, toys()).await;
    assert_eq!(world.get(TOYS).await.ok(200)["items"], json!([]));
}

/// Asks until the answer has this code: each question also has what is under way go on.
async fn until(world: &World, path: &str, code: u16) {
    for _ in 0..1000 {
        if world.get(path).await.code == code {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{path} never answered {code}");
}

#[tokio::test]
async fn bad_definitions_are_refused_in_upstreams_words() {
    let world = World::new().await;
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "/metadata/name",
            json!("toy.example.com"),
            r#"metadata.name: Invalid value: "toy.example.com": must be spec.names.plural+"."+spec.group"#,
        ),
        (
            "/spec/scope",
            json!("World"),
            r#"spec.scope: Unsupported value: "World": supported values: "Cluster", "Namespaced""#,
        ),
        (
            "/spec/versions/1/storage",
            json!(true),
            r#"spec.versions: Invalid value: ["v1","v1alpha1"]: must have exactly one version marked as storage version"#,
        ),
        (
            "/spec/versions/0/subresources/scale/specReplicasPath",
            json!(".status.size"),
            r#"spec.versions[0].subresources.scale.specReplicasPath: Invalid value: ".status.size": should be a json path under .spec"#,
        ),
    ];
    for (at, value, expected) in cases {
        let mut bad = toys();
        *bad.pointer_mut(at).unwrap() = value;
        let (_, message) = world.post(DEFINITIONS, bad).await.failure(422);
        assert!(message.ends_with(&format!("is invalid: {expected}")), "{message}");
    }
    let cases = [
        (
            json!({"type": "string"}),
            r#"spec.validation.openAPIV3Schema.type: Invalid value: "string": must be object at the root"#,
        ),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            "spec.validation.openAPIV3Schema.properties[a].items: Required value: must be specified",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "$ref": "#/properties/a"}}}),
            "spec.validation.openAPIV3Schema.properties[a].$ref: Forbidden: $ref is not supported",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            r#"spec.validation.openAPIV3Schema.properties[a].default: Invalid value: "string": spec.validation.openAPIV3Schema.properties[a].default in body must be of type integer: "string""#,
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"b": {"minimum": 1}}}]}),
            "spec.validation.openAPIV3Schema.properties[b]: Required value: because it is defined in spec.validation.openAPIV3Schema",
        ),
    ];
    for (schema, expected) in cases {
        let mut bad = toys();
        bad["spec"]["versions"].as_array_mut().unwrap().truncate(1);
        bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
        bad["spec"]["versions"][0]["selectableFields"] = json!([]);
        let (_, message) = world.post(DEFINITIONS, bad).await.failure(422);
        assert_eq!(
            message,
            format!(
                r#"CustomResourceDefinition.apiextensions.k8s.io "toys.example.com" is invalid: {expected}"#
            )
        );
    }
    // Protected groups, taken names, what may not change.
    world.made(DEFINITIONS, toys()).await;
    let path = format!("{DEFINITIONS}/toys.example.com");
    let (_, message) = world.patch(&path, "merge", json!({"spec": {"scope": "Cluster"}})).await.failure(422);
    assert!(message.ends_with(r#"spec.scope: Invalid value: "Cluster": field is immutable"#), "{message}");
    let mut other = toys();
    other["metadata"]["name"] = "dolls.example.com".into();
    other["spec"]["names"] =
        json!({"plural": "dolls", "singular": "doll", "listKind": "DollList", "kind": "Toy"});
    let made = world.made(DEFINITIONS, other).await;
    let named = made["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "NamesAccepted")
        .unwrap();
    assert_eq!((&named["status"], &named["reason"]), (&json!("False"), &json!("KindConflict")));
    assert_eq!(world.get("/apis/example.com/v1/namespaces/default/dolls").await.code, 404);
}

#[tokio::test]
async fn rules_are_kept() {
    let world = World::new().await;
    let mut definition = toys();
    definition["spec"]["versions"].as_array_mut().unwrap().truncate(1);
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let at = |name: &str| format!("{spec}/{name}");
    let mut ruled = definition.clone();
    ruled.pointer_mut(spec).unwrap()["x-kubernetes-validations"] = json!([
        {"rule": "self.size <= 5 || self.color == 'red'", "message": "only red ones are big"},
        {"rule": "!has(self.parts) || self.parts.all(p, p.weight < 10.0)",
            "messageExpression": "'too heavy: ' + string(self.parts.size())", "reason": "FieldValueForbidden",
            "fieldPath": ".parts"}]);
    ruled.pointer_mut(&at("properties/color")).unwrap()["x-kubernetes-validations"] =
        json!([{"rule": "self == oldSelf", "message": "a toy is not painted"}]);
    ruled.pointer_mut(&at("properties/parts/items/properties/weight")).unwrap()["x-kubernetes-validations"] =
        json!([{"rule": "!oldSelf.hasValue() || self >= oldSelf.value()", "optionalOldSelf": true}]);
    world.made(DEFINITIONS, ruled.clone()).await;
    let refused = |answer: super::Answer| answer.failure(422).1;
    let told = |rest: &str| format!(r#"Toy.example.com "a" is invalid: {rest}"#);
    let big = world.post(TOYS, toy("a", json!({"color": "blue", "size": 6}))).await;
    assert_eq!(refused(big), told(r#"spec: Invalid value: "object": only red ones are big"#));
    let heavy = json!({"color": "red", "parts": [{"name": "x", "weight": 10}]});
    assert_eq!(refused(world.post(TOYS, toy("a", heavy)).await), told("spec.parts: Forbidden: too heavy: 1"));
    let good = json!({"color": "red", "size": 6, "parts": [{"name": "x", "weight": 2}]});
    world.made(TOYS, toy("a", good)).await;
    let path = format!("{TOYS}/a");
    let painted = world.patch(&path, "merge", json!({"spec": {"color": "blue", "size": 1}})).await;
    assert_eq!(refused(painted), told(r#"spec.color: Invalid value: "string": a toy is not painted"#));
    // Items of a list map are known by their keys.
    let parts = json!({"spec": {"parts": [{"name": "y", "weight": 1}, {"name": "x", "weight": 1}]}});
    let lighter = refused(world.patch(&path, "merge", parts).await);
    assert!(
        lighter.contains(r#"spec.parts[1].weight: Invalid value: "number": failed rule: !oldSelf"#),
        "{lighter}"
    );
    // What cannot be read is refused with its place.
    let mut bad = definition;
    bad["metadata"]["name"] = "dolls.example.com".into();
    bad["spec"]["names"] = json!({"plural": "dolls", "kind": "Doll"});
    bad.pointer_mut(spec).unwrap()["x-kubernetes-validations"] = json!([{"rule": "self.wheels > 3"}]);
    let message = world.post(DEFINITIONS, bad).await.failure(422).1;
    let expected = "properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self.wheels > 3\": \
                    compilation failed: ERROR: <input>:1:5: undefined field 'wheels'";
    assert!(message.contains(expected), "{message}");
}
