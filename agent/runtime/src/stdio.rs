//! The standard streams of a process to be: its ends, and ours.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use libcontainer::container::builder::ContainerBuilder;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::control;

/// Both sides of the streams.
pub(crate) struct Stdio {
    theirs: [Option<OwnedFd>; 3],
    ours: Waiting,
}

/// Our side, before the terminal has come.
pub(crate) struct Waiting {
    ends: Ends,
    console: Option<(UnixListener, PathBuf)>,
}

/// Our ends.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Its standard input, if wanted.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Its terminal, which then stands for all three.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Stdio {
    /// Pipes; or a socket of this name in the current folder, to which the library sends a terminal.
    pub(crate) fn make(console: Option<&str>, stdin: bool) -> io::Result<Self> {
        if let Some(name) = console {
            let path = std::env::current_dir()?.join(name);
            // A name without a folder: socket addresses are short, paths may not be.
            let listener = UnixListener::bind(name)?;
            let ours = Waiting { ends: Ends::default(), console: Some((listener, path)) };
            return Ok(Self { theirs: [None, None, None], ours });
        }
        let (input, input_end) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let (stdout, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, error) = pipe_with(PipeFlags::CLOEXEC)?;
        let ends = Ends { stdin: input_end, stdout: Some(stdout), stderr: Some(stderr), terminal: None };
        Ok(Self { theirs: [Some(input), Some(output), Some(error)], ours: Waiting { ends, console: None } })
    }

    /// Gives the process its ends. None of them is one of our own standard streams, which the library would close.
    pub(crate) fn give(self, builder: &mut ContainerBuilder) -> Waiting {
        let [stdin, stdout, stderr] = self.theirs;
        builder.stdin = stdin;
        builder.stdout = stdout;
        builder.stderr = stderr;
        self.ours
    }
}

impl Waiting {
    /// Takes the terminal, which the library has sent by the time that the container is made.
    pub(crate) fn receive_console(mut self) -> io::Result<Ends> {
        if let Some((listener, path)) = self.console.take() {
            let (socket, _) = listener.accept()?;
            let (_, fds) = control::receive_bytes(socket.as_fd())?;
            fs::remove_file(path)?;
            self.ends.terminal =
                Some(fds.into_iter().next().ok_or_else(|| io::Error::other("the library sent no terminal"))?);
        }
        Ok(self.ends)
    }
}
