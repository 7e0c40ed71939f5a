//! Containers, for real: as root, on the kernel of the machine that runs the tests.

mod common;

use common::World;
use runtime::{Error, Runtime};

#[tokio::test]
async fn exit_codes_are_true() {
    let w = World::new().await;
    let (code, out) = w.run(w.spec("a", "echo hello; echo oops >&2; exit 42")).await;
    assert_eq!(code, 42);
    assert!(w.log("a").lines().any(|l| l.contains(" stdout F hello")), "{out}");
    assert!(w.log("a").lines().any(|l| l.contains(" stderr F oops")), "{out}");
    w.runtime.start(w.spec("b", "exec sleep 1000")).await.unwrap();
    w.runtime.kill("b", 9).await.unwrap();
    let exit = w.runtime.wait("b").await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    // Signals to the dead are no error.
    w.runtime.kill("b", 15).await.unwrap();
    w.end().await;
}

#[tokio::test]
async fn a_container_sees_what_it_should_and_no_more() {
    let w = World::new().await;
    let script = "ls -l /proc/self/fd | grep -c '^l'; env; id; grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status; \
        grep -c . /proc/1/mountinfo >/dev/null; cat /proc/self/cmdline | head -c 3; echo; echo $$; touch /sys/x 2>&1; \
        touch /proc/sys/kernel/x 2>&1; cat /proc/kcore 2>&1 | head -c 1 | wc -c; mount -t tmpfs t /tmp 2>&1; ls /dev; pwd";
    let mut spec = w.spec("a", script);
    spec.working_dir = "/made/for/it".into();
    let (code, out) = w.run(spec).await;
    assert_eq!(code, 0, "{out}");
    // 0, 1, 2, and the one that `ls` itself opened.
    assert!(out.starts_with("4\n"), "{out}");
    for line in
        ["A=b", "HOME=/root", "uid=0(root) gid=0(root)", "Seccomp:\t2", "NoNewPrivs:\t0", "/made/for/it"]
    {
        assert!(out.contains(line), "{line} missing in {out}");
    }
    assert!(!out.contains("FROM_IMAGE"), "the kubelet resolves the environment: {out}");
    assert!(out.contains("Read-only file system"), "{out}");
    assert!(
        out.contains("permission denied") || out.contains("Operation not permitted"),
        "mount worked: {out}"
    );
    w.end().await;
}

#[tokio::test]
async fn failures_to_start_say_why_and_leave_nothing() {
    let w = World::new().await;
    let mut spec = w.spec("a", "");
    spec.args = vec!["/no/such".into()];
    let error = w.runtime.start(spec).await.unwrap_err();
    assert!(matches!(&error, Error::Start(why) if why.contains("/no/such")), "{error}");
    let exit = w.runtime.wait("a").await.unwrap();
    assert_eq!(exit.code, 128);
    assert!(exit.error.unwrap().contains("/no/such"));
    let mut spec = w.spec("b", "");
    spec.args = vec!["nosuchprogram".into()];
    let error = w.runtime.start(spec).await.unwrap_err().to_string();
    assert!(error.contains("not found in $PATH"), "{error}");
    let mut spec = w.spec("c", "true");
    spec.user = "nobodyhere".into();
    let error = w.runtime.start(spec).await.unwrap_err().to_string();
    assert!(error.contains("nobodyhere"), "{error}");
    let mut spec = w.spec("../evil", "true");
    spec.cgroup = "/pods/x".into();
    assert!(w.runtime.start(spec).await.is_err());
    assert_eq!(w.runtime.list().await.len(), 3);
    w.end().await;
}
