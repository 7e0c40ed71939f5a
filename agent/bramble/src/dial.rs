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
pub const GONE: Duration = Duration::from_secs(4);

/// Has the kernel break an idle stream whose other end has vanished without a word (its plug was pulled, its address is
/// another's now) and would otherwise be waited for for ever. Sends what is written at once.
pub fn watch_over(stream: &TcpStream, gone: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, (gone / 2).max(Duration::from_secs(1)))?;
    sockopt::set_tcp_keepintvl(stream, (gone / 4).max(Duration::from_secs(1)))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 3)?)
}

/// The same for a stream that is never idle: Raft's. What was written must be acknowledged within this time (RFC 5482,
/// milliseconds). Not for clients: a reader that pauses, as a pager does, would be cut off although it lives; see
/// [`crate::watched`] for those.
fn hurry(stream: &TcpStream, gone: Duration) -> io::Result<()> {
    let limit = u32::try_from(gone.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, limit)?)
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
    if hop == Hop::Peer {
        hurry(&stream, GONE)?;
    }
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

    /// A stream to the leader: directly, or else (unless this one was passed on already) through any member that
    /// knows it. This node may hold no replica, have moved to where the leader does not find it, or have been taken out
    /// of Raft while it was away: then it takes nobody for the leader, or the wrong one, for good.
    pub async fn leader(&self, may_relay: bool) -> io::Result<TcpStream> {
        let known = self.known_leader();
        let id = known.as_ref().map(|leader| leader.id);
        let mut status = self.status.clone();
        let elected = async {
            let other = |l| l != self.me && Some(l) != id && self.roster.by_id(l).is_some();
            let _ = status.wait_for(|s| s.leader.is_some_and(other)).await;
        };
        tokio::select! {
            stream = self.through(known, may_relay) => stream,
            // An election that ends is quicker than nodes that do not answer.
            () = elected => self.through(self.known_leader(), false).await,
        }
    }

    async fn through(&self, leader: Option<Member>, may_relay: bool) -> io::Result<TcpStream> {
        let direct = match leader {
            Some(leader) => connect(&leader, Hop::Leader).await,
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "no leader is known")),
        };
        if direct.is_ok() || !may_relay {
            return direct;
        }
        self.relayed().await.inspect_err(|_| self.lost.notify_one())
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn member(id: u64, port: u16) -> Member {
        let addresses = vec![std::net::Ipv4Addr::LOCALHOST.into()];
        Member { name: format!("n{id}"), id, addresses, port, vote: true, key: String::new(), format: 0 }
    }

    /// A node that answers every preface, and its port. It tells of the last byte of each.
    async fn node(answer: u8) -> (u16, tokio::sync::mpsc::UnboundedReceiver<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, hops) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut preface = [0; 8];
                // Who asked others too goes away.
                if stream.read_exact(&mut preface).await.is_ok() && stream.write_all(&[answer]).await.is_ok()
                {
                    let _ = sender.send(preface[7]);
                }
            }
        });
        (port, hops)
    }

    fn dialer(members: Vec<Member>, status: Status) -> (Dialer, watch::Sender<Status>) {
        let (sender, status) = watch::channel(status);
        (Dialer { me: 1, roster: Roster::new(members), status, lost: Arc::default() }, sender)
    }

    #[tokio::test]
    async fn a_replica_that_was_left_behind_finds_the_leader_through_others() {
        let (port, mut hops) = node(YES).await;
        // Taken out of Raft while it was away, it still believes that it votes and that nobody leads.
        let left = Status { id: 1, voters: vec![1, 2, 3], ..Status::default() };
        let (alone, _status) = dialer(vec![member(1, 1), member(2, port)], left.clone());
        alone.leader(true).await.unwrap();
        assert_eq!(hops.recv().await, Some(Hop::Relay.byte()));
        assert!(alone.leader(false).await.is_err(), "a stream that was passed on stays where it is");
        // Or it believes in a leader that leads no more.
        let (former, mut asked) = node(NO).await;
        let stale = Status { leader: Some(3), ..left };
        let (misled, _status) = dialer(vec![member(1, 1), member(2, port), member(3, former)], stale);
        misled.leader(true).await.unwrap();
        assert_eq!((hops.recv().await, asked.recv().await), (Some(b'R'), Some(b'L')));
    }

    #[tokio::test]
    async fn an_election_that_ends_is_not_missed() {
        // It takes connections and never answers, as one that was just unplugged.
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, mut hops) = node(YES).await;
        let members = vec![member(1, 1), member(2, dead.local_addr().unwrap().port()), member(3, port)];
        let voters = vec![1, 2, 3];
        let (dialer, status) =
            dialer(members, Status { id: 1, voters, leader: Some(2), ..Status::default() });
        let asking = tokio::spawn(async move { dialer.leader(true).await.map(drop) });
        status.send_modify(|s| s.leader = Some(3));
        asking.await.unwrap().unwrap();
        assert!(hops.recv().await.is_some());
    }

    #[tokio::test]
    async fn who_vanishes_is_found_out() {
        use rustix::net::sockopt;
        let (port, _hops) = node(YES).await;
        let stream = connect(&member(2, port), Hop::Peer).await.unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 4000);
        let stream = connect(&member(2, port), Hop::Leader).await.unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 0, "a client may pause for long");
    }
}
