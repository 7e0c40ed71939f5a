//! The `shim` helper: makes one container, is the parent of its main process, keeps its log and terminal, and leaves
//! its exit code on disk. It needs nobody once it runs; the daemon may come and go.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::mount::MountFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::api::Exit;
use crate::cgroup::Hierarchy;
use crate::control::{self, Go, Report};
use crate::launch::Launch;
use crate::log::Log;
use crate::shim_io::Io;
use crate::spec::{self, Device, Facts};
use crate::state::{Dir, Job, Process, State};
use crate::stdio::Stdio;
use crate::trace::Kept;
use crate::{isolate, sys, users};

/// Where the library hands over the terminal.
const CONSOLE: &str = "console.sock";
/// What a container ends with that never ran.
pub(crate) const NEVER_RAN: i32 = 128;

/// What the helper does.
pub(crate) fn run(dir: &Dir, kept: &Kept, control: OwnedFd) -> io::Result<()> {
    let job = dir.job()?;
    let shim = Process::of(std::process::id()).ok_or_else(|| io::Error::other("no /proc/self/stat"))?;
    let mut state = State { boot_id: sys::boot_id(), shim, init: None, started_at: None };
    dir.write_state(&state)?;
    control::send(control.as_fd(), &Report::Ready, &[])?;
    if control::receive::<Go>(control.as_fd())?.is_none() {
        // The daemon went away before it knew of this container; so nobody will miss it.
        return Ok(());
    }
    let hierarchy = Hierarchy::find()?;
    match Running::start(dir, &job, &hierarchy) {
        Ok(running) => {
            let at = sys::now();
            state.init = Process::of(running.pid);
            state.started_at = Some(at.clone());
            dir.write_state(&state)?;
            // A daemon that is gone by now will read the state file.
            let _ = control::send(control.as_fd(), &Report::Started { pid: running.pid, at }, &[]);
            drop(control);
            running.supervise(dir, &job, &hierarchy)
        }
        Err(why) => {
            let why = kept.explain(why);
            let exit = Exit {
                code: NEVER_RAN,
                signal: None,
                oom_killed: false,
                finished_at: sys::now(),
                error: Some(why.clone()),
            };
            let _ = hierarchy.kill_all(&job.cgroup);
            let _ = hierarchy.remove(&job.cgroup);
            let _ = fs::remove_file(&job.socket);
            dir.write_exit(&job, &exit)?;
            let _ = control::send(control.as_fd(), &Report::Failed(why), &[]);
            Ok(())
        }
    }
}

struct Running {
    pid: u32,
    pidfd: OwnedFd,
    container: Container,
    io: Io,
}

impl Running {
    fn start(dir: &Dir, job: &Job, hierarchy: &Hierarchy) -> Result<Self, String> {
        mount_root(dir, job, hierarchy.is_v2()).map_err(|e| format!("mount the root file system: {e}"))?;
        let config = make_config(dir, job, hierarchy)?;
        fs::write(dir.join("config.json"), config).map_err(|e| format!("write config.json: {e}"))?;
        std::env::set_current_dir(dir.path()).map_err(|e| e.to_string())?;
        let log = Log::open(&job.spec.log_path)
            .map_err(|e| format!("open log {}: {e}", job.spec.log_path.display()))?;
        let attach = listen(&job.socket).map_err(|e| format!("listen at {}: {e}", job.socket.display()))?;

        let stdio = Stdio::make(job.spec.tty.then_some(CONSOLE), job.spec.stdin)
            .map_err(|e| format!("make pipes: {e}"))?;
        let (errors, error_end) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let mut builder = ContainerBuilder::new(job.spec.id.clone(), SyscallType::Linux)
            .with_root_path(dir.library())
            .map_err(|e| sys::chain(&e))?
            .with_executor(Launch::new(error_end, None));
        let ours = stdio.give(&mut builder);
        if job.spec.tty {
            builder = builder.with_console_socket(Some(dir.join(CONSOLE)));
        }
        let mut container =
            builder.as_init(dir.path()).with_systemd(false).build().map_err(|e| sys::chain(&e))?;
        let pid =
            container.pid().map(|p| p.as_raw()).and_then(Pid::from_raw).ok_or("the library gave no pid")?;
        let pidfd =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| format!("pidfd: {e}"))?;
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let started = prepare(job, number)
            .and_then(|()| ours.receive_console().map_err(|e| format!("receive the terminal: {e}")))
            .and_then(|ends| container.start().map(|()| ends).map_err(|e| sys::chain(&e)))
            .and_then(|ends| exec_result(errors).map(|()| ends))
            .and_then(|ends| Io::new(ends, log, attach).map_err(|e| format!("set up streams: {e}")));
        match started {
            Ok(io) => Ok(Self { pid: number, pidfd, container, io }),
            Err(why) => {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                let _ = wait(&pidfd);
                let _ = container.delete(true);
                Err(why)
            }
        }
    }

    fn supervise(mut self, dir: &Dir, job: &Job, hierarchy: &Hierarchy) -> io::Result<()> {
        // With a PID namespace of its own, orphans go to the container's init; else they come to us.
        let orphans = job.spec.host_pid || job.spec.pid_of.is_some();
        self.io.run(&self.pidfd, orphans.then_some(self.pid))?;
        let (code, signal) = wait(&self.pidfd)?;
        if let Err(e) = hierarchy.kill_all(&job.cgroup) {
            eprintln!("shim: {e}");
        }
        let oom_killed = hierarchy.oom_kills(&job.cgroup) > 0;
        self.io.finish();
        let exit = Exit { code, signal, oom_killed, finished_at: sys::now(), error: None };
        dir.write_exit(job, &exit)?;
        // Deleting removes the cgroup with its counters, so it comes last.
        if let Err(e) = self.container.delete(true) {
            eprintln!("shim: delete: {}", sys::chain(&e));
        }
        hierarchy.remove(&job.cgroup)?;
        let _ = fs::remove_file(&job.socket);
        Ok(())
    }
}

/// Waits for a child; its code, and the signal that ended it.
pub(crate) fn wait(pidfd: &OwnedFd) -> io::Result<(i32, Option<i32>)> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let status = status.ok_or_else(|| io::Error::other("waited for nothing"))?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ok((code, None)),
        (None, Some(signal)) => Ok((128 + signal, Some(signal))),
        (None, None) => Err(io::Error::other("neither exited nor killed")),
    }
}

/// Reads what the container's side has to say until its exec closes the pipe.
pub(crate) fn exec_result(errors: OwnedFd) -> Result<(), String> {
    let mut why = String::new();
    File::from(errors).take(4096).read_to_string(&mut why).map_err(|e| format!("wait for the start: {e}"))?;
    if why.is_empty() { Ok(()) } else { Err(why) }
}

fn prepare(job: &Job, pid: u32) -> Result<(), String> {
    let Some(score) = job.spec.resources.oom_score_adj else { return Ok(()) };
    match fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        // Lowering it needs a capability that an agent may lack; the default is then good enough.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|e| format!("set oom_score_adj: {e}")),
    }
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn mount_root(dir: &Dir, job: &Job, cgroup_v2: bool) -> io::Result<()> {
    for name in ["upper", "work", "rootfs", "empty"] {
        match fs::create_dir(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    // Relative names keep a long stack of layers below the limit for mount options.
    std::env::set_current_dir(&job.layers_dir)?;
    let lower = if job.layers.is_empty() {
        dir.join("empty").display().to_string()
    } else {
        job.layers.iter().rev().map(String::as_str).collect::<Vec<_>>().join(":")
    };
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    // Only v1 cgroups keep a container from device nodes that its image brings along.
    let flags = if cgroup_v2 && !job.spec.privileged { MountFlags::NODEV } else { MountFlags::empty() };
    let mount = |options: String| -> io::Result<()> {
        let options = std::ffi::CString::new(options)?;
        Ok(rustix::mount::mount("overlay", dir.rootfs(), "overlay", flags, options.as_c_str())?)
    };
    // This layer is thrown away with the container, so its fsyncs need not wear the card.
    match mount(format!("{options},volatile")) {
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => mount(options),
        other => other,
    }
}

fn make_config(dir: &Dir, job: &Job, hierarchy: &Hierarchy) -> Result<Vec<u8>, String> {
    let root = dir.rootfs();
    let read = |path: &str| {
        isolate::read_in_root(&root, path, users::MAX_FILE)
            .map_err(|e| format!("read the image's /{path}: {e}"))
    };
    let facts = Facts {
        cgroup_v2: hierarchy.is_v2(),
        cgroup_path: job.cgroup.clone(),
        capabilities: spec::capability_names(
            own_capabilities().map_err(|e| format!("read own capabilities: {e}"))?,
        ),
        devices: if job.spec.privileged { host_devices(Path::new("/dev")) } else { Vec::new() },
        mqueue: Path::new(spec::MQUEUE).exists(),
        identity: users::resolve(&job.spec.user, &read("etc/passwd")?, &read("etc/group")?)?,
    };
    let cwd = PathBuf::from(spec::working_dir(&job.spec));
    let (base, rest) = spec::mounted_at(&job.spec, &cwd).unwrap_or((&root, &cwd));
    // The container will say better why it cannot go there.
    if let Err(e) = isolate::make_dir_in_root(base, rest) {
        eprintln!("shim: make {}: {e}", cwd.display());
    }
    serde_json::to_vec(&spec::build(&job.spec, &facts)).map_err(|e| e.to_string())
}

fn own_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let hex = status.lines().find_map(|l| l.strip_prefix("CapPrm:")).unwrap_or("0");
    u64::from_str_radix(hex.trim(), 16).map_err(io::Error::other)
}

/// Device nodes of the host, without those that every container has of its own.
fn host_devices(dir: &Path) -> Vec<Device> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        let own = [
            "pts", "shm", "mqueue", "fd", "console", "ptmx", "null", "zero", "full", "random", "urandom",
            "tty",
        ];
        if own.iter().any(|name| path == Path::new("/dev").join(name)) {
            continue;
        }
        let kind = meta.file_type();
        if kind.is_dir() {
            devices.extend(host_devices(&path));
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.push(Device {
                path,
                block: kind.is_block_device(),
                major: rustix::fs::major(meta.rdev()).into(),
                minor: rustix::fs::minor(meta.rdev()).into(),
                mode: meta.mode() & 0o777,
            });
        }
    }
    devices
}
