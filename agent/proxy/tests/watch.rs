//! The whole of it, fed by an API that the test plays. Needs root and `ip`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{PATIENCE, Server, address, ask, in_own_network};
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use proxy::Config;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const FRONT: &str = "10.0.0.5:80";

#[derive(Default)]
struct State {
    /// What a list answers, by path; `None` while the API is away.
    lists: Option<BTreeMap<String, Vec<Value>>>,
    /// The watches that are open, by path.
    watches: BTreeMap<String, UnboundedSender<Value>>,
}

/// An API server with lists, watches and Events.
#[derive(Clone)]
struct Api {
    state: Arc<Mutex<State>>,
    events: UnboundedSender<Value>,
}

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

type Answer = UnsyncBoxBody<Bytes, std::convert::Infallible>;

fn whole(object: &Value) -> Answer {
    Full::new(Bytes::from(object.to_string())).boxed_unsync()
}

impl Api {
    fn new() -> (Api, UnboundedReceiver<Value>) {
        let (events, received) = unbounded();
        (Api { state: Arc::default(), events }, received)
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if parts.method == Method::POST {
            let body = body.collect_bytes().await.unwrap();
            let event: Value = serde_json::from_slice(&body).unwrap();
            self.events.unbounded_send(event.clone()).unwrap();
            return Response::new(whole(&event));
        }
        let mut state = self.state.lock().unwrap();
        let Some(lists) = &state.lists else {
            let status =
                json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable"});
            let mut response = Response::new(whole(&status));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        };
        if parts.uri.query().unwrap_or_default().contains("watch=true") {
            let (sender, receiver) = unbounded::<Value>();
            state.watches.insert(path, sender);
            let frames = receiver.map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
            return Response::new(StreamBody::new(frames).boxed_unsync());
        }
        let items = lists.get(&path).cloned().unwrap_or_default();
        let list =
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
        Response::new(whole(&list))
    }

    fn serve(&self, services: Vec<Value>, slices: Vec<Value>) {
        let lists = BTreeMap::from([(SERVICES.to_owned(), services), (SLICES.to_owned(), slices)]);
        self.state.lock().unwrap().lists = Some(lists);
    }

    /// Sends a watch event, when the watch is there.
    async fn notify(&self, path: &str, kind: &str, object: Value) {
        let event = json!({"type": kind, "object": object});
        let sent = || {
            let state = self.state.lock().unwrap();
            state.watches.get(path).is_some_and(|watch| watch.unbounded_send(event.clone()).is_ok())
        };
        while !sent() {
            tokio::task::yield_now().await;
        }
    }

    fn go_away(&self) {
        *self.state.lock().unwrap() = State::default();
    }
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "uid": "u-1", "resourceVersion": "2"},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

fn slice(service: &str, hosts: &[&str]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default", "name": format!("{service}-x"), "resourceVersion": "3",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": [{"port": 80, "protocol": "TCP"}],
        "endpoints": hosts.iter().map(|host| json!({"addresses": [host]})).collect::<Vec<_>>(),
    })
}

fn start(api: &Api) -> (tokio::task::JoinHandle<Result<(), proxy::Error>>, CancellationToken) {
    let config = Config::new("pi-1", "10.0.0.0/24".parse().unwrap(), vec![]);
    let shutdown = CancellationToken::new();
    (tokio::spawn(proxy::run(config, api.client(), shutdown.clone())), shutdown)
}

/// Asks until this server answers.
async fn answered_by(front: &str, server: &Server) {
    let asking = async { while ask(address(front)).await.ok() != Some(server.address) {} };
    timeout(PATIENCE, asking).await.unwrap();
}

#[test]
fn services_come_change_and_go_with_the_api() {
    in_own_network(|| async {
        let (a, b) = (Server::start("127.1.0.1:80").await, Server::start("127.1.0.2:80").await);
        let (api, _events) = Api::new();
        api.serve(vec![service("web", "10.0.0.5")], vec![slice("web", &["127.1.0.1"])]);
        let (running, shutdown) = start(&api);
        answered_by(FRONT, &a).await;
        api.notify(SLICES, "MODIFIED", slice("web", &["127.1.0.2"])).await;
        answered_by(FRONT, &b).await;
        api.notify(SERVICES, "ADDED", service("more", "10.0.0.6")).await;
        api.notify(SLICES, "ADDED", slice("more", &["127.1.0.1"])).await;
        answered_by("10.0.0.6:80", &a).await;
        api.notify(SERVICES, "DELETED", service("web", "10.0.0.5")).await;
        timeout(PATIENCE, async { while ask(address(FRONT)).await.is_ok() {} }).await.unwrap();
        shutdown.cancel();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn it_goes_on_while_the_api_is_away_and_catches_up() {
    in_own_network(|| async {
        let (a, b) = (Server::start("127.1.0.1:80").await, Server::start("127.1.0.2:80").await);
        let (api, _events) = Api::new();
        api.serve(vec![service("web", "10.0.0.5")], vec![slice("web", &["127.1.0.1"])]);
        let (running, shutdown) = start(&api);
        answered_by(FRONT, &a).await;
        api.go_away();
        for _ in 0..50 {
            assert_eq!(ask(address(FRONT)).await.unwrap(), a.address);
        }
        api.serve(vec![service("web", "10.0.0.5")], vec![]);
        api.notify(SLICES, "ADDED", slice("web", &["127.1.0.2"])).await;
        answered_by(FRONT, &b).await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn a_port_that_is_taken_is_told_once() {
    in_own_network(|| async {
        let a = Server::start("127.1.0.1:80").await;
        let occupant = TcpListener::bind(FRONT).await.unwrap();
        let (api, mut events) = Api::new();
        api.serve(vec![service("web", "10.0.0.5")], vec![slice("web", &["127.1.0.1"])]);
        let (running, shutdown) = start(&api);
        let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        assert_eq!(
            (event["type"].as_str(), event["reason"].as_str()),
            (Some("Warning"), Some("PortUnavailable"))
        );
        assert_eq!(event["regarding"]["name"], "web");
        assert!(event["note"].as_str().unwrap().contains("10.0.0.5:80"), "{event}");
        // Another change tries it again, without telling it again.
        api.notify(SERVICES, "ADDED", service("more", "10.0.0.6")).await;
        api.notify(SLICES, "ADDED", slice("more", &["127.1.0.1"])).await;
        answered_by("10.0.0.6:80", &a).await;
        drop(occupant);
        api.notify(SERVICES, "ADDED", service("last", "10.0.0.7")).await;
        answered_by(FRONT, &a).await;
        assert!(events.try_recv().is_err());
        shutdown.cancel();
        running.await.unwrap().unwrap();
    });
}
