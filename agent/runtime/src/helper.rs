//! How the helpers begin that run containers and commands: alone, unable to harm the program file, and with the daemon
//! at the other end of a control socket.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::state::Dir;
use crate::trace::{self, Kept};
use crate::{exec, isolate, shim, unpack};

/// Becomes a helper if the command line asks for one; the result is the exit code.
///
/// To be called first thing in `main`, before any thread exists.
pub fn helper(args: &[OsString]) -> Option<i32> {
    match args.get(1)?.to_str()? {
        name @ "shim" => Some(main(name, args, shim::run)),
        name @ "exec" => Some(main(name, args, exec::run)),
        "unpack" => Some(unpack::main()),
        _ => None,
    }
}

/// The soft limit of open files that containers begin with, as under systemd.
const CONTAINER_FILES: u64 = 1024;

/// `args` is the whole command line: program, helper, container folder.
fn main(name: &str, args: &[OsString], run: fn(&Dir, &Kept, OwnedFd) -> io::Result<()>) -> i32 {
    let Some(dir) = args.get(2).map(|d| Dir::new(PathBuf::from(d))) else { return 64 };
    match begin(&dir, args).and_then(|(kept, control)| run(&dir, &kept, control)) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{name} {}: {e}", dir.path().display());
            1
        }
    }
}

/// What a container is used to: programs that use select(2), or close every number there may be, suffer from more. They
/// may raise it up to the hard limit.
fn fewer_files() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = Some(limit.maximum.map_or(CONTAINER_FILES, |maximum| maximum.min(CONTAINER_FILES)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, ..limit })?)
}

fn begin(dir: &Dir, args: &[OsString]) -> io::Result<(Kept, OwnedFd)> {
    isolate::close_inherited()?;
    fewer_files()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Fails the second time round, after the program was run again; then it is done.
    let _ = rustix::process::setsid();
    isolate::enter(&dir.join("program"), args)?;
    let kept = trace::keep()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    Ok((kept, take_stdin()?))
}

/// Takes the control socket off standard input, so that nothing of it can reach the container.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}
