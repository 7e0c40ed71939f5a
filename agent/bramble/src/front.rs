//! The API's port: who serves a stream, and as whom.
//!
//! A client's TLS stream is served here when this node leads, and passed to the leader unopened when it does not (see
//! [`crate::dial`]). Raft streams of other nodes always end here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apiserver::{Api, Remote, User};
use axum::body::Body;
use cluster::join::{BINDING, LABEL};
use cluster::pki::Subject;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use store::{Status, Store};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::dial::{self, Dialer, Hop};
use crate::gate::Gate;
use crate::listen;
use crate::peers;
use crate::roster::Roster;
use crate::serving::Certificate;
use crate::watched::Watched;

/// Streams served or passed on at once. A Pi holds that many; more wait in the kernel's queue.
const STREAMS: usize = 1024;
/// Time for the first byte and for the handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client's stream waits for a leader to be there.
const ELECTION: Duration = Duration::from_secs(5);
/// Keep-alive of idle HTTP/2 connections: a peer that vanished is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A client that says nothing for so long, not even on its kernel's behalf, is gone.
const GONE: Duration = Duration::from_secs(30);
/// The first byte of a TLS handshake record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 0x16;

/// All that serving a stream takes.
pub struct Front {
    /// The API.
    pub api: Api,
    /// Joins and what members ask of the leader.
    pub gate: Gate,
    /// Whether this node serves.
    pub leading: watch::Receiver<bool>,
    /// To the leader.
    pub dialer: Dialer,
    /// For Raft streams.
    pub store: Store,
    /// For Raft streams.
    pub roster: Roster,
    /// The API's certificate.
    pub certificate: Arc<Certificate>,
    /// TLS for clients.
    pub clients: Arc<ServerConfig>,
    /// TLS for Raft.
    pub peers: Arc<ServerConfig>,
}

impl Front {
    /// Accepts until shut down.
    pub async fn run(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let serve = |stream, place| {
            let front = self.clone();
            async move { front.stream(stream, place).await }
        };
        listen::accept(listener, STREAMS, shutdown, serve).await;
    }

    async fn stream(&self, mut stream: TcpStream, place: OwnedSemaphorePermit) -> Result<()> {
        dial::watch_over(&stream, GONE)?;
        let mut first = [0];
        let read = timeout(PATIENCE, stream.peek(&mut first)).await.context("nothing was sent")??;
        if read == 0 {
            return Ok(());
        }
        match first[0] {
            HANDSHAKE => self.client(Watched::new(stream, GONE, Some(place))?).await,
            byte if byte == dial::PREFACE[0] => self.node(stream, place).await,
            byte if byte.is_ascii_uppercase() => {
                let answer = b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
                Ok(stream.write_all(answer).await?)
            }
            _ => bail!("neither TLS nor a node"),
        }
    }

    /// A client's stream: served here or passed on.
    async fn client(&self, stream: Watched) -> Result<()> {
        let deadline = Instant::now() + ELECTION;
        let mut status = self.dialer.status.clone();
        loop {
            if *self.leading.borrow() {
                return self.serve(stream).await;
            }
            status.mark_unchanged();
            if let Ok(leader) = self.dialer.leader(true).await {
                apiserver::relay(stream, Watched::new(leader, dial::GONE, None)?).await;
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            // Raft's news, or another look soon: the leader may be known but not serve yet.
            let _ = timeout(Duration::from_millis(100), status.changed()).await;
        }
        // Nobody leads. A client that can be answered gets 503 and a time to come back, not a broken stream.
        if self.certificate.ready() { self.serve(stream).await } else { bail!("no leader") }
    }

    /// A stream of another node.
    async fn node(&self, mut stream: TcpStream, place: OwnedSemaphorePermit) -> Result<()> {
        let mut preface = [0; 8];
        timeout(PATIENCE, stream.read_exact(&mut preface)).await.context("incomplete preface")??;
        if &preface[..7] != dial::PREFACE {
            bail!("neither TLS nor a node");
        }
        match Hop::from_byte(preface[7]).context("unknown kind of stream")? {
            Hop::Peer => {
                stream.write_all(&[dial::YES]).await?;
                self.raft(stream).await
            }
            _ if *self.leading.borrow() => {
                stream.write_all(&[dial::YES]).await?;
                self.serve(Watched::new(stream, GONE, Some(place))?).await
            }
            Hop::Relay => match self.dialer.leader(false).await {
                Ok(leader) => {
                    stream.write_all(&[dial::YES]).await?;
                    let stream = Watched::new(stream, GONE, Some(place))?;
                    apiserver::relay(stream, Watched::new(leader, dial::GONE, None)?).await;
                    Ok(())
                }
                Err(_) => Ok(stream.write_all(&[dial::NO]).await?),
            },
            Hop::Leader => Ok(stream.write_all(&[dial::NO]).await?),
        }
    }

    async fn raft(&self, stream: TcpStream) -> Result<()> {
        let from = stream.peer_addr()?.ip();
        let accept = TlsAcceptor::from(self.peers.clone()).accept(stream);
        let stream = timeout(PATIENCE, accept).await.context("handshake too slow")??;
        let chain =
            stream.get_ref().1.peer_certificates().and_then(|c| c.first()).context("no certificate")?;
        let subject = Subject::of(chain)?;
        self.roster.hear(&subject.key, from);
        peers::serve(stream, subject, &self.roster, &self.store).await
    }

    /// HTTP on a client's stream, until it ends or this node stops leading.
    async fn serve(&self, stream: Watched) -> Result<()> {
        let from = stream.peer()?;
        let accept = TlsAcceptor::from(self.clients.clone()).accept(stream);
        let stream = timeout(PATIENCE, accept).await.context("handshake too slow")??;
        let tls = stream.get_ref().1;
        let subject = tls.peer_certificates().and_then(|c| c.first()).map(Subject::of).transpose()?;
        // TLS 1.3 only: an older channel's value is not bound to its handshake.
        let bound = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let binding = bound.then(|| tls.export_keying_material([0; BINDING], LABEL, None)).transpose()?;
        let caller = Caller { subject, binding, from };
        let (api, gate, roster) = (self.api.clone(), self.gate.clone(), self.roster.clone());
        let status = self.dialer.status.clone();
        let answer = move |request: Request<Incoming>| {
            let (api, gate, roster, caller) = (api.clone(), gate.clone(), roster.clone(), caller.clone());
            let status = status.clone();
            async move { answer(&api, &gate, &roster, status, request, caller).await }
        };
        http(stream, answer, self.leading.clone()).await
    }
}

/// HTTP on a stream, until it ends or this node stops leading. Whoever asks a node that does not lead gets one answer
/// (503, and when to come back).
async fn http<A, F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: A,
    mut leading: watch::Receiver<bool>,
) -> Result<()>
where
    A: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (asked, mut first) = watch::channel(false);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        asked.send_replace(true);
        let answered = answer(request);
        async move { Ok::<_, std::convert::Infallible>(answered.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(256);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let over = async {
        let _ = leading.wait_for(|leading| !leading).await;
        // A connection that is shut down before its first request is broken off, not answered.
        let _ = timeout(PATIENCE, first.wait_for(|asked| *asked)).await;
    };
    tokio::select! {
        served = connection.as_mut() => return served.map_err(|e| anyhow::anyhow!(e)),
        () = over => connection.as_mut().graceful_shutdown(),
    }
    timeout(PATIENCE, connection)
        .await
        .context("the client holds on to a node that no longer leads")?
        .map_err(|e| anyhow::anyhow!(e))
}

/// Who is at the other end of a TLS stream.
#[derive(Clone)]
struct Caller {
    subject: Option<Subject>,
    binding: Option<[u8; BINDING]>,
    /// Another node, if it passes the stream on.
    from: IpAddr,
}

async fn answer(
    api: &Api,
    gate: &Gate,
    roster: &Roster,
    status: watch::Receiver<Status>,
    request: Request<Incoming>,
    caller: Caller,
) -> Response<Body> {
    let Caller { subject, binding, from } = caller;
    let mut request = request.map(Body::new);
    if request.uri().path().starts_with(crate::gate::PREFIX) {
        return gate.handle(request, subject, binding, status).await;
    }
    // Certificates of nodes live long; a node that left or was replaced is nobody any more.
    let present = |s: &Subject| match s.node() {
        Some(name) => roster.by_name(name).is_some_and(|m| m.key == s.key),
        None => true,
    };
    if let Some(subject) = subject.filter(present) {
        request.extensions_mut().insert(User {
            name: subject.user,
            groups: subject.groups,
            ..User::default()
        });
    }
    request.extensions_mut().insert(Remote(from));
    api.handle(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    /// What a client gets that asks over one stream.
    async fn ask(leading: watch::Receiver<bool>) -> String {
        let (mut near, far) = tokio::io::duplex(4096);
        let answer = |_| async {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        };
        let served = tokio::spawn(http(far, answer, leading));
        near.write_all(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        near.read_to_string(&mut text).await.unwrap();
        served.await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn a_node_that_does_not_lead_says_so_and_closes() {
        let (_sender, leading) = watch::channel(false);
        let text = ask(leading).await;
        assert!(text.starts_with("HTTP/1.1 503"), "{text:?}");
        // One that stops leading before it was asked, too.
        let (sender, leading) = watch::channel(true);
        let asking = tokio::spawn(ask(leading));
        tokio::task::yield_now().await;
        sender.send_replace(false);
        let text = asking.await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503"), "{text:?}");
    }
}
