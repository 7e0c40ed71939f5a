//! exec and attach over WebSocket: the first byte of a message names the channel.

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use runtime::{Error, Streams};
use tokio::sync::mpsc;

use super::{Input, Kind, Output, run, size};
use crate::server::QUEUE;
use crate::server::exec::Wanted;
use crate::server::websocket::{CLOSE, carry, on};

/// What we speak, most wanted first. v5 adds that a client can close its standard input.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Runs one session.
pub async fn serve(
    socket: WebSocket,
    kind: Kind,
    wanted: Wanted,
    start: impl Future<Output = Result<Streams, Error>>,
) {
    let (input, from_client) = mpsc::channel(QUEUE);
    let (to_client, output) = mpsc::channel(QUEUE);
    let take = async move |bytes| {
        if let Some(message) = parse(bytes) {
            // When the command has ended, its input is thrown away.
            let _ = input.send(message).await;
        }
    };
    let mut session = std::pin::pin!(run(kind, wanted, start, from_client, to_client));
    let mut carried = std::pin::pin!(carry(socket, take, output, frame));
    tokio::select! {
        // The client is gone; the session is dropped.
        () = &mut carried => return,
        () = &mut session => {}
    }
    carried.await;
}

fn parse(message: Bytes) -> Option<Input> {
    match (*message.first()?, message.slice(1..)) {
        // An empty message only shows that the channel is there.
        (STDIN, bytes) => (!bytes.is_empty()).then_some(Input::Stdin(bytes)),
        (RESIZE, bytes) => size(&bytes).map(Input::Resize),
        (CLOSE, bytes) => (bytes.first() == Some(&STDIN)).then_some(Input::CloseStdin),
        _ => None,
    }
}

fn frame(message: Output) -> Bytes {
    match message {
        Output::Stdout(bytes) => on(STDOUT, &bytes),
        Output::Stderr(bytes) => on(STDERR, &bytes),
        Output::Status(status) => on(ERROR, status.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_by_channel() {
        let parse = |bytes: &'static [u8]| parse(Bytes::from_static(bytes));
        assert_eq!(parse(b"\x00hi"), Some(Input::Stdin(Bytes::from_static(b"hi"))));
        assert_eq!(parse(b"\xff\x00"), Some(Input::CloseStdin));
        let size = runtime::TerminalSize { width: 80, height: 24 };
        assert_eq!(parse(b"\x04{\"Width\":80,\"Height\":24}"), Some(Input::Resize(size)));
        for nothing in
            [&b""[..], b"\x00", b"\xff", b"\xff\x01", b"\x04junk", b"\x01x", b"{\"Width\":80,\"Height\":24}"]
        {
            assert_eq!(parse(nothing), None, "{nothing:?}");
        }
        assert_eq!(frame(Output::Stderr(Bytes::from_static(b"x"))), Bytes::from_static(b"\x02x"));
        let status = frame(Output::Status(super::super::exited(3)));
        assert_eq!(status[0], ERROR);
        let status: serde_json::Value = serde_json::from_slice(&status[1..]).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }
}
