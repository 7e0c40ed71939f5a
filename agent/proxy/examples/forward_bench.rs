//! Measures the forwarder on this machine's loopback: throughput, new connections a second, and their latency.
//!
//! ```text
//! forward_bench                      the endpoint directly, and through the forwarder
//! forward_bench haproxy=127.0.0.1:9  and through another forwarder that leads to 127.0.0.1:19001
//! ```
#![allow(clippy::unwrap_used)]

use proxy::{Backends, Forwarder, Frontend, Protocol, Table};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const ENDPOINT: &str = "127.0.0.1:19001";
const FRONT: &str = "127.0.0.1:19000";
const STREAMS: usize = 4;
const STREAM_BYTES: usize = 512 << 20;
const CONNECTIONS: usize = 8000;
const CLIENTS: usize = 16;

/// Answers one byte with as many bytes as the client asks for.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut left = usize::try_from(stream.read_u64().await?).unwrap();
    let block = vec![7; 128 << 10];
    while left > 0 {
        let len = left.min(block.len());
        stream.write_all(&block[..len]).await?;
        left -= len;
    }
    Ok(())
}

async fn fetch(from: SocketAddr, bytes: usize) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(from).await?;
    stream.write_u64(bytes as u64).await?;
    let mut buffer = vec![0; bytes.clamp(1, 256 << 10)];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(received),
            len => received += len,
        }
    }
}

async fn throughput(front: SocketAddr) -> f64 {
    let start = Instant::now();
    let streams: Vec<_> = (0..STREAMS).map(|_| tokio::spawn(fetch(front, STREAM_BYTES))).collect();
    for stream in streams {
        assert_eq!(stream.await.unwrap().unwrap(), STREAM_BYTES);
    }
    (STREAMS * STREAM_BYTES) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

/// Connections a second, and how long the slowest hundredth took at least.
async fn connections(front: SocketAddr) -> (f64, Duration) {
    let start = Instant::now();
    let client = move || async move {
        let mut times = Vec::new();
        for _ in 0..CONNECTIONS / CLIENTS {
            let start = Instant::now();
            assert_eq!(fetch(front, 100).await.unwrap(), 100);
            times.push(start.elapsed());
        }
        times
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client())).collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    times.sort();
    (times.len() as f64 / start.elapsed().as_secs_f64(), times[times.len() * 99 / 100])
}

/// Clients and the endpoint run on threads of their own, so the forwarder alone is in its runtime.
fn main() {
    let world = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = world.block_on(TcpListener::bind(ENDPOINT)).unwrap();
    world.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    let ours = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut forwarder = Forwarder::new(vec![], 4096, CancellationToken::new());
    let frontend = Frontend { protocol: Protocol::Tcp, address: FRONT.parse().unwrap() };
    let backends = Backends { endpoints: vec![ENDPOINT.parse().unwrap()], ..Backends::default() };
    let entered = ours.enter();
    assert!(forwarder.apply(&Table::from([(frontend, backends)])).is_empty());
    drop(entered);

    let others = std::env::args().skip(1).map(|argument| {
        let (name, address) = argument.split_once('=').unwrap();
        (name.to_owned(), address.to_owned())
    });
    let known = [("direct", ENDPOINT), ("bramble", FRONT)]
        .map(|(name, address)| (name.to_owned(), address.to_owned()));
    for (name, address) in known.into_iter().chain(others) {
        let front = address.parse().unwrap();
        let gigabits = world.block_on(throughput(front));
        let (rate, slowest) = world.block_on(connections(front));
        println!("{name:10} {gigabits:7.2} Gbit/s  {rate:8.0} connections/s  p99 {slowest:?}");
    }
}
