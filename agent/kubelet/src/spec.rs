//! Turns a pod's container into what the runtime is asked for: a pure function, but for subPaths, which are pinned.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SecurityContext, VolumeMount};
use runtime::{ContainerSpec, Image, Mount, Sandbox};

use crate::env;
use crate::files::PodDir;
use crate::limits;
use crate::volumes::sub_path;

/// Labels on the runtime's containers: by these an agent finds again what an earlier one started.
pub mod label {
    /// Pod name.
    pub const POD: &str = "io.kubernetes.pod.name";
    /// Pod namespace.
    pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Pod uid.
    pub const UID: &str = "io.kubernetes.pod.uid";
    /// Container name.
    pub const CONTAINER: &str = "io.kubernetes.container.name";
    /// Restart count.
    pub const ATTEMPT: &str = "io.kubernetes.container.restartCount";
    /// The image's stop signal.
    pub const STOP_SIGNAL: &str = "io.kubernetes.container.stopSignal";
    /// Image id as the API shows it.
    pub const IMAGE_ID: &str = "io.kubernetes.container.imageID";
    /// The pod's grace period in seconds.
    pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
    /// The pod's cgroup.
    pub const CGROUP: &str = "io.kubernetes.pod.cgroup";
}

/// What a container is made from.
pub struct Request<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Its restart count.
    pub attempt: u32,
    /// Its id.
    pub id: &'a str,
    /// Its image.
    pub image: &'a Image,
    /// The pod's namespaces.
    pub sandbox: Sandbox,
    /// Its variables, resolved.
    pub vars: Vec<(String, String)>,
    /// The pod's folder.
    pub dir: &'a PodDir,
    /// For oom_score_adj.
    pub node_memory: u64,
    /// Whether subPaths may be pinned by mounts.
    pub mounts: bool,
    /// Process whose PID namespace is shared.
    pub pid_of: Option<u32>,
}

/// The image id that the API shows: by manifest digest where there is one.
pub fn image_id(image: &Image) -> String {
    image.digests.first().cloned().unwrap_or_else(|| image.id.clone())
}

/// What the runtime is asked for. The error is for the user (`CreateContainerConfigError`).
pub fn container_spec(request: Request<'_>) -> Result<ContainerSpec, String> {
    let spec = request.pod.spec.as_ref().ok_or("the pod has no spec")?;
    let own = request.container.security_context.clone().unwrap_or_default();
    let pod_wide = spec.security_context.clone().unwrap_or_default();
    let vars: BTreeMap<String, String> = request.vars.iter().cloned().collect();
    let uid = request.pod.metadata.uid.as_deref().unwrap_or_default();
    let pod_cgroup = limits::pod_cgroup(Some(spec), uid);
    let args = env::arguments(request.container, request.image, &vars);
    if args.is_empty() {
        return Err("no command specified".to_owned());
    }
    let caps = own.capabilities.clone().unwrap_or_default();
    let profile = own.seccomp_profile.as_ref().or(pod_wide.seccomp_profile.as_ref());
    let sysctls = pod_wide.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect();
    let own_dir = request.container.working_dir.clone().filter(|dir| !dir.is_empty());
    Ok(ContainerSpec {
        id: request.id.to_owned(),
        image: request.image.id.clone(),
        host_pid: spec.host_pid == Some(true),
        pid_of: request.pid_of,
        args,
        env: merged_env(&request.image.env, &request.vars),
        working_dir: own_dir.unwrap_or_else(|| request.image.working_dir.clone()),
        user: user(&own, &pod_wide, request.image)?,
        supplemental_groups: groups(&pod_wide),
        mounts: mounts(&request, spec, &vars)?,
        cgroup: format!("{pod_cgroup}/{}", request.id),
        resources: limits::resources(spec, request.container, request.node_memory),
        privileged: own.privileged == Some(true),
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: bare(caps.add),
        drop_capabilities: bare(caps.drop),
        seccomp_unconfined: profile.is_some_and(|profile| profile.type_ == "Unconfined"),
        sysctls,
        tty: request.container.tty == Some(true),
        stdin: request.container.stdin == Some(true),
        log_path: request.dir.log(&request.container.name, request.attempt),
        labels: labels(&request, spec, &pod_cgroup),
        sandbox: request.sandbox,
    })
}

fn bare(names: Option<Vec<String>>) -> Vec<String> {
    let strip = |name: String| name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned);
    names.into_iter().flatten().map(strip).collect()
}

fn labels(request: &Request<'_>, spec: &PodSpec, cgroup: &str) -> BTreeMap<String, String> {
    let meta = &request.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let pairs = [
        (label::POD, text(&meta.name)),
        (label::NAMESPACE, text(&meta.namespace)),
        (label::UID, text(&meta.uid)),
        (label::CONTAINER, request.container.name.clone()),
        (label::ATTEMPT, request.attempt.to_string()),
        (label::STOP_SIGNAL, request.image.stop_signal.clone()),
        (label::IMAGE_ID, image_id(request.image)),
        (label::GRACE, spec.termination_grace_period_seconds.unwrap_or(30).to_string()),
        (label::CGROUP, cgroup.to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn merged_env(image: &[String], vars: &[(String, String)]) -> Vec<String> {
    let own = |entry: &&String| !vars.iter().any(|(name, _)| entry.split('=').next() == Some(name));
    let given = vars.iter().map(|(name, value)| format!("{name}={value}"));
    image.iter().filter(own).cloned().chain(given).collect()
}

fn user(own: &SecurityContext, pod: &PodSecurityContext, image: &Image) -> Result<String, String> {
    let uid = own.run_as_user.or(pod.run_as_user);
    let gid = own.run_as_group.or(pod.run_as_group);
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        check_non_root(uid, &image.user)?;
    }
    let image_user = image.user.split(':').next().filter(|name| !name.is_empty());
    Ok(match (uid, gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        (Some(uid), None) => uid.to_string(),
        (None, Some(gid)) => format!("{}:{gid}", image_user.unwrap_or("0")),
        (None, None) => image.user.clone(),
    })
}

fn check_non_root(uid: Option<i64>, image_user: &str) -> Result<(), String> {
    let name = image_user.split(':').next().unwrap_or_default();
    match (uid, name) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".to_owned()),
        (Some(_), _) => Ok(()),
        (None, "" | "0" | "root") => Err("container has runAsNonRoot and image will run as root".to_owned()),
        (None, name) if name.parse::<u32>().is_err() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )),
        _ => Ok(()),
    }
}

fn groups(pod: &PodSecurityContext) -> Vec<u32> {
    let given = pod.supplemental_groups.iter().flatten().chain(pod.fs_group.iter());
    given.filter_map(|group| u32::try_from(*group).ok()).collect()
}

fn mounts(
    request: &Request<'_>,
    spec: &PodSpec,
    vars: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, String> {
    let mut out = Vec::new();
    let asked = request.container.volume_mounts.as_deref().unwrap_or_default();
    for (index, mount) in asked.iter().enumerate() {
        out.push(Mount {
            host_path: source(request, spec, mount, index, vars)?,
            container_path: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        });
    }
    let files = [("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf"), ("/etc/hostname", "hostname")];
    for (path, name) in files {
        // Who mounts the file knows better.
        if !asked.iter().any(|mount| mount.mount_path.trim_end_matches('/') == path) {
            let host_path = request.dir.etc(name);
            out.push(Mount { host_path, container_path: PathBuf::from(path), read_only: false });
        }
    }
    let path = request.container.termination_message_path.as_deref().filter(|path| path.starts_with('/'));
    out.push(Mount {
        host_path: request.dir.termination(request.id),
        container_path: PathBuf::from(path.unwrap_or("/dev/termination-log")),
        read_only: false,
    });
    Ok(out)
}

fn source(
    request: &Request<'_>,
    spec: &PodSpec,
    mount: &VolumeMount,
    index: usize,
    vars: &BTreeMap<String, String>,
) -> Result<PathBuf, String> {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
    let volume = volume.ok_or_else(|| format!("volume {:?} is not in the pod's spec", mount.name))?;
    let path = match &volume.host_path {
        Some(source) => PathBuf::from(&source.path),
        None => request.dir.volume(&volume.name),
    };
    let sub = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(text), _) if !text.is_empty() => env::expand(text, vars),
        (_, Some(text)) => text.clone(),
        _ => String::new(),
    };
    if sub.is_empty() {
        return Ok(path);
    }
    sub_path(&path, &sub, &request.dir.sub_path(&request.container.name, index), request.mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(user: &str) -> Image {
        Image {
            id: "sha256:1".into(),
            tags: vec![],
            digests: vec!["x@sha256:2".into()],
            size: 1,
            entrypoint: vec!["/app".into()],
            cmd: vec![],
            env: vec!["PATH=/bin".into(), "A=image".into()],
            working_dir: "/w".into(),
            user: user.into(),
            stop_signal: "SIGQUIT".into(),
        }
    }

    fn build(spec: serde_json::Value, image: &Image) -> Result<ContainerSpec, String> {
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        container_spec(Request {
            pod: &pod,
            container: &container,
            attempt: 2,
            id: "c1",
            image,
            sandbox: Sandbox { net: None, ipc: None, uts: None, shm: None },
            vars: vec![("A".into(), "own".into())],
            dir: &PodDir::new(std::path::Path::new("/s"), "u"),
            node_memory: 1 << 30,
            mounts: false,
            pid_of: None,
        })
    }

    #[test]
    fn image_and_spec_are_merged() {
        let spec = serde_json::json!({
            "containers": [{"name": "c", "args": ["$(A)"], "volumeMounts": [
                {"name": "v", "mountPath": "/data", "readOnly": true}, {"name": "h", "mountPath": "/etc/hosts"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/x"}}],
            "securityContext": {"runAsUser": 5, "fsGroup": 7},
        });
        let got = build(spec, &image("")).unwrap();
        assert_eq!(got.args, ["/app", "own"]);
        assert_eq!(got.env, ["PATH=/bin", "A=own"]);
        assert_eq!((got.user.as_str(), got.supplemental_groups.as_slice()), ("5", &[7][..]));
        assert_eq!(got.cgroup, "/kubepods/besteffort/podu/c1");
        let paths: Vec<_> = got.mounts.iter().map(|m| (m.host_path.to_str().unwrap(), m.read_only)).collect();
        let expect = [
            ("/s/pods/u/volumes/v", true),
            ("/x", false),
            ("/s/pods/u/etc/resolv.conf", false),
            ("/s/pods/u/etc/hostname", false),
            ("/s/pods/u/termination/c1", false),
        ];
        assert_eq!(paths, expect);
        assert_eq!(got.labels[label::ATTEMPT], "2");
    }

    #[test]
    fn non_root_is_checked() {
        let spec = |extra: serde_json::Value| {
            let mut context = serde_json::json!({"runAsNonRoot": true});
            context.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            serde_json::json!({"containers": [{"name": "c", "securityContext": context}]})
        };
        let none = serde_json::json!({});
        assert!(build(spec(none.clone()), &image("")).unwrap_err().contains("will run as root"));
        assert!(build(spec(none.clone()), &image("www")).unwrap_err().contains("non-numeric user (www)"));
        assert!(build(spec(serde_json::json!({"runAsUser": 0})), &image("5")).is_err());
        assert_eq!(build(spec(none), &image("5:6")).unwrap().user, "5:6");
        assert_eq!(build(spec(serde_json::json!({"runAsGroup": 9})), &image("5:6")).unwrap().user, "5:9");
    }
}
