//! A command's or container's streams on one side, a client's messages on the other, whatever carries them.

use bytes::Bytes;
use runtime::{Error, Streams, TerminalSize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Messages on their way in either direction.
pub const QUEUE: usize = 16;
const PIECE_BYTES: usize = 32 << 10;

/// From the client. That the channel closes means that the client is gone.
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
pub enum Session {
    /// A command: its exit code is the client's.
    Exec,
    /// A container: only that it ended.
    Attach,
}

/// Carries until both ends are through or the client is gone.
pub async fn run(
    kind: Session,
    started: Result<Streams, Error>,
    mut input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Output>,
) {
    let streams = match started {
        Ok(streams) => streams,
        Err(error) => {
            // The client may be gone already.
            let _ = output
                .send(Output::Status(failure(&format!("error executing command in container: {error}"))))
                .await;
            return;
        }
    };
    let Streams { mut stdin, stdout, stderr, resize, exit } = streams;
    let inward = async {
        while let Some(message) = input.recv().await {
            match message {
                Input::Stdin(bytes) => {
                    let written = match &mut stdin {
                        Some(to) => to.write_all(&bytes).await.is_ok() && to.flush().await.is_ok(),
                        None => true,
                    };
                    if !written {
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
    };
    let outward = async {
        tokio::join!(pump(stdout, &output, Output::Stdout), pump(stderr, &output, Output::Stderr));
        exit.await
    };
    tokio::select! {
        () = inward => {}
        exit = outward => {
            let status = match exit {
                Ok(Ok(_)) if kind == Session::Attach => success(),
                Ok(Ok(code)) => exited(code),
                Ok(Err(error)) => failure(&error.to_string()),
                Err(_) => failure("the command was lost"),
            };
            // As above.
            let _ = output.send(Output::Status(status)).await;
        }
    }
}

async fn pump(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    output: &mpsc::Sender<Output>,
    wrap: fn(Bytes) -> Output,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; PIECE_BYTES];
    // A stream that breaks off has ended.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if output.send(wrap(Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
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
