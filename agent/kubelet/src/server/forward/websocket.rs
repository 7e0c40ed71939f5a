//! port-forward over plain WebSocket, as the Python client speaks it: the n-th port of the query has channel 2n for its
//! one connection's bytes and 2n+1 for what goes wrong.

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Pod;
use crate::server::websocket::{CLOSE, carry, on};
use crate::server::{PIECE_BYTES, QUEUE};

/// Channels are one byte, and the last of them has another meaning.
const PORTS: usize = 127;

/// The ports of a query: repeated, or in a list.
pub fn ports(query: &[(String, String)]) -> Result<Vec<u16>, String> {
    let words = query.iter().filter(|(key, _)| key == "ports").flat_map(|(_, value)| value.split(','));
    let ports: Vec<u16> = words
        .map(|word| match word.trim().parse() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!("invalid port {word:?}")),
        })
        .collect::<Result<_, _>>()?;
    match ports.len() {
        0 => Err("query parameter \"ports\" is required".into()),
        1..=PORTS => Ok(ports),
        many => Err(format!("{many} ports are too many")),
    }
}

/// Forwards until all connections have ended or the client is gone.
pub async fn serve(socket: WebSocket, ports: Vec<u16>, pod: Pod) {
    let (to_client, queue) = mpsc::channel(QUEUE);
    // Dropped with the session.
    let mut connections = JoinSet::new();
    let mut inputs = Vec::new();
    for (port, channel) in ports.into_iter().zip((0u8..CLOSE).step_by(2)) {
        let (input, from_client) = mpsc::channel(QUEUE);
        inputs.push(Some(input));
        connections.spawn(forward(port, channel, from_client, to_client.clone(), pod.clone()));
    }
    drop(to_client);
    let take = async move |message: Bytes| {
        if let Some((input, bytes)) = route(&mut inputs, &message) {
            // What the pod reads no more is thrown away.
            let _ = input.send(bytes).await;
        }
    };
    carry(socket, take, queue, |(channel, bytes): (u8, Bytes)| on(channel, &bytes)).await;
}

/// Where a message goes. One that closes its channel goes nowhere and ends that input.
fn route<'a>(
    inputs: &'a mut [Option<mpsc::Sender<Bytes>>],
    message: &Bytes,
) -> Option<(&'a mpsc::Sender<Bytes>, Bytes)> {
    let closes = *message.first()? == CLOSE;
    let channel = *message.get(usize::from(closes))?;
    // Clients say nothing on the channels for errors.
    let place = if channel % 2 == 0 { inputs.get_mut(usize::from(channel / 2))? } else { return None };
    if closes {
        *place = None;
    }
    place.as_ref().map(|input| (input, message.slice(1..)))
}

async fn forward(
    port: u16,
    channel: u8,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<(u8, Bytes)>,
    pod: Pod,
) {
    for channel in [channel, channel + 1] {
        // A client that is gone is noticed elsewhere, here and below.
        let _ = to_client.send((channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await;
    }
    let (mut read, mut write) = match pod.dial(port).await {
        Ok(connection) => connection.into_split(),
        Err(why) => {
            let _ = to_client.send((channel + 1, Bytes::from(why))).await;
            return;
        }
    };
    let inward = async {
        while let Some(bytes) = from_client.recv().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // The pod may have closed first.
        let _ = write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outward = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if to_client.send((channel, Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
    };
    // Over when the pod has said all.
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_lists_and_repetitions() {
        let parse = |values: &[&str]| {
            ports(&values.iter().map(|value| ("ports".to_owned(), (*value).to_owned())).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["80", "443,8080"]), Ok(vec![80, 443, 8080]));
        for wrong in [&[][..], &["0"], &["65536"], &["80,"], &["x"], &["1"; 128]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
