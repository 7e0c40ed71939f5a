//! exec and attach over SPDY: the client opens a stream for each of its standard streams, one for the end, and one for
//! its terminal's size.

use std::time::Duration;

use bytes::Bytes;
use runtime::{Error, Streams};
use tokio::sync::mpsc;

use super::{Input, Kind, Output, run, size};
use crate::server::QUEUE;
use crate::server::exec::Wanted;
use crate::spdy::session::{Outgoing, Session, Stream};

/// What we speak, most wanted first. Before v4 the end is told as text, before v3 no size.
pub const PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];
/// How long a client may take to open its streams.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs one session.
pub async fn serve(
    mut session: Session,
    protocol: &'static str,
    kind: Kind,
    wanted: Wanted,
    start: impl Future<Output = Result<Streams, Error>>,
) {
    let resizes = wanted.tty && protocol != "v2.channel.k8s.io";
    let opened = Opened::accept(&mut session, &wanted, resizes);
    let Ok(Some(opened)) = tokio::time::timeout(PATIENCE, opened).await else {
        tracing::debug!("the client did not open its streams");
        return;
    };
    let structured = matches!(protocol, "v5.channel.k8s.io" | "v4.channel.k8s.io");
    let Opened { error, stdin, stdout, stderr, resize } = opened;
    let (input, from_client) = mpsc::channel(QUEUE);
    let (to_client, output) = mpsc::channel(QUEUE);
    let outward = async {
        tokio::join!(
            run(kind, wanted, start, from_client, to_client),
            write([stdout, stderr, error], output, structured)
        )
    };
    let inward = async { tokio::join!(read_stdin(stdin, &input), read_sizes(resize, &input)) };
    tokio::select! {
        _ = outward => {}
        // The client is gone.
        () = refuse_more(&mut session) => return,
        never = inward => match never.0 {},
    }
    session.finish().await;
}

/// The streams of one client.
#[derive(Default)]
struct Opened {
    error: Option<Outgoing>,
    stdin: Option<Stream>,
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
    resize: Option<Stream>,
}

impl Opened {
    /// Waits for those that the request announced; `None` when the client goes first.
    async fn accept(session: &mut Session, wanted: &Wanted, resizes: bool) -> Option<Opened> {
        let mut opened = Opened::default();
        while !opened.complete(wanted, resizes) {
            let stream = session.accept().await?;
            if let Some(surplus) = opened.put(stream) {
                surplus.outgoing.refuse().await;
            }
        }
        Some(opened)
    }

    fn complete(&self, wanted: &Wanted, resizes: bool) -> bool {
        self.error.is_some()
            && self.stdin.is_some() >= wanted.stdin
            && self.stdout.is_some() >= wanted.stdout
            && self.stderr.is_some() >= wanted.stderr
            && self.resize.is_some() >= resizes
    }

    /// Gives a stream back that has no place, or whose place is taken.
    fn put(&mut self, stream: Stream) -> Option<Stream> {
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        match kind.as_str() {
            "stdin" if self.stdin.is_none() => self.stdin = Some(stream),
            "resize" if self.resize.is_none() => self.resize = Some(stream),
            "error" if self.error.is_none() => self.error = Some(stream.outgoing),
            "stdout" if self.stdout.is_none() => self.stdout = Some(stream.outgoing),
            "stderr" if self.stderr.is_none() => self.stderr = Some(stream.outgoing),
            _ => return Some(stream),
        }
        None
    }
}

/// Ends when the client is gone.
async fn refuse_more(session: &mut Session) {
    while let Some(stream) = session.accept().await {
        stream.outgoing.refuse().await;
    }
}

/// Never ends by itself, as [`super::feed`].
async fn read_stdin(stdin: Option<Stream>, input: &mpsc::Sender<Input>) -> std::convert::Infallible {
    if let Some(mut stdin) = stdin {
        while let Some(bytes) = stdin.incoming.recv().await {
            // When the command has ended, its input is thrown away.
            let _ = input.send(Input::Stdin(bytes)).await;
        }
        // As above.
        let _ = input.send(Input::CloseStdin).await;
    }
    std::future::pending().await
}

async fn read_sizes(sizes: Option<Stream>, input: &mpsc::Sender<Input>) {
    let Some(mut sizes) = sizes else { return };
    while let Some(bytes) = sizes.incoming.recv().await {
        if let Some(size) = size(bytes.trim_ascii()) {
            // As above.
            let _ = input.send(Input::Resize(size)).await;
        }
    }
}

async fn write(streams: [Option<Outgoing>; 3], mut output: mpsc::Receiver<Output>, structured: bool) {
    let [stdout, stderr, error] = &streams;
    while let Some(message) = output.recv().await {
        let (stream, bytes) = match message {
            Output::Stdout(bytes) => (stdout, bytes),
            Output::Stderr(bytes) => (stderr, bytes),
            Output::Status(status) if structured => (error, Bytes::from(status.to_string())),
            Output::Status(status) if status["status"] == "Success" => continue,
            Output::Status(status) => {
                (error, Bytes::from(status["message"].as_str().unwrap_or_default().to_owned()))
            }
        };
        // The client may close one of them and go on with the others.
        if let Some(stream) = stream {
            stream.send(bytes).await;
        }
    }
    for stream in streams.iter().flatten() {
        stream.finish().await;
    }
}
