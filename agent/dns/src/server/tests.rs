use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use super::{Server, serve_tcp, serve_udp};
use crate::{Config, resolver, zone::parse_domain};

/// Running tasks, the address they answer on.
async fn start(upstream: Vec<SocketAddr>, known: bool) -> (JoinSet<()>, SocketAddr) {
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        domain: "cluster.local".to_owned(),
        upstream,
        reverse: Vec::new(),
    };
    let server = Server::bind(&config, parse_domain(&config.domain).unwrap()).unwrap();
    let address = server.udp[0].local_addr().unwrap();
    if known {
        server.zone.send_replace(Some(Arc::new(resolver::tests::zone())));
    }
    let mut tasks = JoinSet::new();
    for socket in server.udp {
        tasks.spawn(serve_udp(Arc::new(socket), server.shared.clone()));
    }
    for listener in server.tcp {
        tasks.spawn(serve_tcp(listener, server.shared.clone()));
    }
    (tasks, address)
}

fn query(name: &str) -> Vec<u8> {
    let mut query = Message::new(99, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query.to_vec().unwrap()
}

async fn by_udp(address: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query(name), address).await.unwrap();
    let mut buffer = [0; 2048];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn by_tcp(address: SocketAddr, name: &str) -> Message {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let bytes = query(name);
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

/// A server that knows one address, and counts how often it is asked.
async fn upstream() -> (SocketAddr, tokio::sync::watch::Receiver<usize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (count, counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            count.send_modify(|n| *n += 1);
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = super::response(&asked, ResponseCode::NoError);
            let name = asked.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
            socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    (address, counted)
}

#[tokio::test]
async fn udp_and_tcp_give_the_same() {
    let (_tasks, address) = start(Vec::new(), true).await;
    let (udp, tcp) = (
        by_udp(address, "db.default.svc.cluster.local.").await,
        by_tcp(address, "db.default.svc.cluster.local.").await,
    );
    assert_eq!(udp.answers, tcp.answers);
    assert_eq!(udp.answers.len(), 2);
    assert!(udp.metadata.authoritative);
}

#[tokio::test]
async fn an_unknown_zone_is_no_reason_to_deny_names() {
    let (_tasks, address) = start(Vec::new(), false).await;
    let answer = by_udp(address, "web.default.svc.cluster.local.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_rest_goes_upstream_past_a_dead_server_and_is_kept() {
    let (good, asked) = upstream().await;
    // Bound, never answering.
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (_tasks, address) = start(vec![dead.local_addr().unwrap(), good], true).await;
    for _ in 0..2 {
        let answer = by_udp(address, "example.org.").await;
        assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
        assert_eq!(answer.metadata.id, 99);
    }
    assert_eq!(*asked.borrow(), 1, "the second answer was known");
    let alias = by_udp(address, "out.default.svc.cluster.local.").await;
    assert_eq!(alias.answers.len(), 2, "the alias and where it leads");
}

#[tokio::test]
async fn nobody_to_ask_is_said() {
    let (_tasks, address) = start(Vec::new(), true).await;
    assert_eq!(by_udp(address, "example.org.").await.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn never_forwards_to_itself() {
    let own: SocketAddr = "10.0.0.10:53".parse().unwrap();
    let forwarder = crate::forward::Forwarder::new(&[own], &[own]);
    let question = Query::query(Name::root(), RecordType::A);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(matches!(
        runtime.block_on(forwarder.ask(&question)),
        Err(crate::forward::ForwardError::NoUpstream)
    ));
}
