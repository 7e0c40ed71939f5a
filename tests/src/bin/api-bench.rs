//! Measures an API server from outside; `hack/bench api` starts it and prints what it says.
//!
//! `api-bench ADDRESS CA CERTIFICATE KEY PID`: the server, the administrator's files, and the process whose memory
//! counts. One line of JSON for each measure: its name, its unit, its values. The pods name a scheduler that nobody is:
//! the API alone is measured. HTTP/1.1 with kept connections, but for the thousand watchers, who share connections as
//! client-go's do.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

const PODS: usize = 1000;
const CONNECTIONS: usize = 8;
const GETS: usize = 5000;
const LISTS: usize = 20;
const EVENTS: usize = 500;
const WATCHERS: usize = 1000;
/// Watches on one connection: client-go's share of it is 250, Go's servers allow so many.
const STREAMS: usize = 100;
const ROUNDS: usize = 20;
const PATH: &str = "/api/v1/namespaces/default/pods";

/// Where the server is and who asks.
struct Target {
    address: SocketAddr,
    config: ClientConfig,
    pid: String,
}

impl Target {
    fn new(arguments: &[String]) -> Result<Self> {
        let [address, ca, certificate, key, pid] = arguments else {
            return Err("api-bench ADDRESS CA CERTIFICATE KEY PID".into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let chain =
            CertificateDer::pem_file_iter(certificate)?.collect::<std::result::Result<Vec<_>, _>>()?;
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
        Ok(Self { address: address.parse()?, config, pid: pid.clone() })
    }

    async fn tls(&self, protocol: &str) -> Result<TokioIo<TlsStream<TcpStream>>> {
        let mut config = self.config.clone();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        Ok(TokioIo::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
    }

    async fn connect(&self) -> Result<Client> {
        let (sender, connection) = http1::handshake(self.tls("http/1.1").await?).await?;
        tokio::spawn(connection);
        Ok(Client(sender))
    }

    /// Resident memory of the process, in MiB.
    fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }
}

fn request(method: Method, uri: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(Value::to_string).unwrap_or_default();
    Ok(Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "kubernetes")
        .header("content-type", kind)
        .body(Full::from(body))?)
}

/// One connection, one request at a time.
struct Client(http1::SendRequest<Full<Bytes>>);

impl Client {
    async fn send(&mut self, method: Method, uri: &str, body: Option<&Value>) -> Result<Response<Incoming>> {
        self.0.ready().await?;
        let answer = self.0.send_request(request(method, uri, body)?).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        Err(format!("{uri}: {status} {:?}", answer.into_body().collect().await?.to_bytes()).into())
    }

    async fn call(&mut self, method: Method, uri: &str, body: Option<&Value>) -> Result<Bytes> {
        Ok(self.send(method, uri, body).await?.into_body().collect().await?.to_bytes())
    }

    /// The resource version of the list of pods, to watch from.
    async fn version(&mut self) -> Result<String> {
        let list: Value =
            serde_json::from_slice(&self.call(Method::GET, &format!("{PATH}?limit=1"), None).await?)?;
        Ok(list["metadata"]["resourceVersion"].as_str().ok_or("no version")?.to_owned())
    }

    async fn touch(&mut self, name: &str, round: usize) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"round": round.to_string()}}});
        self.call(Method::PATCH, &format!("{PATH}/{name}"), Some(&patch)).await.map(drop)
    }
}

fn pod(name: &str) -> Value {
    let container = json!({
        "name": "main", "image": "example.org/app:1", "ports": [{"containerPort": 80}],
        "env": [{"name": "MODE", "value": "bench"}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}},
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"schedulerName": "nobody", "terminationGracePeriodSeconds": 0, "containers": [container]},
    })
}

fn say(what: &str, unit: &str, values: &[f64]) {
    println!("{}", json!({"what": what, "unit": unit, "values": values}));
}

fn per_second(count: usize, begun: Instant) -> f64 {
    count as f64 / begun.elapsed().as_secs_f64()
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

async fn creates(target: &Target) -> Result<()> {
    let mut client = target.connect().await?;
    let begun = Instant::now();
    for number in 0..PODS {
        client.call(Method::POST, PATH, Some(&pod(&format!("one-{number}")))).await?;
    }
    say("create, one connection", "1/s", &[per_second(PODS, begun)]);
    client
        .call(Method::DELETE, &format!("{PATH}?labelSelector=app%3Dbench&gracePeriodSeconds=0"), None)
        .await?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(target.connect().await?);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (part, mut client) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            for number in (part..PODS).step_by(CONNECTIONS) {
                client.call(Method::POST, PATH, Some(&pod(&format!("pod-{number}")))).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    say("create, eight connections", "1/s", &[per_second(PODS, begun)]);
    Ok(())
}

async fn reads(target: &Target) -> Result<()> {
    let mut client = target.connect().await?;
    let begun = Instant::now();
    for number in 0..GETS {
        client.call(Method::GET, &format!("{PATH}/pod-{}", number % PODS), None).await?;
    }
    say("get, one connection", "1/s", &[per_second(GETS, begun)]);
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let begun = Instant::now();
        let list = client.call(Method::GET, PATH, None).await?;
        times.push(milliseconds(begun));
        let items = serde_json::from_slice::<Value>(&list)?["items"].as_array().map_or(0, Vec::len);
        if items != PODS {
            return Err(format!("the list has {items} pods").into());
        }
    }
    say("list of 1,000 pods as JSON", "ms", &times);
    Ok(())
}

/// Passes on the round that each event of a watch tells.
async fn follow(mut body: Incoming, seen: mpsc::UnboundedSender<(usize, Instant)>) -> Result<()> {
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let now = Instant::now();
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let event: Value = serde_json::from_slice(&rest.drain(..=end).collect::<Vec<_>>())?;
            let round = event["object"]["metadata"]["annotations"]["round"].as_str();
            if let Some(round) = round.and_then(|round| round.parse().ok()) {
                let _ = seen.send((round, now));
            }
        }
    }
    Ok(())
}

/// From a write's being sent to the event's being there, and from its being answered.
async fn delivery(target: &Target) -> Result<()> {
    let (mut client, mut watcher) = (target.connect().await?, target.connect().await?);
    let uri = format!("{PATH}?watch=true&resourceVersion={}", client.version().await?);
    let (sender, mut seen) = mpsc::unbounded_channel();
    let watch = watcher.send(Method::GET, &uri, None).await?;
    let watch = tokio::spawn(follow(watch.into_body(), sender));
    let (mut whole, mut after, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..EVENTS {
        let begun = Instant::now();
        client.touch(&format!("pod-{}", round % PODS), round).await?;
        let answered = Instant::now();
        let (_, at) = seen.recv().await.ok_or("the watch ended")?;
        whole.push((at - begun).as_secs_f64() * 1000.0);
        after.push(at.saturating_duration_since(answered).as_secs_f64() * 1000.0);
        writes.push((answered - begun).as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    watch.abort();
    say("patch, sent to answered", "ms", &writes);
    say("watch, write sent to event read", "ms", &whole);
    say("watch, write answered to event read", "ms", &after);
    Ok(())
}

/// A thousand watchers of one kind: their memory, and how long one event takes to reach all.
async fn crowd(target: &Target) -> Result<()> {
    let mut client = target.connect().await?;
    let uri = format!("https://kubernetes{PATH}?watch=true&resourceVersion={}", client.version().await?);
    let before = target.memory()?;
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for _ in 0..WATCHERS / STREAMS {
        let io = target.tls("h2").await?;
        let (h2, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tasks.spawn(async move { Ok(connection.await?) });
        for _ in 0..STREAMS {
            let answer = h2.clone().send_request(request(Method::GET, &uri, None)?).await?;
            tasks.spawn(follow(answer.into_body(), sender.clone()));
        }
    }
    say("memory of 1,000 watchers", "MiB", &[target.memory()? - before]);
    let mut times = Vec::new();
    for round in EVENTS..EVENTS + ROUNDS {
        let begun = Instant::now();
        client.touch("pod-7", round).await?;
        let mut last = begun;
        for _ in 0..WATCHERS {
            let (_, at) = seen.recv().await.ok_or("the watches ended")?;
            last = last.max(at);
        }
        times.push((last - begun).as_secs_f64() * 1000.0);
    }
    say("one event to 1,000 watchers", "ms", &times);
    tasks.abort_all();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let target = Target::new(&arguments)?;
    say("whole agent, idle", "MiB", &[target.memory()?]);
    creates(&target).await?;
    reads(&target).await?;
    say("whole agent with 1,000 pods", "MiB", &[target.memory()?]);
    delivery(&target).await?;
    crowd(&target).await
}
