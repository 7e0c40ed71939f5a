//! The doors over real connections: what is refused, logs, and, by protocol, exec and port-forward.

use axum::Router;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::testing::FakeRuntime;
use crate::testing::api::{Api, POD};
use crate::{Config, Kubelet};

mod kubectl;
mod spdy;
mod websocket;

struct Lab {
    runtime: std::sync::Arc<FakeRuntime>,
    address: std::net::SocketAddr,
    state: tempfile::TempDir,
}

/// A kubelet with one running pod, served on a port.
async fn lab() -> Lab {
    behind(|kubelet| kubelet).await
}

/// The same, with something in front of it.
async fn behind(front: impl FnOnce(Router) -> Router) -> Lab {
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
    let router = front(kubelet.router());
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

/// Sends back what it gets, until its client has finished.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// Says goodbye once it has got a line, and hangs up first.
async fn goodbye() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = [0; 6];
            let _ = stream.read_exact(&mut line).await;
            let _ = stream.write_all(b"goodbye\n").await;
        }
    });
    port
}

/// A port that nobody listens on.
fn nobody() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Bytes without a period that any buffer size would share.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(length)
    .collect()
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
async fn protocols_that_nobody_knows_are_refused() {
    let lab = lab().await;
    let exec = "/exec/default/p/c?command=x&stdout=1";
    let websocket = "upgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: ";
    let spdy = "upgrade: SPDY/3.1\r\nx-stream-protocol-version: ";
    for (path, headers, status) in [
        (exec, format!("{websocket}v9.channel.k8s.io"), 400),
        (exec, format!("{spdy}v9.channel.k8s.io"), 403),
        ("/exec/default/p/c?command=x", format!("{spdy}v4.channel.k8s.io"), 400),
        ("/portForward/default/p", format!("{websocket}v4.channel.k8s.io"), 400),
        ("/portForward/default/p?ports=80,x", format!("{websocket}v4.channel.k8s.io"), 400),
        ("/portForward/default/p?ports=80", format!("{websocket}v9.channel.k8s.io"), 400),
        ("/portForward/default/p", format!("{spdy}v4.channel.k8s.io"), 403),
        ("/portForward/default/p", "upgrade: h2c".into(), 400),
    ] {
        let line = format!("GET {path} HTTP/1.1");
        let mut stream = TcpStream::connect(lab.address).await.unwrap();
        let request = format!("{line}\r\nhost: x\r\nconnection: Upgrade\r\n{headers}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes(), "{path} {headers}");
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
