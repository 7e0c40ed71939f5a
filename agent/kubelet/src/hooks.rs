//! Probes and lifecycle hooks: commands inside the container, HTTP and TCP to the pod's address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe as ProbeSpec, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use runtime::ExecSpec;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use crate::pods::Node;
use crate::unit::Probe;

/// How long a postStart hook may take.
pub const HOOK_PATIENCE: Duration = Duration::from_secs(600);
/// What is kept of a probe's output.
const OUTPUT_BYTES: u64 = 10 << 10;
const PERIOD: Duration = Duration::from_secs(10);

/// The container that is probed.
pub struct Target {
    /// The node.
    pub node: Arc<Node>,
    /// Container id.
    pub id: String,
    /// The pod's address.
    pub ip: IpAddr,
    /// Its spec.
    pub container: Container,
}

/// Probes until aborted, telling every result: the startup probe until it succeeds, then the two others.
pub async fn probe(target: Target, tell: impl Fn(&str, Probe, Result<(), String>) + Send) {
    let name = target.container.name.clone();
    if let Some(spec) = target.container.startup_probe.clone() {
        let mut pace = Pace::new(&spec).await;
        loop {
            let result = one(&target, &spec).await;
            let good = result.is_ok();
            tell(&name, Probe::Startup, result);
            if good {
                break;
            }
            pace.rest().await;
        }
    }
    let repeat = async |kind: Probe, spec: Option<ProbeSpec>| {
        let Some(spec) = spec else { return };
        let mut pace = Pace::new(&spec).await;
        loop {
            tell(&name, kind, one(&target, &spec).await);
            pace.rest().await;
        }
    };
    tokio::join!(
        repeat(Probe::Liveness, target.container.liveness_probe.clone()),
        repeat(Probe::Readiness, target.container.readiness_probe.clone()),
    );
}

struct Pace(tokio::time::Interval);

impl Pace {
    async fn new(spec: &ProbeSpec) -> Pace {
        tokio::time::sleep(seconds(spec.initial_delay_seconds).unwrap_or_default()).await;
        let mut interval = tokio::time::interval(seconds(spec.period_seconds).unwrap_or(PERIOD));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        interval.tick().await;
        Pace(interval)
    }

    async fn rest(&mut self) {
        self.0.tick().await;
    }
}

fn seconds(value: Option<i32>) -> Option<Duration> {
    value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).map(Duration::from_secs)
}

async fn one(target: &Target, spec: &ProbeSpec) -> Result<(), String> {
    let patience = seconds(spec.timeout_seconds).unwrap_or(Duration::from_secs(1));
    let work = async {
        if let Some(action) = &spec.exec {
            exec(target, action).await
        } else if let Some(action) = &spec.http_get {
            http_get(target, action).await
        } else if let Some(action) = &spec.tcp_socket {
            tcp(target, action).await
        } else {
            Err("this kind of probe is not supported on this node".to_owned())
        }
    };
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("timed out after {}s", patience.as_secs())),
    }
}

/// Runs a hook.
pub async fn handler(target: &Target, hook: &LifecycleHandler, patience: Duration) -> Result<(), String> {
    let work = async {
        if let Some(action) = &hook.exec {
            exec(target, action).await
        } else if let Some(action) = &hook.http_get {
            http_get(target, action).await
        } else if let Some(action) = &hook.tcp_socket {
            tcp(target, action).await
        } else if let Some(action) = &hook.sleep {
            tokio::time::sleep(crate::plan::seconds(action.seconds)).await;
            Ok(())
        } else {
            Ok(())
        }
    };
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err("it did not end in time".to_owned()))
}

async fn exec(target: &Target, action: &ExecAction) -> Result<(), String> {
    let command = action.command.clone().unwrap_or_default();
    let spec = ExecSpec { command, tty: false, stdin: false };
    let mut streams = target.node.runtime.exec(&target.id, spec).await.map_err(|e| e.to_string())?;
    let (out, err) = tokio::join!(collect(streams.stdout.take()), collect(streams.stderr.take()));
    let code =
        streams.exit.await.map_err(|_| "the command was lost".to_owned())?.map_err(|e| e.to_string())?;
    let text = format!("{out}{err}");
    match (code, text.trim()) {
        (0, _) => Ok(()),
        (code, "") => Err(format!("command exited with {code}")),
        (_, text) => Err(text.to_owned()),
    }
}

/// The beginning of a stream; the rest is read and dropped, so that the command is not held up.
async fn collect(stream: Option<Box<dyn AsyncRead + Send + Unpin>>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // A stream that breaks off has ended.
        let _ = (&mut stream).take(OUTPUT_BYTES).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        }),
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| format!("no port {port:?}"))
}

fn host(given: Option<&str>, ip: IpAddr) -> String {
    given.filter(|host| !host.is_empty()).map_or_else(|| ip.to_string(), str::to_owned)
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let address = host.parse::<IpAddr>();
    let connected = match address {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    };
    connected.map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

async fn tcp(target: &Target, action: &TCPSocketAction) -> Result<(), String> {
    let port = port(&target.container, &action.port)?;
    dial(&host(action.host.as_deref(), target.ip), port).await.map(drop)
}

async fn http_get(target: &Target, action: &HTTPGetAction) -> Result<(), String> {
    if action.scheme.as_deref() == Some("HTTPS") {
        return Err("HTTPS probes are not supported on this node".to_owned());
    }
    let port = port(&target.container, &action.port)?;
    let host = host(action.host.as_deref(), target.ip);
    let stream = dial(&host, port).await?;
    let path = action.path.as_deref().filter(|path| path.starts_with('/')).unwrap_or("/");
    let mut request =
        http::Request::get(path).header("user-agent", "kube-probe/1.36").header("accept", "*/*");
    let mut headers: Vec<_> = action.http_headers.iter().flatten().collect();
    headers.retain(|header| !header.name.eq_ignore_ascii_case("host"));
    let named = action.http_headers.iter().flatten().find(|header| header.name.eq_ignore_ascii_case("host"));
    request = request.header("host", named.map_or(format!("{host}:{port}"), |header| header.value.clone()));
    for header in headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status();
        // Read, so that a server that writes it does not see a reset; how it ends does not matter.
        let _ = Limited::new(answer.into_body(), 64 << 10).collect().await;
        Ok::<_, String>(status)
    };
    let status = tokio::select! {
        answer = exchange => answer?,
        ended = connection => {
            return Err(ended.map_or_else(|e| e.to_string(), |()| "the connection was closed".to_owned()));
        }
    };
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}
