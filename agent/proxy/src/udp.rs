//! UDP: each client has a flow to one endpoint, with a socket of its own so that answers find their way back.

use crate::forwarder::{Lead, Shared};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// A flow without packets in either direction for so long is over.
const IDLE: Duration = Duration::from_secs(30);
const MAX_DATAGRAM: usize = 65_535;

/// Binds an address. Must be called in the runtime.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

struct Flow {
    socket: UdpSocket,
    endpoint: SocketAddr,
    last: Mutex<Instant>,
    ended: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Flow {
    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn deadline(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) + IDLE
    }
}

/// One frontend's flows by client.
struct Flows {
    listener: UdpSocket,
    lead: Arc<Lead>,
    by_client: Mutex<HashMap<SocketAddr, Arc<Flow>>>,
}

impl Flows {
    fn by_client(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Flow>>> {
        self.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, client: SocketAddr, flow: &Arc<Flow>) {
        let mut flows = self.by_client();
        if flows.get(&client).is_some_and(|current| Arc::ptr_eq(current, flow)) {
            flows.remove(&client);
        }
    }
}

/// Forwards datagrams until `closed`.
pub(crate) async fn serve(
    listener: UdpSocket,
    lead: Arc<Lead>,
    shared: Arc<Shared>,
    closed: CancellationToken,
) {
    let flows = Arc::new(Flows { listener, lead, by_client: Mutex::default() });
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            received = flows.listener.recv_from(&mut datagram) => received,
            () = closed.cancelled() => break,
        };
        // An error here is a client's ICMP complaint about an earlier answer.
        let Ok((len, client)) = received else { continue };
        if let Err(error) = pass_on(&flows, &shared, client, &datagram[..len]).await {
            tracing::debug!(%client, %error, "datagram lost");
        }
    }
    for flow in flows.by_client().values() {
        flow.ended.cancel();
    }
}

/// Sends a client's datagram on, by its flow or a new one. A datagram nobody can take is dropped, as UDP may.
async fn pass_on(
    flows: &Arc<Flows>,
    shared: &Arc<Shared>,
    client: SocketAddr,
    datagram: &[u8],
) -> io::Result<()> {
    if !flows.lead.admits(client.ip()) {
        return Ok(());
    }
    let known = flows.by_client().get(&client).cloned();
    let flow = match known {
        // An endpoint that is gone must not keep its clients.
        Some(flow) if !flow.ended.is_cancelled() && flows.lead.balancer().contains(&flow.endpoint) => flow,
        stale => {
            if let Some(stale) = stale {
                stale.ended.cancel();
            }
            match open(flows, shared, client).await? {
                Some(flow) => flow,
                None => return Ok(()),
            }
        }
    };
    flow.touch();
    // Straight to the kernel: a socket just made counts as not yet writable in the runtime. A full buffer towards one
    // endpoint must not hold up the other clients either way.
    match rustix::net::send(&flow.socket, datagram, SendFlags::DONTWAIT) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => {
            fail(flows, &flow);
            Err(errno.into())
        }
    }
}

async fn open(flows: &Arc<Flows>, shared: &Arc<Shared>, client: SocketAddr) -> io::Result<Option<Arc<Flow>>> {
    let Ok(permit) = shared.flows.clone().try_acquire_owned() else { return Ok(None) };
    let chosen = flows.lead.balancer().choose(client.ip(), &[], std::time::Instant::now());
    let Some(endpoint) = chosen else { return Ok(None) };
    let any: SocketAddr = match endpoint {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(endpoint).await?;
    let flow = Arc::new(Flow {
        socket,
        endpoint,
        last: Mutex::new(Instant::now()),
        ended: shared.shutdown.child_token(),
        _permit: permit,
    });
    flows.by_client().insert(client, flow.clone());
    tokio::spawn(bring_back(flows.clone(), client, flow.clone()));
    Ok(Some(flow))
}

/// Brings the endpoint's answers to the client until the flow is idle.
async fn bring_back(flows: Arc<Flows>, client: SocketAddr, flow: Arc<Flow>) {
    flows.lead.balancer().opened(flow.endpoint);
    let mut datagram = Vec::with_capacity(2048);
    loop {
        datagram.clear();
        let received = tokio::select! {
            received = timeout_at(flow.deadline(), readable(&flow.socket, &mut datagram)) => received,
            () = flow.ended.cancelled() => break,
        };
        match received {
            Ok(Ok(())) => {
                flow.touch();
                // The client may be gone; that is its affair.
                let _ = flows.listener.send_to(&datagram, client).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(endpoint = %flow.endpoint, %error, "endpoint refused a datagram");
                fail(&flows, &flow);
                break;
            }
            Err(_) if flow.deadline() <= Instant::now() => break,
            Err(_) => {}
        }
    }
    flow.ended.cancel();
    flows.remove(client, &flow);
    flows.lead.balancer().closed(flow.endpoint);
}

/// Receives one datagram. The buffer for the biggest one is needed only once one is there, not by each waiting flow.
async fn readable(socket: &UdpSocket, datagram: &mut Vec<u8>) -> io::Result<()> {
    loop {
        socket.readable().await?;
        datagram.reserve(MAX_DATAGRAM);
        match socket.try_recv_buf(datagram) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => datagram.shrink_to(0),
            Err(error) => return Err(error),
        }
    }
}

fn fail(flows: &Flows, flow: &Flow) {
    flow.ended.cancel();
    flows.lead.balancer().failed(flow.endpoint, std::time::Instant::now());
}
