//! SPDY by hand.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Lab, goodbye, lab, noise};
use crate::spdy::{Codec, Frame};

/// A SPDY client after its upgrade.
struct Client {
    stream: TcpStream,
    out: Codec,
    into: Codec,
    buffer: BytesMut,
}

impl Client {
    async fn new(lab: &Lab, path: &str, protocol: &str) -> Client {
        let mut stream = TcpStream::connect(lab.address).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: {protocol}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains(&format!("x-stream-protocol-version: {protocol}\r\n")), "{answer}");
        Client { stream, out: Codec::new().unwrap(), into: Codec::new().unwrap(), buffer: BytesMut::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.out.encode(&frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.send(Frame::Syn { id, headers, fin: false }).await;
        let reply = self.receive().await;
        assert!(matches!(reply, Some(Frame::Reply { id: of, .. }) if of == id), "{reply:?}");
    }

    async fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.into.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// All that comes on these streams, until each has ended.
    async fn collect<const N: usize>(&mut self, ids: [u32; N]) -> [Vec<u8>; N] {
        let mut all = [const { Vec::new() }; N];
        let mut open = ids.to_vec();
        while !open.is_empty() {
            let Some(Frame::Data { id, bytes, fin }) = self.receive().await else {
                panic!("{open:?} never ended")
            };
            let index = ids.iter().position(|of| *of == id).unwrap();
            all[index].extend_from_slice(&bytes);
            open.retain(|of| !(fin && *of == id));
        }
        all
    }
}

#[tokio::test]
async fn a_command_ends_with_what_each_protocol_knows() {
    let lab = lab().await;
    let failed = "command terminated with non-zero exit code: exit status 5";
    for (protocol, code, end) in [
        ("v2.channel.k8s.io", 0, ""),
        ("v2.channel.k8s.io", 5, failed),
        ("v3.channel.k8s.io", 5, failed),
        ("v4.channel.k8s.io", 5, "NonZeroExitCode"),
        ("v5.channel.k8s.io", 0, "Success"),
    ] {
        let script = format!("printf%20err%3E%262;cat;exit%20{code}");
        let path =
            format!("/exec/default/p/c?command=sh&command=-c&command={script}&input=1&output=1&error=1");
        let mut client = Client::new(&lab, &path, protocol).await;
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            client.open(id, &[("streamType", kind)]).await;
        }
        client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true }).await;
        let [error, out, err] = client.collect([1, 5, 7]).await;
        assert_eq!((out.as_slice(), err.as_slice()), (&b"hello"[..], &b"err"[..]));
        let error = match serde_json::from_slice::<Value>(&error) {
            Ok(status) => status["reason"].as_str().or(status["status"].as_str()).unwrap().to_owned(),
            Err(_) => String::from_utf8(error).unwrap(),
        };
        assert_eq!(error, end, "{protocol}");
        assert_eq!(client.receive().await, None, "the session ends with the command");
    }
}

#[tokio::test]
async fn a_command_that_does_not_start_says_so() {
    let lab = lab().await;
    let path = "/exec/default/p/c?command=/no/such/program&output=1";
    let mut client = Client::new(&lab, path, "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    let [error, _] = client.collect([1, 3]).await;
    let status: Value = serde_json::from_slice(&error).unwrap();
    assert!(status["message"].as_str().unwrap().contains("/no/such/program: No such file"), "{status}");
}

#[tokio::test]
async fn streams_that_nobody_expects_are_refused() {
    let lab = lab().await;
    let path = "/exec/default/p/c?command=cat&input=1&output=1";
    let mut client = Client::new(&lab, path, "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "surprise")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    assert!(matches!(client.receive().await, Some(Frame::Reset { id: 3, .. })));
    for (id, kind) in [(5, "stdin"), (7, "stdout"), (9, "stdout")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    assert!(matches!(client.receive().await, Some(Frame::Reset { id: 9, .. })));
    client.send(Frame::Data { id: 5, bytes: Bytes::from_static(b"hello"), fin: true }).await;
    assert_eq!(client.collect([1, 7]).await[1], b"hello");
}

/// A client that goes without a word, while nobody reads its input.
#[tokio::test]
async fn a_client_that_goes_takes_its_command_along() {
    let lab = lab().await;
    let path = "/exec/default/p/c?command=sleep&command=1000&input=1&output=1";
    let mut client = Client::new(&lab, path, "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    // More than all that lies in between can hold.
    let (_, mut write) = client.stream.into_split();
    let mut out = BytesMut::new();
    client.out.encode(&Frame::Data { id: 3, bytes: noise(1 << 20).into(), fin: false }, &mut out).unwrap();
    while let Ok(written) =
        tokio::time::timeout(std::time::Duration::from_secs(1), write.write_all(&out)).await
    {
        written.unwrap();
    }
    drop(write);
    assert_eq!(lab.runtime.killed().await, ["sleep", "1000"]);
}

async fn forwarding(lab: &Lab, port: u16) -> Client {
    let mut client = Client::new(lab, "/portForward/default/p", "portforward.k8s.io").await;
    client.pair(1, port, "0").await;
    client
}

impl Client {
    /// Opens what one connection needs.
    async fn pair(&mut self, id: u32, port: u16, request: &str) {
        let port = port.to_string();
        self.open(id, &[("streamtype", "error"), ("port", &port), ("requestid", request)]).await;
        self.open(id + 2, &[("streamtype", "data"), ("port", &port), ("requestid", request)]).await;
    }
}

#[tokio::test]
async fn ports_are_forwarded() {
    let lab = lab().await;
    let mut client = forwarding(&lab, super::echo().await).await;
    client.send(Frame::Ping(9)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(9)));
    client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true }).await;
    assert_eq!(client.collect([1, 3]).await, [b"".to_vec(), b"hello".to_vec()]);
    client.pair(5, super::nobody(), "1").await;
    let [why, nothing] = client.collect([5, 7]).await;
    let why = String::from_utf8(why).unwrap();
    assert!(why.contains("Connection refused"), "{why}");
    assert_eq!(nothing, b"");
}

/// The client keeps its own half open, as long as its user does.
#[tokio::test]
async fn a_pod_may_hang_up_first() {
    let lab = lab().await;
    let mut client = forwarding(&lab, goodbye().await).await;
    client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"hello\n"), fin: false }).await;
    assert_eq!(client.collect([1, 3]).await, [b"".to_vec(), b"goodbye\n".to_vec()]);
}

#[tokio::test]
async fn a_reset_ends_the_pod_s_connection() {
    let lab = lab().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = forwarding(&lab, listener.local_addr().unwrap().port()).await;
    client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true }).await;
    let (mut pod, _) = listener.accept().await.unwrap();
    let mut heard = String::new();
    pod.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
    client.send(Frame::Reset { id: 3, status: 5 }).await;
    // Writes fail once the other side has closed; until then they fill its buffers.
    let bytes = noise(1 << 20);
    while pod.write_all(&bytes).await.is_ok() {}
    // The session lives on.
    client.send(Frame::Ping(11)).await;
    while client.receive().await.expect("the session goes on") != Frame::Ping(11) {}
}

#[tokio::test]
async fn only_an_error_and_a_data_stream_make_a_pair() {
    let lab = lab().await;
    let mut client = Client::new(&lab, "/portForward/default/p", "portforward.k8s.io").await;
    let port = super::echo().await.to_string();
    let headers = |kind: &'static str| {
        [("streamtype", kind), ("port", &*port), ("requestid", "0")].map(|(k, v)| (k, v.to_owned()))
    };
    for (id, kind, refused) in
        [(1, "data", false), (3, "data", true), (5, "other", true), (7, "error", false)]
    {
        let headers = headers(kind);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(key, value)| (*key, value.as_str())).collect();
        client.open(id, &headers).await;
        if refused {
            let frame = client.receive().await;
            assert!(matches!(frame, Some(Frame::Reset { id: of, .. }) if of == id), "{id}: {frame:?}");
        }
    }
    client.send(Frame::Data { id: 1, bytes: Bytes::from_static(b"hello"), fin: true }).await;
    assert_eq!(client.collect([1, 7]).await, [b"hello".to_vec(), b"".to_vec()]);
}
