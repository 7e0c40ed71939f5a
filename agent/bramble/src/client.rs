//! One Kubernetes client for every part of a node: the router itself on the leader, mTLS to the leader elsewhere.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use apiserver::{Api, User};
use axum::body::Body;
use cluster::pki::{self, MASTERS_GROUP, NODE_PREFIX, NODES_GROUP};
use http::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::{BoxError, Service};

use crate::dial::Dialer;

/// A connection to a leader that vanished is given up after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Time for the handshake. All requests wait for one connection: a leader that vanished in the middle of it must not
/// hold them up for ever.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The leader's own parts.
pub fn system() -> User {
    User { name: "system:bramble".into(), groups: vec![MASTERS_GROUP.into()], ..User::default() }
}

/// A node's parts.
pub fn node(name: &str) -> User {
    User { name: format!("{NODE_PREFIX}{name}"), groups: vec![NODES_GROUP.into()], ..User::default() }
}

/// The service under a node's [`kube::Client`].
#[derive(Clone)]
pub struct NodeClient {
    api: Api,
    user: User,
    leading: watch::Receiver<bool>,
    remote: Remote,
}

impl NodeClient {
    /// Acts as `user` in this process and as the certificate in `tls` elsewhere.
    pub fn new(
        api: Api,
        user: User,
        leading: watch::Receiver<bool>,
        dialer: Dialer,
        tls: Arc<ClientConfig>,
    ) -> Self {
        let remote = Remote { dialer, tls, current: Arc::default() };
        Self { api, user, leading, remote }
    }

    /// One request, wherever the leader is.
    pub async fn request(&self, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
        if *self.leading.borrow() {
            request.extensions_mut().insert(self.user.clone());
            return Ok(self.api.handle(request).await);
        }
        self.remote.request(request).await
    }
}

impl Service<Request<kube::client::Body>> for NodeClient {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.request(request.map(Body::new)).await })
    }
}

/// The leader's Raft id, as known when the connection was made, and the connection.
type ToLeader = (Option<u64>, Client<Leader, Body>);

/// HTTP/2 to whoever leads: one connection per leader, dropped with its leadership.
#[derive(Clone)]
struct Remote {
    dialer: Dialer,
    tls: Arc<ClientConfig>,
    current: Arc<Mutex<Option<ToLeader>>>,
}

impl Remote {
    fn client(&self) -> Client<Leader, Body> {
        let leader = self.dialer.status.borrow().leader;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((id, client)) if *id == leader => client.clone(),
            _ => {
                let connector = Leader { dialer: self.dialer.clone(), tls: self.tls.clone() };
                let client = Client::builder(TokioExecutor::new())
                    .http2_only(true)
                    .timer(TokioTimer::new())
                    .pool_timer(TokioTimer::new())
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .http2_keep_alive_timeout(KEEP_ALIVE)
                    .http2_keep_alive_while_idle(false)
                    .build(connector);
                *current = Some((leader, client.clone()));
                client
            }
        }
    }

    async fn request(&self, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = format!("https://{}{path}", pki::API_NAME).parse()?;
        *request.version_mut() = http::Version::HTTP_2;
        request.headers_mut().remove(http::header::HOST);
        Ok(self.client().request(request).await?.map(Body::new))
    }
}

/// Connects to the leader.
#[derive(Clone)]
struct Leader {
    dialer: Dialer,
    tls: Arc<ClientConfig>,
}

impl Service<Uri> for Leader {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let stream = this.dialer.leader(true).await?;
            let name = ServerName::try_from(pki::API_NAME)?;
            let handshake = TlsConnector::from(this.tls).connect(name, stream);
            Ok(Stream(TokioIo::new(tokio::time::timeout(HANDSHAKE, handshake).await??)))
        })
    }
}

/// A TLS stream as hyper wants it.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
