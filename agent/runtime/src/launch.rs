//! The last steps inside a container, between the library's set-up and the container's own program.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

use crate::spec::DEFAULT_PATH;
use crate::sys;

/// Runs the program. What goes wrong is written to a pipe that a successful exec closes, so the other end knows both.
#[derive(Clone)]
pub(crate) struct Launch {
    errors: Arc<OwnedFd>,
    identity: Option<Identity>,
}

/// What an exec'ed process takes on itself: the library would give it no seccomp profile.
#[derive(Clone)]
pub(crate) struct Identity {
    /// The process as it shall be; the library was told to make it root, with all capabilities.
    pub(crate) process: Process,
    pub(crate) seccomp: Option<LinuxSeccomp>,
}

impl Launch {
    pub(crate) fn new(errors: OwnedFd, identity: Option<Identity>) -> Self {
        Self { errors: Arc::new(errors), identity }
    }
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let given = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let process = self.identity.as_ref().map_or(given, |i| &i.process);
        let taken = self.identity.as_ref().map_or(Ok(()), Identity::take);
        let why = match taken {
            Ok(()) => run(process),
            Err(why) => why,
        };
        // Nobody left to tell when this fails.
        let _ = rustix::io::write(&*self.errors, why.as_bytes());
        Err(ExecutorError::Other(why))
    }

    /// Everything is checked where it happens; a check beforehand refuses programs that would run.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The environment is given to the program directly.
    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

impl Identity {
    /// Becomes what the container's processes are. Without no_new_privs only a privileged process may install a
    /// profile, so the profile comes before the privileges go.
    fn take(&self) -> Result<(), String> {
        let no_new_privileges = self.process.no_new_privileges() == Some(true);
        if !no_new_privileges {
            self.confine()?;
        }
        let syscall = create_syscall();
        let user = self.process.user();
        let groups: Vec<Gid> =
            user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        syscall.set_groups(&groups).map_err(|e| format!("set groups: {e}"))?;
        syscall
            .set_id(Uid::from_raw(user.uid()), Gid::from_raw(user.gid()))
            .map_err(|e| format!("set user: {e}"))?;
        capabilities::reset_effective(&*syscall).map_err(|e| format!("set capabilities: {e}"))?;
        if let Some(wanted) = self.process.capabilities() {
            capabilities::drop_privileges(wanted, &*syscall).map_err(|e| format!("set capabilities: {e}"))?;
        }
        if no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(|e| format!("set no_new_privs: {e}"))?;
            self.confine()?;
        }
        Ok(())
    }

    fn confine(&self) -> Result<(), String> {
        match &self.seccomp {
            Some(profile) => initialize_seccomp(profile).map(|_| ()).map_err(|e| sys::chain(&e)),
            None => Ok(()),
        }
    }
}

/// Replaces this process; only comes back, with the reason, when that failed.
fn run(process: &Process) -> String {
    let args = process.args().clone().unwrap_or_default();
    let env = process.env().clone().unwrap_or_default();
    let Some(program) = args.first().filter(|p| !p.is_empty()) else { return "no command to run".into() };
    let c_strings =
        |list: &[String]| list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(c_args), Ok(c_env)) = (c_strings(&args), c_strings(&env)) else {
        return "an argument or a variable holds a zero byte".into();
    };
    restore_sigpipe();
    let mut worst = Errno::ENOENT;
    for candidate in candidates(program, &env) {
        let Ok(path) = CString::new(candidate) else { continue };
        let Err(errno) = nix::unistd::execve(&path, &c_args, &c_env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = errno,
            other => return explain(program, other),
        }
    }
    explain(program, worst)
}

/// Where a program may be. Pure.
fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|dir| if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") })
        .collect()
}

fn explain(program: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOENT if program.contains('/') => {
            format!("exec: {program:?}: no such file or directory (or its interpreter is missing)")
        }
        Errno::ENOENT => format!("exec: {program:?}: executable file not found in $PATH"),
        Errno::EACCES => format!("exec: {program:?}: permission denied"),
        Errno::ENOEXEC => format!("exec: {program:?}: exec format error (built for another architecture?)"),
        other => format!("exec: {program:?}: {}", other.desc()),
    }
}

/// Rust programs ignore SIGPIPE, and what is ignored stays so across exec; the container's program must not inherit it.
#[allow(unsafe_code)]
fn restore_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no handler of ours that could run in an unsafe context.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_searched_like_a_shell_does() {
        let env = ["A=b".to_owned(), "PATH=/x:/y".to_owned()];
        assert_eq!(candidates("sh", &env), ["/x/sh", "/y/sh"]);
        assert_eq!(candidates("./sh", &env), ["./sh"]);
        assert_eq!(candidates("sh", &[]).len(), 6);
    }
}
