//! Request bodies: what kubectl really sends, and what nobody should.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

async fn send_as(
    world: &World,
    method: Method,
    path: &str,
    media_type: &str,
    body: impl Into<Body>,
) -> Answer {
    let mut request = request(method, path, body.into());
    request.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
    world.send(request).await
}

async fn yaml(world: &World, body: String) -> Answer {
    send_as(world, Method::POST, MAPS, "application/yaml", body).await
}

/// Whether all that is in `part` is in `whole` too.
fn holds(whole: &Value, part: &Value) -> bool {
    match part {
        Value::Object(fields) => fields.iter().all(|(name, value)| holds(&whole[name], value)),
        Value::Array(items) => whole
            .as_array()
            .is_some_and(|all| all.len() == items.len() && all.iter().zip(items).all(|(w, p)| holds(w, p))),
        other => whole == other,
    }
}

#[tokio::test]
async fn what_kubectl_posts_is_made() {
    let world = World::new().await;
    let mut refused = Vec::new();
    for block in include_str!("../../../resources/tests/kubectl-bodies.txt").split("\n\n") {
        let lines: Vec<&str> = block.trim().lines().collect();
        let body = STANDARD.decode(lines[1]).unwrap();
        let mut sent: Value = serde_json::from_str(lines[2]).unwrap();
        // Whoever makes an object does not report on it.
        sent.as_object_mut().unwrap().remove("status");
        let (version, kind) = (text(&sent["apiVersion"]), text(&sent["kind"]));
        let Some(found) = resources::find_kind(&version, &kind) else {
            refused.push(kind);
            continue;
        };
        let scope = if found.namespaced { "/namespaces/default" } else { "" };
        let base = if found.group.is_empty() { "api" } else { "apis" };
        let path = format!(
            "/{base}/{version}{scope}/{}?fieldManager=kubectl-create&fieldValidation=Strict",
            found.plural
        );
        let answer = send_as(&world, Method::POST, &path, "application/vnd.kubernetes.protobuf", body).await;
        let made = answer.ok(201);
        assert!(holds(&made, &sent), "{}: sent {sent}, made {made}", lines[0]);
        let read =
            world.get(&path.replace('?', &format!("/{}?", text(&made["metadata"]["name"])))).await.ok(200);
        assert_eq!(read, made, "{}", lines[0]);
    }
    // Questions are answered elsewhere, and not kept.
    assert_eq!(refused, ["TokenRequest", "SelfSubjectAccessReview", "SelfSubjectReview"]);
}

#[tokio::test]
async fn what_kubectl_asks_in_protobuf_is_answered() {
    let world = World::new().await;
    let mut asked = 0;
    for block in include_str!("../../../resources/tests/kubectl-bodies.txt").split("\n\n") {
        let lines: Vec<&str> = block.trim().lines().collect();
        let path = match lines[0] {
            "kubectl auth can-i get pods" => "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "kubectl auth whoami" => "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            _ => continue,
        };
        let body = STANDARD.decode(lines[1]).unwrap();
        let answer =
            send_as(&world, Method::POST, path, "application/vnd.kubernetes.protobuf", body).await.ok(201);
        let status = &answer["status"];
        assert!(status["allowed"] == true || status["userInfo"]["username"] == "system:admin", "{answer}");
        asked += 1;
    }
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn bodies_come_as_yaml_too() {
    let world = World::new().await;
    let good = yaml(&world, "metadata:\n  name: a\ndata:\n  k: v\n".to_owned()).await;
    assert_eq!(good.ok(201)["data"]["k"], "v");
}

#[tokio::test]
async fn bad_yaml_is_refused_with_its_place() {
    let world = World::new().await;
    let (reason, message) = yaml(&world, "metadata:\n  name: [a\nkind: x\n".to_owned()).await.failure(400);
    assert_eq!(reason, "BadRequest");
    assert!(
        message.starts_with("error converting YAML to JSON: yaml: ") && message.contains("line 3"),
        "{message}"
    );
    let bomb = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(20_000), "*a,".repeat(2_000));
    let (_, message) = yaml(&world, bomb).await.failure(400);
    assert!(message.contains("too large") || message.contains("repetition limit"), "{message}");
    let (_, message) = yaml(&world, format!("data: {}", "[1,".repeat(200_000))).await.failure(400);
    assert!(message.contains("send it as JSON"), "{message}");
    let (_, message) =
        yaml(&world, format!("data: {}{}", "[".repeat(500), "]".repeat(500))).await.failure(400);
    assert!(message.contains("deeper than 100 levels") || message.contains("recursion"), "{message}");
    assert_eq!(yaml(&world, "- a\n".to_owned()).await.code, 400);
}

#[tokio::test]
async fn hostile_bodies_are_refused() {
    let world = World::new().await;
    let post = |body: String| world.send(request(Method::POST, MAPS, Body::from(body)));
    let (_, message) = post("{\"a\": nope}".to_owned()).await.failure(400);
    assert!(message.contains("line 1 column"), "{message}");
    let deep = format!("{{\"data\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    let (_, message) = post(deep).await.failure(400);
    assert!(message.contains("the document nests deeper than 100 levels at line 1"), "{message}");
    let (_, message) = post(format!("{{\"data\": [{}1]}}", "1,".repeat(1_000_000))).await.failure(400);
    assert!(message.contains("too large"), "{message}");
    let text_body = send_as(&world, Method::POST, MAPS, "text/plain", "x").await;
    assert_eq!(text_body.failure(415).0, "UnsupportedMediaType");
    let protobuf = send_as(&world, Method::POST, MAPS, "application/vnd.kubernetes.protobuf", "{}").await;
    assert!(protobuf.failure(400).1.contains("expected prefix"));
    assert_eq!(post(String::new()).await.code, 400);
    assert_eq!(post("[1]".to_owned()).await.code, 400);
}

#[tokio::test]
async fn a_body_that_never_ends_is_not_read_on() {
    let world = World::new().await;
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 65_536])));
    let refused = world.send(request(Method::POST, MAPS, Body::from_stream(endless))).await;
    assert_eq!(refused.failure(413).0, "RequestEntityTooLarge");
}
