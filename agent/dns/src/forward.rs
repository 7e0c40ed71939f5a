//! Asks upstream servers.

use std::{io, net::SocketAddr, sync::Mutex, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout},
};

use crate::{cache::Cache, message::EDNS_PAYLOAD};

/// One server gets this long for one try.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);
/// Wrong or forged packets looked at before giving a server up.
const STRAY_BOUND: usize = 8;

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no upstream server is configured")]
    NoUpstream,
    #[error("no upstream server answered")]
    NoAnswer,
}

/// See the module.
pub(crate) struct Forwarder {
    upstream: Vec<SocketAddr>,
    cache: Mutex<Cache>,
}

impl Forwarder {
    /// Never forwards to ourselves: such addresses are left out.
    pub(crate) fn new(upstream: &[SocketAddr], listen: &[SocketAddr]) -> Self {
        let upstream = upstream.iter().filter(|server| !is_self(server, listen)).copied().collect();
        Self { upstream, cache: Mutex::new(Cache::default()) }
    }

    /// What is already known.
    pub(crate) fn cached(&self, name: &Name, kind: RecordType) -> Option<Message> {
        let cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        cache.get(name, kind, Instant::now())
    }

    /// Asks one server after another.
    pub(crate) async fn ask(&self, question: &Query) -> Result<Message, ForwardError> {
        if self.upstream.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        if let Some(message) = self.cached(question.name(), question.query_type()) {
            return Ok(message);
        }
        for server in &self.upstream {
            match timeout(TRY_TIMEOUT, exchange(*server, question)).await {
                Ok(Ok(message)) => {
                    let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    cache.put(question.name(), question.query_type(), &message, Instant::now());
                    return Ok(message);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream failed"),
                Err(_) => tracing::debug!(%server, "upstream timed out"),
            }
        }
        Err(ForwardError::NoAnswer)
    }
}

fn is_self(server: &SocketAddr, listen: &[SocketAddr]) -> bool {
    listen.iter().any(|own| {
        own == server
            || (own.port() == server.port()
                && own.ip().is_unspecified()
                && (server.ip().is_loopback() || server.ip().is_unspecified()))
    })
}

/// Asks by UDP, and by TCP if the answer was cut off.
async fn exchange(server: SocketAddr, question: &Query) -> io::Result<Message> {
    let query = query(question);
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let answer = by_udp(server, &query, &bytes).await?;
    if answer.metadata.truncation { by_tcp(server, &query, &bytes).await } else { Ok(answer) }
}

fn query(question: &Query) -> Message {
    // The identifier and (by a fresh socket) the port are random: answers cannot be guessed.
    let mut query = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_PAYLOAD);
    query.set_edns(edns);
    query
}

async fn by_udp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(EDNS_PAYLOAD)];
    for _ in 0..STRAY_BOUND {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = accept(query, &buffer[..length]) {
            return Ok(answer);
        }
    }
    Err(io::Error::other("only answers to something else"))
}

async fn by_tcp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    accept(query, &buffer).ok_or_else(|| io::Error::other("answer to something else"))
}

/// Takes an answer only if it is one to our question.
fn accept(query: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == query.queries;
    same.then_some(answer)
}
