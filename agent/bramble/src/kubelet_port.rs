//! The kubelet's port: mTLS, for administrators' certificates only (the leader signs itself one), and the leader's way
//! to it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::Kubelets;
use cluster::pki::{self, MASTERS_GROUP, Subject};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use store::Kv;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::listen;
use crate::serving::authority;
use crate::watched::Watched;

/// Log and exec streams at once.
const STREAMS: usize = 256;
/// Time for a handshake or a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// A node that is silent for so long, though spoken to, is gone.
const GONE: Duration = Duration::from_secs(10);

/// Serves the kubelet's routes until shut down.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: axum::Router,
    shutdown: CancellationToken,
) {
    let serve = |stream, place| connection(stream, place, tls.clone(), router.clone());
    listen::accept(listener, STREAMS, shutdown, serve).await;
}

async fn connection(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    tls: Arc<ServerConfig>,
    router: axum::Router,
) -> Result<()> {
    let stream = Watched::new(stream, GONE, Some(place))?;
    let stream =
        timeout(PATIENCE, TlsAcceptor::from(tls).accept(stream)).await.context("handshake too slow")??;
    let chain = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).context("no certificate")?;
    let subject = Subject::of(chain)?;
    anyhow::ensure!(
        subject.groups.iter().any(|g| g == MASTERS_GROUP),
        "{} may not use the kubelet",
        subject.user
    );
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let service = TowerToHyperService::new(router);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    served.map_err(|e| anyhow::anyhow!(e))
}

/// The leader's way to every kubelet.
pub struct KubeletDialer {
    /// Where the CA is.
    pub kv: Arc<dyn Kv>,
    /// The kubelet's port on every node.
    pub port: u16,
}

#[async_trait::async_trait]
impl Kubelets for KubeletDialer {
    async fn connect(&self, node: &Value) -> io::Result<Box<dyn apiserver::Stream>> {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let addresses = node["status"]["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        let internal = addresses.iter().find(|a| a["type"] == "InternalIP");
        let address: Option<IpAddr> = internal.and_then(|a| a["address"].as_str()?.parse().ok());
        let address = address.ok_or_else(|| io::Error::other(format!("node {name} has no address")))?;
        let tls = self.tls().map_err(|e| io::Error::other(format!("{e:#}")))?;
        let connect = TcpStream::connect(SocketAddr::new(address, self.port));
        let stream =
            timeout(PATIENCE, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let stream = Watched::new(stream, GONE, None)?;
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let secured = timeout(PATIENCE, TlsConnector::from(tls).connect(name, stream)).await;
        Ok(Box::new(secured.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
    }
}

impl KubeletDialer {
    fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        let ca = authority(&*self.kv)?;
        let pair = ca.sign_client("kube-apiserver-kubelet-client", &[MASTERS_GROUP])?;
        Ok(pki::client(&ca.pair().certificate, &pair, &[])?)
    }
}
