//! Pod security levels, by a namespace's labels (`pod-security.kubernetes.io/enforce` and its kin). Pure.
//!
//! Each check says what it found in upstream's words: a heading, and in brackets who is to do what.

use crate::object::{list, text};
use serde_json::Value;

const LABELS: &str = "/metadata/labels/pod-security.kubernetes.io~1";

/// What a pod may do. Each level forbids more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// What is to become of pods that do more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are refused.
    Enforce,
    /// Whoever makes them is told.
    Warn,
}

/// What a pod's spec does that its namespace does not allow, as upstream says it: `"restricted:latest": hostPort (...)`.
pub(crate) fn violation(namespace: &Value, mode: Mode, spec: &Value) -> Option<String> {
    let mode = match mode {
        Mode::Enforce => "enforce",
        Mode::Warn => "warn",
    };
    let level = match text(namespace, &format!("{LABELS}{mode}")) {
        "" | "privileged" => Level::Privileged,
        "baseline" => Level::Baseline,
        // What cannot be understood must not let more through.
        _ => Level::Restricted,
    };
    let version = match text(namespace, &format!("{LABELS}{mode}-version")) {
        "" => "latest",
        version => version,
    };
    let found = check(level, spec);
    let name = if level == Level::Restricted { "restricted" } else { "baseline" };
    (!found.is_empty()).then(|| format!("{:?}: {}", format!("{name}:{version}"), found.join(", ")))
}

/// The spec of the pods that an object is, or makes.
pub(crate) fn pod_spec<'a>(group: &str, plural: &str, object: &'a Value) -> Option<&'a Value> {
    let pointer = match (group, plural) {
        ("", "pods") => "/spec",
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => "/spec/template/spec",
        ("", "podtemplates") => "/template/spec",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template/spec",
        _ => return None,
    };
    object.pointer(pointer)
}

type Check = fn(&Value) -> Option<String>;

/// In upstream's order. What a stricter check covers, a milder one does not say again.
const CHECKS: [(Level, Option<Level>, Check); 15] = [
    (Level::Restricted, None, escalation),
    (Level::Baseline, Some(Level::Restricted), capabilities_baseline),
    (Level::Restricted, None, capabilities_restricted),
    (Level::Baseline, None, host_namespaces),
    (Level::Baseline, None, host_paths),
    (Level::Baseline, None, host_ports),
    (Level::Baseline, None, privileged),
    (Level::Baseline, None, proc_mount),
    (Level::Restricted, None, volumes),
    (Level::Restricted, None, non_root),
    (Level::Restricted, None, user),
    (Level::Baseline, None, selinux),
    (Level::Baseline, Some(Level::Restricted), seccomp_baseline),
    (Level::Restricted, None, seccomp_restricted),
    (Level::Baseline, None, sysctls),
];

fn check(level: Level, spec: &Value) -> Vec<String> {
    let applies =
        |from: Level, until: Option<Level>| level >= from && until.is_none_or(|until| level < until);
    CHECKS
        .iter()
        .filter(|(from, until, _)| applies(*from, *until))
        .filter_map(|(_, _, check)| check(spec))
        .collect()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["/initContainers", "/containers", "/ephemeralContainers"].into_iter().flat_map(|kind| list(spec, kind))
}

/// `container "a"`, `containers "a", "b"`: those that are so.
fn those(spec: &Value, is_so: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> =
        containers(spec).filter(|c| is_so(c)).map(|c| format!("{:?}", text(c, "/name"))).collect();
    match names.len() {
        0 => None,
        1 => Some(format!("container {}", names[0])),
        _ => Some(format!("containers {}", names.join(", "))),
    }
}

fn context<'a>(object: &'a Value, field: &str) -> &'a Value {
    &object["securityContext"][field]
}

fn escalation(spec: &Value) -> Option<String> {
    let who = those(spec, |c| context(c, "allowPrivilegeEscalation") != false)?;
    let what = "must set securityContext.allowPrivilegeEscalation=false";
    Some(format!("allowPrivilegeEscalation != false ({who} {what})"))
}

/// What a container has anyway, or may have without danger to others.
const HARMLESS: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn added(container: &Value) -> impl Iterator<Item = &str> {
    list(container, "/securityContext/capabilities/add").iter().filter_map(Value::as_str)
}

fn capabilities_baseline(spec: &Value) -> Option<String> {
    let odd = |name: &str| !HARMLESS.contains(&name.trim_start_matches("CAP_"));
    let who = those(spec, |c| added(c).any(odd))?;
    let mut names: Vec<String> =
        containers(spec).flat_map(added).filter(|name| odd(name)).map(|name| format!("{name:?}")).collect();
    names.sort();
    names.dedup();
    let what = "in securityContext.capabilities.add";
    Some(format!("non-default capabilities ({who} must not include {} {what})", names.join(", ")))
}

fn capabilities_restricted(spec: &Value) -> Option<String> {
    let drops = |c: &Value| list(c, "/securityContext/capabilities/drop").iter().any(|name| name == "ALL");
    let odd = |name: &str| name != "NET_BIND_SERVICE";
    let drop = those(spec, |c| !drops(c))
        .map(|who| format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    let add = those(spec, |c| added(c).any(odd)).map(|who| {
        let mut names: Vec<String> = containers(spec)
            .flat_map(added)
            .filter(|name| odd(name))
            .map(|name| format!("{name:?}"))
            .collect();
        names.sort();
        names.dedup();
        format!("{who} must not include {} in securityContext.capabilities.add", names.join(", "))
    });
    let all: Vec<String> = [drop, add].into_iter().flatten().collect();
    (!all.is_empty()).then(|| format!("unrestricted capabilities ({})", all.join("; ")))
}

fn host_namespaces(spec: &Value) -> Option<String> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| spec[field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!used.is_empty()).then(|| format!("host namespaces ({})", used.join(", ")))
}

fn host_paths(spec: &Value) -> Option<String> {
    let names: Vec<String> = list(spec, "/volumes")
        .iter()
        .filter(|volume| !volume["hostPath"].is_null())
        .map(|volume| format!("{:?}", text(volume, "/name")))
        .collect();
    let word = if names.len() == 1 { "volume" } else { "volumes" };
    (!names.is_empty()).then(|| format!("hostPath volumes ({word} {})", names.join(", ")))
}

fn host_ports(spec: &Value) -> Option<String> {
    let ports = |c: &Value| -> Vec<i64> {
        list(c, "/ports")
            .iter()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .collect()
    };
    let who = those(spec, |c| !ports(c).is_empty())?;
    let mut all: Vec<i64> = containers(spec).flat_map(ports).collect();
    all.sort_unstable();
    all.dedup();
    let (word, verb) = (
        if all.len() == 1 { "hostPort" } else { "hostPorts" },
        if who.starts_with("containers") { "use" } else { "uses" },
    );
    let shown: Vec<String> = all.iter().map(i64::to_string).collect();
    Some(format!("hostPort ({who} {verb} {word} {})", shown.join(", ")))
}

fn privileged(spec: &Value) -> Option<String> {
    let who = those(spec, |c| context(c, "privileged") == true)?;
    Some(format!("privileged ({who} must not set securityContext.privileged=true)"))
}

fn proc_mount(spec: &Value) -> Option<String> {
    let who = those(spec, |c| context(c, "procMount").as_str().is_some_and(|mount| mount != "Default"))?;
    Some(format!("procMount ({who} must not set securityContext.procMount to \"Unmasked\")"))
}

fn volumes(spec: &Value) -> Option<String> {
    const FREE: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind = |volume: &Value| {
        let fields = volume.as_object()?;
        fields.keys().find(|field| *field != "name" && !FREE.contains(&field.as_str())).cloned()
    };
    let found: Vec<(String, String)> = list(spec, "/volumes")
        .iter()
        .filter_map(|volume| Some((format!("{:?}", text(volume, "/name")), format!("{:?}", kind(volume)?))))
        .collect();
    let (names, mut kinds): (Vec<String>, Vec<String>) = found.into_iter().unzip();
    kinds.sort();
    kinds.dedup();
    let (volume, uses) = if names.len() == 1 { ("volume", "uses") } else { ("volumes", "use") };
    let kind = if kinds.len() == 1 { "volume type" } else { "volume types" };
    (!names.is_empty()).then(|| {
        format!(
            "restricted volume types ({volume} {} {uses} restricted {kind} {})",
            names.join(", "),
            kinds.join(", ")
        )
    })
}

fn non_root(spec: &Value) -> Option<String> {
    let pod = context(spec, "runAsNonRoot");
    let mut bad = Vec::new();
    if pod == false {
        bad.push("pod must not set securityContext.runAsNonRoot=false".to_owned());
    }
    if let Some(who) = those(spec, |c| context(c, "runAsNonRoot") == false) {
        bad.push(format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    if bad.is_empty()
        && pod != true
        && let Some(who) = those(spec, |c| context(c, "runAsNonRoot").is_null())
    {
        bad.push(format!("pod or {who} must set securityContext.runAsNonRoot=true"));
    }
    (!bad.is_empty()).then(|| format!("runAsNonRoot != true ({})", bad.join("; ")))
}

fn user(spec: &Value) -> Option<String> {
    let pod = (context(spec, "runAsUser") == 0).then(|| "pod".to_owned());
    let who: Vec<String> = pod.into_iter().chain(those(spec, |c| context(c, "runAsUser") == 0)).collect();
    (!who.is_empty()).then(|| format!("runAsUser=0 ({} must not set runAsUser=0)", who.join(" and ")))
}

fn selinux(spec: &Value) -> Option<String> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let odd = |object: &Value| {
        let options = context(object, "seLinuxOptions");
        let plain = |field: &str| text(options, field).is_empty();
        !TYPES.contains(&text(options, "/type")) || !plain("/user") || !plain("/role")
    };
    let pod = odd(spec).then(|| "pod".to_owned());
    let who: Vec<String> = pod.into_iter().chain(those(spec, odd)).collect();
    (!who.is_empty()).then(|| {
        format!("seLinuxOptions ({} set forbidden securityContext.seLinuxOptions)", who.join(" and "))
    })
}

fn profile(object: &Value) -> &str {
    text(object, "/securityContext/seccompProfile/type")
}

fn seccomp_baseline(spec: &Value) -> Option<String> {
    let pod = (profile(spec) == "Unconfined").then(|| "pod".to_owned());
    let who: Vec<String> = pod.into_iter().chain(those(spec, |c| profile(c) == "Unconfined")).collect();
    let what = "must not set securityContext.seccompProfile.type to \"Unconfined\"";
    (!who.is_empty()).then(|| format!("seccompProfile ({} {what})", who.join(" and ")))
}

fn seccomp_restricted(spec: &Value) -> Option<String> {
    if let Some(bad) = seccomp_baseline(spec) {
        return Some(bad);
    }
    if !profile(spec).is_empty() {
        return None;
    }
    let who = those(spec, |c| profile(c).is_empty())?;
    let what = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    Some(format!("seccompProfile (pod or {who} {what})"))
}

fn sysctls(spec: &Value) -> Option<String> {
    const SAFE: [&str; 11] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
    ];
    let names = list(spec, "/securityContext/sysctls").iter().map(|sysctl| text(sysctl, "/name"));
    let odd: Vec<&str> = names.filter(|name| !SAFE.contains(name) && *name != "net.ipv4.tcp_wmem").collect();
    (!odd.is_empty()).then(|| format!("forbidden sysctls ({})", odd.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(level: &str, spec: Value) -> Option<String> {
        let namespace = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        violation(&namespace, Mode::Enforce, &spec)
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let plain = json!({"containers": [{"name": "main", "image": "nginx"}]});
        assert_eq!(at("", plain.clone()), None);
        assert_eq!(at("baseline", plain.clone()), None);
        assert_eq!(
            at("restricted", plain).unwrap(),
            "\"restricted:latest\": allowPrivilegeEscalation != false (container \"main\" must set \
             securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"main\" must set \
             securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"main\" must set \
             securityContext.runAsNonRoot=true), seccompProfile (pod or container \"main\" must set \
             securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn a_careful_pod_is_restricted() {
        let careful = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "t", "projected": {}}],
            "containers": [{"name": "main", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]});
        assert_eq!(at("restricted", careful), None);
    }

    #[test]
    fn what_reaches_the_host_is_named() {
        for (spec, words) in [
            (
                json!({"hostNetwork": true, "hostPID": true}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (json!({"volumes": [{"name": "v", "hostPath": {}}]}), "hostPath volumes (volume \"v\")"),
            (
                json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}),
                "hostPort (container \"c\" uses hostPort 80)",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"initContainers": [{"name": "c", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]}),
                "non-default capabilities (container \"c\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.x"}]}}), "forbidden sysctls (kernel.x)"),
        ] {
            assert_eq!(at("baseline", spec).unwrap(), format!("\"baseline:latest\": {words}"));
        }
        // A level that nobody knows is the strictest.
        assert!(at("relaxed", json!({"containers": [{"name": "c"}]})).is_some());
    }
}
