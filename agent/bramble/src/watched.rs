//! A TCP stream that knows when its other end has vanished without a word: its plug was pulled, its address is
//! another's now.
//!
//! The kernel would send again for a quarter of an hour. Its own shorter limit (`TCP_USER_TIMEOUT`) also breaks streams
//! whose reader is merely slow, and carried streams wait for their readers: a log in a pager, a file copied to a slow
//! card. A slow reader's kernel acknowledges what it has room for and answers when asked for more room; a vanished one
//! does neither. That is looked at here, as long as anything is under way.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::libc;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

use crate::dial;

/// A stream, and its place among those that are served at once: it keeps it however it is passed on.
pub struct Watched {
    stream: TcpStream,
    gone: Duration,
    watch: Option<Watch>,
    /// Who waits to read, while nobody watches.
    reader: Option<Waker>,
    _place: Option<OwnedSemaphorePermit>,
}

/// While something is under way.
struct Watch {
    next: Pin<Box<Sleep>>,
    /// When it was first seen that the other end does not answer.
    silent_since: Option<Instant>,
}

impl Watched {
    /// Breaks with `TimedOut` once the other end's kernel was silent for about so long, though it was spoken to.
    pub fn new(
        stream: TcpStream,
        gone: Duration,
        place: Option<OwnedSemaphorePermit>,
    ) -> io::Result<Watched> {
        sockopt::set_tcp_user_timeout(&stream, 0)?;
        // For streams on which nothing is under way the kernel's own means will do.
        dial::watch_over(&stream, gone)?;
        Ok(Watched { stream, gone, watch: None, reader: None, _place: place })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<IpAddr> {
        Ok(self.stream.peer_addr()?.ip())
    }

    /// After bytes were written, or could not be.
    fn watch(&mut self, cx: &mut Context<'_>) {
        if self.watch.is_none() {
            let watch = Watch { next: Box::pin(sleep(self.gone / 4)), silent_since: None };
            self.watch = Some(watch);
            match self.reader.take() {
                // It comes back, and watches.
                Some(reader) => reader.wake(),
                None => cx.waker().wake_by_ref(),
            }
        }
    }

    /// Looks, when it is time to.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(watch) = &mut self.watch {
            if watch.next.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let info = tcp_info(&self.stream)?;
            if info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0 {
                self.watch = None;
                return Ok(());
            }
            watch.silent_since = silent_since(watch.silent_since, &info, self.gone / 8);
            if watch.silent_since.is_some_and(|since| since.elapsed() >= self.gone) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the other end has vanished"));
            }
            watch.next.as_mut().reset(Instant::now() + self.gone / 4);
        }
        Ok(())
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_pending() {
            self.poll_gone(cx)?;
            if self.watch.is_none() {
                self.reader = Some(cx.waker().clone());
            }
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx);
        if polled.is_pending() {
            self.poll_gone(cx)?;
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Since when the other end does not answer. An end that is there answers at once whatever is sent to it, be it that it
/// has no room: so it is silent when an answer is missing, and none has come since that was first seen (but for `slack`:
/// the kernel's clock is coarse).
fn silent_since(since: Option<Instant>, info: &libc::tcp_info, slack: Duration) -> Option<Instant> {
    let sent_unheard = info.tcpi_unacked > 0 && info.tcpi_last_ack_recv > info.tcpi_last_data_sent;
    // Questions for room carry no data. Their count begins again with each answer, and one in quick succession gets none.
    if !sent_unheard && info.tcpi_probes < 2 {
        return None;
    }
    let last_answer = Duration::from_millis(info.tcpi_last_ack_recv.into());
    since.filter(|since| last_answer + slack >= since.elapsed()).or_else(|| Some(Instant::now()))
}

/// What the kernel knows of a stream.
#[allow(unsafe_code)]
fn tcp_info(stream: &TcpStream) -> io::Result<libc::tcp_info> {
    // SAFETY: it is made of integers only.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: both places are ours for the whole call, and the kernel writes `length` bytes at most.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;

    const GONE: Duration = Duration::from_millis(400);

    async fn pair(place: Option<OwnedSemaphorePermit>) -> (Watched, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Watched::new(listener.accept().await.unwrap().0, GONE, place).unwrap(), theirs)
    }

    /// From now on the other end's kernel sees nothing.
    #[allow(unsafe_code)]
    fn cut(stream: &TcpStream) {
        let mut nothing = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
        // SAFETY: the kernel reads the program, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        nix::errno::Errno::result(result).unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_is_waited_for() {
        let (mut ours, mut theirs) = pair(None).await;
        let bytes = vec![7; 32 << 20];
        let mut writing = std::pin::pin!(ours.write_all(&bytes));
        assert!(timeout(GONE * 8, &mut writing).await.is_err(), "nobody has read it");
        let mut got = vec![0; bytes.len()];
        let (written, read) = tokio::join!(writing, theirs.read_exact(&mut got));
        written.unwrap();
        read.unwrap();
        assert!(got == bytes);
    }

    #[tokio::test]
    async fn an_end_that_vanishes_while_it_is_spoken_to_is_noticed() {
        let (mut ours, theirs) = pair(None).await;
        cut(&theirs);
        ours.write_all(b"hello?").await.unwrap();
        let error = timeout(GONE * 8, ours.read_u8()).await.expect("it is noticed").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// Reading and writing by two tasks, as sessions do.
    #[tokio::test]
    async fn whoever_waits_is_told() {
        let (ours, theirs) = pair(None).await;
        let (mut read, mut write) = tokio::io::split(ours);
        let reader = tokio::spawn(async move { read.read_u8().await });
        tokio::task::yield_now().await;
        cut(&theirs);
        write.write_all(b"hello?").await.unwrap();
        let error = timeout(GONE * 8, reader).await.expect("it is noticed").unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn an_end_that_vanishes_with_its_buffers_full_is_noticed() {
        let (mut ours, theirs) = pair(None).await;
        let bytes = vec![7; 32 << 20];
        let mut writing = std::pin::pin!(ours.write_all(&bytes));
        assert!(timeout(GONE, &mut writing).await.is_err(), "nobody has read it");
        cut(&theirs);
        // The kernel asks ever more rarely.
        let error = timeout(GONE * 50, writing).await.expect("it is noticed").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_stream_keeps_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let (ours, _theirs) = pair(Some(places.clone().try_acquire_owned().unwrap())).await;
        assert_eq!(places.available_permits(), 0);
        drop(ours);
        assert_eq!(places.available_permits(), 1);
    }
}
