//! `bramble.local`: every node of the cluster answers for it with its own address (multicast DNS, RFC 6762), so a
//! person needs to know no address, and nodes that all got new ones find each other again.
//!
//! Only IPv4 addresses of one name are answered for, and the record is a shared one (never with the cache-flush bit).
//! Names of single machines are left to systemd-resolved or avahi, with which the port is shared.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

/// The name that is every node.
pub const NAME: &str = "bramble.local.";
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// RFC 6762, 10.
const TTL: u32 = 120;
/// For a resolver that knows nothing of multicast, RFC 6762, 6.7.
const LEGACY_TTL: u32 = 10;
/// A record is not multicast again within a second, RFC 6762, 6.
const APART: Duration = Duration::from_secs(1);
/// Answers to single hosts in a second.
const SINGLE_BOUND: u32 = 20;
/// Pause after a socket that failed: the network is away, or has another address now.
const AGAIN: Duration = Duration::from_secs(5);
const PACKET_BOUND: usize = 9000;
/// Nodes found at most.
const FOUND_BOUND: usize = 256;

/// Answers for [`NAME`] with this address, for as long as it is polled.
pub async fn answer(address: Ipv4Addr) {
    loop {
        let ended = match socket(GROUP.port(), address) {
            Ok(socket) => serve(&socket, address).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "multicast DNS");
        }
        sleep(AGAIN).await;
    }
}

/// Asks who is [`NAME`] and gathers the answers that come within `patience`.
///
/// # Errors
/// When there is no network to ask on.
pub async fn find(own: Ipv4Addr, patience: Duration) -> io::Result<BTreeSet<Ipv4Addr>> {
    let socket = socket(0, own)?;
    let name = Name::from_ascii(NAME).map_err(io::Error::other)?;
    let id = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name.clone(), RecordType::A));
    socket.send_to(&message.to_vec().map_err(io::Error::other)?, GROUP).await?;
    let (deadline, mut found, mut buffer) =
        (Instant::now() + patience, BTreeSet::new(), vec![0; PACKET_BOUND]);
    while let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await {
        let (length, _) = received?;
        if let Ok(message) = Message::from_vec(&buffer[..length])
            && message.metadata.message_type == MessageType::Response
            && message.metadata.id == id
        {
            let ours = message.answers.iter().filter(|r| r.name == name);
            found.extend(ours.filter_map(|r| match &r.data {
                RData::A(A(address)) => Some(*address),
                _ => None,
            }));
        }
        if found.len() >= FOUND_BOUND {
            break;
        }
    }
    Ok(found)
}

fn socket(port: u16, own: Ipv4Addr) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    sockopt::set_ip_multicast_if(&socket, &own)?;
    sockopt::set_ip_multicast_ttl(&socket, 255)?;
    if port != 0 {
        // Other responders on this machine listen too.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        sockopt::set_ip_add_membership(&socket, GROUP.ip(), &own)?;
    }
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    UdpSocket::from_std(socket.into())
}

async fn serve(socket: &UdpSocket, address: Ipv4Addr) -> io::Result<()> {
    let mut buffer = vec![0; PACKET_BOUND];
    let mut pace = Pace::new(Instant::now());
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let Some((reply, to)) = reply(&buffer[..length], from, address) else { continue };
        let single = to != SocketAddr::from(GROUP);
        if !pace.allows(single, Instant::now()) {
            continue;
        }
        if !single {
            // All nodes heard the question: they do not answer at the same moment (RFC 6762, 6).
            sleep(Duration::from_millis(rand::random_range(20..120))).await;
        }
        if let Ok(bytes) = reply.to_vec() {
            socket.send_to(&bytes, to).await?;
        }
    }
}

/// How often answers are given.
struct Pace {
    last: Option<Instant>,
    second: Instant,
    singles: u32,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { last: None, second: now, singles: 0 }
    }

    fn allows(&mut self, single: bool, now: Instant) -> bool {
        if single {
            if now - self.second >= APART {
                (self.second, self.singles) = (now, 0);
            }
            self.singles += 1;
            return self.singles <= SINGLE_BOUND;
        }
        if self.last.is_some_and(|last| now - last < APART) {
            return false;
        }
        self.last = Some(now);
        true
    }
}

/// The answer to a packet, if it asks for us, and where it goes.
fn reply(packet: &[u8], from: SocketAddr, own: Ipv4Addr) -> Option<(Message, SocketAddr)> {
    let query = Message::from_vec(packet).ok()?;
    if query.metadata.message_type != MessageType::Query || query.metadata.op_code != OpCode::Query {
        return None;
    }
    let name = Name::from_ascii(NAME).ok()?;
    let wanted = |q: &&Query| {
        q.name() == &name
            && matches!(q.query_type(), RecordType::A | RecordType::ANY)
            && matches!(q.query_class(), DNSClass::IN | DNSClass::ANY)
    };
    let question = query.queries.iter().find(wanted)?;
    // Whoever knows our answer already need not hear it again (RFC 6762, 7.1).
    let known =
        |r: &Record| r.name == name && r.ttl >= TTL / 2 && matches!(r.data, RData::A(A(a)) if a == own);
    if query.answers.iter().any(known) {
        return None;
    }
    let legacy = from.port() != GROUP.port();
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    if legacy {
        message.metadata.id = query.metadata.id;
        message.add_query(question.clone());
    }
    let ttl = if legacy { LEGACY_TTL } else { TTL };
    message.add_answer(Record::from_rdata(name, ttl, RData::A(A(own))));
    let single = legacy || question.mdns_unicast_response();
    Some((message, if single { from } else { GROUP.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 102);

    fn asks(name: &str, kind: RecordType, known: Option<(Ipv4Addr, u32)>) -> Vec<u8> {
        let name = Name::from_ascii(name).unwrap();
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name.clone(), kind));
        if let Some((address, ttl)) = known {
            message.add_answer(Record::from_rdata(name, ttl, RData::A(A(address))));
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn answers_for_the_cluster_alone() {
        let group = SocketAddr::from(([192, 168, 1, 5], 5353));
        let (message, to) = reply(&asks("Bramble.Local.", RecordType::A, None), group, OWN).unwrap();
        assert_eq!((to, message.metadata.id, message.queries.len()), (GROUP.into(), 0, 0));
        assert_eq!((message.answers[0].ttl, &message.answers[0].data), (TTL, &RData::A(A(OWN))));
        assert!(!message.answers[0].mdns_cache_flush, "the name is shared by all nodes");
        // A plain resolver: answered alone, with its own id and question.
        let plain = SocketAddr::from(([192, 168, 1, 5], 40_000));
        let (message, to) = reply(&asks(NAME, RecordType::ANY, None), plain, OWN).unwrap();
        assert_eq!((to, message.metadata.id, message.queries.len()), (plain, 7, 1));
        assert_eq!(message.answers[0].ttl, LEGACY_TTL);
        for silent in [
            asks("other.local.", RecordType::A, None),
            asks(NAME, RecordType::AAAA, None),
            asks(NAME, RecordType::A, Some((OWN, 100))),
            message.to_vec().unwrap(),
        ] {
            assert!(reply(&silent, group, OWN).is_none());
        }
        // Another node's answer, or one about to end, is not ours.
        let other = Ipv4Addr::new(192, 168, 1, 101);
        for known in [(other, 100), (OWN, 10)] {
            assert!(reply(&asks(NAME, RecordType::A, Some(known)), group, OWN).is_some());
        }
    }

    #[test]
    fn does_not_shout() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!(pace.allows(false, now) && !pace.allows(false, now));
        assert_eq!((0..100).filter(|_| pace.allows(true, now)).count() as u32, SINGLE_BOUND);
        assert!(pace.allows(false, now + APART) && pace.allows(true, now + APART));
    }

    proptest! {
        #[test]
        fn never_panics(packet in proptest::collection::vec(any::<u8>(), 0..200), port in any::<u16>()) {
            let _ = reply(&packet, SocketAddr::from(([10, 0, 0, 1], port)), OWN);
        }
    }
}
