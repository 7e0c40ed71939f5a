//! The pages over HTTP, against an API in this process.

// Helpers outside test functions panic as tests do.
#![allow(clippy::unwrap_used)]

#[allow(missing_docs)]
mod fake;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::{Method, Request, Response, StatusCode};
use dashboard::RaftStatus;
use fake::{Api, config, event, node, pod, raft};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

const CREATED: &str = "2026-01-01T00:00:00Z";
const PATHS: [&str; 9] = [
    "/",
    "/api/status",
    "/events",
    "/metrics",
    "/healthz",
    "/style.css",
    "/live.js",
    "/icon.svg",
    "/nothing/here",
];

struct Lab {
    api: Api,
    raft: watch::Sender<RaftStatus>,
    router: Router,
}

fn lab() -> Lab {
    let api = Api::default();
    api.put("nodes", node("pi-102", "192.168.1.102", "True", &["master"], CREATED));
    api.put("pods", pod("web-1", "pi-102", "Running", json!({ "running": {} }), true, CREATED));
    let (sender, receiver) = watch::channel(raft());
    let router = dashboard::router(config(), api.client(), receiver);
    Lab { api, raft: sender, router }
}

impl Lab {
    async fn ask(&self, method: Method, path: &str) -> Response<Body> {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        let response = self.ask(Method::GET, path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    async fn stream(&self) -> Stream {
        let response = self.ask(Method::GET, "/events").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { body: response.into_body().into_data_stream(), text: String::new() }
    }

    async fn open_watches(&self, count: usize) {
        self.api.0.subscribe().wait_for(|world| world.open == count).await.unwrap();
    }
}

struct Stream {
    body: BodyDataStream,
    text: String,
}

impl Stream {
    /// The next pushed section: its name, its HTML. Nothing at the end.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some((name, html)) = section(&frame) {
                    return Some((name, html));
                }
                continue;
            }
            let chunk = self.body.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Waits for a push of this section that says this.
    async fn wait_for(&mut self, name: &str, text: &str) -> String {
        while let Some((section, html)) = self.next().await {
            if section == name && html.contains(text) {
                return html;
            }
        }
        panic!("the stream ended before {name} said {text}");
    }
}

/// A frame as a browser reads it; comments are no section.
fn section(frame: &str) -> Option<(String, String)> {
    let name = frame.lines().find_map(|line| line.strip_prefix("event: "))?.to_owned();
    let known = frame
        .lines()
        .all(|line| line.starts_with("event: ") || line.starts_with("data: ") || line == "data:");
    assert!(known, "a line escaped from its field: {frame}");
    let data: Vec<&str> = frame.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    Some((name, data.join("\n")))
}

#[tokio::test(start_paused = true)]
async fn the_page_shows_the_cluster() {
    let lab = lab();
    lab.api.put(
        "services",
        json!({ "metadata": { "namespace": "default", "name": "kubernetes" },
        "spec": { "clusterIP": "10.0.0.1", "ports": [{ "port": 443 }] } }),
    );
    lab.api.put("events", event("e1", "Warning", "BackOff", "Back-off restarting", CREATED));
    let page = lab.text("/").await;
    for text in [
        "pi-102",
        "192.168.1.102",
        "master",
        "3.7 GiB",
        "web-1",
        "10.0.0.1",
        "443/TCP",
        "BackOff",
        "term 4",
        "<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>",
        "<main id=\"main\">",
        "scope=\"col\"",
    ] {
        assert!(page.contains(text), "{text} is not on\n{page}");
    }
    assert!(!page.contains("class=\"banner\""), "{page}");
}

#[tokio::test(start_paused = true)]
async fn only_four_kinds_are_read_and_no_environment_is_shown() {
    let lab = lab();
    for path in ["/", "/api/status", "/metrics"] {
        assert!(!lab.text(path).await.contains("hunter2"), "{path}");
    }
    let asked: Vec<String> = lab.api.0.borrow().asked.iter().cloned().collect();
    assert_eq!(asked, ["events", "nodes", "pods", "services"]);
}

#[tokio::test(start_paused = true)]
async fn the_json_has_the_names_of_kubernetes() {
    let lab = lab();
    let status: Value = serde_json::from_str(&lab.text("/api/status").await).unwrap();
    let pod = &status["pods"]["items"][0];
    assert_eq!(pod["podIP"], "10.1.2.7");
    assert_eq!((&pod["nodeName"], &pod["creationTimestamp"]), (&json!("pi-102"), &json!(CREATED)));
    assert_eq!(status["raft"]["lastIndex"], 1842);
    assert_eq!(status["headline"]["nodesReady"], 1);
    assert_eq!(status["headline"]["away"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn metrics_and_health_are_served() {
    let lab = lab();
    let metrics = lab.text("/metrics").await;
    for line in
        ["bramble_nodes_ready 1", "bramble_pods{phase=\"Running\"} 1", "bramble_raft_applied_index 1841"]
    {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(lab.text("/healthz").await, "ok\n");
}

#[tokio::test(start_paused = true)]
async fn nothing_but_reading_is_allowed_anywhere() {
    let lab = lab();
    for path in PATHS {
        for method in
            [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::TRACE]
        {
            let response = lab.ask(method.clone(), path).await;
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(response.headers()["allow"], "GET, HEAD");
        }
    }
    let head = lab.ask(Method::HEAD, "/").await;
    assert_eq!(head.status(), StatusCode::OK);
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_answer_has_the_safe_headers() {
    let lab = lab();
    for (method, path) in PATHS.iter().flat_map(|path| [(Method::GET, path), (Method::POST, path)]) {
        let response = lab.ask(method, path).await;
        let headers = response.headers();
        assert!(
            headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'self';"),
            "{path}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cache-control"], "no-store");
    }
    assert_eq!(lab.ask(Method::GET, "/nothing/here").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn hostile_names_stay_text_on_the_page_and_in_the_stream() {
    let lab = lab();
    let attack = "</td><script>alert(1)</script>\r\nevent: raft\r\ndata: \"owned'&";
    let mut hostile = pod(attack, attack, attack, json!({ "waiting": { "reason": attack } }), false, CREATED);
    hostile["status"]["podIP"] = json!(attack);
    lab.api.put("pods", hostile);
    lab.api.put("nodes", node(&format!("\" onload=\"x{attack}"), attack, "True", &[attack], CREATED));
    lab.api.put("events", event("e", attack, attack, attack, CREATED));
    lab.raft.send_modify(|raft| {
        raft.leader = Some(attack.into());
        raft.voters.push(attack.into());
        raft.disk_error = Some(attack.into());
    });
    let mut pages = vec![lab.text("/").await];
    let mut stream = lab.stream().await;
    for _ in 0..6 {
        pages.push(stream.next().await.unwrap().1);
    }
    for page in pages {
        assert!(!page.contains("<script>"), "{page}");
        assert!(!page.contains("\" onload=\""), "{page}");
        assert!(!page.contains('\r'), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_pushed_and_only_its_section() {
    let lab = lab();
    let mut stream = lab.stream().await;
    let mut first = Vec::new();
    for _ in 0..6 {
        first.push(stream.next().await.unwrap().0);
    }
    assert_eq!(first, ["headline", "nodes", "pods", "services", "raft", "events"]);
    lab.api.put("services", json!({ "metadata": { "namespace": "default", "name": "fresh" } }));
    let (name, html) = stream.next().await.unwrap();
    assert_eq!(name, "services");
    assert!(html.contains("fresh"));
    lab.raft.send_modify(|raft| raft.applied = 99_999);
    let (name, html) = stream.next().await.unwrap();
    assert_eq!(name, "raft");
    assert!(html.contains("99999"));
}

#[tokio::test(start_paused = true)]
async fn a_burst_makes_one_push() {
    let lab = lab();
    let mut stream = lab.stream().await;
    stream.wait_for("pods", "web-1").await;
    for index in 0..100 {
        lab.api.put(
            "pods",
            pod(&format!("burst-{index}"), "pi-102", "Running", json!({ "running": {} }), true, CREATED),
        );
    }
    let mut pushes = 0;
    let until = Instant::now() + Duration::from_secs(10);
    while let Ok(Some((name, _))) = tokio::time::timeout_at(until, stream.next()).await {
        pushes += usize::from(name == "pods");
    }
    assert_eq!(pushes, 1);
}

#[tokio::test(start_paused = true)]
async fn seats_are_limited_and_given_back() {
    let lab = lab();
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(lab.stream().await);
    }
    let refused = lab.ask(Method::GET, "/events").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "30");
    assert_eq!(lab.ask(Method::GET, "/").await.status(), StatusCode::OK, "pages are still served");
    streams.pop();
    lab.stream().await.wait_for("nodes", "pi-102").await;
}

#[tokio::test(start_paused = true)]
async fn watches_begin_with_the_first_viewer_and_end_a_minute_after_the_last() {
    let lab = lab();
    assert_eq!(lab.api.0.borrow().asked.len(), 0);
    let stream = lab.stream().await;
    lab.open_watches(4).await;
    sleep(Duration::from_secs(90)).await;
    assert_eq!(lab.api.0.borrow().open, 4);
    drop(stream);
    let left = Instant::now();
    lab.open_watches(0).await;
    assert!((59..=61).contains(&left.elapsed().as_secs()), "{:?}", left.elapsed());
    let page = lab.text("/").await;
    assert!(page.contains("web-1") && !page.contains("class=\"banner\""), "{page}");
    lab.open_watches(4).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_known_state_is_shown_while_the_api_is_away() {
    let lab = lab();
    let mut stream = lab.stream().await;
    stream.wait_for("pods", "web-1").await;
    lab.api.set_down(true);
    let banner = stream.wait_for("headline", "class=\"banner\"").await;
    assert!(banner.contains("The API is away since"), "{banner}");
    assert!(banner.contains("The API answers 503 ServiceUnavailable."), "{banner}");
    let page = lab.text("/").await;
    assert!(page.contains("web-1") && page.contains("The API is away since"), "{page}");
    lab.api.put("pods", pod("web-2", "pi-102", "Running", json!({ "running": {} }), true, CREATED));
    lab.api.set_down(false);
    stream.wait_for("pods", "web-2").await;
    assert!(!lab.text("/").await.contains("class=\"banner\""));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_never_answered_is_said_within_seconds() {
    let lab = lab();
    lab.api.set_down(true);
    let asked = Instant::now();
    let page = lab.text("/").await;
    assert!(asked.elapsed() <= Duration::from_secs(2));
    assert!(page.contains("knows nothing of the cluster yet"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_leader_is_said() {
    let lab = lab();
    let mut stream = lab.stream().await;
    stream.wait_for("headline", "pi-102").await;
    lab.raft.send_modify(|raft| raft.leader = None);
    let banner = stream.wait_for("headline", "There is no Raft leader").await;
    assert!(banner.contains("The API is away since"), "{banner}");
    lab.raft.send_modify(|raft| raft.leader = Some("pi-101".into()));
    let headline = stream.wait_for("headline", "pi-101").await;
    assert!(!headline.contains("banner"), "{headline}");
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_the_agent_stops() {
    let Lab { api, raft, router } = lab();
    let lab = Lab { api, raft: watch::Sender::default(), router };
    let mut stream = lab.stream().await;
    stream.wait_for("events", "").await;
    drop(raft);
    while stream.next().await.is_some() {}
}
