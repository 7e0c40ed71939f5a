//! A command's or container's streams on one side, a client's messages on the other, whatever carries them.
//!
//! All output is sent before the status, and the status before the end. A session whose client is gone is dropped, and
//! the runtime's streams with it; that is what ends a command.

use bytes::Bytes;
use runtime::{Error, Streams, TerminalSize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::PIECE_BYTES;
use super::exec::Wanted;

pub mod spdy;
pub mod websocket;

/// From the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Standard input.
    Stdin(Bytes),
    /// No more of it.
    CloseStdin,
    /// The terminal's size.
    Resize(TerminalSize),
}

/// To the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended; the last message.
    Status(Value),
}

/// Which kind of session it is decides what its end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command: its exit code is the client's.
    Exec,
    /// A container: only that it ended.
    Attach,
}

/// Opens the streams and carries until they have ended and all of it is in `output`.
pub async fn run(
    kind: Kind,
    wanted: Wanted,
    start: impl Future<Output = Result<Streams, Error>>,
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Output>,
) {
    let status = match start.await {
        Ok(streams) => carry(kind, &wanted, streams, input, &output).await,
        Err(error) => failure(&format!("error executing command in container: {error}")),
    };
    // Without a client there is nobody to tell.
    let _ = output.send(Output::Status(status)).await;
}

async fn carry(
    kind: Kind,
    wanted: &Wanted,
    streams: Streams,
    input: mpsc::Receiver<Input>,
    output: &mpsc::Sender<Output>,
) -> Value {
    let Streams { stdin, stdout, stderr, resize, exit } = streams;
    let outward = async {
        tokio::join!(
            pump(stdout, wanted.stdout, output, Output::Stdout),
            pump(stderr, wanted.stderr, output, Output::Stderr)
        );
        exit.await
    };
    let exit = tokio::select! {
        exit = outward => exit,
        never = feed(stdin, resize, input) => match never {},
    };
    match exit {
        Ok(Ok(_)) if kind == Kind::Attach => success(),
        Ok(Ok(code)) => exited(code),
        Ok(Err(error)) => failure(&error.to_string()),
        Err(_) => failure("the command was lost"),
    }
}

/// Gives a command its input. Never ends by itself: when it is over is up to the command.
async fn feed(
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
    mut input: mpsc::Receiver<Input>,
) -> std::convert::Infallible {
    while let Some(message) = input.recv().await {
        match message {
            Input::Stdin(bytes) => {
                let Some(to) = &mut stdin else { continue };
                let written = async {
                    to.write_all(&bytes).await?;
                    to.flush().await
                };
                if written.await.is_err() {
                    // The command reads no more; what else comes is thrown away.
                    stdin = None;
                }
            }
            Input::CloseStdin => {
                if let Some(mut to) = stdin.take() {
                    // It may have closed its side first.
                    let _ = to.shutdown().await;
                }
            }
            Input::Resize(size) => {
                if let Some(resize) = &resize {
                    // The terminal may be gone.
                    let _ = resize.send(size).await;
                }
            }
        }
    }
    std::future::pending().await
}

/// Reads a stream to its end. What nobody wants is read too: its writer must not block.
async fn pump(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    wanted: bool,
    output: &mpsc::Sender<Output>,
    wrap: fn(Bytes) -> Output,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; PIECE_BYTES];
    // A stream that breaks off has ended.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if wanted && output.send(wrap(Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
            return;
        }
    }
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

/// What clients read an exit code from.
pub fn exited(code: i32) -> Value {
    if code == 0 {
        return success();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// Something failed on our side.
pub fn failure(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError", "code": 500})
}

/// A terminal's size as clients send it.
pub fn size(text: &[u8]) -> Option<TerminalSize> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(text).ok()?;
    Some(TerminalSize { width: size.width, height: size.height })
}
