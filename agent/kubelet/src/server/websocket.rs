//! exec and attach over WebSocket: the first byte of a message names the channel.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;

use super::remote::{self, Input, Output};

/// What we speak, most wanted first. v5 adds that a client can close its standard input.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Longest message taken.
pub const MESSAGE_BYTES: usize = 4 << 20;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Puts a connection between the channels of a session.
pub async fn carry(socket: WebSocket, input: mpsc::Sender<Input>, mut output: mpsc::Receiver<Output>) {
    let (mut sink, mut source) = socket.split();
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            if let Some(message) = parse(bytes)
                && input.send(message).await.is_err()
            {
                // The session is over; what remains is to hear the client's close.
                continue;
            }
        }
        drop(input);
    };
    let outward = async {
        while let Some(message) = output.recv().await {
            if sink.send(Message::Binary(frame(message))).await.is_err() {
                return;
            }
        }
        // The client may have closed first.
        let _ = sink.send(bye()).await;
    };
    // When the client goes the session has to end (`inward` drops its sender), when the session ends the client is told.
    let mut inward = std::pin::pin!(inward);
    let mut outward = std::pin::pin!(outward);
    tokio::select! {
        () = &mut inward => {}
        () = &mut outward => {}
    }
}

/// A regular end. Without its code (RFC 6455, 7.4.1) clients take the end for a broken connection.
pub fn bye() -> Message {
    Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))
}

fn parse(message: Bytes) -> Option<Input> {
    match (*message.first()?, message.slice(1..)) {
        // A first, empty message only shows that the channel is there.
        (STDIN, bytes) if bytes.is_empty() => None,
        (STDIN, bytes) => Some(Input::Stdin(bytes)),
        (RESIZE, bytes) => remote::size(&bytes).map(Input::Resize),
        (CLOSE, bytes) if bytes.first() == Some(&STDIN) => Some(Input::CloseStdin),
        _ => None,
    }
}

fn frame(message: Output) -> Bytes {
    let (channel, bytes) = match message {
        Output::Stdout(bytes) => (STDOUT, bytes),
        Output::Stderr(bytes) => (STDERR, bytes),
        Output::Status(status) => (ERROR, Bytes::from(status.to_string())),
    };
    let mut out = Vec::with_capacity(bytes.len() + 1);
    out.push(channel);
    out.extend_from_slice(&bytes);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_by_channel() {
        let parse = |bytes: &'static [u8]| parse(Bytes::from_static(bytes));
        assert_eq!(parse(b"\x00hi"), Some(Input::Stdin(Bytes::from_static(b"hi"))));
        assert_eq!(parse(b"\x00"), None);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"\xff\x00"), Some(Input::CloseStdin));
        assert_eq!(parse(b"\xff\x01"), None);
        assert_eq!(parse(b"\x04junk"), None);
        let size = runtime::TerminalSize { width: 80, height: 24 };
        assert_eq!(parse(br#"{"Width":80,"Height":24}"#), None);
        assert_eq!(parse(b"\x04{\"Width\":80,\"Height\":24}"), Some(Input::Resize(size)));
        assert_eq!(frame(Output::Stderr(Bytes::from_static(b"x"))), Bytes::from_static(b"\x02x"));
        let status = frame(Output::Status(remote::exited(3)));
        assert_eq!(status[0], 3);
        let status: serde_json::Value = serde_json::from_slice(&status[1..]).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }
}
