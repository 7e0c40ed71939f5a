//! The daemon's side of exec and attach: turns a helper's descriptors, or a shim's socket, into async streams.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::api::{Error, ExecSpec, Streams, TerminalSize};
use crate::containers::Entry;
use crate::control::{self, Control, Report};
use crate::frames::{Decoder, Frame};
use crate::sys;

/// Bytes under way in each direction.
const BUFFER: usize = 64 << 10;
/// Resizes that may wait: a user drags a window faster than a terminal changes.
const RESIZES: usize = 8;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A terminal's master side.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *space)?)) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the terminal open any more: the end.
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn failed(what: &str, e: &io::Error) -> Error {
    Error::Start(format!("{what}: {e}"))
}

/// Runs a command in a container.
pub(crate) async fn exec(helper: &Path, entry: &Entry, spec: ExecSpec) -> Result<Streams, Error> {
    if spec.command.is_empty() {
        return Err(Error::Start("no command specified".into()));
    }
    let (ours, theirs) = control::pair().map_err(|e| failed("make a socket", &e))?;
    let mut child = tokio::process::Command::new(helper)
        .arg("exec")
        .arg(entry.dir.path())
        .env_clear()
        .current_dir("/")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed("run the exec helper", &e))?;
    let control = Control::new(ours).map_err(|e| failed("use a socket", &e))?;
    control.send(&spec).await.map_err(|e| failed("talk to the exec helper", &e))?;
    let Ok(report) = tokio::time::timeout(START_TIMEOUT, control.report()).await else {
        // Stuck before it looks at its socket.
        let _ = child.start_kill();
        return Err(Error::Start(format!("the command did not start within {START_TIMEOUT:?}")));
    };
    let report = report.map_err(|e| failed("talk to the exec helper", &e))?;
    let fds = match report {
        Some((Report::Started { .. }, fds)) => fds,
        Some((Report::Failed(why), _)) => return Err(Error::Start(why)),
        _ => return Err(Error::Start("the exec helper ended early".into())),
    };
    let (mut streams, exit) = open_streams(&spec, fds).map_err(|e| failed("open the streams", &e))?;
    let (sender, receiver) = oneshot::channel();
    streams.exit = receiver;
    tokio::spawn(async move {
        let mut sender = sender;
        let result = tokio::select! {
            report = control.report() => match report {
                Ok(Some((Report::Exited(code), _))) => Ok(code),
                Ok(_) => Err(Error::Node("the exec helper was lost".into())),
                Err(e) => Err(failed("talk to the exec helper", &e)),
            },
            // The client is gone: closing our end makes the helper end the command.
            () = sender.closed() => Err(Error::Node("nobody is listening".into())),
        };
        drop(control);
        drop(exit);
        let _ = sender.send(result);
        let _ = child.wait().await;
    });
    Ok(streams)
}

/// Streams without an exit yet, and what must live until then.
fn open_streams(spec: &ExecSpec, fds: Vec<OwnedFd>) -> io::Result<(Streams, Option<Arc<AsyncFd<OwnedFd>>>)> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::other("the helper sent too few descriptors"));
    let (_, exit) = oneshot::channel();
    if spec.tty {
        let master = next()?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = Arc::new(sys::async_fd(master, Interest::READABLE | Interest::WRITABLE)?);
        let (resize, mut sizes) = mpsc::channel::<TerminalSize>(RESIZES);
        let resized = master.clone();
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                let size = Winsize { ws_col: size.width, ws_row: size.height, ws_xpixel: 0, ws_ypixel: 0 };
                if rustix::termios::tcsetwinsize(resized.get_ref(), size).is_err() {
                    break;
                }
            }
        });
        let streams = Streams {
            stdin: spec.stdin.then(|| Box::new(Terminal(master.clone())) as _),
            stdout: Some(Box::new(Terminal(master.clone()))),
            stderr: None,
            resize: Some(resize),
            exit,
        };
        return Ok((streams, Some(master)));
    }
    let stdin = if spec.stdin { Some(pipe::Sender::from_owned_fd(next()?)?) } else { None };
    let stdout = pipe::Receiver::from_owned_fd(next()?)?;
    let stderr = pipe::Receiver::from_owned_fd(next()?)?;
    let streams = Streams {
        stdin: stdin.map(|s| Box::new(s) as _),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        resize: None,
        exit,
    };
    Ok((streams, None))
}

/// An attached container's standard input: shut down, it is closed for the container too; merely dropped, it stays
/// open for whoever attaches next.
struct Input {
    inner: DuplexStream,
    over: Arc<AtomicBool>,
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over.store(true, Ordering::Release);
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Attaches to a container's main process.
pub(crate) async fn attach(entry: Arc<Entry>, stdin: bool) -> Result<Streams, Error> {
    let socket = UnixStream::connect(&entry.job.socket)
        .await
        .map_err(|e| Error::Start(format!("attach to container {}: {e}", entry.job.spec.id)))?;
    let (from_shim, to_shim) = socket.into_split();
    let (stdout, out) = tokio::io::duplex(BUFFER);
    let (stderr, err) = tokio::io::duplex(BUFFER);
    let (input, typed) = tokio::io::duplex(BUFFER);
    let over = Arc::new(AtomicBool::new(false));
    let (resize, sizes) = mpsc::channel(RESIZES);
    let (sender, exit) = oneshot::channel();
    let tty = entry.job.spec.tty;
    let input = stdin.then(|| Input { inner: input, over: over.clone() });
    tokio::spawn(async move {
        let mut sender = sender;
        tokio::select! {
            () = from_container(from_shim, out, err) => {}
            () = sender.closed() => return,
            () = to_container(to_shim, typed, over, sizes) => return,
        }
        // The shim closes its connections when the container has ended, or to get rid of a slow client.
        let result = tokio::select! {
            exit = entry.wait() => exit.map(|e| e.code),
            () = sender.closed() => return,
        };
        let _ = sender.send(result);
    });
    Ok(Streams {
        stdin: input.map(|s| Box::new(s) as _),
        stdout: Some(Box::new(stdout)),
        stderr: (!tty).then(|| Box::new(stderr) as _),
        resize: tty.then_some(resize),
        exit,
    })
}

async fn from_container(mut shim: OwnedReadHalf, mut out: DuplexStream, mut err: DuplexStream) {
    let mut decoder = Decoder::default();
    let mut buf = vec![0; BUFFER];
    loop {
        match shim.read(&mut buf).await {
            Ok(n) if n > 0 => decoder.feed(&buf[..n]),
            _ => return,
        }
        while let Ok(Some(frame)) = decoder.next() {
            // A client may close one stream and go on with the other.
            let _ = match frame {
                Frame::Stdout(bytes) => out.write_all(&bytes).await,
                Frame::Stderr(bytes) => err.write_all(&bytes).await,
                _ => Ok(()),
            };
        }
    }
}

/// Only comes back when the shim is gone.
async fn to_container(
    mut shim: OwnedWriteHalf,
    mut typed: DuplexStream,
    over: Arc<AtomicBool>,
    mut sizes: mpsc::Receiver<TerminalSize>,
) {
    let mut buf = vec![0; BUFFER / 4];
    let (mut reading, mut sizing) = (true, true);
    loop {
        let frame = tokio::select! {
            got = typed.read(&mut buf), if reading => match got {
                Ok(n) if n > 0 => Frame::Stdin(buf[..n].to_vec()),
                _ => {
                    reading = false;
                    if !over.load(Ordering::Acquire) {
                        continue;
                    }
                    Frame::StdinEnd
                }
            },
            size = sizes.recv(), if sizing => match size {
                Some(size) => Frame::Resize(size.width, size.height),
                None => {
                    sizing = false;
                    continue;
                }
            },
            else => std::future::pending().await,
        };
        if shim.write_all(&frame.encode()).await.is_err() {
            // What the container still says is worth hearing; the other direction ends by itself.
            std::future::pending::<()>().await;
        }
    }
}
