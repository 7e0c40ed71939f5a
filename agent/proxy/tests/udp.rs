//! The forwarder with real datagrams. Needs root and `ip`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{PATIENCE, in_own_network, table};
use proxy::{Forwarder, Protocol, Table};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const FRONT: &str = "10.0.0.5:53";

fn forwarder(limit: usize) -> Forwarder {
    Forwarder::new(vec!["127.0.0.9".parse().unwrap()], limit, CancellationToken::new())
}

/// Answers each datagram with its own address and the datagram.
async fn server(text: &str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind(text).await.unwrap();
    let name = socket.local_addr().unwrap();
    let serve = async move {
        let mut datagram = vec![0; 65_535];
        while let Ok((len, client)) = socket.recv_from(&mut datagram).await {
            let answer = [name.to_string().as_bytes(), b"\n", &datagram[..len]].concat();
            socket.send_to(&answer, client).await.unwrap();
        }
    };
    (name, tokio::spawn(serve))
}

async fn client() -> UdpSocket {
    let socket = UdpSocket::bind("10.0.0.200:0").await.unwrap();
    socket.connect(FRONT).await.unwrap();
    socket
}

/// Sends a datagram and returns who answered it.
async fn ask(client: &UdpSocket, payload: &[u8]) -> SocketAddr {
    client.send(payload).await.unwrap();
    timeout(PATIENCE, answer(client, payload)).await.unwrap().unwrap()
}

/// Waits for the answer; an error is the client's own ICMP complaint.
async fn answer(client: &UdpSocket, payload: &[u8]) -> std::io::Result<SocketAddr> {
    let mut answer = vec![0; 65_535];
    let len = client.recv(&mut answer).await?;
    let at = answer.iter().position(|byte| *byte == b'\n').unwrap();
    assert_eq!(&answer[at + 1..len], payload);
    Ok(String::from_utf8(answer[..at].to_vec()).unwrap().parse().unwrap())
}

/// Sends a datagram again and again, as resolvers do, until it is answered.
async fn ask_stubbornly(client: &UdpSocket, payload: &[u8]) -> SocketAddr {
    let asking = async {
        loop {
            client.send(payload).await.unwrap();
            if let Ok(Ok(name)) = timeout(Duration::from_millis(100), answer(client, payload)).await {
                return name;
            }
        }
    };
    timeout(PATIENCE, asking).await.unwrap()
}

#[test]
fn clients_are_spread_and_each_keeps_its_endpoint() {
    in_own_network(|| async {
        let ((a, _a), (b, _b)) = (server("127.1.0.1:53").await, server("127.1.0.2:53").await);
        let mut forwarder = forwarder(100);
        assert!(forwarder.apply(&table(Protocol::Udp, FRONT, &[a, b])).is_empty());
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            let client = client().await;
            let first = ask(&client, b"one").await;
            assert_eq!(ask(&client, &[9; 20_000]).await, first);
            seen.insert(first);
        }
        assert_eq!(seen, BTreeSet::from([a, b]));
    });
}

#[test]
fn a_client_moves_when_its_endpoint_goes_or_refuses() {
    in_own_network(|| async {
        let ((a, task), (b, _b)) = (server("127.1.0.1:53").await, server("127.1.0.2:53").await);
        let mut forwarder = forwarder(100);
        let client = client().await;
        forwarder.apply(&table(Protocol::Udp, FRONT, &[b]));
        assert_eq!(ask(&client, b"b").await, b);
        forwarder.apply(&table(Protocol::Udp, FRONT, &[a]));
        assert_eq!(ask(&client, b"a").await, a);
        // It dies before anybody has said so.
        forwarder.apply(&table(Protocol::Udp, FRONT, &[a, b]));
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(ask_stubbornly(&client, b"b again").await, b);
    });
}

#[test]
fn flows_beyond_the_limit_are_dropped_and_nothing_breaks() {
    in_own_network(|| async {
        let (a, _a) = server("127.1.0.1:53").await;
        let mut forwarder = forwarder(1);
        forwarder.apply(&table(Protocol::Udp, FRONT, &[a]));
        let (first, second) = (client().await, client().await);
        assert_eq!(ask(&first, b"one").await, a);
        second.send(b"dropped").await.unwrap();
        assert_eq!(ask(&first, b"two").await, a);
        assert!(second.try_recv(&mut [0; 100]).is_err());
    });
}

#[test]
fn a_node_port_answers_from_the_address_that_was_asked() {
    in_own_network(|| async {
        let (a, _a) = server("127.1.0.1:53").await;
        let mut forwarder = forwarder(10);
        assert!(forwarder.apply(&table(Protocol::Udp, "0.0.0.0:30053", &[a])).is_empty());
        for front in ["127.0.0.9:30053", "127.0.0.1:30053"] {
            let client = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            // A connected socket takes answers from nowhere else.
            client.connect(front).await.unwrap();
            assert_eq!(ask(&client, b"hello").await, a);
        }
        forwarder.apply(&Table::new());
        while UdpSocket::bind("127.0.0.9:30053").await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}
