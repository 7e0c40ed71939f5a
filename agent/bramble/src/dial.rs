//! How nodes reach one another on the API's port.
//!
//! A TLS stream from a client begins with a handshake record. A stream from another node begins with eight bytes
//! instead, [`PREFACE`] and a [`Hop`], and goes on (with TLS inside) once the other side has answered [`YES`]. So a
//! node can pass a client's stream to the leader unopened, and no stream is ever passed on in a circle.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::members::Member;
use futures::StreamExt;
use store::{Status, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::roster::Roster;

/// The first seven bytes of a stream between nodes. No TLS record and no HTTP request begins so.
pub const PREFACE: &[u8; 7] = b"BRAMBLE";
/// The stream is taken.
pub const YES: u8 = b'+';
/// The stream is refused: this node does not lead, or knows no leader.
pub const NO: u8 = b'-';
/// Time for a TCP connection to a node on the same network.
const CONNECT: Duration = Duration::from_secs(1);
/// Time for the answer to the preface.
const ANSWER: Duration = Duration::from_secs(2);

/// A node whose kernel has not acknowledged anything for so long is gone, or has another address.
const GONE: Duration = Duration::from_secs(4);

/// Has the kernel break a stream whose other end has vanished without a word (its plug was pulled, its address is
/// another's now) and would otherwise be waited for a quarter of an hour. Sends what is written at once.
pub fn watch_over(stream: &TcpStream, gone: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, (gone / 2).max(Duration::from_secs(1)))?;
    sockopt::set_tcp_keepintvl(stream, (gone / 4).max(Duration::from_secs(1)))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    // Milliseconds; also for what was written and not acknowledged (RFC 5482).
    Ok(sockopt::set_tcp_user_timeout(stream, u32::try_from(gone.as_millis()).unwrap_or(u32::MAX))?)
}

/// Members asked at once whether they know the leader: some may be gone, which takes [`CONNECT`] to find out.
const RELAYS: usize = 3;

/// What a stream between nodes is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A client's stream, for the leader itself.
    Leader,
    /// A client's stream that may be passed on once more.
    Relay,
    /// Raft messages.
    Peer,
}

impl Hop {
    /// Its byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Leader => b'L',
            Self::Relay => b'R',
            Self::Peer => b'P',
        }
    }

    /// From its byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Leader, Self::Relay, Self::Peer].into_iter().find(|hop| hop.byte() == byte)
    }
}

/// Opens a stream to a member and has it accepted.
pub async fn connect(member: &Member, hop: Hop) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the member has no address");
    for address in &member.addresses {
        match open(SocketAddr::new(*address, member.port), hop).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open(address: SocketAddr, hop: Hop) -> io::Result<TcpStream> {
    let mut stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| late())??;
    watch_over(&stream, GONE)?;
    let mut preface = [0; 8];
    preface[..7].copy_from_slice(PREFACE);
    preface[7] = hop.byte();
    stream.write_all(&preface).await?;
    let answer = timeout(ANSWER, stream.read_u8()).await.map_err(|_| late())??;
    if answer != YES {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "the node does not lead"));
    }
    Ok(stream)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// Finds the leader.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// This node's Raft id.
    pub me: u64,
    /// Who there is.
    pub roster: Roster,
    /// What Raft says on this node.
    pub status: watch::Receiver<Status>,
    /// Told when no member was found that knows a leader.
    pub lost: Arc<Notify>,
}

impl Dialer {
    /// For the node that this store belongs to.
    pub fn new(me: u64, roster: Roster, store: &Store) -> Self {
        Self { me, roster, status: store.status(), lost: Arc::default() }
    }

    /// The leader as Raft knows it here.
    pub fn known_leader(&self) -> Option<Member> {
        let leader = self.status.borrow().leader.filter(|id| *id != self.me)?;
        self.roster.by_id(leader)
    }

    /// A stream to the leader, directly when it is known here, else (unless this one was passed on already) through
    /// any member that knows it: this node may hold no replica, or have moved to where the leader does not find it.
    pub async fn leader(&self, may_relay: bool) -> io::Result<TcpStream> {
        if let Some(leader) = self.known_leader() {
            return connect(&leader, Hop::Leader).await;
        }
        if !may_relay {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "no leader is known"));
        }
        let mut status = self.status.clone();
        let me = self.me;
        let elected = async move { status.wait_for(|s| s.leader.is_some_and(|id| id != me)).await.map(drop) };
        tokio::select! {
            relayed = self.relayed() => relayed.inspect_err(|_| self.lost.notify_one()),
            _ = elected => {
                let leader = self.known_leader();
                let leader = leader.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the leader is no member"))?;
                connect(&leader, Hop::Leader).await
            }
        }
    }

    /// Through the first member that takes the stream.
    async fn relayed(&self) -> io::Result<TcpStream> {
        let mut attempts = Vec::new();
        for member in self.roster.get().iter().filter(|m| m.id != self.me) {
            let member = self.roster.by_id(member.id);
            attempts.extend(member.map(|member| async move { connect(&member, Hop::Relay).await }));
        }
        let mut attempts = futures::stream::iter(attempts).buffer_unordered(RELAYS);
        let mut last = io::Error::new(io::ErrorKind::NotConnected, "no leader is known");
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
