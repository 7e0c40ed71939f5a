//! A connection's streams, from the server's side: the peer opens them, we answer.

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Codec, Frame, Headers};

/// Streams of one connection at a time.
const STREAMS: usize = 512;
/// Pieces of one stream on their way; a reader that is slower than that holds the connection up.
const PIECES: usize = 16;
/// Frames on their way out.
const FRAMES: usize = 16;

/// A stream that the peer opened.
pub struct Stream {
    /// What it is for.
    pub headers: Headers,
    /// What the peer sends; ends with the stream.
    pub incoming: mpsc::Receiver<Bytes>,
    /// The way back.
    pub outgoing: Outgoing,
}

impl Stream {
    /// A header's value; names are compared without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Our half of a stream.
#[derive(Clone)]
pub struct Outgoing {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Outgoing {
    /// Sends bytes; `false` when the connection is gone.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.frames.send(Frame::Data { id: self.id, bytes, fin: false }).await.is_ok()
    }

    /// Says that no more will come.
    pub async fn finish(&self) {
        // Without a connection there is nobody to tell.
        let _ = self.frames.send(Frame::Data { id: self.id, bytes: Bytes::new(), fin: true }).await;
    }
}

/// A running session; ends its tasks when dropped.
pub struct Session {
    streams: mpsc::Receiver<Stream>,
    writer: tokio::task::JoinHandle<()>,
    _reader: JoinSet<()>,
}

impl Session {
    /// Serves a connection.
    pub fn new<S>(io: S) -> io::Result<Session>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (frames, outbox) = mpsc::channel(FRAMES);
        let (opened, streams) = mpsc::channel(PIECES);
        let (inward, outward) = (Codec::new()?, Codec::new()?);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            if let Err(error) = read_all(read, inward, frames, opened).await {
                tracing::debug!(%error, "SPDY connection");
            }
        });
        Ok(Session { streams, writer: tokio::spawn(write_all(write, outward, outbox)), _reader: reader })
    }

    /// The next stream; `None` when the peer is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Waits until all that was sent is written, once the streams are dropped.
    pub async fn close(self) {
        drop((self.streams, self._reader));
        // Bounded by the writer itself, which ends with its last sender.
        let _ = self.writer.await;
    }
}

async fn write_all(mut to: impl AsyncWrite + Unpin, mut codec: Codec, mut frames: mpsc::Receiver<Frame>) {
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        buffer.clear();
        if codec.encode(&frame, &mut buffer).is_err() || to.write_all(&buffer).await.is_err() {
            return;
        }
        if frames.is_empty() && to.flush().await.is_err() {
            return;
        }
    }
    // The peer may have gone first.
    let _ = to.shutdown().await;
}

async fn read_all(
    mut from: impl AsyncRead + Unpin,
    mut codec: Codec,
    frames: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    loop {
        while let Some(frame) = codec.decode(&mut buffer)? {
            take(frame, &mut streams, &frames, &opened).await?;
        }
        buffer.reserve(16 << 10);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn take(
    frame: Frame,
    streams: &mut HashMap<u32, mpsc::Sender<Bytes>>,
    frames: &mpsc::Sender<Frame>,
    opened: &mpsc::Sender<Stream>,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    match frame {
        Frame::Syn { id, headers, fin } => {
            streams.retain(|_, sender| !sender.is_closed());
            if streams.len() >= STREAMS || streams.contains_key(&id) {
                return Err(io::Error::other("too many streams"));
            }
            let (sender, incoming) = mpsc::channel(PIECES);
            if !fin {
                streams.insert(id, sender);
            }
            frames.send(Frame::Reply { id, headers: Headers::new() }).await.map_err(|_| gone(()))?;
            let outgoing = Outgoing { id, frames: frames.clone() };
            opened.send(Stream { headers, incoming, outgoing }).await.map_err(|_| gone(()))
        }
        Frame::Data { id, bytes, fin } => {
            if let Some(sender) = streams.get(&id)
                && !bytes.is_empty()
            {
                // Nobody reads it any more: dropped, as a closed socket would.
                let _ = sender.send(bytes).await;
            }
            if fin {
                streams.remove(&id);
            }
            Ok(())
        }
        Frame::Reset { id, .. } => {
            streams.remove(&id);
            Ok(())
        }
        Frame::Ping(id) => frames.send(Frame::Ping(id)).await.map_err(|_| gone(())),
        Frame::Reply { .. } | Frame::GoAway { .. } | Frame::Other(_) => Ok(()),
    }
}
