//! The status pages' port. Anybody may ask, so nobody may ask for much: few streams at once, and each is given up when
//! it sends no request for a while.

use std::time::Duration;

use anyhow::Result;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::listen;
use crate::watched::Watched;

/// Browsers take a handful each, and one more for live updates.
const STREAMS: usize = 128;
/// Time for the head of a request; also how long a stream may lie idle between two.
const PATIENCE: Duration = Duration::from_secs(15);
/// A browser that is silent for so long, though spoken to, is gone.
const GONE: Duration = Duration::from_secs(30);

/// Serves the pages until shut down.
pub async fn serve(listener: TcpListener, router: axum::Router, shutdown: CancellationToken) {
    let serve = |stream, place| connection(stream, place, router.clone());
    listen::accept(listener, STREAMS, shutdown, serve).await;
}

async fn connection(stream: TcpStream, place: OwnedSemaphorePermit, router: axum::Router) -> Result<()> {
    let stream = Watched::new(stream, GONE, Some(place))?;
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    served.map_err(|e| anyhow::anyhow!(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn who_says_nothing_is_sent_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = axum::Router::new().route("/", axum::routing::get(|| async { "page" }));
        let served = tokio::spawn(serve(listener, router, shutdown.clone()));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut asks = TcpStream::connect(address).await.unwrap();
        asks.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asks.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("page"), "{answer}");
        tokio::time::pause();
        let mut rest = Vec::new();
        let _ = silent.read_to_end(&mut rest).await;
        assert!(!String::from_utf8_lossy(&rest).contains("page"));
        shutdown.cancel();
        served.await.unwrap();
    }
}
