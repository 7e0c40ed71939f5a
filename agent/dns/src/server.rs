//! Sockets: UDP and TCP on every listening address.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::Name,
};
use ipnet::Ipv4Net;
use kube::Client;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Error,
    forward::{ForwardError, Forwarder},
    message::{Packet, QUERY_BOUND, encode, local, payload, read, relayed, response},
    resolver::{Resolution, is_ours, resolve},
    sync::{Origin, keep},
    zone::Zone,
};

/// Questions with upstream at a time; more get SERVFAIL at once.
const FORWARD_BOUND: usize = 256;
/// Open TCP connections; more wait to be accepted.
const CONNECTION_BOUND: usize = 64;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// A silent TCP connection is closed after this long.
const IDLE: Duration = Duration::from_secs(10);
const TCP_BOUND: usize = 65_535;
/// Pause after an accept that failed for lack of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every socket's task shares.
struct Shared {
    origin: Origin,
    zone: watch::Receiver<Option<Arc<Zone>>>,
    forwarder: Forwarder,
    forwards: Semaphore,
}

/// Bound sockets.
pub(crate) struct Server {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    shared: Arc<Shared>,
    zone: watch::Sender<Option<Arc<Zone>>>,
}

/// What to do with a packet.
enum Step {
    Reply(Message),
    /// Upstream must be asked: this, and then the query is answered with what came before and what it said.
    Ask {
        query: Box<Message>,
        question: Query,
        before: Option<Message>,
    },
    Nothing,
}

impl Server {
    /// Takes the addresses.
    pub(crate) fn bind(config: &Config, domain: Name) -> Result<Self, Error> {
        let (sender, zone) = watch::channel(None);
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        let mut listen = Vec::new();
        for address in &config.listen {
            let failed = |protocol| move |source| Error::Listen { address: *address, protocol, source };
            let listener = listen_tcp(*address).map_err(failed("tcp"))?;
            let actual = listener.local_addr().map_err(failed("tcp"))?;
            udp.push(listen_udp(actual).map_err(failed("udp"))?);
            tcp.push(listener);
            listen.push(actual);
        }
        let reverse: Vec<Ipv4Net> = config.reverse.clone();
        let shared = Arc::new(Shared {
            origin: Origin { domain, reverse },
            zone,
            forwarder: Forwarder::new(&config.upstream, &listen),
            forwards: Semaphore::new(FORWARD_BOUND),
        });
        Ok(Self { udp, tcp, shared, zone: sender })
    }

    /// Answers until `shutdown`, or until a task ends, which none does by itself: a node without one of them would
    /// answer nothing, or what was true once.
    pub(crate) async fn run(self, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        for socket in self.udp {
            tasks.spawn(serve_udp(Arc::new(socket), self.shared.clone()));
        }
        for listener in self.tcp {
            tasks.spawn(serve_tcp(listener, self.shared.clone()));
        }
        tasks.spawn(keep(self.shared.origin.clone(), client, self.zone));
        // Dropping the set ends every task with us.
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = tasks.join_next() => {
                Err(Error::Ended(ended.and_then(Result::err).map_or_else(String::new, |e| format!(": {e}"))))
            }
        }
    }
}

/// Listens, whether or not the address is already one of this machine: the network may come up after us.
fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    rustix::net::sockopt::set_ip_freebind(&socket, true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn listen_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    rustix::net::sockopt::set_ip_freebind(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

impl Shared {
    fn step(&self, bytes: &[u8]) -> Step {
        let (query, question) = match read(bytes) {
            Packet::Silence => return Step::Nothing,
            Packet::Refused(message) => return Step::Reply(*message),
            Packet::Question { query, question } => (query, question),
        };
        let zone = self.zone.borrow().clone();
        let Some(zone) = zone else {
            let ours = is_ours(&self.origin.domain, &self.origin.reverse, question.name());
            return if ours {
                Step::Reply(response(&query, ResponseCode::ServFail))
            } else {
                Step::Ask { query, question, before: None }
            };
        };
        let turn = usize::from(query.metadata.id);
        match resolve(&zone, question.name(), question.query_type(), turn) {
            Resolution::Upstream => Step::Ask { query, question, before: None },
            Resolution::Here(answer) => {
                let elsewhere = answer.elsewhere.clone();
                let message = local(&query, answer);
                match elsewhere {
                    None => Step::Reply(message),
                    Some(name) => {
                        let question = Query::query(name, question.query_type());
                        Step::Ask { query, question, before: Some(message) }
                    }
                }
            }
        }
    }

    /// Asks upstream and makes the answer.
    async fn ask(&self, query: &Message, question: &Query, before: Option<Message>) -> Message {
        let Ok(_permit) = self.forwards.try_acquire() else { return response(query, ResponseCode::ServFail) };
        let answer = self.forwarder.ask(question).await;
        match (answer, before) {
            (Ok(answer), None) => relayed(query, answer),
            (Ok(answer), Some(mut before)) => {
                before.metadata.response_code = answer.metadata.response_code;
                before.answers.extend(answer.answers);
                before
            }
            // The alias alone is true, and all that is known.
            (Err(_), Some(before)) => before,
            (Err(ForwardError::NoUpstream), None) => response(query, ResponseCode::Refused),
            (Err(error), None) => {
                tracing::debug!(%error, name = %question.name(), "not answered");
                response(query, ResponseCode::ServFail)
            }
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; QUERY_BOUND + 1];
    let mut asking = JoinSet::new();
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // Errors here are those of earlier answers (port unreachable): the socket is as good as before.
                let Ok((length, peer)) = received else { continue };
                match shared.step(&buffer[..length]) {
                    Step::Nothing => {}
                    Step::Reply(message) => {
                        let bound = bound_of(&buffer[..length]);
                        send(&socket, peer, message, bound).await;
                    }
                    Step::Ask { query, question, before } => {
                        let (socket, shared) = (socket.clone(), shared.clone());
                        asking.spawn(async move {
                            let message = shared.ask(&query, &question, before).await;
                            send(&socket, peer, message, payload(&query)).await;
                        });
                    }
                }
            }
            Some(_) = asking.join_next() => {}
        }
    }
}

/// How large an answer to this packet may be.
fn bound_of(bytes: &[u8]) -> usize {
    Message::from_vec(bytes).map_or(usize::from(512_u16), |query| payload(&query))
}

async fn send(socket: &UdpSocket, peer: SocketAddr, message: Message, bound: usize) {
    if let Some(bytes) = encode(message, bound)
        && let Err(error) = socket.send_to(&bytes, peer).await
    {
        tracing::debug!(%error, %peer, "answer not sent");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(CONNECTION_BOUND));
    let mut open = JoinSet::new();
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let shared = shared.clone();
                    open.spawn(async move {
                        if let Err(error) = serve_stream(stream, &shared).await {
                            tracing::debug!(%error, %peer, "connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        if length > QUERY_BOUND {
            return Err(io::Error::other("query too long"));
        }
        let mut bytes = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let message = match shared.step(&bytes) {
            Step::Nothing => return Ok(()),
            Step::Reply(message) => message,
            Step::Ask { query, question, before } => shared.ask(&query, &question, before).await,
        };
        let Some(answer) = encode(message, TCP_BOUND) else { return Ok(()) };
        let mut framed = u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
mod tests;
