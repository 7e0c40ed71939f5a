//! The doors over real connections: logs, exec over WebSocket and SPDY, port-forward.

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_util::sync::CancellationToken;

use crate::spdy::{Codec, Frame};
use crate::testing::FakeRuntime;
use crate::testing::api::{Api, POD};
use crate::{Config, Kubelet};

struct Lab {
    runtime: std::sync::Arc<FakeRuntime>,
    address: std::net::SocketAddr,
    state: tempfile::TempDir,
}

/// A kubelet with one running pod, served on a port.
async fn lab() -> Lab {
    let (api, runtime) = (Api::new(), std::sync::Arc::new(FakeRuntime::new()));
    let state = tempfile::tempdir().unwrap();
    let config = Config {
        node_name: "n1".into(),
        state_dir: state.path().to_owned(),
        mounts: false,
        ..Config::default()
    };
    let kubelet = Kubelet::new(config, api.client(), runtime.clone(), runtime.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = kubelet.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    tokio::spawn(kubelet.run(CancellationToken::new()));
    let pod = json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "c", "image": "img"}]},
    });
    api.put(POD, pod);
    api.until(POD, "running", |pod| pod["status"]["phase"] == "Running").await;
    Lab { runtime, address, state }
}

async fn get(lab: &Lab, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn what_is_not_there_is_refused() {
    let lab = lab().await;
    for (path, status) in [
        ("/containerLogs/default/none/c", 404),
        ("/containerLogs/default/p/none", 404),
        ("/containerLogs/default/p/c?previous=true", 400),
        ("/exec/default/p/c?command=x", 400),
        ("/exec/default/p/c", 400),
        ("/nothing", 404),
        ("/healthz", 200),
    ] {
        assert_eq!(get(&lab, path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn logs_are_followed_to_their_end() {
    let lab = lab().await;
    let log = lab.state.path().join("pods/u1/logs/c/0.log");
    let line = |second: u32, text: &str| format!("2026-01-01T00:00:{second:02}.5Z stdout F {text}\n");
    std::fs::write(&log, line(1, "one") + &line(2, "two")).unwrap();
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    let request = b"GET /containerLogs/default/p/c?follow=true&tailLines=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut seen = String::new();
    let mut read_until = async |text: &str, seen: &mut String| {
        while !seen.contains(text) {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "ended before {text}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    read_until("two\n", &mut seen).await;
    let append = |text: String| {
        use std::io::Write;
        std::fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(text.as_bytes()).unwrap();
    };
    append(line(3, "three"));
    read_until("three\n", &mut seen).await;
    // The runtime puts a full log aside.
    append(line(4, "four"));
    std::fs::rename(&log, lab.state.path().join("pods/u1/logs/c/0.log.1")).unwrap();
    std::fs::write(&log, line(5, "five")).unwrap();
    read_until("five\n", &mut seen).await;
    lab.runtime.exit(&lab.runtime.running("c").unwrap(), 0);
    read_until("\r\n0\r\n", &mut seen).await;
    assert!(!seen.contains("one") && seen.contains("four"), "{seen}");
    let (_, text) = get(&lab, "/containerLogs/default/p/c?previous=true&timestamps=true&limitBytes=31").await;
    assert!(text.contains("2026-01-01T00:00:01.5Z one\n2026\r\n"), "{text}");
}

#[tokio::test]
async fn a_command_runs_over_websocket() {
    let lab = lab().await;
    let url = format!(
        "ws://{}/exec/default/p/c?command=cat&command=3&stdin=true&stdout=true&stderr=true",
        lab.address
    );
    let mut request = url.into_client_request().unwrap();
    let protocols = "v5.channel.k8s.io".parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocols);
    let stream = TcpStream::connect(lab.address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    socket.send(Message::Binary(Bytes::from_static(b"\x00hello"))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(b"\xff\x00"))).await.unwrap();
    let mut channels = [const { Vec::new() }; 4];
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 1000),
            _ => {}
        }
    }
    assert_eq!(channels[1], b"hello");
    assert_eq!(channels[2], b"cat");
    let status: Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(
        (status["reason"].as_str(), status["details"]["causes"][0]["message"].as_str()),
        (Some("NonZeroExitCode"), Some("3"))
    );
}

/// A SPDY client after its upgrade.
struct Client {
    stream: TcpStream,
    out: Codec,
    into: Codec,
    buffer: BytesMut,
}

impl Client {
    async fn new(lab: &Lab, path: &str, protocol: &str) -> Client {
        let mut stream = TcpStream::connect(lab.address).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: {protocol}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains(&format!("x-stream-protocol-version: {protocol}\r\n")), "{answer}");
        Client { stream, out: Codec::new().unwrap(), into: Codec::new().unwrap(), buffer: BytesMut::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.out.encode(&frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.send(Frame::Syn { id, headers, fin: false }).await;
        let reply = self.receive().await;
        assert!(matches!(reply, Some(Frame::Reply { id: of, .. }) if of == id), "{reply:?}");
    }

    async fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.into.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// All that comes on these streams, until each has ended.
    async fn collect<const N: usize>(&mut self, ids: [u32; N]) -> [Vec<u8>; N] {
        let mut all = [const { Vec::new() }; N];
        let mut open = ids.to_vec();
        while !open.is_empty() {
            let Some(Frame::Data { id, bytes, fin }) = self.receive().await else {
                panic!("{open:?} never ended")
            };
            let index = ids.iter().position(|of| *of == id).unwrap();
            all[index].extend_from_slice(&bytes);
            open.retain(|of| !(fin && *of == id));
        }
        all
    }
}

#[tokio::test]
async fn a_command_runs_over_spdy() {
    let lab = lab().await;
    let path = "/exec/default/p/c?command=cat&command=3&input=1&output=1&error=1";
    let mut client = Client::new(&lab, path, "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(id, &[("streamType", kind)]).await;
    }
    client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true }).await;
    let [error, out, err] = client.collect([1, 5, 7]).await;
    assert_eq!((out.as_slice(), err.as_slice()), (&b"hello"[..], &b"cat"[..]));
    let status: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    assert_eq!(client.receive().await, None, "the session ends with the command");
}

#[tokio::test]
async fn a_command_that_does_not_start_says_so() {
    let lab = lab().await;
    let mut client =
        Client::new(&lab, "/exec/default/p/c?command=broken&output=1", "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    let [error, _] = client.collect([1, 3]).await;
    let status: Value = serde_json::from_slice(&error).unwrap();
    assert!(status["message"].as_str().unwrap().contains("not found in $PATH"), "{status}");
}

#[tokio::test]
async fn ports_are_forwarded() {
    let lab = lab().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).await.unwrap();
    });
    let mut client = Client::new(&lab, "/portForward/default/p", "portforward.k8s.io").await;
    client.open(1, &[("streamtype", "error"), ("port", &port), ("requestid", "0")]).await;
    client.open(3, &[("streamtype", "data"), ("port", &port), ("requestid", "0")]).await;
    client.send(Frame::Ping(9)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(9)));
    client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true }).await;
    let mut got = Vec::new();
    while let Some(Frame::Data { id, bytes, .. }) = client.receive().await {
        assert!(id == 3 || bytes.is_empty(), "error: {bytes:?}");
        got.extend_from_slice(&bytes);
        if got == b"HELLO" {
            return;
        }
    }
    panic!("got only {got:?}");
}
