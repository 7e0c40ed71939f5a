//! Raft between nodes: one outgoing TLS stream per peer, length-prefixed messages, dropped rather than queued long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::members::Member;
use cluster::pki;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use store::{MAX_MESSAGE, Store, is_snapshot};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::dial::{self, Hop};
use crate::roster::Roster;

/// Messages waiting for one peer. Raft sends again what is lost; a queue that grows only makes it stale.
const QUEUE: usize = 256;
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// First and longest pause between attempts to reach a peer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1000));

/// The sending side: a [`store::Transport`].
pub struct Peers {
    roster: Roster,
    tls: Arc<ClientConfig>,
    store: OnceCell<Store>,
    queues: Mutex<HashMap<u64, mpsc::Sender<Bytes>>>,
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

impl Peers {
    /// Sends as the node whose certificate `tls` shows.
    pub fn new(roster: Roster, tls: Arc<ClientConfig>, shutdown: CancellationToken) -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { roster, tls, store: OnceCell::new(), queues: Mutex::default(), runtime, shutdown })
    }

    /// Tells where failures to send are to be reported.
    pub fn attach(&self, store: Store) {
        // Set once, right after the store was opened.
        let _ = self.store.set(store);
    }

    fn queue(self: &Arc<Self>, to: u64) -> mpsc::Sender<Bytes> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has left the cluster needs no queue.
        queues.retain(|id, _| *id == to || self.roster.by_id(*id).is_some());
        let start = || {
            let (sender, receiver) = mpsc::channel(QUEUE);
            self.runtime.spawn(self.clone().run(to, receiver));
            sender
        };
        queues.entry(to).or_insert_with(start).clone()
    }

    async fn run(self: Arc<Self>, to: u64, mut queue: mpsc::Receiver<Bytes>) {
        let mut pause = PAUSE.0;
        loop {
            let sent = tokio::select! {
                () = self.shutdown.cancelled() => return,
                sent = self.session(to, &mut queue) => sent,
            };
            match sent {
                Ok(false) => return,
                Ok(true) => pause = PAUSE.0,
                Err(error) => tracing::debug!(to, error = format!("{error:#}"), "raft stream ended"),
            }
            if let Some(store) = self.store.get() {
                store.unreachable(to);
            }
            while let Ok(message) = queue.try_recv() {
                self.done(to, &message, false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Tells what became of a message, if Raft waits to hear it.
    fn done(&self, to: u64, message: &[u8], ok: bool) {
        if is_snapshot(message)
            && let Some(store) = self.store.get()
        {
            store.snapshot_sent(to, ok);
        }
    }

    /// One connection's life. `false`: nobody will send any more.
    async fn session(&self, to: u64, queue: &mut mpsc::Receiver<Bytes>) -> Result<bool> {
        let Some(first) = queue.recv().await else { return Ok(false) };
        match self.connect(to).await {
            Ok(stream) => feed(stream, queue, first, |message, ok| self.done(to, message, ok)).await,
            Err(error) => {
                self.done(to, &first, false);
                Err(error)
            }
        }
    }

    async fn connect(&self, to: u64) -> Result<impl AsyncRead + AsyncWrite + Send + 'static> {
        let member = self.roster.by_id(to).context("not a member")?;
        let stream = dial::connect(&member, Hop::Peer).await?;
        let name = ServerName::try_from(member.name.clone())?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, stream);
        let stream = timeout(HANDSHAKE, handshake).await.context("handshake too slow")??;
        verify(&member, stream.get_ref().1.peer_certificates())?;
        Ok(stream)
    }
}

/// Sends messages until the stream or the queue ends; `false` when it was the queue. `done` is told of each message
/// whether it was sent.
async fn feed(
    stream: impl AsyncRead + AsyncWrite,
    queue: &mut mpsc::Receiver<Bytes>,
    first: Bytes,
    done: impl Fn(&[u8], bool),
) -> Result<bool> {
    let (mut answers, stream) = tokio::io::split(stream);
    let mut stream = BufWriter::new(stream);
    let mut next = first;
    loop {
        let mut burst = vec![next];
        while let Ok(message) = queue.try_recv() {
            burst.push(message);
        }
        let written = write(&mut stream, &burst).await;
        burst.iter().for_each(|message| done(message, written.is_ok()));
        written?;
        // The other side never sends: reading only tells that it went away.
        let mut nothing = [0];
        tokio::select! {
            message = queue.recv() => match message {
                Some(message) => next = message,
                None => return Ok(false),
            },
            gone = answers.read(&mut nothing) => {
                gone?;
                return Ok(true);
            }
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), messages: &[Bytes]) -> Result<()> {
    for message in messages {
        stream.write_u32(u32::try_from(message.len())?).await?;
        stream.write_all(message).await?;
    }
    Ok(stream.flush().await?)
}

/// A thin handle, since a transport must be shared with its own queues' tasks.
pub struct Transport(pub Arc<Peers>);

impl store::Transport for Transport {
    fn send(&self, to: u64, message: Bytes) {
        if message.len() > MAX_MESSAGE {
            tracing::error!(to, bytes = message.len(), "raft message too large, not sent");
            return;
        }
        if let Err(error) = self.0.queue(to).try_send(message) {
            tracing::debug!(to, "raft queue full, message dropped");
            self.0.done(to, &error.into_inner(), false);
        }
    }
}

/// A peer is its key: the certificate must be that of the member we mean.
pub fn verify(member: &Member, chain: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> Result<()> {
    let subject = pki::Subject::of(chain.and_then(|c| c.first()).context("no certificate")?)?;
    ensure!(subject.key == member.key, "{} has another key than the member of that name", member.name);
    Ok(())
}

/// The receiving side of one stream, until it ends. `subject` is the verified peer.
pub async fn serve(
    mut stream: impl AsyncRead + Unpin,
    subject: pki::Subject,
    roster: &Roster,
    store: &Store,
) -> Result<()> {
    let name = subject.node().context("the peer is no node")?.to_owned();
    let status = store.status();
    // One that is barred, or leaves, is heard for as long as Raft counts on it.
    let counts = |id: u64| {
        let status = status.borrow();
        [&status.voters, &status.learners, &status.leaving].iter().any(|ids| ids.contains(&id))
    };
    let known = || roster.by_name(&name).is_some_and(|m| m.key == subject.key && (m.vote || counts(m.id)));
    loop {
        let length = stream.read_u32().await? as usize;
        ensure!(length <= MAX_MESSAGE, "{name} sends {length} bytes at once");
        // A node without any state yet cannot know who votes; its certificate must do until the log tells.
        ensure!(
            status.borrow().voters.is_empty() || known(),
            "{name} may not vote, its raft messages are refused"
        );
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        let from = roster.by_name(&name).filter(|m| m.key == subject.key).map(|m| m.id);
        store.receive(message.into(), from).with_context(|| format!("raft message from {name}"))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// What was told of the snapshots among these messages, when the other side reads so many bytes and goes away.
    async fn told(messages: &[&'static [u8]], reads: usize) -> Vec<bool> {
        let (near, mut far) = tokio::io::duplex(64);
        let (sender, mut queue) = mpsc::channel(16);
        for message in &messages[1..] {
            sender.try_send(Bytes::from_static(message)).unwrap();
        }
        let told = RefCell::new(Vec::new());
        let done = |message: &[u8], ok| {
            if is_snapshot(message) {
                told.borrow_mut().push(ok);
            }
        };
        let reading = async move {
            let mut bytes = vec![0; reads];
            far.read_exact(&mut bytes).await.unwrap();
        };
        let first = Bytes::from_static(messages[0]);
        let (fed, ()) = tokio::join!(feed(near, &mut queue, first, done), reading);
        // An end after all was read is none to complain of.
        assert!(fed.is_err() || fed.unwrap());
        told.into_inner()
    }

    #[tokio::test]
    async fn the_fate_of_a_snapshot_is_told() {
        const SNAPSHOT: &[u8] = &[8, 7, 1, 2, 3];
        const LARGE: &[u8] = &{
            let mut large = [0; 4096];
            (large[0], large[1]) = (8, 7);
            large
        };
        assert_eq!(told(&[b"other", SNAPSHOT], 18).await, [true]);
        assert_eq!(told(&[b"other", LARGE], 100).await, [false]);
        assert_eq!(told(&[LARGE], 4100).await, [true]);
    }
}
