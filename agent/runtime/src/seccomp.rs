//! The default seccomp profile, as data: all calls are allowed but those that reach out of a container or into the
//! kernel's less tested corners. A capability that a pod was given lifts what it stands for.

use serde_json::{Value, json};

/// Denied unless the container has the capability (`None`: always).
const DENIED: &[(Option<&str>, &[&str])] = &[
    (
        None,
        &[
            "_sysctl",
            "add_key",
            "create_module",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kcmp",
            "keyctl",
            "move_pages",
            "nfsservctl",
            "pidfd_getfd",
            "query_module",
            "request_key",
            "sysfs",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
        ],
    ),
    (
        Some("CAP_SYS_ADMIN"),
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setns",
            "statmount",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Some("CAP_SYS_MODULE"), &["delete_module", "finit_module", "init_module"]),
    (Some("CAP_SYS_BOOT"), &["kexec_file_load", "kexec_load", "reboot"]),
    (Some("CAP_SYS_PACCT"), &["acct"]),
    (Some("CAP_SYS_RAWIO"), &["ioperm", "iopl"]),
    (Some("CAP_SYS_TIME"), &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Some("CAP_DAC_READ_SEARCH"), &["open_by_handle_at"]),
    (Some("CAP_BPF"), &["bpf"]),
    (Some("CAP_PERFMON"), &["perf_event_open"]),
    (Some("CAP_SYS_NICE"), &["mbind", "migrate_pages", "set_mempolicy", "set_mempolicy_home_node"]),
    (Some("CAP_SYSLOG"), &["syslog"]),
];

/// `clone` flags that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: &[u64] =
    &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
const AF_VSOCK: u64 = 40;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &["SCMP_ARCH_NATIVE"]
    }
}

/// The profile for a container with these capabilities, in the OCI runtime spec's form.
pub(crate) fn profile(capabilities: &[String]) -> Value {
    let has =
        |wanted: &str| capabilities.iter().any(|c| c == wanted || c == "CAP_SYS_ADMIN" && general(wanted));
    let mut rules: Vec<Value> = DENIED
        .iter()
        .filter(|(capability, _)| !capability.is_some_and(has))
        .map(|(_, names)| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM }))
        .collect();
    if !has("CAP_SYS_ADMIN") {
        for flag in NAMESPACE_FLAGS {
            rules.push(json!({
                "names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM,
                "args": [{ "index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ" }],
            }));
        }
        // Its flags lie in memory, where a filter cannot look; C libraries fall back to clone.
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    rules.push(json!({
        "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM,
        "args": [{ "index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_EQ" }],
    }));
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": rules })
}

/// Whether CAP_SYS_ADMIN contains a capability that was split off it.
fn general(capability: &str) -> bool {
    matches!(capability, "CAP_BPF" | "CAP_PERFMON" | "CAP_SYSLOG")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(profile: &Value, name: &str) -> bool {
        profile["syscalls"].as_array().unwrap().iter().any(|rule| {
            rule.get("args").is_none() && rule["names"].as_array().unwrap().iter().any(|n| n == name)
        })
    }

    #[test]
    fn capabilities_lift_what_they_stand_for() {
        let plain = profile(&[]);
        let admin = profile(&["CAP_SYS_ADMIN".into()]);
        for name in ["mount", "unshare", "bpf", "reboot", "keyctl", "clone3"] {
            assert!(denied(&plain, name), "{name}");
        }
        assert!(!denied(&admin, "mount") && !denied(&admin, "bpf") && !denied(&admin, "clone3"));
        assert!(denied(&admin, "reboot") && denied(&admin, "keyctl"));
    }
}
