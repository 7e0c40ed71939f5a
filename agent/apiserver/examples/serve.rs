//! Serves the API from memory, with nothing behind it and to whoever asks, to try a client:
//! `cargo run -p apiserver --example serve [port]`, then `kubectl -s http://127.0.0.1:8001 ...`.

use apiserver::{Api, Config, Kubelets, Stream, User};
use axum::body::Body;
use http::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::sync::Arc;
use store::Volatile;

struct NoKubelets;

#[async_trait::async_trait]
impl Kubelets for NoKubelets {
    async fn connect(&self, _: &serde_json::Value) -> std::io::Result<Box<dyn Stream>> {
        Err(std::io::Error::other("there are no nodes here"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).map_or(Ok(8001), |text| text.parse())?;
    let (_leading, led) = tokio::sync::watch::channel(true);
    let space = || Arc::new(Volatile::default());
    let api = Api::new(Config::default(), space(), space(), led, Arc::new(NoKubelets));
    api.bootstrap().await?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let api = api.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let api = api.clone();
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(User::admin());
                Ok::<_, Infallible>(api.handle(request).await)
            }
        });
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            // A client that goes away is no error.
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}
