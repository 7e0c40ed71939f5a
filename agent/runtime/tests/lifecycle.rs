//! Commands in running containers, attaching, and what survives the death of the agent or of a shim.

// A panic is how a test says that something failed.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{World, eventually};
use runtime::{ContainerSpec, Error, ExecSpec, Runtime, Streams, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for anything that is expected to come.
const PATIENCE: Duration = Duration::from_secs(20);

fn command(script: &str, tty: bool, stdin: bool) -> ExecSpec {
    ExecSpec { command: vec!["sh".into(), "-c".into(), script.into()], tty, stdin }
}

/// Reads everything and the exit code.
async fn collect(mut streams: Streams) -> (i32, String, String) {
    drop(streams.stdin.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut stdout = streams.stdout.take().unwrap();
    stdout.read_to_end(&mut out).await.unwrap();
    if let Some(mut stderr) = streams.stderr.take() {
        stderr.read_to_end(&mut err).await.unwrap();
    }
    let code = tokio::time::timeout(PATIENCE, streams.exit).await.unwrap().unwrap().unwrap();
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Reads until a text has come.
async fn read_until(stream: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) -> String {
    let mut all = String::new();
    let mut buf = [0; 1024];
    while !all.contains(text) {
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut buf)).await.expect(&all).unwrap();
        assert!(n > 0, "ended without {text}: {all}");
        all.push_str(&String::from_utf8_lossy(&buf[..n]));
    }
    all
}

fn has_process(argument: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|e| {
        std::fs::read(e.path().join("cmdline"))
            .is_ok_and(|c| c.starts_with(b"sleep") && c.split(|b| *b == 0).any(|a| a == argument.as_bytes()))
    })
}

#[tokio::test]
async fn exec_is_like_the_main_process() {
    let w = World::new().await;
    let mut spec = w.spec("a", "exec sleep 1000");
    spec.user = "web".into();
    spec.supplemental_groups = vec![1234];
    spec.working_dir = "/made".into();
    w.runtime.start(spec).await.unwrap();
    let script = "ls -l /proc/self/fd 2>/dev/null | grep -c '^l'; id; pwd; echo $A; \
        grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd):' /proc/self/status; ps | grep -c 'sleep 1000'; \
        mount -t tmpfs t /tmp 2>&1; echo oops >&2; exit 9";
    let (code, out, err) = collect(w.runtime.exec("a", command(script, false, false)).await.unwrap()).await;
    assert_eq!(code, 9, "{out}{err}");
    assert!(out.starts_with("4\nuid=33(web) gid=34(web) groups=44(media),1234\n/made\nb\n"), "{out}");
    // Without MKNOD on v2.
    let bounding =
        if common::cgroup_v2() { "CapBnd:\t00000000a00425fb" } else { "CapBnd:\t00000000a80425fb" };
    for line in ["Seccomp:\t2", "NoNewPrivs:\t0", "CapEff:\t0000000000000000", bounding] {
        assert!(out.contains(line), "{line} missing in {out}");
    }
    assert!(out.contains("permission denied") || out.contains("not permitted"), "{out}");
    assert_eq!(err, "oops\n");
    // Its signals are told like a shell tells them.
    let killed = collect(w.runtime.exec("a", command("kill -9 $$", false, false)).await.unwrap()).await;
    assert_eq!(killed.0, 137);
    w.end().await;
}

#[tokio::test]
async fn exec_keeps_no_new_privileges_and_the_cgroup() {
    let w = World::new().await;
    let mut spec = w.spec("a", "exec sleep 1000");
    spec.no_new_privileges = true;
    w.runtime.start(spec).await.unwrap();
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; cat /proc/self/cgroup; id";
    let (_, out, _) = collect(w.runtime.exec("a", command(script, false, false)).await.unwrap()).await;
    assert!(out.contains("Seccomp:\t2") && out.contains("NoNewPrivs:\t1") && out.contains("uid=0"), "{out}");
    // Inside a cgroup namespace, one's own cgroup is the root.
    assert!(out.contains(if common::cgroup_v2() { "0::/\n" } else { "/pods/pod1/a" }), "{out}");
    w.end().await;
}

#[tokio::test]
async fn exec_passes_input_and_says_why_it_cannot_start() {
    let w = World::new().await;
    w.runtime.start(w.spec("a", "exec sleep 1000")).await.unwrap();
    let mut streams = w.runtime.exec("a", command("cat; echo end", false, true)).await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    let big = vec![b'x'; 1 << 20];
    let (_, (code, out, _)) = tokio::join!(
        async move {
            stdin.write_all(&big).await.unwrap();
            drop(stdin);
        },
        collect(streams)
    );
    assert_eq!((code, out.len()), (0, (1 << 20) + 4));
    let missing = ExecSpec { command: vec!["nosuch".into()], tty: false, stdin: false };
    let error = w.runtime.exec("a", missing).await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Start(why) if why.contains("not found in $PATH")), "{error}");
    assert!(matches!(
        w.runtime.exec("b", command("true", false, false)).await.map(drop),
        Err(Error::NotFound(_))
    ));
    w.runtime.kill("a", 9).await.unwrap();
    w.runtime.wait("a").await.unwrap();
    let error = w.runtime.exec("a", command("true", false, false)).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("not running"), "{error}");
    w.end().await;
}

#[tokio::test]
async fn exec_with_a_terminal() {
    let w = World::new().await;
    w.runtime.start(w.spec("a", "exec sleep 1000")).await.unwrap();
    let mut streams = w
        .runtime
        .exec("a", command("test -t 0 && test -t 2 && echo tty; exec sh", true, true))
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (streams.stdin.take().unwrap(), streams.stdout.take().unwrap());
    read_until(&mut stdout, "tty").await;
    let resize = streams.resize.take().unwrap();
    resize.send(TerminalSize { width: 123, height: 45 }).await.unwrap();
    let seen = async {
        loop {
            stdin.write_all(b"stty size; echo $TERM d''one\n").await.unwrap();
            if read_until(&mut stdout, "done").await.contains("45 123") {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    stdin.write_all(b"exit 5\n").await.unwrap();
    let code = tokio::time::timeout(PATIENCE, streams.exit).await.unwrap().unwrap().unwrap();
    assert_eq!(code, 5);
    w.end().await;
}

#[tokio::test]
async fn an_exec_ends_with_its_client() {
    let w = World::new().await;
    w.runtime.start(w.spec("a", "exec sleep 1000")).await.unwrap();
    let streams =
        w.runtime.exec("a", command("echo up; sleep 31337 & sleep 31337", false, false)).await.unwrap();
    eventually("the command runs", async || has_process("31337").then_some(())).await;
    drop(streams);
    eventually("the command is gone", async || (!has_process("31337")).then_some(())).await;
    assert!(w.runtime.container("a").await.unwrap().exit.is_none());
    w.end().await;
}

#[tokio::test]
async fn attaching() {
    let w = World::new().await;
    let mut spec = w.spec("a", "while read line; do echo got $line; done; echo over; exit 4");
    spec.stdin = true;
    w.runtime.start(spec).await.unwrap();
    for round in ["first", "second"] {
        let mut streams = w.runtime.attach("a", true).await.unwrap();
        let (mut stdin, mut stdout) = (streams.stdin.take().unwrap(), streams.stdout.take().unwrap());
        stdin.write_all(format!("{round}\n").as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stdout, "\n").await, format!("got {round}\n"));
        // Going away leaves the container's input open for the next.
    }
    let mut streams = w.runtime.attach("a", true).await.unwrap();
    streams.stdin.take().unwrap().shutdown().await.unwrap();
    let (code, out, _) = collect(streams).await;
    assert_eq!((code, out.as_str()), (4, "over\n"));
    assert_eq!(w.output("a"), "got first\ngot second\nover\n");
    assert!(w.runtime.attach("a", false).await.is_err(), "nothing to attach to");
    w.end().await;
}

#[tokio::test]
async fn a_terminal_for_the_main_process() {
    let w = World::new().await;
    let mut spec = w.spec("a", "test -t 1 && echo is a tty; read x; stty size; echo $TERM $x; exit 6");
    spec.tty = true;
    spec.stdin = true;
    w.runtime.start(spec).await.unwrap();
    let mut streams = w.runtime.attach("a", true).await.unwrap();
    assert!(streams.stderr.is_none());
    // Frames are kept in order: the size is there before the line is.
    streams.resize.as_ref().unwrap().send(TerminalSize { width: 99, height: 33 }).await.unwrap();
    eventually("the size is set", async || {
        let seen = w.runtime.exec("a", command("stty size < /dev/console", false, false)).await.unwrap();
        collect(seen).await.1.contains("33 99").then_some(())
    })
    .await;
    streams.stdin.as_mut().unwrap().write_all(b"typed\n").await.unwrap();
    let (code, out, _) = collect(streams).await;
    assert_eq!(code, 6);
    assert!(out.contains("33 99") && out.contains("xterm typed"), "{out}");
    assert!(w.log("a").contains("stdout F is a tty"));
    w.end().await;
}

#[tokio::test]
async fn a_stuck_client_does_not_stop_the_container() {
    let w = World::new().await;
    let mut spec = w.spec("a", "read go; seq 1 400000; exit 0");
    spec.stdin = true;
    w.runtime.start(spec).await.unwrap();
    let mut streams = w.runtime.attach("a", true).await.unwrap();
    streams.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    // Nobody reads what comes.
    let exit = tokio::time::timeout(PATIENCE, w.runtime.wait("a")).await.unwrap().unwrap();
    assert_eq!(exit.code, 0);
    assert!(w.log("a").ends_with(" stdout F 400000\n"));
    w.end().await;
}

/// An agent in a process of its own that has started some containers.
///
/// It was started carelessly: with a descriptor that is not closed on exec, and variables that speak of more.
fn agent(w: &World, specs: &[ContainerSpec]) -> Child {
    let leaked = rustix::io::dup(std::fs::File::open("/etc/passwd").unwrap()).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_runtime-helper"))
        .env("LISTEN_FDS", "10")
        .args(["host".as_ref(), w.dir.path().as_os_str(), w.cgroup_root.as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(specs).unwrap()).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    drop(leaked);
    child
}

#[tokio::test]
async fn containers_outlive_the_agent() {
    let mut w = World::new().await;
    let volume = w.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let wait_for = "while ! test -e /v/go; do sleep 0.05; done";
    let mut specs = vec![
        w.spec("long", &format!("echo before; {wait_for}; ls -l /proc/self/fd 2>/dev/null | grep -c '^l'; env | grep -c LISTEN; exit 21")),
        w.spec("short", "echo one; sleep 0.3; echo two; exit 33"),
    ];
    for spec in &mut specs {
        spec.mounts =
            vec![runtime::Mount { host_path: volume.clone(), container_path: "/v".into(), read_only: false }];
    }
    let mut agent = agent(&w, &specs);
    agent.kill().unwrap();
    agent.wait().unwrap();
    // One container ends while there is no agent at all.
    eventually("the exit is on disk", async || {
        std::fs::metadata(w.dir.path().join("lib/containers/short/exit.json")).ok()
    })
    .await;
    w.reopen().await;
    let short = w.runtime.wait("short").await.unwrap();
    assert_eq!((short.code, short.error), (33, None));
    assert_eq!(w.output("short"), "one\ntwo\n");
    let long = w.runtime.container("long").await.unwrap();
    assert!(long.pid.is_some() && long.exit.is_none() && long.started_at.is_some());
    assert_eq!(long.labels["pod"], "p1");
    // What was started by another agent is as good as one's own.
    let (_, out, _) =
        collect(w.runtime.exec("long", command("cat /proc/1/cmdline", false, false)).await.unwrap()).await;
    assert!(out.contains("before"), "{out}");
    std::fs::write(volume.join("go"), "").unwrap();
    assert_eq!(w.runtime.wait("long").await.unwrap().code, 21);
    assert_eq!(w.output("long"), "before\n4\n0\n", "descriptors or variables of the agent got in");
    w.end().await;
}

#[tokio::test]
async fn a_lost_shim_is_reported_and_cleaned_up() {
    let mut w = World::new().await;
    w.runtime.start(w.spec("a", "sleep 424242 & exec sleep 424242")).await.unwrap();
    w.runtime.start(w.spec("b", "exec sleep 525252")).await.unwrap();
    let kill_shim = |w: &World, id: &str| {
        let path = w.dir.path().join("lib/containers").join(id).join("state.json");
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let pid = state["shim"]["pid"].as_u64().unwrap() as i32;
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    };
    kill_shim(&w, "a");
    let exit = tokio::time::timeout(PATIENCE, w.runtime.wait("a")).await.unwrap().unwrap();
    assert_eq!(exit.code, 137);
    assert!(exit.error.unwrap().contains("shim"));
    eventually("nothing of it runs", async || (!has_process("424242")).then_some(())).await;
    // The same, found by a new agent.
    let fresh = common::config(w.dir.path(), &w.cgroup_root, Default::default());
    drop(std::mem::replace(&mut w.runtime, runtime::Libcontainer::open(fresh).await.unwrap()));
    assert!(w.runtime.container("b").await.unwrap().pid.is_some());
    kill_shim(&w, "b");
    assert_eq!(tokio::time::timeout(PATIENCE, w.runtime.wait("b")).await.unwrap().unwrap().code, 137);
    assert!(!has_process("525252"));
    w.end().await;
}

#[tokio::test]
async fn a_container_cannot_write_to_the_agents_program() {
    let w = World::new().await;
    let mut spec = w.spec("a", "exec sleep 1000");
    spec.resources.oom_score_adj = Some(500);
    w.runtime.start(spec).await.unwrap();
    let state = std::fs::read(w.dir.path().join("lib/containers/a/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let shim = format!("/proc/{}", state["shim"]["pid"]);
    // While it runs it is busy in any case; what counts is that it cannot be opened for writing later either.
    let flags = rustix::fs::statvfs(format!("{shim}/exe")).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    // Nor does what the container is given change the shim itself.
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(std::fs::read_to_string(format!("{shim}/oom_score_adj")).unwrap(), own);
    w.end().await;
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_goes_on() {
    let w = World::new().await;
    let start = w.runtime.start(w.spec("a", "exec sleep 1000"));
    // Polled once and dropped: the shim is running, the handshake is not done.
    assert!(futures::FutureExt::now_or_never(start).is_none());
    let pid = eventually("it is up", async || w.runtime.container("a").await.ok()?.pid).await;
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    w.end().await;
}

#[tokio::test]
async fn what_never_started_is_no_running_container() {
    let mut w = World::new().await;
    // As an agent leaves it that is killed right after it wrote the job; and one that is killed before, or a removal
    // that was cut off.
    w.runtime.start(w.spec("a", "true")).await.unwrap();
    w.runtime.wait("a").await.unwrap();
    let containers = w.dir.path().join("lib/containers");
    let folder = |id: &str| containers.join(id);
    std::fs::create_dir(folder("half")).unwrap();
    for file in ["exit.json", "state.json"] {
        std::fs::remove_file(folder("a").join(file)).unwrap();
    }
    w.reopen().await;
    let exit = tokio::time::timeout(PATIENCE, w.runtime.wait("a")).await.unwrap().unwrap();
    assert_eq!(exit.code, 137);
    assert!(exit.error.unwrap().contains("not started"));
    assert!(!folder("half").exists());
    // After a reboot, pids mean nothing.
    w.runtime.remove("a").await.unwrap();
    w.runtime.start(w.spec("a", "true")).await.unwrap();
    w.runtime.wait("a").await.unwrap();
    std::fs::remove_file(folder("a").join("exit.json")).unwrap();
    let path = folder("a").join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["boot_id"] = "another".into();
    state["shim"] = serde_json::json!({ "pid": std::process::id(), "start_time": 1 });
    std::fs::write(&path, state.to_string()).unwrap();
    w.reopen().await;
    let exit = tokio::time::timeout(PATIENCE, w.runtime.wait("a")).await.unwrap().unwrap();
    assert_eq!((exit.code, exit.error.as_deref()), (137, Some("the node was restarted")));
    w.end().await;
}

#[tokio::test]
async fn a_full_card_loses_no_exit_code() {
    let mut w = World::new().await;
    let mut spec = w.spec("a", "read x; exit 77");
    spec.stdin = true;
    w.runtime.start(spec).await.unwrap();
    // A folder in the place of the file that would be written: as good as a full card.
    std::fs::create_dir(w.dir.path().join("lib/containers/a/exit.tmp")).unwrap();
    let mut streams = w.runtime.attach("a", true).await.unwrap();
    streams.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    assert_eq!(w.runtime.wait("a").await.unwrap().code, 77);
    assert!(!w.dir.path().join("lib/containers/a/exit.json").exists());
    w.reopen().await;
    assert_eq!(w.runtime.wait("a").await.unwrap().code, 77);
    w.end().await;
}
