//! The socket pair between the daemon and a helper: one JSON message a packet, with descriptors where needed.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Largest message: the arguments of an exec are the only ones that are not small.
const MAX_MESSAGE: usize = 128 << 10;
/// Most descriptors in one message.
const MAX_FDS: usize = 3;

/// What a helper says to the daemon.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Report {
    /// The shim is on record and waits for the word to go on.
    Ready,
    /// The process runs; an exec's message carries its streams.
    Started {
        /// On the host.
        pid: u32,
        /// RFC 3339.
        at: String,
    },
    /// It could not be started.
    Failed(String),
    /// An exec ended.
    Exited(i32),
}

/// What the daemon says to a shim.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Go;

/// Makes a pair: the daemon's end and the helper's.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message; waits while the socket is full.
pub(crate) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MAX_MESSAGE {
        return Err(io::Error::other(format!("more than {MAX_MESSAGE} bytes of arguments")));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (text, fds) = receive_bytes(socket)?;
    if text.is_empty() { Ok(None) } else { Ok(Some((serde_json::from_slice(&text)?, fds))) }
}

/// Receives bytes and what descriptors come with them.
pub(crate) fn receive_bytes(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    text.truncate(got.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((text, fds))
}

/// The daemon's end.
pub(crate) struct Control(AsyncFd<OwnedFd>);

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(sys::async_fd(socket, Interest::READABLE | Interest::WRITABLE)?))
    }

    pub(crate) async fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |fd| send(fd.as_fd(), message, &[])).await
    }

    /// The helper's next report; `None` when it is gone.
    pub(crate) async fn report(&self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        self.0.async_io(Interest::READABLE, |fd| receive(fd.as_fd())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_descriptors() {
        let (a, b) = pair().unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        send(a.as_fd(), &Report::Exited(7), &[w.as_fd()]).unwrap();
        drop(w);
        let (report, fds): (Report, _) = receive(b.as_fd()).unwrap().unwrap();
        assert!(matches!(report, Report::Exited(7)));
        rustix::io::write(&fds[0], b"x").unwrap();
        drop(fds);
        let mut buf = [0; 2];
        assert_eq!(rustix::io::read(&r, &mut buf).unwrap(), 1);
        drop(a);
        assert!(receive::<Report>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let (a, _b) = pair().unwrap();
        assert!(send(a.as_fd(), &"x".repeat(MAX_MESSAGE), &[]).is_err());
    }
}
