//! The joining side: prove the secret, check that the other side knows it too, be let in.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cluster::join::{self, BINDING, Hello, LABEL, Side, SignedRequest, Token, Welcome};
use cluster::pki;
use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Time for each step.
const PATIENCE: Duration = Duration::from_secs(15);
/// A welcome names every member; this is room for thousands.
const MAX_ANSWER: usize = 4 << 20;

/// A channel to what may be a cluster.
pub struct Channel {
    sender: SendRequest<Body>,
    binding: [u8; BINDING],
    /// This node's own address on the way there.
    pub local: IpAddr,
    host: SocketAddr,
}

impl Channel {
    /// Opens it; nothing is trusted yet.
    pub async fn open(host: SocketAddr) -> Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(host))
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut.into());
        let stream: TcpStream = stream.and_then(|s| s).with_context(|| {
            format!("no Bramble node answers at {host}: is that the address of a node on which kube-config enable-master has run?")
        })?;
        let local = stream.local_addr()?.ip();
        let name = ServerName::IpAddress(host.ip().into());
        let handshake = TlsConnector::from(pki::joiner()?).connect(name, stream);
        let strange = || format!("the host at {host} is not a Bramble master");
        let stream = timeout(PATIENCE, handshake).await.with_context(strange)?.with_context(strange)?;
        let binding = stream.get_ref().1.export_keying_material([0; BINDING], LABEL, None)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, binding, local, host })
    }

    /// Has the other side prove that it knows the secret.
    pub async fn prove(&mut self, token: &Token) -> Result<()> {
        let path = format!("{}join?token={}", crate::gate::PREFIX, token.id);
        let request = Request::get(path).body(Body::empty())?;
        let answer = self.exchange(request).await?;
        let hello: Hello = serde_json::from_slice(&answer)
            .with_context(|| format!("the host at {} is not a Bramble master", self.host))?;
        let proof = BASE64.decode(hello.proof).unwrap_or_default();
        ensure!(
            join::verify(Side::Server, &token.secret, &self.binding, b"", &proof),
            "the host at {} does not know this cluster's secret: wrong address, a card of another batch, or a hostile host; nothing was sent to it",
            self.host
        );
        Ok(())
    }

    /// Asks to be let in.
    pub async fn join(&mut self, token: &Token, request: &join::Request) -> Result<Welcome> {
        let request = serde_json::to_string(request)?;
        let proof = join::proof(Side::Joiner, &token.secret, &self.binding, request.as_bytes());
        let body = serde_json::to_vec(&SignedRequest { request, proof: BASE64.encode(proof) })?;
        let request = Request::post(format!("{}join", crate::gate::PREFIX)).body(Body::from(body))?;
        Ok(serde_json::from_slice(&self.exchange(request).await?)?)
    }

    async fn exchange(&mut self, mut request: Request<Body>) -> Result<Vec<u8>> {
        request.headers_mut().insert(http::header::HOST, pki::API_NAME.parse()?);
        let host = self.host;
        let answer = timeout(PATIENCE, self.sender.send_request(request));
        let answer = answer.await.with_context(|| format!("{host} does not answer"))?;
        let answer = answer.with_context(|| format!("the host at {host} is not a Bramble master"))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
        let body = timeout(PATIENCE, body).await.with_context(|| format!("{host} does not answer"))?;
        let body = body.map_err(|e| anyhow::anyhow!("the answer of {host}: {e}"))?.to_bytes();
        if !status.is_success() {
            let text: String =
                String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(300).collect();
            bail!("{host} refuses: {text}");
        }
        Ok(body.to_vec())
    }
}
