//! WebSocket by hand, as the Python client speaks it.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::{Lab, echo, goodbye, lab, nobody, noise};

async fn socket(lab: &Lab, path: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{}{path}", lab.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let stream = TcpStream::connect(lab.address).await.unwrap();
    let (socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol.split(',').next().unwrap());
    socket
}

/// All that comes on each channel, until the regular end.
async fn channels(
    socket: &mut (impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin),
) -> [Vec<u8>; 6] {
    let mut channels = [const { Vec::new() }; 6];
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                return channels;
            }
            _ => {}
        }
    }
    panic!("no regular end");
}

#[tokio::test]
async fn standard_input_is_closed_by_v5() {
    let lab = lab().await;
    let path = "/exec/default/p/c?command=cat&stdin=true&stdout=true&stderr=true";
    let mut socket = socket(&lab, path, "v5.channel.k8s.io,v4.channel.k8s.io").await;
    for message in [&b"\x00"[..], b"\x00hel", b"\x00lo", b"\xff\x01", b"\xff\x00"] {
        socket.send(Message::Binary(Bytes::from_static(message))).await.unwrap();
    }
    let [_, out, err, status, ..] = channels(&mut socket).await;
    assert_eq!((&out[..], &err[..]), (&b"hello"[..], &b""[..]));
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["status"], "Success");
}

#[tokio::test]
async fn an_exit_code_comes_by_v4_and_unwanted_output_does_not() {
    let lab = lab().await;
    let path =
        "/exec/default/p/c?command=sh&command=-c&command=echo%20out;echo%20err%3E%262;exit%209&stderr=true";
    let [_, out, err, status, ..] = channels(&mut socket(&lab, path, "v4.channel.k8s.io").await).await;
    assert_eq!((&out[..], &err[..]), (&b""[..], &b"err\n"[..]));
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "9");
}

/// Output and status come through although most of the input was never read.
#[tokio::test]
async fn a_command_need_not_hear_to_the_end() {
    let lab = lab().await;
    let script = "head%20-c%20300000%20/dev/zero;exit%203";
    let path = format!("/exec/default/p/c?command=sh&command=-c&command={script}&stdin=true&stdout=true");
    let (mut sink, mut source) = socket(&lab, &path, "v5.channel.k8s.io").await.split();
    let message = Bytes::from([&[0][..], &noise(1 << 20)].concat());
    let writer =
        tokio::spawn(async move { while sink.send(Message::Binary(message.clone())).await.is_ok() {} });
    let [_, out, _, status, ..] = channels(&mut source).await;
    writer.abort();
    assert_eq!(out.len(), 300_000);
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_command_along() {
    let lab = lab().await;
    let path = "/exec/default/p/c?command=sleep&command=1000&stdout=true";
    drop(socket(&lab, path, "v5.channel.k8s.io").await);
    assert_eq!(lab.runtime.killed().await, ["sleep", "1000"]);
}

#[tokio::test]
async fn ports_are_forwarded_as_the_python_client_does() {
    let lab = lab().await;
    let (echo, goodbye, nobody) = (echo().await, goodbye().await, nobody());
    let path = format!("/portForward/default/p?ports={echo},{goodbye}&ports={nobody}");
    let mut socket = socket(&lab, &path, "v4.channel.k8s.io").await;
    for message in [&b"\x02hello\n"[..], b"\x00ping", b"\x07nobody", b"", b"\xff"] {
        socket.send(Message::Binary(Bytes::from_static(message))).await.unwrap();
    }
    // v4 clients never do; without it the connection lasts as long as they do.
    socket.send(Message::Binary(Bytes::from_static(b"\xff\x00"))).await.unwrap();
    let after_port = |port: u16, text: &str| [&port.to_le_bytes()[..], text.as_bytes()].concat();
    let [data0, error0, data1, error1, data2, error2] = channels(&mut socket).await;
    assert_eq!((data0, error0), (after_port(echo, "ping"), after_port(echo, "")));
    assert_eq!((data1, error1), (after_port(goodbye, "goodbye\n"), after_port(goodbye, "")));
    assert_eq!(data2, after_port(nobody, ""));
    let why = String::from_utf8(error2[2..].to_vec()).unwrap();
    assert!(
        why.contains(&format!("error forwarding port {nobody}")) && why.contains("Connection refused"),
        "{why}"
    );
}
