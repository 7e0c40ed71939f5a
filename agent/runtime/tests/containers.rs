//! Containers, for real: as root, on the kernel of the machine that runs the tests.

// A panic is how a test says that something failed.
#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use runtime::{Error, Mount, Resources, Runtime, SandboxSpec};

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
    let script = "ls -l /proc/self/fd 2>/dev/null | grep -c '^l'; env; id; grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status; \
        cat /proc/self/cmdline | head -c 3; echo; echo $$; touch /sys/x 2>&1; \
        echo 0 2>&1 > /proc/sys/kernel/panic; mkdir /sys/fs/cgroup/x 2>&1; cat /proc/keys /proc/kcore 2>/dev/null | wc -c; mount -t tmpfs t /tmp 2>&1; ls /dev; pwd";
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
    assert!(out.contains("\n0\n"), "masked files have content: {out}");
    // On v1 there is no cgroup mount inside at all.
    assert_eq!(
        out.matches("Read-only file system").count(),
        if common::cgroup_v2() { 3 } else { 2 },
        "{out}"
    );
    assert!(out.contains("can't create directory '/sys/fs/cgroup/x'"), "{out}");
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

#[tokio::test]
async fn limits_are_real() {
    let w = World::new().await;
    let mut spec = w.spec("a", "sleep 1000");
    spec.resources = Resources {
        memory_limit: Some(32 << 20),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        pids_limit: Some(77),
        oom_score_adj: Some(777),
    };
    let c = w.runtime.start(spec).await.unwrap();
    let pid = c.pid.unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "777");
    let read = |controller: &str, file: &str| {
        let root = w.cgroup_root.trim_start_matches('/');
        let path =
            std::path::Path::new("/sys/fs/cgroup").join(controller).join(root).join("pods/pod1/a").join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
    };
    if common::cgroup_v2() {
        assert_eq!(read("", "memory.max"), (32 << 20).to_string());
        assert_eq!(read("", "memory.swap.max"), "0");
        assert_eq!(read("", "cpu.max"), "50000 100000");
        assert_eq!(read("", "pids.max"), "77");
    } else {
        assert_eq!(read("memory", "memory.limit_in_bytes"), (32 << 20).to_string());
        assert_eq!(read("cpu", "cpu.shares"), "512");
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(read("pids", "pids.max"), "77");
    }
    let usage = w.runtime.usage("/pods/pod1/a").await.unwrap();
    assert!(usage.pids >= 1 && usage.memory_bytes > 0 && usage.memory_bytes < 32 << 20, "{usage:?}");
    assert!(w.runtime.usage("/pods/pod1").await.unwrap().memory_bytes >= usage.memory_bytes / 2);
    assert!(matches!(w.runtime.usage("/pods/nope").await, Err(Error::NotFound(_))));
    assert!(matches!(w.runtime.remove("a").await, Err(Error::Node(_))), "running containers stay");
    w.end().await;
}

#[tokio::test]
async fn running_out_of_memory_is_said() {
    let w = World::new().await;
    let mut spec = w.spec("a", "exec tail /dev/zero");
    spec.resources.memory_limit = Some(16 << 20);
    w.runtime.start(spec).await.unwrap();
    let exit = w.runtime.wait("a").await.unwrap();
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    w.end().await;
}

#[tokio::test]
async fn users_groups_and_privileges() {
    let w = World::new().await;
    let status = "id; grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd|Groups):' /proc/self/status; echo $HOME";
    let mut spec = w.spec("a", status);
    spec.user = "web".into();
    spec.supplemental_groups = vec![1234];
    spec.no_new_privileges = true;
    let (_, out) = w.run(spec).await;
    for line in [
        "uid=33(web) gid=34(web)",
        "44(media)",
        "1234",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
        "/srv",
    ] {
        assert!(out.contains(line), "{line} missing in {out}");
    }
    // A program that its owner alone may run.
    let mut spec = w.spec("b", "");
    spec.args = vec!["/private".into()];
    assert_eq!(w.run(spec).await, (0, "private\n".into()));
    let mut spec = w.spec("c", "grep -E '^(Seccomp|CapBnd):' /proc/self/status; ls /dev | wc -l; mount -t tmpfs t /tmp && echo mounted");
    spec.privileged = true;
    let (_, out) = w.run(spec).await;
    assert!(out.contains("Seccomp:\t0") && out.contains("mounted"), "{out}");
    let mut spec = w.spec("d", "grep CapBnd /proc/self/status; touch /x");
    spec.drop_capabilities = vec!["ALL".into()];
    spec.read_only_root = true;
    let (code, out) = w.run(spec).await;
    assert!(code != 0 && out.contains("0000000000000000") && out.contains("Read-only"), "{out}");
    // Devices of the host are out of reach, made by hand or brought along.
    let (_, out) = w.run(w.spec("e", "mknod /tmp/d b 7 0 2>&1 && cat /tmp/d 2>&1; echo end")).await;
    assert!(out.contains("not permitted"), "{out}");
    let (code, out) = w.run(w.spec("f", "cat /disk 2>&1")).await;
    assert!(code != 0 && (out.contains("not permitted") || out.contains("denied")), "{out}");
    w.end().await;
}

#[tokio::test]
async fn mounts_are_where_they_should_be() {
    let w = World::new().await;
    let host = w.dir.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(w.dir.path().join("hosts"), "1.2.3.4 me\n").unwrap();
    let mount = |path: std::path::PathBuf, at: &str, read_only| Mount {
        host_path: path,
        container_path: at.into(),
        read_only,
    };
    let mut spec = w.spec("a", "pwd; cat /etc/hosts; echo data > /data/file; echo x > /frozen/file");
    spec.mounts = vec![
        mount(host.clone(), "/data", false),
        mount(host.clone(), "/frozen", true),
        mount(w.dir.path().join("hosts"), "/etc/hosts", true),
    ];
    // A working folder inside a volume is made there.
    spec.working_dir = "/data/deep/er".into();
    let (code, out) = w.run(spec).await;
    assert!(
        code != 0 && out.starts_with("/data/deep/er\n1.2.3.4 me\n") && out.contains("Read-only"),
        "{out}"
    );
    assert_eq!(std::fs::read_to_string(host.join("file")).unwrap(), "data\n");
    let mut spec = w.spec("b", "true");
    spec.mounts = vec![mount(w.dir.path().join("missing"), "/m", false)];
    assert!(w.runtime.start(spec).await.unwrap_err().to_string().contains("missing"));
    w.end().await;
}

#[tokio::test]
async fn a_pod_shares_its_sandbox() {
    let w = World::new().await;
    let spec = |host_network| SandboxSpec {
        pod_uid: "uid-1".into(),
        hostname: "my-pod".into(),
        host_network,
        host_ipc: false,
    };
    let sandbox = w.runtime.create_sandbox(spec(false)).await.unwrap();
    assert_eq!(w.runtime.create_sandbox(spec(false)).await.unwrap(), sandbox, "idempotent");
    assert_eq!(w.runtime.sandboxes().await, ["uid-1"]);
    let script = "hostname; for n in net uts ipc; do readlink /proc/self/ns/$n; done; stat -f -c %T /dev/shm; ls /sys/class/net";
    let mut outs = Vec::new();
    for id in ["a", "b"] {
        let mut c = w.spec(id, script);
        c.sandbox = sandbox.clone();
        c.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "1".into());
        let (code, out) = w.run(c).await;
        assert_eq!(code, 0, "{out}");
        outs.push(out);
    }
    assert_eq!(outs[0], outs[1]);
    for kind in ["net:[", "uts:[", "ipc:["] {
        assert!(outs[0].contains(kind), "{}", outs[0]);
    }
    assert!(
        outs[0].starts_with("my-pod\n") && outs[0].contains("tmpfs") && outs[0].ends_with("lo\n"),
        "{}",
        outs[0]
    );
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!outs[0].contains(own.to_str().unwrap()));

    // Shared memory and process namespaces between containers of a pod.
    let mut first = w.spec("c", "echo shared > /dev/shm/x; exec sleep 1000");
    first.sandbox = sandbox.clone();
    let pid = w.runtime.start(first).await.unwrap().pid;
    let mut second = w.spec("d", "cat /dev/shm/x; ps");
    second.sandbox = sandbox.clone();
    second.pid_of = pid;
    common::eventually("the first has written", async || {
        std::fs::metadata(sandbox.shm.as_ref().unwrap().join("x")).ok().filter(|m| m.len() > 0)
    })
    .await;
    let (_, out) = w.run(second).await;
    assert!(out.starts_with("shared\n") && out.contains("sleep 1000"), "{out}");

    // A connection from inside the pod's network reaches what listens there, and only there.
    let refused = w.runtime.dial(sandbox.net.clone(), "127.0.0.1".parse().unwrap(), 7).await;
    assert!(refused.is_err());

    // Removed while a container's shim still has a copy of the mounts: nothing keeps the namespaces.
    w.runtime.remove_sandbox("uid-1").await.unwrap();
    w.runtime.remove_sandbox("uid-1").await.unwrap();
    assert!(w.runtime.sandboxes().await.is_empty());
    let host = w.runtime.create_sandbox(SandboxSpec { pod_uid: "uid-2".into(), ..spec(true) }).await.unwrap();
    assert_eq!((host.net, host.uts), (None, None));
    w.end().await;
}

#[tokio::test]
async fn no_shim_keeps_a_removed_pods_namespaces() {
    let w = World::new().await;
    let sandbox_spec = |uid: &str| SandboxSpec {
        pod_uid: uid.into(),
        hostname: "h".into(),
        host_network: false,
        host_ipc: false,
    };
    w.runtime.create_sandbox(sandbox_spec("gone")).await.unwrap();
    w.runtime.start(w.spec("other", "exec sleep 1000")).await.unwrap();
    w.runtime.remove_sandbox("gone").await.unwrap();
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(w.dir.path().join("lib/containers/other/state.json")).unwrap())
            .unwrap();
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", state["shim"]["pid"])).unwrap();
    assert!(!table.contains("sandboxes/gone"), "{table}");
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_a_time() {
    let w = World::new().await;
    let slots = tokio::sync::Semaphore::new(8);
    let one = async |n: usize| {
        let _slot = slots.acquire().await.unwrap();
        let id = format!("c{n}");
        let result = w.run(w.spec(&id, &format!("echo {n}; exit {}", n % 100))).await;
        w.runtime.remove(&id).await.unwrap();
        (n, result)
    };
    for (n, (code, out)) in futures::future::join_all((0..60).map(one)).await {
        assert_eq!((code, out), ((n % 100) as i32, format!("{n}\n")));
    }
    assert!(w.runtime.list().await.is_empty());
    w.end().await;
}

#[tokio::test]
async fn processes_that_outlive_the_main_one_are_ended() {
    let w = World::new().await;
    let mut spec = w.spec("a", "sleep 987654 & exit 3");
    spec.host_pid = true;
    assert_eq!(w.run(spec).await.0, 3);
    let left = std::fs::read_dir("/proc").unwrap().flatten().any(|e| {
        std::fs::read(e.path().join("cmdline"))
            .is_ok_and(|c| c.windows(6).any(|w| w == b"987654") && c.starts_with(b"sleep"))
    });
    assert!(!left);
    w.end().await;
}

#[test]
fn preflight_names_what_is_missing() {
    let root = format!("/bramble-test-preflight-{}", std::process::id());
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let result = runtime::preflight(&root);
    match controllers {
        Ok(list) if !list.contains("memory") => {
            let text = result.unwrap_err().to_string();
            assert!(
                text.contains("memory") && text.contains("cgroup_enable=memory cgroup_memory=1"),
                "{text}"
            );
        }
        _ => {
            result.unwrap();
            let made = common::cgroups(&root);
            assert!(!made.is_empty());
            made.iter().for_each(|dir| std::fs::remove_dir(dir).unwrap());
        }
    }
}

/// Runs tests of this file again, in a mount namespace where cgroup v2 is all there is. On a machine that has given its
/// controllers to v1, those that are about limits cannot run there; all else can.
#[test]
fn the_same_on_cgroup_v2() {
    let tests = [
        "exit_codes_are_true",
        "a_container_sees_what_it_should_and_no_more",
        "failures_to_start_say_why_and_leave_nothing",
        "users_groups_and_privileges",
        "mounts_are_where_they_should_be",
        "a_pod_shares_its_sandbox",
        "processes_that_outlive_the_main_one_are_ended",
        "preflight_names_what_is_missing",
    ];
    let script = "mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && \
        exec \"$0\" --exact \"$@\"";
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(tests)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let passed = format!("{} passed; 0 failed", tests.len());
    assert!(out.contains(&passed), "{out}{}", String::from_utf8_lossy(&output.stderr));
}
