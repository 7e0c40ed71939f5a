//! A connection's streams, from the server's side: the peer opens them, we answer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Codec, Frame, Headers};

/// How often a peer that is held up is asked whether it is still there.
pub const PING: Duration = Duration::from_secs(5);
/// How long a peer may take to hang up once it was told that all is over.
pub const LINGER: Duration = Duration::from_secs(10);

/// Streams of one connection at a time.
const STREAMS: usize = 512;
/// Pieces of one stream on their way; a reader that is slower than that holds the connection up.
const PIECES: usize = 8;
/// Frames on their way out.
const FRAMES: usize = 16;

/// Reasons for a reset.
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// To the writer.
enum Out {
    Frame(Frame),
    /// Nothing comes after this.
    End,
}

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
    queue: mpsc::Sender<Out>,
    reset: CancellationToken,
    /// As long as it lives, the stream counts.
    _alive: Arc<()>,
}

impl Outgoing {
    /// Sends bytes; `false` when nobody hears them.
    pub async fn send(&self, bytes: Bytes) -> bool {
        !self.reset.is_cancelled() && self.put(Frame::Data { id: self.id, bytes, fin: false }).await
    }

    /// Says that no more will come.
    pub async fn finish(&self) {
        if !self.reset.is_cancelled() {
            self.put(Frame::Data { id: self.id, bytes: Bytes::new(), fin: true }).await;
        }
    }

    /// Ends the stream in both directions.
    pub async fn refuse(&self) {
        self.put(Frame::Reset { id: self.id, status: CANCEL }).await;
    }

    /// Waits until the peer has no more interest in the stream, or is gone.
    pub async fn cancelled(&self) {
        self.reset.cancelled().await;
    }

    async fn put(&self, frame: Frame) -> bool {
        self.queue.send(Out::Frame(frame)).await.is_ok()
    }
}

/// A running session; dropping it ends the connection.
pub struct Session {
    streams: mpsc::Receiver<Stream>,
    queue: mpsc::Sender<Out>,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
}

impl Session {
    /// Serves a connection.
    pub fn new<S>(io: S) -> io::Result<Session>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (queue, outbox) = mpsc::channel(FRAMES);
        let (opened, streams) = mpsc::channel(PIECES);
        let (inward, outward) = (Codec::new()?, Codec::new()?);
        let gone = CancellationToken::new();
        let held_up = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            queue: queue.clone(),
            opened,
            streams: HashMap::new(),
            last: 0,
            held_up: held_up.clone(),
            gone: gone.clone(),
        };
        let writer = async move {
            if let Err(error) = write_all(write, outward, outbox, &held_up).await {
                tracing::debug!(%error, "SPDY connection");
                gone.cancel();
            }
        };
        Ok(Session {
            streams,
            queue,
            reader: AbortOnDropHandle::new(tokio::spawn(reader.run(read, inward))),
            writer: AbortOnDropHandle::new(tokio::spawn(writer)),
        })
    }

    /// The next stream; `None` when the peer is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Waits until all that was sent is written, and then, for a while, for the peer to hang up. Hanging up first, with
    /// its input unread, would reset the connection under what the peer has not read yet.
    pub async fn finish(self) {
        let Session { streams, queue, reader, writer } = self;
        drop(streams);
        // The writer may have ended already.
        let _ = queue.send(Out::End).await;
        // It ends: with `End`, or with the connection.
        let _ = writer.await;
        let _ = tokio::time::timeout(LINGER, reader).await;
    }
}

/// Writes until there is nothing more to come. A peer that is held up is pinged: while its input is not read, only a
/// write that fails tells that it has gone.
async fn write_all(
    mut to: impl AsyncWrite + Unpin,
    mut codec: Codec,
    mut outbox: mpsc::Receiver<Out>,
    held_up: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut ping = interval_at(Instant::now() + PING, PING);
    let mut number = 0u32;
    loop {
        let frame = tokio::select! {
            out = outbox.recv() => match out {
                Some(Out::Frame(frame)) => frame,
                Some(Out::End) | None => break,
            },
            _ = ping.tick() => {
                if !held_up.load(Ordering::Relaxed) {
                    continue;
                }
                // A server's pings have even numbers.
                number = number.wrapping_add(2);
                Frame::Ping(number)
            }
        };
        buffer.clear();
        codec.encode(&frame, &mut buffer)?;
        to.write_all(&buffer).await?;
        if outbox.is_empty() {
            to.flush().await?;
        }
    }
    to.shutdown().await
}

/// An open stream, as the reader knows it.
struct Entry {
    /// Until the peer has finished.
    incoming: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    /// Whether anybody here still serves it.
    alive: Weak<()>,
}

struct Reader {
    queue: mpsc::Sender<Out>,
    opened: mpsc::Sender<Stream>,
    streams: HashMap<u32, Entry>,
    last: u32,
    held_up: Arc<AtomicBool>,
    gone: CancellationToken,
}

impl Reader {
    /// Reads until the peer is gone; then every stream is reset.
    async fn run(mut self, from: impl AsyncRead + Unpin, codec: Codec) {
        let gone = self.gone.clone();
        let _resets = gone.clone().drop_guard();
        // Whatever the reader waits for, that the writer finds the peer gone ends it, too.
        if let Some(Err(error)) = gone.run_until_cancelled(self.read_all(from, codec)).await {
            tracing::debug!(%error, "SPDY connection");
        }
    }

    async fn read_all(&mut self, mut from: impl AsyncRead + Unpin, mut codec: Codec) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(64 << 10);
        loop {
            while let Some(frame) = codec.decode(&mut buffer)? {
                self.held_up.store(true, Ordering::Relaxed);
                self.take(frame).await?;
            }
            self.held_up.store(false, Ordering::Relaxed);
            buffer.reserve(16 << 10);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::Syn { id, headers, fin } => self.open(id, headers, fin).await?,
            Frame::Data { id, bytes, fin } => {
                if let Some(incoming) = self.streams.get(&id).and_then(|entry| entry.incoming.as_ref())
                    && !bytes.is_empty()
                {
                    // What nobody reads any more is dropped, as a closed socket would.
                    let _ = incoming.send(bytes).await;
                }
                if fin && let Some(entry) = self.streams.get_mut(&id) {
                    entry.incoming = None;
                }
            }
            Frame::Reset { id, .. } => {
                if let Some(entry) = self.streams.remove(&id) {
                    entry.reset.cancel();
                }
            }
            // Odd: the peer asks. Even: it answers.
            Frame::Ping(number) if number % 2 == 1 => self.put(Frame::Ping(number)).await,
            Frame::Ping(_) | Frame::Reply { .. } | Frame::GoAway { .. } | Frame::Other(_) => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) -> io::Result<()> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "stream id out of turn"));
        }
        self.last = id;
        self.streams.retain(|_, entry| entry.alive.strong_count() > 0);
        if self.streams.len() >= STREAMS {
            self.put(Frame::Reset { id, status: REFUSED_STREAM }).await;
            return Ok(());
        }
        let (sender, incoming) = mpsc::channel(PIECES);
        let (reset, alive) = (self.gone.child_token(), Arc::new(()));
        let entry =
            Entry { incoming: (!fin).then_some(sender), reset: reset.clone(), alive: Arc::downgrade(&alive) };
        let outgoing = Outgoing { id, queue: self.queue.clone(), reset, _alive: alive };
        self.put(Frame::Reply { id, headers: Headers::new() }).await;
        if self.opened.send(Stream { headers, incoming, outgoing }).await.is_ok() {
            self.streams.insert(id, entry);
        }
        Ok(())
    }

    async fn put(&self, frame: Frame) {
        // The writer ends before the reader when the session is over.
        let _ = self.queue.send(Out::Frame(frame)).await;
    }
}
