//! What all sessions over WebSocket share: how they are read and written, and how they end.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};

use super::{LINGER, PING};

/// Followed by the number of the channel that is closed (v5).
pub const CLOSE: u8 = 255;

/// Carries between a socket and two channels: until `to_client` ends, or the client is gone.
///
/// `take` is given what the client sends, and is waited for; it is where a client is held up whose input nobody reads.
pub async fn carry<T>(
    socket: WebSocket,
    take: impl AsyncFnMut(Bytes),
    to_client: mpsc::Receiver<T>,
    frame: fn(T) -> Bytes,
) {
    let (sink, source) = socket.split();
    let held_up = AtomicBool::new(false);
    let mut reader = std::pin::pin!(read(source, take, &held_up));
    tokio::select! {
        () = &mut reader => return,
        sent = write(sink, to_client, frame, &held_up) => {
            if let Err(error) = sent {
                tracing::debug!(%error, "the client is gone");
                return;
            }
        }
    }
    // A socket that is closed with its input unread is reset, and what the client has not read yet is lost.
    let _ = tokio::time::timeout(LINGER, reader).await;
}

/// Hears the client until it hangs up.
async fn read(mut source: SplitStream<WebSocket>, mut take: impl AsyncFnMut(Bytes), held_up: &AtomicBool) {
    while let Some(Ok(message)) = source.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        held_up.store(true, Ordering::Relaxed);
        take(bytes).await;
        held_up.store(false, Ordering::Relaxed);
    }
}

/// Sends until the queue ends, then closes. A client that is held up is pinged: while its input is not read, only a
/// write that fails tells that it has gone.
async fn write<T>(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<T>,
    frame: fn(T) -> Bytes,
    held_up: &AtomicBool,
) -> Result<(), axum::Error> {
    let mut ping = interval_at(Instant::now() + PING, PING);
    loop {
        let message = tokio::select! {
            next = queue.recv() => match next {
                Some(next) => Message::Binary(frame(next)),
                None => break,
            },
            _ = ping.tick() => {
                if !held_up.load(Ordering::Relaxed) {
                    continue;
                }
                Message::Ping(Bytes::new())
            }
        };
        sink.send(message).await?;
    }
    // Without its code (RFC 6455, 7.4.1) clients take the end for a broken connection.
    sink.send(Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))).await
}

/// A message on a channel.
pub fn on(channel: u8, bytes: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(bytes.len() + 1);
    out.push(channel);
    out.extend_from_slice(bytes);
    out.into()
}
