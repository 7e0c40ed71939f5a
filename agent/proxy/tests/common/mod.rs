//! A network of its own for each test, with the service CIDR local as on a node.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use proxy::{Backends, Frontend, Protocol, Table};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a throw-away network namespace.
pub fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root is needed");
        for arguments in ["link set dev lo up", "route add local 10.0.0.0/24 dev lo"] {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE * 2, test()).await.expect("the test hangs") });
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn frontend(protocol: Protocol, text: &str) -> Frontend {
    Frontend { protocol, address: address(text) }
}

pub fn backends(endpoints: &[SocketAddr]) -> Backends {
    Backends { endpoints: endpoints.to_vec(), ..Backends::default() }
}

pub fn table(protocol: Protocol, front: &str, endpoints: &[SocketAddr]) -> Table {
    Table::from([(frontend(protocol, front), backends(endpoints))])
}

/// A TCP server that says its name and echoes until the client has said everything.
pub struct Server {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(text: &str) -> Server {
        let listener = TcpListener::bind(text).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(echo(stream, address));
            }
        });
        Server { address, connections, task }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo(mut stream: TcpStream, name: SocketAddr) {
    let (mut read, mut write) = stream.split();
    // A client that breaks off ends this, too.
    if write.write_all(format!("{name}\n").as_bytes()).await.is_ok() {
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

/// Says something, and returns who answered after checking that it came back.
pub async fn ask(front: SocketAddr) -> std::io::Result<SocketAddr> {
    let mut stream = TcpStream::connect(front).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (name, rest) = answer.split_once('\n').ok_or(std::io::ErrorKind::UnexpectedEof)?;
    assert_eq!(rest, "hello");
    Ok(name.parse().unwrap())
}
