//! What is too deep, too big, too slow or not read at all.

use super::*;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyStream;

const DEEP: usize = 10_000;

fn nested(open: &str, close: &str) -> String {
    format!("{}{}", open.repeat(DEEP), close.repeat(DEEP))
}

#[tokio::test]
async fn ten_thousand_levels_are_refused_in_every_form() {
    let world = World::new().await;
    world.made(MAPS, config_map("m", "v")).await;
    let own = format!("{MAPS}/m");
    let block: String = (0..DEEP / 10).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let (lists, maps) = (nested("[", "]"), format!("{}1{}", "{\"a\":".repeat(DEEP), "}".repeat(DEEP)));
    for (method, path, media_type, body) in [
        (Method::POST, MAPS, "application/json", format!("{{\"data\":{lists}}}")),
        (Method::POST, MAPS, "application/json", maps.clone()),
        (Method::POST, MAPS, "application/yaml", format!("data: {lists}")),
        (Method::POST, MAPS, "application/yaml", maps.clone()),
        (Method::POST, MAPS, "application/yaml", block),
        (Method::PUT, &own, "application/json", maps.clone()),
        (Method::PATCH, &own, "application/merge-patch+json", maps.clone()),
        (Method::PATCH, &own, "application/strategic-merge-patch+json", maps.clone()),
        (Method::PATCH, &format!("{own}?fieldManager=f"), "application/apply-patch+yaml", maps.clone()),
        (
            Method::PATCH,
            &own,
            "application/json-patch+json",
            format!("[{{\"op\":\"add\",\"path\":\"/data\",\"value\":{lists}}}]"),
        ),
        (Method::DELETE, &own, "application/json", maps),
    ] {
        let mut sent = request(method.clone(), path, Body::from(body));
        sent.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        let (_, message) = world.send(sent).await.failure(400);
        assert!(
            message.contains("deeper than 100 levels") || message.contains("recursion limit exceeded"),
            "{method} {media_type}: {message}"
        );
    }
    world.get(&own).await.ok(200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let world = World::new().await;
    for path in [
        MAPS.to_owned(),
        format!("{MAPS}/m"),
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(),
    ] {
        let method = if path.ends_with("/m") { Method::PUT } else { Method::POST };
        let big = Bytes::from(vec![b' '; 100 << 20]);
        let (reason, message) = world.send(request(method, &path, Body::from(big))).await.failure(413);
        assert_eq!(reason, "RequestEntityTooLarge");
        assert_eq!(message, "Request entity too large: limit is 3145728");
    }
}

/// Pieces as a client takes them; the largest of them, and all of them.
async fn taken(response: http::Response<Body>) -> (usize, Vec<u8>) {
    let (mut largest, mut all) = (0, Vec::new());
    let mut pieces = BodyStream::new(response.into_body());
    while let Some(piece) = pieces.next().await {
        let piece = piece.unwrap().into_data().unwrap();
        largest = largest.max(piece.len());
        all.extend_from_slice(&piece);
    }
    (largest, all)
}

#[tokio::test]
async fn a_huge_list_is_made_as_the_client_takes_it() {
    let world = World::new().await;
    let (count, bytes) = (400, 20_000);
    for i in 0..count {
        world.made(MAPS, config_map(&format!("m{i:04}"), &"x".repeat(bytes))).await;
    }
    let listed = world.api.handle(request(Method::GET, MAPS, Body::empty())).await;
    let (largest, plain) = taken(listed).await;
    assert!(plain.len() > count * bytes && largest < 128 << 10, "{largest} of {}", plain.len());
    let list: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), count);
    // Compressed, it is the same.
    let mut asked = request(Method::GET, MAPS, Body::empty());
    asked.headers_mut().insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let answer = world.api.handle(asked).await;
    assert_eq!(answer.headers()[header::CONTENT_ENCODING], "gzip");
    let (_, small) = taken(answer).await;
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(small.as_slice()), &mut unpacked).unwrap();
    assert!(unpacked == plain && small.len() < plain.len() / 10, "{}", small.len());
    // So is what a watch begins with.
    let path = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut pieces =
        BodyStream::new(world.api.handle(request(Method::GET, &path, Body::empty())).await.into_body());
    let (mut largest, mut lines) = (0, 0);
    while lines <= count {
        let piece = pieces.next().await.unwrap().unwrap().into_data().unwrap();
        largest = largest.max(piece.len());
        lines += piece.iter().filter(|byte| **byte == b'\n').count();
    }
    assert!(largest < 128 << 10 && lines == count + 1, "{largest} {lines}");
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_hung_up_on() {
    let world = World::new().await;
    world.made(MAPS, config_map("m", "v")).await;
    let path = format!("{MAPS}?watch=true");
    let response = world.api.handle(request(Method::GET, &path, Body::empty())).await;
    let mut pieces = BodyStream::new(response.into_body());
    pieces.next().await.unwrap().unwrap();
    // Somebody writes more than is kept for one who does not listen.
    let last = 100;
    for i in 0..=last {
        let data = json!({"data": {"a": "x".repeat(900_000), "i": i.to_string()}});
        world.patch(&format!("{MAPS}/m"), "merge", data).await.ok(200);
    }
    let (mut heard, mut events) = (0, 0);
    while let Some(piece) = pieces.next().await {
        let piece = piece.unwrap().into_data().unwrap();
        heard += piece.len();
        events += piece.iter().filter(|byte| **byte == b'\n').count();
    }
    assert!(events < last && heard < 64 << 20, "{events} events, {heard} bytes");
    // Whoever asks again hears the rest, or that it is gone.
    world.made(MAPS, config_map("n", "v")).await;
}
