//! Moving bytes between two sockets without copying them to userspace: socket to pipe to socket, by splice(2).

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What one splice moves at most, and what a pipe holds; the kernel's default of 64 KiB would double the calls.
const CAPACITY: usize = 256 << 10;
/// Empty pipes kept for the next transfer.
const MAX_IDLE: usize = 64;

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Empty pipes. A direction of a connection holds one only while bytes are on their way, so that thousands of idle
/// connections need none.
#[derive(Debug, Default)]
pub(crate) struct Pipes(Mutex<Vec<Pipe>>);

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.idle().pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Without the privilege for it the default size does.
        let _ = fcntl_setpipe_size(&write, CAPACITY);
        Ok(Pipe { read, write })
    }

    /// Takes back an empty pipe. One with bytes left in it must be dropped instead.
    fn put(&self, pipe: Pipe) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(pipe);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Pipe>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves everything `from` sends to `to`, then ends `to`'s direction too. A future dropped midway closes its pipe.
pub(crate) async fn pump(from: &TcpStream, to: &TcpStream, pipes: &Pipes) -> io::Result<()> {
    loop {
        from.readable().await?;
        let pipe = pipes.take()?;
        let ended = drain(from, to, &pipe).await?;
        pipes.put(pipe);
        if ended {
            break;
        }
    }
    match rustix::net::shutdown(to, rustix::net::Shutdown::Write) {
        // The other side has gone already, having got everything.
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Moves what is there now; says whether it was the end. The pipe is empty afterwards.
async fn drain(from: &TcpStream, to: &TcpStream, pipe: &Pipe) -> io::Result<bool> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let fill = || Ok(splice(from, None, &pipe.write, None, CAPACITY, flags)?);
        let mut left = match from.try_io(Interest::READABLE, fill) {
            Ok(0) => return Ok(true),
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        while left > 0 {
            let empty = || Ok(splice(&pipe.read, None, to, None, left, flags)?);
            match to.async_io(Interest::WRITABLE, empty).await {
                Ok(moved) => left = left.saturating_sub(moved),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
