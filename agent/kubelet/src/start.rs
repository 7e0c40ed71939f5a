//! Starting one container: image, environment, spec, process; and reading how it ended.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Service};
use kube::ResourceExt;
use runtime::{Error, Exit, Image, RegistryAuth, Sandbox, SandboxSpec};

use crate::env;
use crate::files::{self, PodDir};
use crate::machine::Occurrence;
use crate::pods::Node;
use crate::spec::{self, Request, label};
use crate::unit::{StartFailure, Terminated};
use crate::worker::record;

/// Ends a process without asking.
pub const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// What Kubernetes shows of a termination message.
const MESSAGE_BYTES: u64 = 4096;
const START_ERROR: i32 = 128;

/// What is to be started.
pub struct Job {
    /// The node.
    pub node: Arc<Node>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its folder.
    pub dir: PodDir,
    /// The container.
    pub container: Container,
    /// Its restart count.
    pub attempt: u32,
    /// The pod's namespaces.
    pub sandbox: Sandbox,
    /// The pod's address.
    pub ip: Option<IpAddr>,
}

/// Makes the pod's sandbox, connects it, writes the files in /etc.
pub async fn sandbox(node: &Node, pod: &Pod, dir: &PodDir) -> Result<(Sandbox, Option<IpAddr>), String> {
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let uid = pod.uid().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let hostname = if host_network { node.config.hostname.clone() } else { files::hostname(pod) };
    let wanted = SandboxSpec {
        pod_uid: uid.clone(),
        hostname: hostname.clone(),
        host_network,
        host_ipc: spec.host_ipc == Some(true),
    };
    let sandbox = node.runtime.create_sandbox(wanted).await.map_err(|e| e.to_string())?;
    let ip = match &sandbox.net {
        Some(netns) if !host_network => Some(IpAddr::from(
            node.network.attach(&uid, netns).await.map_err(|why| format!("network: {why}"))?,
        )),
        _ => node.config.addresses.first().copied(),
    };
    let domain = &node.config.cluster_domain;
    let hosts = if host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        files::hosts(pod, ip, domain)
    };
    let resolver = std::fs::read_to_string(&node.config.resolv_conf).unwrap_or_default();
    let namespace = pod.namespace().unwrap_or_default();
    let resolver = files::resolv_conf(spec, &namespace, node.config.cluster_dns, domain, &resolver);
    let written = [("hosts", hosts), ("resolv.conf", resolver), ("hostname", format!("{hostname}\n"))];
    std::fs::create_dir_all(dir.path().join("etc")).map_err(|e| e.to_string())?;
    for (name, text) in written {
        // In place: a container may have it mounted.
        std::fs::write(dir.etc(name), text).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok((sandbox, ip))
}

/// Starts it; its id and the image id that the API shows.
pub async fn start(job: Job) -> Result<(String, String), StartFailure> {
    let image = image(&job).await?;
    let config = |message: String| {
        say(&job, true, "Failed", format!("Error: {message}"));
        StartFailure::Config { reason: "CreateContainerConfigError", message }
    };
    let vars = variables(&job).await.map_err(config)?;
    let id = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    prepare(&job, &id).map_err(|e| config(e.to_string()))?;
    let pid_of = pid_of(&job).await.map_err(config)?;
    let request = Request {
        pod: &job.pod,
        container: &job.container,
        attempt: job.attempt,
        id: &id,
        image: &image,
        sandbox: job.sandbox.clone(),
        vars,
        dir: &job.dir,
        node_memory: u64::try_from(job.node.capacity.memory).unwrap_or(0),
        mounts: job.node.config.mounts,
        pid_of,
    };
    let wanted = spec::container_spec(request).map_err(config)?;
    remove_old(&job).await;
    let name = &job.container.name;
    match job.node.runtime.start(wanted).await {
        Ok(container) => {
            say(&job, false, "Created", format!("Created container: {name}"));
            say(&job, false, "Started", format!("Started container {name}"));
            Ok((container.id, spec::image_id(&image)))
        }
        Err(Error::Start(message)) => {
            say(&job, true, "Failed", format!("Error: {message}"));
            let at = Some(Timestamp::now());
            Err(StartFailure::Start(Box::new(Terminated {
                id,
                image_id: spec::image_id(&image),
                code: START_ERROR,
                signal: None,
                reason: "StartError".to_owned(),
                message,
                started_at: at,
                finished_at: at,
            })))
        }
        Err(error) => {
            say(&job, true, "Failed", format!("Error: {error}"));
            Err(StartFailure::Config { reason: "CreateContainerError", message: error.to_string() })
        }
    }
}

fn say(job: &Job, warning: bool, reason: &'static str, message: String) {
    let container = Some(job.container.name.clone());
    record(&job.node, &job.pod, Occurrence { warning, reason, message, container });
}

fn prepare(job: &Job, id: &str) -> io::Result<()> {
    let message = job.dir.termination(id);
    let log = job.dir.log(&job.container.name, job.attempt);
    for path in [&message, &log] {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
    }
    std::fs::write(&message, b"")?;
    // Whatever user the container has must be able to write it.
    std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666))
}

async fn variables(job: &Job) -> Result<Vec<(String, String)>, String> {
    let services = services(job);
    let host_ip = job.node.config.addresses.first().map(IpAddr::to_string).unwrap_or_default();
    let pod_ip = job.ip.map(|ip| ip.to_string()).unwrap_or_default();
    let context = env::Context {
        pod: &job.pod,
        container: &job.container,
        services: &services,
        host_ip: &host_ip,
        pod_ip: &pod_ip,
        node: job.node.capacity,
    };
    env::environment(&context, &*job.node.sources).await
}

/// The services that a container is told of: the API always, those of the namespace if wanted.
fn services(job: &Job) -> Vec<Service> {
    let namespace = job.pod.namespace().unwrap_or_default();
    let links = job.pod.spec.as_ref().is_none_or(|spec| spec.enable_service_links != Some(false));
    let all = job.node.services.state();
    let api = |service: &Service| {
        service.metadata.namespace.as_deref() == Some("default") && service.name_any() == "kubernetes"
    };
    let near = |service: &Service| links && service.metadata.namespace.as_deref() == Some(namespace.as_str());
    all.iter().filter(|service| api(service) || near(service)).map(|service| (**service).clone()).collect()
}

/// Whose PID namespace is joined: a shared one's first process, or the target of a debugging container.
async fn pid_of(job: &Job) -> Result<Option<u32>, String> {
    let Some(spec) = job.pod.spec.as_ref() else { return Ok(None) };
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|e| e.name == job.container.name);
    let target = ephemeral.and_then(|e| e.target_container_name.clone());
    if spec.share_process_namespace != Some(true) && target.is_none() {
        return Ok(None);
    }
    let uid = job.pod.uid().unwrap_or_default();
    let mut running = job.node.runtime.list().await;
    running.retain(|c| c.labels.get(label::UID) == Some(&uid) && c.pid.is_some());
    running.sort_by(|a, b| a.started_at.cmp(&b.started_at));
    let fits = |name: Option<&String>| target.is_none() || name == target.as_ref();
    let found = running.iter().find(|c| fits(c.labels.get(label::CONTAINER))).and_then(|c| c.pid);
    match target {
        Some(name) if found.is_none() => Err(format!("unable to find target container {name}")),
        _ => Ok(found),
    }
}

/// Keeps the last ended container of that name for `logs --previous`, removes those before it.
async fn remove_old(job: &Job) {
    let uid = job.pod.uid().unwrap_or_default();
    for old in job.node.runtime.list().await {
        let same = old.labels.get(label::UID) == Some(&uid)
            && old.labels.get(label::CONTAINER) == Some(&job.container.name);
        let attempt =
            old.labels.get(label::ATTEMPT).and_then(|attempt| attempt.parse::<u32>().ok()).unwrap_or(0);
        if !same || old.exit.is_none() || attempt + 1 >= job.attempt {
            continue;
        }
        if let Err(error) = job.node.runtime.remove(&old.id).await {
            tracing::debug!(container = old.id, %error, "container record stays");
            continue;
        }
        let rotated = rotated(&old.log_path);
        for path in [old.log_path, rotated, job.dir.termination(&old.id)] {
            // Not all of them exist.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where the runtime puts the full log.
pub fn rotated(log: &std::path::Path) -> std::path::PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

async fn image(job: &Job) -> Result<Image, StartFailure> {
    let reference = job.container.image.clone().unwrap_or_default();
    let policy = match job.container.image_pull_policy.as_deref() {
        Some(policy) => policy,
        None if reference.ends_with(":latest") => "Always",
        None => "IfNotPresent",
    };
    let present = if policy == "Always" { None } else { job.node.runtime.image(&reference).await };
    match (present, policy) {
        (Some(image), _) => {
            say(job, false, "Pulled", format!("Container image {reference:?} already present on machine"));
            Ok(image)
        }
        (None, "Never") => {
            let message = format!("Container image {reference:?} is not present with pull policy of Never");
            say(job, true, "ErrImageNeverPull", message.clone());
            Err(StartFailure::Image { reason: "ErrImageNeverPull", message })
        }
        (None, _) => pull(job, &reference).await,
    }
}

async fn pull(job: &Job, reference: &str) -> Result<Image, StartFailure> {
    say(job, false, "Pulling", format!("Pulling image {reference:?}"));
    let begun = tokio::time::Instant::now();
    let auth = credentials(job, reference).await;
    let error = match job.node.runtime.pull(reference, auth, None).await {
        Ok(image) => {
            let took = begun.elapsed().as_secs_f64();
            let size = image.size;
            say(
                job,
                false,
                "Pulled",
                format!("Successfully pulled image {reference:?} in {took:.3}s. Image size: {size} bytes."),
            );
            return Ok(image);
        }
        Err(error) => error,
    };
    let message = format!("Failed to pull image {reference:?}: {error}");
    say(job, true, "Failed", message.clone());
    let reason = match error {
        Error::InvalidReference { .. } => "InvalidImageName",
        _ => "ErrImagePull",
    };
    say(job, true, "Failed", format!("Error: {reason}"));
    Err(StartFailure::Image { reason, message })
}

/// The pod's credentials for the image's registry.
async fn credentials(job: &Job, reference: &str) -> Option<RegistryAuth> {
    let namespace = job.pod.namespace()?;
    let first = reference.split('/').next().unwrap_or_default();
    let named = reference.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let registry = if named { first } else { "docker.io" };
    for secret in job.pod.spec.as_ref()?.image_pull_secrets.iter().flatten() {
        let Ok(data) = job.node.sources.secret(&namespace, &secret.name).await else { continue };
        let auth = data.get(".dockerconfigjson").and_then(|text| registry_auth(text, registry));
        if auth.is_some() {
            return auth;
        }
    }
    None
}

fn registry_auth(config: &[u8], registry: &str) -> Option<RegistryAuth> {
    use base64::Engine;
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let host = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        let host = key.split('/').next().unwrap_or_default().to_owned();
        if matches!(host.as_str(), "index.docker.io" | "registry-1.docker.io") {
            "docker.io".to_owned()
        } else {
            host
        }
    };
    let entry = config.get("auths")?.as_object()?.iter().find(|(key, _)| host(key) == registry)?.1;
    let text = |name: &str| entry.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(RegistryAuth { username, password });
    }
    let pair = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
    let (username, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(RegistryAuth { username: username.to_owned(), password: password.to_owned() })
}

/// The signal that asks a container to end: its image's.
pub async fn stop_signal(node: &Node, id: &str) -> i32 {
    let container = node.runtime.container(id).await.ok();
    let name = container.and_then(|container| container.labels.get(label::STOP_SIGNAL).cloned());
    signal_number(name.as_deref().unwrap_or_default())
}

fn signal_number(name: &str) -> i32 {
    let table = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("WINCH", 28),
        ("PWR", 30),
    ];
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { SIGTERM };
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = short.strip_prefix("RTMIN+").and_then(|n| n.parse::<i32>().ok()) {
        return (34 + offset).clamp(34, 64);
    }
    table.iter().find(|(name, _)| *name == short).map_or(SIGTERM, |(_, number)| *number)
}

/// How a container ended, as the API shows it.
pub async fn end_of(
    node: &Node,
    dir: &PodDir,
    container: Option<&Container>,
    id: &str,
    exit: Result<Exit, Error>,
) -> Terminated {
    let exit = exit.unwrap_or_else(|error| Exit {
        code: 255,
        signal: None,
        oom_killed: false,
        finished_at: Timestamp::now().to_string(),
        error: Some(format!("the container is lost: {error}")),
    });
    let known = node.runtime.container(id).await.ok();
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let reason = match &exit {
        Exit { oom_killed: true, .. } => "OOMKilled",
        Exit { error: Some(_), .. } if exit.code == START_ERROR => "StartError",
        Exit { error: Some(_), .. } => "ContainerStatusUnknown",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    };
    let mut message = termination_message(dir, id);
    let log = known.as_ref().map(|known| known.log_path.clone());
    let fallback =
        container.and_then(|c| c.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
    if let Some(error) = &exit.error {
        message = error.clone();
    } else if message.is_empty() && fallback && exit.code != 0 {
        message = log.map(|path| crate::server::tail_of(&path)).unwrap_or_default();
    }
    let image_id = known.as_ref().and_then(|known| known.labels.get(label::IMAGE_ID).cloned());
    Terminated {
        id: id.to_owned(),
        image_id: image_id.unwrap_or_default(),
        code: exit.code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started_at: known.and_then(|known| known.started_at.as_deref().and_then(time)),
        finished_at: time(&exit.finished_at),
    }
}

fn termination_message(dir: &PodDir, id: &str) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    // A container may have left anything there, or nothing.
    if let Ok(file) = std::fs::File::open(dir.termination(id)) {
        let _ = file.take(MESSAGE_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_have_names_and_numbers() {
        let table = [
            ("SIGQUIT", 3),
            ("", 15),
            ("WINCH", 28),
            ("10", 10),
            ("SIGRTMIN+3", 37),
            ("NONSENSE", 15),
            ("99", 15),
        ];
        for (name, number) in table {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let config = br#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"},
                          "r.example:5000": {"username": "u", "password": "p"}}}"#;
        let auth = registry_auth(config, "docker.io").unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("a", "b"));
        assert_eq!(registry_auth(config, "r.example:5000").unwrap().password, "p");
        assert!(registry_auth(config, "other").is_none());
        assert!(registry_auth(b"junk", "other").is_none());
    }
}
