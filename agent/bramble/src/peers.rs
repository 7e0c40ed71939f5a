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
use store::Store;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::sync::{OnceCell, mpsc};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::dial::{self, Hop};
use crate::roster::Roster;

/// Messages waiting for one peer. Raft sends again what is lost; a queue that grows only makes it stale.
const QUEUE: usize = 256;
/// The largest message: a snapshot of the whole state.
const MAX_MESSAGE: usize = 64 << 20;
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
            while queue.try_recv().is_ok() {}
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One connection's life. `false`: nobody will send any more.
    async fn session(&self, to: u64, queue: &mut mpsc::Receiver<Bytes>) -> Result<bool> {
        let Some(first) = queue.recv().await else { return Ok(false) };
        let member = self.roster.by_id(to).context("not a member")?;
        let stream = dial::connect(&member, Hop::Peer).await?;
        let name = ServerName::try_from(member.name.clone())?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        verify(&member, stream.get_ref().1.peer_certificates())?;
        let (mut answers, stream) = tokio::io::split(stream);
        let mut stream = BufWriter::new(stream);
        let mut next = Some(first);
        loop {
            while let Some(message) = next.take().or_else(|| queue.try_recv().ok()) {
                stream.write_u32(u32::try_from(message.len())?).await?;
                stream.write_all(&message).await?;
            }
            stream.flush().await?;
            // The other side never sends: reading only tells that it went away.
            let mut nothing = [0];
            tokio::select! {
                message = queue.recv() => match message {
                    Some(message) => next = Some(message),
                    None => return Ok(false),
                },
                gone = answers.read(&mut nothing) => {
                    gone?;
                    return Ok(true);
                }
            }
        }
    }
}

/// A thin handle, since a transport must be shared with its own queues' tasks.
pub struct Transport(pub Arc<Peers>);

impl store::Transport for Transport {
    fn send(&self, to: u64, message: Bytes) {
        if message.len() > MAX_MESSAGE {
            tracing::error!(to, bytes = message.len(), "raft message too large, not sent");
            return;
        }
        if self.0.queue(to).try_send(message).is_err() {
            tracing::debug!(to, "raft queue full, message dropped");
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
    let known = || roster.by_name(&name).is_some_and(|m| m.key == subject.key && m.vote);
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
        store.receive(message.into()).with_context(|| format!("raft message from {name}"))?;
    }
}
