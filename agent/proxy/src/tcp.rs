//! TCP: accept, choose, connect, forward.

use crate::forwarder::{Lead, Shared};
use crate::pipe::pump;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const BACKLOG: u32 = 1024;
/// A pod on the same network answers within milliseconds; one that does not within this time is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Endpoints tried for one connection before the client is refused.
const MAX_TRIES: usize = 4;
/// When file descriptors run out, accepting again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The kernel's two hours would keep a dead client's connection for too long.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);

/// Listens on an address. Must be called in the runtime.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    prepare(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until `closed`. Connections accepted before live on.
pub(crate) async fn serve(
    listener: TcpListener,
    lead: Arc<Lead>,
    shared: Arc<Shared>,
    closed: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.cancelled() => return,
        };
        match accepted {
            Ok((client, from)) => admit(client, from, &lead, &shared),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(client: TcpStream, from: SocketAddr, lead: &Arc<Lead>, shared: &Arc<Shared>) {
    let permit = shared.connections.clone().try_acquire_owned();
    let (true, Ok(permit)) = (lead.admits(from.ip()), permit) else { return refuse(&client) };
    let (lead, shared) = (lead.clone(), shared.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = forward(&client, from, &lead, &shared) => {}
            () = shared.shutdown.cancelled() => {}
        }
        drop(permit);
    });
}

/// Closing with nothing to linger for sends a reset: the client knows at once.
fn refuse(client: &TcpStream) {
    // If that fails the client gets an end of stream, at once as well.
    let _ = client.set_zero_linger();
}

async fn forward(client: &TcpStream, from: SocketAddr, lead: &Lead, shared: &Shared) {
    let Some((server, endpoint)) = connect(from, lead).await else { return refuse(client) };
    let _counted = Counted { lead, endpoint };
    if let Err(error) = prepare(&server) {
        tracing::debug!(%error, "cannot set options of a connection");
    }
    let both = async {
        tokio::try_join!(pump(client, &server, &shared.pipes), pump(&server, client, &shared.pipes))
    };
    if both.await.is_err() {
        // One side broke off: the other must not take what it got for the whole.
        refuse(client);
        refuse(&server);
    }
}

/// Connects to an endpoint, or to another if the first ones do not answer. Each try sees the endpoints of that moment.
async fn connect(client: SocketAddr, lead: &Lead) -> Option<(TcpStream, SocketAddr)> {
    let mut tried = Vec::new();
    while tried.len() < MAX_TRIES {
        let endpoint = lead.balancer().choose(client.ip(), &tried, Instant::now())?;
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint)).await {
            Ok(Ok(server)) => {
                lead.balancer().opened(endpoint);
                return Some((server, endpoint));
            }
            Ok(Err(error)) => tracing::debug!(%endpoint, %error, "endpoint refused"),
            Err(_) => tracing::debug!(%endpoint, "endpoint did not answer"),
        }
        lead.balancer().failed(endpoint, Instant::now());
        tried.push(endpoint);
    }
    None
}

/// What comes in goes out: waiting for more here would only add to the sender's own delay. Keepalive finds out that the
/// other side vanished without a word. Accepted sockets inherit this from the listener.
fn prepare(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    Ok(())
}

/// Keeps the count of open connections right however the connection ends.
struct Counted<'a> {
    lead: &'a Lead,
    endpoint: SocketAddr,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.lead.balancer().closed(self.endpoint);
    }
}
