//! The forwarder with real TCP connections. Needs root and `ip`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Server, address, ask, backends, frontend, in_own_network, table};
use proxy::{Backends, Forwarder, Protocol, Table};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const FRONT: &str = "10.0.0.5:80";

fn forwarder() -> Forwarder {
    Forwarder::new(vec!["127.0.0.9".parse().unwrap()], 1000, CancellationToken::new())
}

fn apply(forwarder: &mut Forwarder, table: &Table) {
    assert!(forwarder.apply(table).is_empty());
}

#[test]
fn connections_are_spread_over_the_endpoints() {
    in_own_network(|| async {
        let servers = [
            Server::start("127.1.0.1:80").await,
            Server::start("127.1.0.2:80").await,
            Server::start("127.1.0.3:80").await,
        ];
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &servers.each_ref().map(|server| server.address)));
        let mut answers: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for _ in 0..30 {
            *answers.entry(ask(address(FRONT)).await.unwrap()).or_default() += 1;
        }
        assert_eq!(answers.len(), 3);
        assert!(answers.values().all(|count| (8..=12).contains(count)), "{answers:?}");
        assert_eq!(servers.iter().map(Server::connections).sum::<usize>(), 30);
    });
}

/// Bytes that are the same each time but nowhere alike.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut step = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    (0..len).map(|_| step()).collect()
}

#[test]
fn much_data_arrives_unchanged_and_each_direction_ends_by_itself() {
    in_own_network(|| async {
        let listener = TcpListener::bind("127.1.0.1:80").await.unwrap();
        let (up, down) = (noise(24 << 20, 1), noise(16 << 20, 2));
        let (up_hash, reply) = (Sha256::digest(&up), down.clone());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            // Ends only because the client's half was closed while the other half is still open.
            stream.read_to_end(&mut received).await.unwrap();
            stream.write_all(&reply).await.unwrap();
            Sha256::digest(&received)
        });
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[address("127.1.0.1:80")]));
        let mut client = TcpStream::connect(FRONT).await.unwrap();
        client.write_all(&up).await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(server.await.unwrap(), up_hash);
        assert_eq!(Sha256::digest(&received), Sha256::digest(&down));
    });
}

#[test]
fn both_directions_flow_at_once() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[server.address]));
        let data = noise(8 << 20, 3);
        let (mut read, mut write) = TcpStream::connect(FRONT).await.unwrap().into_split();
        let sent = data.clone();
        let sending = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        sending.await.unwrap();
        assert!(received.strip_prefix(format!("{}\n", server.address).as_bytes()) == Some(&data));
    });
}

#[test]
fn an_endpoint_that_is_down_costs_no_connection() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let mut forwarder = forwarder();
        let down = ["127.1.0.2:80", "127.1.0.3:80", "127.1.0.4:80"].map(address);
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[&[server.address][..], &down].concat()));
        for _ in 0..20 {
            assert_eq!(ask(address(FRONT)).await.unwrap(), server.address);
        }
    });
}

#[test]
fn without_endpoints_clients_are_refused_at_once() {
    in_own_network(|| async {
        let mut forwarder = forwarder();
        let refused = |error: std::io::Error| {
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe
            )
        };
        for endpoints in [vec![], vec![address("127.1.0.1:80")]] {
            apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &endpoints));
            let start = Instant::now();
            assert!(refused(ask(address(FRONT)).await.unwrap_err()));
            assert!(start.elapsed() < Duration::from_secs(1));
        }
        // They come up: suspicion does not keep the only endpoint away.
        let server = Server::start("127.1.0.1:80").await;
        assert_eq!(ask(address(FRONT)).await.unwrap(), server.address);
        apply(&mut forwarder, &Table::new());
        while ask(address(FRONT)).await.is_ok() {}
    });
}

#[test]
fn changes_of_endpoints_cost_no_connection() {
    in_own_network(|| async {
        let (a, b, c) = (
            Server::start("127.1.0.1:80").await,
            Server::start("127.1.0.2:80").await,
            Server::start("127.1.0.3:80").await,
        );
        let dead = address("127.1.0.9:80");
        let sets =
            [vec![a.address, b.address], vec![b.address, c.address, dead], vec![dead, c.address, a.address]];
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &sets[0]));
        let done = CancellationToken::new();
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let done = done.clone();
                tokio::spawn(async move {
                    let mut asked = 0;
                    while !done.is_cancelled() {
                        ask(address(FRONT)).await.unwrap();
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        for round in 1..200 {
            apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &sets[round % 3]));
            // The next change comes after another connection has been made.
            ask(address(FRONT)).await.unwrap();
        }
        done.cancel();
        let mut asked = 0;
        for client in clients {
            asked += client.await.unwrap();
        }
        assert!(asked > 200, "{asked} connections are not a load");
    });
}

#[test]
fn open_connections_outlive_their_endpoint_and_their_service() {
    in_own_network(|| async {
        let (a, b) = (Server::start("127.1.0.1:80").await, Server::start("127.1.0.2:80").await);
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[a.address]));
        let mut stream = TcpStream::connect(FRONT).await.unwrap();
        let mut name = vec![0; format!("{}\n", a.address).len()];
        stream.read_exact(&mut name).await.unwrap();
        for next in [table(Protocol::Tcp, FRONT, &[b.address]), Table::new()] {
            apply(&mut forwarder, &next);
            stream.write_all(b"still").await.unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"still");
        }
    });
}

#[test]
fn a_broken_transfer_does_not_look_complete() {
    in_own_network(|| async {
        let listener = TcpListener::bind("127.1.0.1:80").await.unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"half").await.unwrap();
            stream.read_u8().await.unwrap();
            stream.set_zero_linger().unwrap();
        });
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[address("127.1.0.1:80")]));
        let mut stream = TcpStream::connect(FRONT).await.unwrap();
        let mut half = [0; 4];
        stream.read_exact(&mut half).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let rest = stream.read_to_end(&mut Vec::new()).await;
        assert_eq!(rest.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_taken_port_is_reported_and_taken_over_when_free() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let occupant = TcpListener::bind(FRONT).await.unwrap();
        let mut forwarder = forwarder();
        let mut wanted = table(Protocol::Tcp, FRONT, &[server.address]);
        wanted.extend(table(Protocol::Tcp, "10.0.0.6:80", &[server.address]));
        let failures = forwarder.apply(&wanted);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].frontend, frontend(Protocol::Tcp, FRONT));
        assert_eq!(failures[0].error.kind(), ErrorKind::AddrInUse);
        assert_eq!(ask(address("10.0.0.6:80")).await.unwrap(), server.address);
        drop(occupant);
        apply(&mut forwarder, &wanted);
        assert_eq!(ask(address(FRONT)).await.unwrap(), server.address);
        assert_eq!(forwarder.table(), &wanted);
    });
}

#[test]
fn a_node_port_answers_on_every_address_that_is_free() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let mut forwarder = forwarder();
        apply(&mut forwarder, &table(Protocol::Tcp, "0.0.0.0:30080", &[server.address]));
        assert_eq!(ask(address("127.0.0.77:30080")).await.unwrap(), server.address);
        // A cluster IP with the same port number is in the way of the address that stands for all.
        let mut both = table(Protocol::Tcp, "10.0.0.5:30081", &[server.address]);
        apply(&mut forwarder, &both);
        both.extend(table(Protocol::Tcp, "0.0.0.0:30081", &[server.address]));
        apply(&mut forwarder, &both);
        for front in ["10.0.0.5:30081", "127.0.0.9:30081", "127.0.0.1:30081"] {
            assert_eq!(ask(address(front)).await.unwrap(), server.address);
        }
    });
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let mut forwarder = Forwarder::new(vec![], 2, CancellationToken::new());
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[server.address]));
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(FRONT).await.unwrap();
            stream.read_u8().await.unwrap();
            held.push(stream);
        }
        assert!(ask(address(FRONT)).await.is_err());
        held.pop();
        while ask(address(FRONT)).await.is_err() {}
    });
}

#[test]
fn only_allowed_sources_get_through() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let mut forwarder = forwarder();
        for (sources, admitted) in
            [(vec!["10.0.0.0/24"], true), (vec!["192.168.0.0/16"], false), (vec![], true)]
        {
            let sources = sources.iter().map(|source| source.parse().unwrap()).collect();
            let backends = Backends { sources, ..backends(&[server.address]) };
            apply(&mut forwarder, &Table::from([(frontend(Protocol::Tcp, FRONT), backends)]));
            assert_eq!(ask(address(FRONT)).await.is_ok(), admitted);
        }
    });
}

#[test]
fn a_shutdown_ends_everything() {
    in_own_network(|| async {
        let server = Server::start("127.1.0.1:80").await;
        let shutdown = CancellationToken::new();
        let mut forwarder = Forwarder::new(vec![], 10, shutdown.clone());
        apply(&mut forwarder, &table(Protocol::Tcp, FRONT, &[server.address]));
        let mut stream = TcpStream::connect(FRONT).await.unwrap();
        shutdown.cancel();
        let ended = stream.read_to_end(&mut Vec::new()).await;
        assert!(ended.is_ok_and(|len| len < 100) || TcpStream::connect(FRONT).await.is_err());
        while TcpStream::connect(FRONT).await.is_ok() {}
    });
}
