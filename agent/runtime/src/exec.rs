//! The `exec` helper: runs one command inside a running container, is its parent, and passes its exit code on. When the
//! daemon's end of the control socket goes away, so does the command.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use libcontainer::syscall::syscall::SyscallType;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};

use crate::api::ExecSpec;
use crate::control::{self, Report};
use crate::launch::{Identity, Launch};
use crate::shim::{exec_result, wait};
use crate::state::{Dir, Job};
use crate::stdio::{Ends, Stdio};
use crate::sys;
use crate::trace::Kept;

/// What the helper does.
pub(crate) fn run(dir: &Dir, kept: &Kept, control: OwnedFd) -> io::Result<()> {
    let Some((spec, _)) = control::receive::<ExecSpec>(control.as_fd())? else { return Ok(()) };
    let job = dir.job()?;
    if let Some(score) = job.spec.resources.oom_score_adj {
        // Inherited by the command. Lowering it may not be allowed; the agent's own is then what it gets.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    match start(dir, &job, &spec) {
        Ok((pid, pidfd, ends)) => {
            let fds: Vec<BorrowedFd<'_>> = [&ends.terminal, &ends.stdin, &ends.stdout, &ends.stderr]
                .into_iter()
                .flatten()
                .map(AsFd::as_fd)
                .collect();
            let report = Report::Started { pid: pid.as_raw_nonzero().get().unsigned_abs(), at: sys::now() };
            let told = control::send(control.as_fd(), &report, &fds);
            drop(ends);
            if told.is_err() || !outlived(&control, &pidfd)? {
                // Its whole session: a shell's children go with it.
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            }
            let (code, _) = wait(&pidfd)?;
            let _ = control::send(control.as_fd(), &Report::Exited(code), &[]);
            Ok(())
        }
        Err(why) => control::send(control.as_fd(), &Report::Failed(kept.explain(why)), &[]),
    }
}

fn start(dir: &Dir, job: &Job, spec: &ExecSpec) -> Result<(Pid, OwnedFd, Ends), String> {
    let unique = format!("exec-{}", std::process::id());
    let process_file = dir.join(&format!("{unique}.json"));
    let (process, identity) = processes(dir, spec)?;
    fs::write(&process_file, process.to_string()).map_err(|e| format!("write process.json: {e}"))?;
    std::env::set_current_dir(dir.path()).map_err(|e| e.to_string())?;
    let console = format!("{unique}.sock");
    let stdio = Stdio::make(spec.tty.then_some(console.as_str()), spec.stdin)
        .map_err(|e| format!("make pipes: {e}"))?;
    let (errors, error_end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let mut builder = ContainerBuilder::new(job.spec.id.clone(), SyscallType::Linux)
        .with_root_path(dir.library())
        .map_err(|e| sys::chain(&e))?
        .with_executor(Launch::new(error_end, Some(identity)));
    let ours = stdio.give(&mut builder);
    if spec.tty {
        builder = builder.with_console_socket(Some(dir.join(&console)));
    }
    // To the library "detached" means that a terminal goes to the console socket.
    let built = builder.as_tenant().with_process(Some(&process_file)).with_detach(spec.tty).build();
    let _ = fs::remove_file(&process_file);
    let pid = match built {
        Ok(pid) => Pid::from_raw(pid.as_raw()).ok_or("the library gave no pid")?,
        Err(e) => {
            let _ = fs::remove_file(dir.join(&console));
            return Err(exec_result(errors).err().unwrap_or_else(|| sys::chain(&e)));
        }
    };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| format!("pidfd: {e}"))?;
    let ends = ours.receive_console().map_err(|e| format!("receive the terminal: {e}"))?;
    exec_result(errors)?;
    Ok((pid, pidfd, ends))
}

/// The process that the library is told of, and the one that it becomes.
fn processes(dir: &Dir, spec: &ExecSpec) -> Result<(Value, Identity), String> {
    let path = dir.join("config.json");
    let text = fs::read(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let config: Spec = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut process: Process = config.process().clone().ok_or("the container has no process")?;
    process.set_args(Some(spec.command.clone()));
    process.set_terminal(Some(spec.tty));
    if spec.tty {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        process.set_env(Some(env));
    }
    let seccomp: Option<LinuxSeccomp> = config.linux().as_ref().and_then(|l| l.seccomp().clone());
    let outer = json!({
        "terminal": spec.tty,
        "user": { "uid": 0, "gid": 0 },
        "args": spec.command,
        "env": process.env(),
        "cwd": process.cwd(),
    });
    Ok((outer, Identity { process, seccomp }))
}

/// Waits until the command has ended (true) or the daemon's end is gone (false).
fn outlived(control: &OwnedFd, pidfd: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(pidfd, PollFlags::IN),
            // Only its hang-up is of interest; that is always reported.
            PollFd::new(control, PollFlags::RDHUP),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        if !fds[1].revents().is_empty() {
            return Ok(false);
        }
    }
}
