//! A web server for one file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

/// Serves a file over HTTP on the host's loopback for as long as the test runs.
#[derive(Clone, Debug)]
pub struct Server {
    port: u16,
    /// Bytes after which an answer breaks off.
    limit: Arc<AtomicU64>,
}

impl Server {
    /// Starts it.
    pub fn start(path: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = Self { port: listener.local_addr()?.port(), limit: Arc::new(AtomicU64::new(u64::MAX)) };
        let limit = server.limit.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (path, limit) = (path.clone(), limit.clone());
                // A guest whose plug was pulled leaves its connection.
                std::thread::spawn(move || answer(stream, &path, limit.load(Ordering::Relaxed)));
            }
        });
        Ok(server)
    }

    /// Its address, from a guest that knows the host by `host`.
    pub fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/update", self.port)
    }

    /// From now on, answers break off after so many bytes.
    pub fn break_off_after(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream, path: &Path, limit: u64) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut file.take(limit), &mut stream).map(drop)
}
