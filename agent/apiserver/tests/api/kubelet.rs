//! Requests that a node answers, through a played kubelet.

use super::*;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A kubelet that notes the paths it is asked for, answers logs and echoes upgraded streams.
#[derive(Clone, Default)]
pub struct Played {
    /// What it says that its pods use.
    pub summary: Value,
    pub paths: Arc<Mutex<Vec<String>>>,
}

impl Played {
    async fn answer(
        self,
        mut request: Request<hyper::body::Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        self.paths.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        assert!(!request.headers().contains_key(header::AUTHORIZATION));
        if request.uri() == "/stats/summary" {
            return Ok(http::Response::new(Body::from(self.summary.to_string())));
        }
        let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
            return Ok(http::Response::new(Body::from("a line\n")));
        };
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word).await.unwrap();
        });
        let response = http::Response::builder().status(101).header(header::UPGRADE, protocol);
        Ok(response.header(header::CONNECTION, "Upgrade").body(Body::empty()).unwrap())
    }
}

#[async_trait::async_trait]
impl Kubelets for Played {
    async fn connect(&self, node: &Value) -> std::io::Result<Box<dyn Stream>> {
        assert_eq!(node["metadata"]["name"], "n1");
        let (ours, theirs) = tokio::io::duplex(4096);
        let played = self.clone();
        let service = service_fn(move |request| played.clone().answer(request));
        let served =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        tokio::spawn(served.with_upgrades());
        Ok(Box::new(ours))
    }
}

pub async fn bound(world: &World, name: &str, mut pod: Value) {
    pod["spec"]["nodeName"] = "n1".into();
    world.made(PODS, pod).await;
    if world.get("/api/v1/nodes/n1").await.code == 404 {
        world.made("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    }
    let running = json!({"status": {"phase": "Running", "containerStatuses": [{"name": "main", "ready": true,
        "restartCount": 0, "image": "busybox", "imageID": "", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}});
    world.patch(&format!("{PODS}/{name}/status"), "merge", running).await.ok(200);
}

#[tokio::test]
async fn logs_are_the_kubelets() {
    let played = Played::default();
    let world = World::with(Arc::new(played.clone()), 64).await;
    bound(&world, "web", pod("web")).await;
    assert_eq!(world.get(&format!("{PODS}/web/log?follow=true&tailLines=5")).await.ok(200), "a line\n");
    let asked = played.paths.lock().unwrap().clone();
    assert_eq!(asked, ["GET /containerLogs/default/web/main?follow=true&tailLines=5"]);
}

#[tokio::test]
async fn what_cannot_be_asked_is_said_clearly() {
    let world = World::new().await;
    world.made(PODS, pod("waiting")).await;
    let (_, message) = world.get(&format!("{PODS}/waiting/log")).await.failure(400);
    assert_eq!(message, "pod waiting does not have a host assigned");
    let mut two = pod("two");
    two["spec"]["containers"] = json!([{"name": "main", "image": "a"}, {"name": "b", "image": "b"}]);
    bound(&world, "two", two).await;
    let (_, message) = world.get(&format!("{PODS}/two/log")).await.failure(400);
    assert_eq!(message, "a container name must be specified for pod two, choose one of: [main b]");
    let (_, message) = world.get(&format!("{PODS}/two/log?container=main")).await.failure(500);
    assert!(message.contains("n1") && message.contains("no route to host"), "{message}");
}

#[tokio::test]
async fn streams_are_upgraded_and_carried_both_ways() {
    let played = Played::default();
    let world = World::with(Arc::new(played.clone()), 64).await;
    bound(&world, "web", pod("web")).await;
    let mut expected = Vec::new();
    for (method, protocol, asked, passed) in [
        (
            Method::GET,
            "websocket",
            "exec?command=sh&stdin=true",
            "exec/default/web/main?command=sh&stdin=true",
        ),
        (
            Method::POST,
            "SPDY/3.1",
            "exec?command=sh&stdin=true",
            "exec/default/web/main?command=sh&stdin=true",
        ),
        (
            Method::GET,
            "websocket",
            "attach?container=main&stdin=true",
            "attach/default/web/main?container=main&stdin=true",
        ),
        (Method::POST, "SPDY/3.1", "attach?stdout=true", "attach/default/web/main?stdout=true"),
        (Method::GET, "websocket", "portforward", "portForward/default/web"),
        (Method::POST, "SPDY/3.1", "portforward?ports=80", "portForward/default/web?ports=80"),
    ] {
        expected.push(format!("{method} /{passed}"));
        let mut sender = world.connection().await;
        let request = Request::builder()
            .method(method)
            .uri(format!("{PODS}/web/{asked}"))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol)
            .header(header::AUTHORIZATION, "Bearer secret")
            .body(Body::empty())
            .unwrap();
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 101);
        assert_eq!(answer.headers().get(header::UPGRADE).unwrap(), protocol);
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        stream.write_all(b"ping").await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
    }
    let asked = played.paths.lock().unwrap().clone();
    assert_eq!(asked, expected);
}
