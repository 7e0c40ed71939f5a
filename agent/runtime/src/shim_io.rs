//! What a shim does while its container runs: move bytes between the streams, the log and whoever is attached.
//!
//! The log comes first: a slow or stuck client loses its connection, never the container its pace.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::Winsize;

use crate::frames::{Decoder, Frame};
use crate::log::{Log, Stream};
use crate::stdio::Ends;
use crate::sys;

/// Clients attached at a time; more are turned away.
const MAX_CLIENTS: usize = 16;
/// A client that is this far behind is let go.
const MAX_PENDING: usize = 1 << 20;
/// Input that the container has not read yet; when there is more, clients have to wait.
const MAX_INPUT: usize = 256 << 10;
const CHUNK: usize = 16 << 10;
/// How long a client gets for the last bytes once the container has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Where orphans come to us, they are reaped at least this often.
const REAP_EVERY: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

struct Client {
    socket: UnixStream,
    pending: VecDeque<u8>,
    decoder: Decoder,
    gone: bool,
}

impl Client {
    fn push(&mut self, frame: &[u8]) {
        self.pending.extend(frame);
        self.flush();
        self.gone |= self.pending.len() > MAX_PENDING;
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() && !self.gone {
            match self.socket.write(self.pending.as_slices().0) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }
}

/// What one descriptor in the poll set stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Init,
    Stdout,
    Stderr,
    Terminal,
    Stdin,
    Listener,
    Client(usize),
}

/// The streams of a running container.
pub(crate) struct Io {
    ends: Ends,
    log: Log,
    listener: UnixListener,
    clients: Vec<Client>,
    input: VecDeque<u8>,
    input_over: bool,
}

impl Io {
    pub(crate) fn new(ends: Ends, log: Log, listener: UnixListener) -> io::Result<Self> {
        for end in [&ends.stdin, &ends.stdout, &ends.stderr, &ends.terminal].into_iter().flatten() {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Self { ends, log, listener, clients: Vec::new(), input: VecDeque::new(), input_over: false })
    }

    /// Works until the main process has ended, but does not reap it. With `orphans`, that pid's orphans come to us.
    pub(crate) fn run(&mut self, init: &OwnedFd, orphans: Option<u32>) -> io::Result<()> {
        loop {
            let ready = self.wait(init, orphans.is_some())?;
            for source in &ready {
                self.serve(*source);
            }
            self.clients.retain(|c| !c.gone);
            if ready.contains(&Source::Init) {
                return Ok(());
            }
            if let Some(init) = orphans {
                reap_orphans(init);
            }
        }
    }

    fn wait(&self, init: &OwnedFd, orphans: bool) -> io::Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        add(Source::Init, init.as_fd(), PollFlags::IN);
        add(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        if let Some(fd) = &self.ends.stdout {
            add(Source::Stdout, fd.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = &self.ends.stderr {
            add(Source::Stderr, fd.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = &self.ends.terminal {
            let write = if self.input.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            add(Source::Terminal, fd.as_fd(), PollFlags::IN | write);
        }
        if let Some(fd) = self.ends.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            add(Source::Stdin, fd.as_fd(), PollFlags::OUT);
        }
        for (i, client) in self.clients.iter().enumerate() {
            let read = if self.input.len() < MAX_INPUT { PollFlags::IN } else { PollFlags::empty() };
            let write = if client.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            add(Source::Client(i), client.socket.as_fd(), read | write);
        }
        match poll(&mut fds, orphans.then_some(&REAP_EVERY)) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            other => other?,
        };
        Ok(sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(s, _)| s).collect())
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Init => {}
            Source::Stdout | Source::Stderr => {
                self.read_output(source);
            }
            Source::Terminal => {
                self.read_output(source);
                self.write_input();
            }
            Source::Stdin => self.write_input(),
            Source::Listener => self.accept(),
            Source::Client(i) => self.serve_client(i),
        }
    }

    /// Reads once; true while there may be more.
    fn read_output(&mut self, source: Source) -> bool {
        let (end, stream) = match source {
            Source::Stderr => (&mut self.ends.stderr, Stream::Stderr),
            Source::Terminal => (&mut self.ends.terminal, Stream::Stdout),
            _ => (&mut self.ends.stdout, Stream::Stdout),
        };
        let Some(fd) = end else { return false };
        let mut buf = [0; CHUNK];
        let n = match rustix::io::read(&*fd, &mut buf) {
            Ok(n) if n > 0 => n,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
            // The end of a pipe; of a terminal: EIO, when nobody has it open any more.
            _ => {
                *end = None;
                return false;
            }
        };
        self.log.write(stream, &buf[..n], &sys::now());
        if !self.clients.is_empty() {
            let bytes = buf[..n].to_vec();
            let frame =
                if stream == Stream::Stderr { Frame::Stderr(bytes) } else { Frame::Stdout(bytes) }.encode();
            self.clients.iter_mut().for_each(|c| c.push(&frame));
        }
        true
    }

    fn write_input(&mut self) {
        while !self.input.is_empty() {
            let Some(fd) = self.ends.stdin.as_ref().or(self.ends.terminal.as_ref()) else {
                self.input.clear();
                return;
            };
            match rustix::io::write(fd, self.input.as_slices().0) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.ends.stdin = None;
                    self.input.clear();
                }
            }
        }
        if self.input_over {
            self.ends.stdin = None;
        }
    }

    fn accept(&mut self) {
        let Ok((socket, _)) = self.listener.accept() else { return };
        if self.clients.len() < MAX_CLIENTS && socket.set_nonblocking(true).is_ok() {
            let (pending, decoder) = (VecDeque::new(), Decoder::default());
            self.clients.push(Client { socket, pending, decoder, gone: false });
        }
    }

    fn serve_client(&mut self, i: usize) {
        let client = &mut self.clients[i];
        client.flush();
        let mut buf = [0; CHUNK];
        match client.socket.read(&mut buf) {
            Ok(0) => client.gone = true,
            Ok(n) => client.decoder.feed(&buf[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => client.gone = true,
        }
        let mut frames = Vec::new();
        loop {
            match client.decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(()) => {
                    client.gone = true;
                    break;
                }
            }
        }
        frames.into_iter().for_each(|frame| self.obey(frame));
        self.write_input();
    }

    fn obey(&mut self, frame: Frame) {
        match frame {
            Frame::Stdin(bytes) if !self.input_over => self.input.extend(bytes),
            // Of a terminal: the end-of-file character, which is what a user would type.
            Frame::StdinEnd if self.ends.terminal.is_some() => self.input.push_back(4),
            Frame::StdinEnd => self.input_over = true,
            Frame::Resize(columns, rows) => {
                let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
                if let Some(terminal) = &self.ends.terminal {
                    // A terminal that is gone needs no size.
                    let _ = rustix::termios::tcsetwinsize(terminal, size);
                }
            }
            Frame::Stdin(_) | Frame::Stdout(_) | Frame::Stderr(_) => {}
        }
    }

    /// Takes what is still in the pipes once nobody writes any more, and lets the clients have it.
    pub(crate) fn finish(&mut self) {
        for source in [Source::Stdout, Source::Stderr, Source::Terminal] {
            while self.read_output(source) {}
        }
        self.log.finish(&sys::now());
        let until = Instant::now() + LAST_WORDS;
        loop {
            self.clients.iter_mut().for_each(Client::flush);
            self.clients.retain(|c| !c.gone && !c.pending.is_empty());
            let left = until.saturating_duration_since(Instant::now());
            if self.clients.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> = self
                .clients
                .iter()
                .map(|c| PollFd::from_borrowed_fd(c.socket.as_fd(), PollFlags::OUT))
                .collect();
            let left = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos().min(500_000_000)) as _ };
            if poll(&mut fds, Some(&left)).is_err() {
                return;
            }
        }
    }
}

/// Reaps what ended and is not the main process.
fn reap_orphans(init: u32) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) {
        if pid.as_raw().unsigned_abs() == init || waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err() {
            return;
        }
    }
}
