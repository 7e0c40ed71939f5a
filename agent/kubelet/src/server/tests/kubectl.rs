//! Stock kubectl, an old one (SPDY only) and a new one (WebSocket), against these doors over plain HTTP.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tower::ServiceExt;

use super::super::PING;
use super::{Lab, behind, echo, goodbye, nobody, noise};

const MEGABYTE: usize = 1 << 20;

/// As much of an API server as kubectl asks for on its way to one pod's streams. Notes what each of them asked to be
/// upgraded to.
fn api(kubelet: Router, upgrades: Arc<Mutex<Vec<String>>>) -> Router {
    let to = |path: &'static str| {
        let (kubelet, upgrades) = (kubelet.clone(), upgrades.clone());
        any(async move |mut request: Request| {
            let asked = request.headers().get("upgrade").map(|value| value.to_str().unwrap().to_lowercase());
            upgrades.lock().unwrap().extend(asked);
            let query = request.uri().query().unwrap_or_default();
            *request.uri_mut() = format!("{path}?{query}").parse().unwrap();
            kubelet.oneshot(request).await
        })
    };
    let pod = "/api/v1/namespaces/default/pods/p";
    Router::new()
        .route("/version", get(async || Json(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0"}))))
        .route("/api", get(async || Json(json!({"kind": "APIVersions", "versions": ["v1"]}))))
        .route("/apis", get(async || Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))))
        .route("/api/v1", get(async || Json(resources())))
        .route(pod, get(async || Json(running())))
        .route(&format!("{pod}/exec"), to("/exec/default/p/c"))
        .route(&format!("{pod}/portforward"), to("/portForward/default/p"))
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["create", "get"]});
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [
        resource("pods", "Pod"), resource("pods/exec", "PodExecOptions"), resource("pods/portforward", "PodPortForwardOptions"),
    ]})
}

fn running() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "c", "ready": true, "state": {"running": {}}, "image": "i", "imageID": "", "restartCount": 0}]},
    })
}

struct Kubectl {
    /// All that it may ask to be upgraded to.
    protocol: &'static str,
    program: PathBuf,
    lab: Lab,
    upgrades: Arc<Mutex<Vec<String>>>,
    home: tempfile::TempDir,
}

impl Kubectl {
    async fn new(age: &str) -> Kubectl {
        let program =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../out/clients/{age}/kubectl"));
        assert!(program.exists(), "{} is missing: hack/setup --test fetches it", program.display());
        let protocol = if age == "old" { "spdy/3.1" } else { "websocket" };
        let upgrades = Arc::<Mutex<Vec<String>>>::default();
        let lab = behind(|kubelet| api(kubelet, upgrades.clone())).await;
        Kubectl { protocol, program, lab, upgrades, home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--server")
            .arg(format!("http://{}", self.lab.address))
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str], input: Option<Vec<u8>>) -> Output {
        let mut command = self.command(arguments);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        let feed = child.stdin.take().zip(input).map(|(mut stdin, input)| {
            // It may end before it has read everything.
            tokio::spawn(async move { stdin.write_all(&input).await })
        });
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        if let Some(feed) = feed {
            feed.abort();
        }
        output.unwrap_or_else(|_| panic!("{arguments:?} hangs")).unwrap()
    }

    /// Forwards a free port of this machine to a port of the pod.
    async fn forward(&self, port: u16) -> (Child, u16) {
        let mut child = self.command(&["port-forward", "p", &format!(":{port}")]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("kubectl says which port it listens on");
        let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        let local = local.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        // Goes on to be read: it prints a line per connection.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        (child, local)
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        // A new client falls back to SPDY without a word.
        let upgrades = self.upgrades.lock().unwrap();
        let as_expected = !upgrades.is_empty() && upgrades.iter().all(|asked| asked == self.protocol);
        assert!(as_expected || std::thread::panicking(), "{upgrades:?}");
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

async fn a_command_and_its_end(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let said = kubectl.run(&["exec", "p", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], None).await;
    assert_eq!(text(&said.stdout), "out\n");
    assert!(text(&said.stderr).contains("err\n"), "{}", text(&said.stderr));
    assert_eq!(said.status.code(), Some(7), "{}", text(&said.stderr));
    let said = kubectl.run(&["exec", "p", "--", "true"], None).await;
    assert_eq!((said.status.code(), &*text(&said.stderr)), (Some(0), ""));
    let said = kubectl.run(&["exec", "p", "--", "/no/such/program"], None).await;
    assert!(text(&said.stderr).contains("/no/such/program: No such file"), "{}", text(&said.stderr));
    assert_eq!(said.status.code(), Some(1));
}

async fn bytes_there_and_back(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let bytes = noise(5 * MEGABYTE);
    let said = kubectl.run(&["exec", "-i", "p", "--", "cat"], Some(bytes.clone())).await;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(said.stdout == bytes, "{} of {} bytes came back", said.stdout.len(), bytes.len());
}

/// All output comes before the status, also when most of the input was never read.
async fn a_command_that_does_not_hear_to_the_end(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let script = "head -c 3; head -c 3000000 /dev/zero; exit 3";
    let began = Instant::now();
    let said = kubectl.run(&["exec", "-i", "p", "--", "sh", "-c", script], Some(noise(20 * MEGABYTE))).await;
    assert_eq!(said.stdout.len(), 3_000_003, "{}", text(&said.stderr));
    assert_eq!(said.status.code(), Some(3), "{}", text(&said.stderr));
    assert!(began.elapsed() < Duration::from_secs(8), "the end is told at once: {:?}", began.elapsed());
}

/// A client that goes while its input is held up takes its command with it.
async fn a_client_that_is_killed(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let script = ["sh", "-c", "echo started; exec sleep 1000"];
    let mut client =
        kubectl.command(&[&["exec", "-i", "p", "--"], &script[..]].concat()).stdin(zeros).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    assert_eq!(line, "started\n");
    client.kill().await.unwrap();
    let killed = tokio::time::timeout(PING * 3, kubectl.lab.runtime.killed()).await;
    assert_eq!(killed.expect("the command is killed"), script);
}

async fn files_are_copied(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let there = tempfile::tempdir().unwrap();
    let bytes = noise(MEGABYTE);
    std::fs::write(kubectl.home.path().join("here"), &bytes).unwrap();
    let remote = format!("p:{}/there", there.path().display());
    let said = kubectl.run(&["cp", "here", &remote], None).await;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(std::fs::read(there.path().join("there")).unwrap() == bytes);
    let said = kubectl.run(&["cp", &remote, "back"], None).await;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(std::fs::read(kubectl.home.path().join("back")).unwrap() == bytes);
}

async fn connections_are_forwarded(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let (_client, local) = kubectl.forward(echo().await).await;
    let mut connections = tokio::task::JoinSet::new();
    for number in 0..5 {
        connections.spawn(async move {
            let bytes = noise(MEGABYTE + number);
            let (mut read, mut write) = TcpStream::connect(("127.0.0.1", local)).await.unwrap().into_split();
            let sent = bytes.clone();
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(send, read.read_to_end(&mut got));
            read.unwrap();
            assert!(got == bytes, "{} of {} bytes came back", got.len(), bytes.len());
        });
    }
    tokio::time::timeout(Duration::from_secs(60), connections.join_all()).await.expect("no connection hangs");
}

/// The pod's end reaches a client that keeps its own half open.
async fn a_pod_that_hangs_up_first(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let (_client, local) = kubectl.forward(goodbye().await).await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        stream.write_all(b"hello\n").await.unwrap();
        let mut said = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut said)).await;
        read.expect("the end comes through").unwrap();
        assert_eq!(said, "goodbye\n");
    }
}

async fn a_port_nobody_listens_on(age: &str) {
    let kubectl = Kubectl::new(age).await;
    let port = nobody();
    let (mut client, local) = kubectl.forward(port).await;
    let mut errors = BufReader::new(client.stderr.take().unwrap()).lines();
    let _stream = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    let line = tokio::time::timeout(Duration::from_secs(20), errors.next_line()).await.expect("it says why");
    let line = line.unwrap().unwrap();
    assert!(
        line.contains(&format!("error forwarding port {port} to pod")) && line.contains("Connection refused"),
        "{line}"
    );
}

macro_rules! with_both {
    ($($name:ident),* $(,)?) => {
        mod old { $(#[tokio::test] async fn $name() { super::$name("old").await })* }
        mod new { $(#[tokio::test] async fn $name() { super::$name("new").await })* }
    };
}

with_both!(
    a_command_and_its_end,
    bytes_there_and_back,
    a_command_that_does_not_hear_to_the_end,
    a_client_that_is_killed,
    files_are_copied,
    connections_are_forwarded,
    a_pod_that_hangs_up_first,
    a_port_nobody_listens_on,
);
