//! How nodes reach one another on the API's port.
//!
//! A TLS stream from a client begins with a handshake record. A stream from another node begins with eight bytes
//! instead, [`PREFACE`] and a [`Hop`], and goes on (with TLS inside) once the other side has answered [`YES`]. So a
//! node can pass a client's stream to the leader unopened, and no stream is ever passed on in a circle.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cluster::members::Member;
use store::{Status, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
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
    stream.set_nodelay(true)?;
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
}

impl Dialer {
    /// For the node that this store belongs to.
    pub fn new(me: u64, roster: Roster, store: &Store) -> Self {
        Self { me, roster, status: store.status() }
    }

    /// The leader as Raft knows it here.
    pub fn known_leader(&self) -> Option<Member> {
        let leader = self.status.borrow().leader.filter(|id| *id != self.me)?;
        self.roster.by_id(leader)
    }

    /// A stream to the leader, directly when it is known here, else (unless this one was passed on already) through
    /// any member that knows it.
    pub async fn leader(&self, may_relay: bool) -> io::Result<TcpStream> {
        if let Some(leader) = self.known_leader() {
            return connect(&leader, Hop::Leader).await;
        }
        let mut last = io::Error::new(io::ErrorKind::NotConnected, "no leader is known");
        if may_relay && self.status.borrow().voters.is_empty() {
            for member in self.roster.get().iter().filter(|m| m.id != self.me) {
                match connect(member, Hop::Relay).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }
}
