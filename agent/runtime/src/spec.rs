//! The OCI runtime spec of a container, made from what the kubelet asks for. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::api::ContainerSpec;
use crate::seccomp;
use crate::users::Identity;

pub(crate) const MQUEUE: &str = "/dev/mqueue";
/// Searched when a container's environment has no PATH.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability, by number.
const ALL_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices that any container may use: null, zero, full, random, urandom, tty, console, ptmx, pts.
const DEVICES: &[(i64, Option<i64>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// What of the node goes into a spec.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) cgroup_v2: bool,
    pub(crate) cgroup_path: String,
    /// Capabilities that the shim itself has: nobody can give away more.
    pub(crate) capabilities: BTreeSet<String>,
    /// Devices of the node, for privileged containers.
    pub(crate) devices: Vec<Device>,
    /// Whether the node has message queues to share.
    pub(crate) mqueue: bool,
    pub(crate) identity: Identity,
}

/// A device node.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) mode: u32,
}

/// Names of the capabilities in a kernel mask.
pub(crate) fn capability_names(mask: u64) -> BTreeSet<String> {
    let set = ALL_CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

/// The node's folder behind a path inside the container, if a mount covers it, and the rest of the path.
pub(crate) fn mounted_at<'a>(spec: &'a ContainerSpec, path: &'a Path) -> Option<(&'a PathBuf, &'a Path)> {
    let covering = spec.mounts.iter().filter_map(|m| Some((m, path.strip_prefix(&m.container_path).ok()?)));
    covering.max_by_key(|(m, _)| m.container_path.components().count()).map(|(m, rest)| (&m.host_path, rest))
}

/// The `config.json` of a container.
pub(crate) fn build(spec: &ContainerSpec, facts: &Facts) -> Value {
    let capabilities = capabilities(spec, facts);
    let mut linux = json!({
        "cgroupsPath": facts.cgroup_path,
        "namespaces": namespaces(spec, facts),
        "resources": resources(spec, facts),
        "sysctl": spec.sysctls,
        "rootfsPropagation": "private",
    });
    if spec.privileged {
        linux["devices"] = facts.devices.iter().map(device).collect();
    } else {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        if !spec.seccomp_unconfined {
            linux["seccomp"] = seccomp::profile(&capabilities);
        }
    }
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": spec.read_only_root },
        "process": process(spec, facts, &capabilities),
        "mounts": mounts(spec, facts),
        "linux": linux,
    })
}

fn process(spec: &ContainerSpec, facts: &Facts, capabilities: &[String]) -> Value {
    let mut groups = facts.identity.groups.clone();
    groups.extend(spec.supplemental_groups.iter().filter(|g| !facts.identity.groups.contains(g)));
    let mut process = json!({
        "terminal": spec.tty,
        "user": { "uid": facts.identity.uid, "gid": facts.identity.gid, "additionalGids": groups },
        "args": spec.args,
        "env": environment(spec, &facts.identity),
        "cwd": working_dir(spec),
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
    });
    // `false` would keep the library from loading the seccomp profile; leaving it out means the same.
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    process
}

/// Where the main process starts; always absolute.
pub(crate) fn working_dir(spec: &ContainerSpec) -> String {
    if spec.working_dir.starts_with('/') {
        spec.working_dir.clone()
    } else {
        format!("/{}", spec.working_dir)
    }
}

fn environment(spec: &ContainerSpec, identity: &Identity) -> Vec<String> {
    let mut env = spec.env.clone();
    let mut add = |key: &str, value: &str| {
        if !env.iter().any(|e| e.split('=').next() == Some(key)) {
            env.push(format!("{key}={value}"));
        }
    };
    add("PATH", DEFAULT_PATH);
    add("HOME", identity.home.as_deref().filter(|h| !h.is_empty()).unwrap_or("/"));
    if spec.tty {
        add("TERM", "xterm");
    }
    env
}

fn capabilities(spec: &ContainerSpec, facts: &Facts) -> Vec<String> {
    let full = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") }
    };
    let all = || ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect::<BTreeSet<_>>();
    let mut set: BTreeSet<String> = if spec.privileged {
        all()
    } else {
        // On cgroup v2 nothing stops a container from opening a device node that it made itself.
        let usual = DEFAULT_CAPABILITIES.iter().filter(|c| !(facts.cgroup_v2 && **c == "CAP_MKNOD"));
        usual.map(|c| (*c).to_owned()).collect()
    };
    let (add, drop): (Vec<_>, Vec<_>) =
        (spec.add_capabilities.iter().map(full).collect(), spec.drop_capabilities.iter().map(full).collect());
    if add.iter().any(|c| c == "ALL") {
        set = all();
    }
    if drop.iter().any(|c| c == "ALL") {
        set.clear();
    }
    set.extend(add.into_iter().filter(|c| ALL_CAPABILITIES.contains(&c.as_str())));
    set.retain(|c| !drop.contains(c));
    set.into_iter().filter(|c| facts.capabilities.contains(c)).collect()
}

fn namespaces(spec: &ContainerSpec, facts: &Facts) -> Vec<Value> {
    let mut list = vec![json!({ "type": "mount" })];
    if let Some(pid) = spec.pid_of {
        list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
    } else if !spec.host_pid {
        list.push(json!({ "type": "pid" }));
    }
    let shared = [("network", &spec.sandbox.net), ("ipc", &spec.sandbox.ipc), ("uts", &spec.sandbox.uts)];
    list.extend(
        shared
            .iter()
            .filter_map(|(kind, path)| path.as_ref().map(|path| json!({ "type": kind, "path": path }))),
    );
    if facts.cgroup_v2 && !spec.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

fn mounts(spec: &ContainerSpec, facts: &Facts) -> Vec<Value> {
    let fs = |path: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": path, "type": kind, "source": source, "options": options });
    let sys: &[&str] =
        if spec.privileged { &["nosuid", "noexec", "nodev"] } else { &["nosuid", "noexec", "nodev", "ro"] };
    let mut list = vec![
        fs("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        fs("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        fs(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        fs("/sys", "sysfs", "sysfs", sys),
    ];
    let bind = |from: &Path, to: &Path, options: &[&str]| json!({ "destination": to, "type": "bind", "source": from, "options": options });
    match &spec.sandbox.ipc {
        Some(_) => list.push(fs(MQUEUE, "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])),
        None if facts.mqueue => {
            list.push(bind(Path::new(MQUEUE), Path::new(MQUEUE), &["rbind", "nosuid", "noexec", "nodev"]));
        }
        None => {}
    }
    match &spec.sandbox.shm {
        Some(shm) => list.push(bind(shm, Path::new("/dev/shm"), &["rbind", "nosuid", "noexec", "nodev"])),
        None => list.push(bind(
            Path::new("/dev/shm"),
            Path::new("/dev/shm"),
            &["rbind", "nosuid", "noexec", "nodev"],
        )),
    }
    // On v1 the library mounts it writable whatever is asked, so it stays out there.
    if facts.cgroup_v2 {
        let options: &[&str] = if spec.privileged {
            &["nosuid", "noexec", "nodev"]
        } else {
            &["nosuid", "noexec", "nodev", "ro"]
        };
        list.push(fs("/sys/fs/cgroup", "cgroup", "cgroup", options));
    }
    list.extend(spec.mounts.iter().map(|m| {
        let access = if m.read_only { "ro" } else { "rw" };
        bind(&m.host_path, &m.container_path, &["rbind", "rprivate", access])
    }));
    list
}

fn resources(spec: &ContainerSpec, facts: &Facts) -> Value {
    let r = &spec.resources;
    let mut resources = json!({});
    let mut unified = serde_json::Map::new();
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = r.cpu_shares.map(|s| s.clamp(2, 262_144)) {
        // The library's own conversion gives other weights than every kubelet's.
        if facts.cgroup_v2 {
            unified.insert("cpu.weight".into(), json!((1 + (shares - 2) * 9999 / 262_142).to_string()));
        } else {
            cpu.insert("shares".into(), json!(shares));
        }
    }
    if let Some(quota) = r.cpu_quota {
        cpu.insert("quota".into(), json!(quota));
        cpu.insert("period".into(), json!(100_000));
    }
    if let Some(limit) = r.memory_limit {
        resources["memory"] = json!({ "limit": limit });
        if facts.cgroup_v2 {
            // The library would leave swap unlimited; and half a killed container is of no use.
            unified.insert("memory.swap.max".into(), json!("0"));
            unified.insert("memory.oom.group".into(), json!("1"));
        }
    }
    if !cpu.is_empty() {
        resources["cpu"] = cpu.into();
    }
    if !unified.is_empty() {
        resources["unified"] = unified.into();
    }
    if let Some(limit) = r.pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    if !facts.cgroup_v2 {
        resources["devices"] = device_rules(spec.privileged);
    }
    resources
}

fn device_rules(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(DEVICES.iter().map(|(major, minor)| match minor {
        Some(minor) => json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" }),
        None => json!({ "allow": true, "type": "c", "major": major, "access": "rwm" }),
    }));
    json!(rules)
}

fn device(d: &Device) -> Value {
    json!({
        "path": d.path, "type": if d.block { "b" } else { "c" },
        "major": d.major, "minor": d.minor, "fileMode": d.mode, "uid": 0, "gid": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Mount, Resources, Sandbox};

    fn spec() -> ContainerSpec {
        ContainerSpec {
            id: "c".into(),
            image: "sha256:0".into(),
            sandbox: Sandbox { net: Some("/run/net".into()), ipc: None, uts: None, shm: None },
            host_pid: false,
            pid_of: None,
            args: vec!["sh".into()],
            env: vec!["A=b".into()],
            working_dir: String::new(),
            user: String::new(),
            supplemental_groups: vec![7],
            mounts: vec![Mount { host_path: "/h".into(), container_path: "/c".into(), read_only: true }],
            cgroup: "/p/c".into(),
            resources: Resources { memory_limit: Some(1 << 20), ..Default::default() },
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            add_capabilities: vec![],
            drop_capabilities: vec![],
            seccomp_unconfined: false,
            sysctls: Default::default(),
            tty: false,
            stdin: false,
            log_path: "/l".into(),
            labels: Default::default(),
        }
    }

    fn facts(cgroup_v2: bool) -> Facts {
        Facts {
            cgroup_v2,
            cgroup_path: "/bramble/p/c".into(),
            capabilities: ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
            devices: vec![],
            mqueue: true,
            identity: Identity { uid: 5, gid: 6, groups: vec![9], home: None },
        }
    }

    #[test]
    fn the_library_can_read_it() {
        for v2 in [false, true] {
            let text = build(&spec(), &facts(v2)).to_string();
            let parsed: oci_spec::runtime::Spec = serde_json::from_str(&text).unwrap();
            let process = parsed.process().as_ref().unwrap();
            assert_eq!(process.user().additional_gids().as_deref(), Some(&[9, 7][..]));
            assert_eq!(process.no_new_privileges(), None, "false would disable seccomp");
            assert_eq!(process.cwd(), &PathBuf::from("/"));
            assert_eq!(process.oom_score_adj(), None, "the library would change the shim's own");
            let linux = parsed.linux().as_ref().unwrap();
            assert!(linux.seccomp().is_some());
            assert!(parsed.hostname().is_none());
        }
    }

    #[test]
    fn cgroup_versions_differ() {
        let (v1, v2) = (build(&spec(), &facts(false)), build(&spec(), &facts(true)));
        assert_eq!(v2["linux"]["resources"]["unified"]["memory.swap.max"], "0");
        assert!(v1["linux"]["resources"].get("unified").is_none());
        let mut shares = spec();
        shares.resources.cpu_shares = Some(512);
        assert_eq!(build(&shares, &facts(true))["linux"]["resources"]["unified"]["cpu.weight"], "20");
        assert_eq!(build(&shares, &facts(false))["linux"]["resources"]["cpu"]["shares"], 512);
        let has_mount = |v: &Value| v["mounts"].as_array().unwrap().iter().any(|m| m["type"] == "cgroup");
        assert!(has_mount(&v2) && !has_mount(&v1));
        let may_mknod =
            |v: &Value| v["process"]["capabilities"]["bounding"].to_string().contains("CAP_MKNOD");
        assert!(may_mknod(&v1) && !may_mknod(&v2));
        assert!(v2["linux"]["namespaces"].to_string().contains("cgroup"));
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let caps = |change: fn(&mut ContainerSpec)| {
            let mut s = spec();
            change(&mut s);
            capabilities(&s, &facts(false))
        };
        assert!(!caps(|_| ()).contains(&"CAP_NET_ADMIN".into()));
        assert!(caps(|s| s.add_capabilities = vec!["net_admin".into()]).contains(&"CAP_NET_ADMIN".into()));
        assert_eq!(caps(|s| s.drop_capabilities = vec!["ALL".into()]), Vec::<String>::new());
        assert_eq!(
            caps(|s| {
                s.drop_capabilities = vec!["ALL".into()];
                s.add_capabilities = vec!["CHOWN".into(), "EVIL".into()];
            }),
            ["CAP_CHOWN"]
        );
        assert_eq!(caps(|s| s.privileged = true).len(), ALL_CAPABILITIES.len());
        let mut poor = facts(false);
        poor.capabilities.remove("CAP_SYS_RESOURCE");
        let mut privileged = spec();
        privileged.privileged = true;
        assert!(!capabilities(&privileged, &poor).contains(&"CAP_SYS_RESOURCE".into()));
    }
}
