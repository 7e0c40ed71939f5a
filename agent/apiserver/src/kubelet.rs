//! What only a node can answer: logs, exec, attach, port-forward. The request is carried to the kubelet and its answer,
//! or the connection it is upgraded to, back.

use crate::audit::Trail;
use crate::auth::User;
use crate::engine::Engine;
use crate::object::{list, name, text};
use crate::path::Target;
use crate::query::Query;
use crate::status::{Result, Status};
use crate::subresource::Sent;
use crate::write::Told;
use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use resources::Subresource;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// A connection to a kubelet.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The way to the kubelets.
#[async_trait::async_trait]
pub trait Kubelets: Send + Sync + 'static {
    /// An authenticated connection to the kubelet of this Node object.
    async fn connect(&self, node: &Value) -> std::io::Result<Box<dyn Stream>>;
}

/// How long a client may take to hang up once the server has said all.
const LINGER: Duration = Duration::from_secs(5);
/// The longest answer to a question of the server's own.
const ANSWER_BYTES: usize = 8 << 20;
/// Bytes on their way in each direction.
const PIECE_BYTES: usize = 16 << 10;

/// Headers that belong to one connection (RFC 9110, 7.6.1) and are not carried on, but for those of an upgrade.
const HOP: [header::HeaderName; 5] =
    [header::HOST, header::TRANSFER_ENCODING, header::TE, header::TRAILER, header::PROXY_AUTHORIZATION];

impl Engine {
    /// Carries a request about a pod to its kubelet.
    pub async fn to_kubelet(
        &self,
        user: &User,
        target: &Target,
        pod_name: &str,
        sub: Subresource,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>> {
        let pod = self.get(target, pod_name)?;
        let path = kubelet_path(&pod, sub, query, request.uri())?;
        if let Some((kind, options)) = connect_options(sub, query) {
            let sent = Sent {
                by: user,
                target,
                name: pod_name,
                subresource: sub.name(),
                operation: "CONNECT",
                kind: ["", "v1", kind],
                dry_run: false,
            };
            self.admit_sent(&sent, options, &Told::default()).await?;
        }
        let host = text(&pod, "/spec/nodeName");
        if host.is_empty() {
            return Err(Status::bad_request(format!("pod {pod_name} does not have a host assigned")));
        }
        let nodes = resources::find("", "v1", "nodes").ok_or_else(Status::no_resource)?;
        let node =
            self.get(&Target { kind: nodes.clone(), namespace: None, name: None, subresource: None }, host)?;
        let dial =
            |e: &dyn std::fmt::Display| Status::internal(format!("error dialing backend: node {host}: {e}"));
        let stream = self.kubelets.connect(&node).await.map_err(|e| dial(&e))?;
        carry_on(stream, request, path, host, &dial).await
    }

    /// What a node's kubelet answers to a question of the server's own, as JSON.
    pub async fn ask_kubelet(&self, node: &Value, path: &'static str) -> Result<Value> {
        let failed = |e: &dyn std::fmt::Display| Status::internal(e);
        let stream = self.kubelets.connect(node).await.map_err(|e| failed(&e))?;
        let question = Request::new(Body::empty());
        let answer = carry_on(stream, question, Uri::from_static(path), name(node), &failed).await?;
        if answer.status() != StatusCode::OK {
            return Err(failed(&answer.status()));
        }
        let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        serde_json::from_slice(&body.map_err(|e| failed(&e))?.to_bytes()).map_err(|e| failed(&e))
    }
}

/// Sends a request over a connection of its own and carries the answer back, or both ways what the connection is upgraded
/// to.
pub(crate) async fn carry_on(
    stream: Box<dyn Stream>,
    mut request: Request<Body>,
    path: Uri,
    host: &str,
    failed: &(dyn Fn(&dyn std::fmt::Display) -> Status + Sync),
) -> Result<Response<Body>> {
    let client = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = client.map_err(|e| failed(&e))?;
    tokio::spawn(connection.with_upgrades());
    let trail = Trail::of(&request);
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let outgoing = outgoing(request, path, host)?;
    let mut answer = sender.send_request(outgoing).await.map_err(|e| failed(&e))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let server = hyper::upgrade::on(&mut answer);
        let client = upgrade.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
        // The request goes on for as long as the connection does.
        tokio::spawn(async move {
            join(client, server).await;
            drop(trail);
        });
    }
    Ok(answer.map(Body::new))
}

async fn join(client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade) {
    if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
        relay(TokioIo::new(client), TokioIo::new(server)).await;
    }
}

/// Carries bytes between a client and a server until both have ended. Either may vanish at any time: that ends the
/// other's connection, and is nobody's error. When the server has said all, a client that does not hang up either is
/// hung up on after a while.
pub async fn relay(client: impl AsyncRead + AsyncWrite, server: impl AsyncRead + AsyncWrite) {
    let (client, server) = (tokio::io::split(client), tokio::io::split(server));
    let mut inward = std::pin::pin!(carry(client.0, server.1));
    let mut outward = std::pin::pin!(carry(server.0, client.1));
    let rest = tokio::select! {
        done = &mut inward => match done {
            Ok(()) => outward.await,
            // The client is gone, or the server reads no more, but what it has said is still to be heard.
            Err(_) => tokio::time::timeout(LINGER, outward).await.unwrap_or(Ok(())),
        },
        done = &mut outward => match done {
            Ok(()) => tokio::time::timeout(LINGER, inward).await.unwrap_or(Ok(())),
            error => error,
        },
    };
    if let Err(error) = rest {
        tracing::debug!(%error, "a carried stream broke off");
    }
}

async fn carry(from: impl AsyncRead, to: impl AsyncWrite) -> std::io::Result<()> {
    let mut from = std::pin::pin!(tokio::io::BufReader::with_capacity(PIECE_BYTES, from));
    let mut to = std::pin::pin!(to);
    tokio::io::copy_buf(&mut from, &mut to).await?;
    to.shutdown().await
}

fn outgoing(request: Request<Body>, path: Uri, host: &str) -> Result<Request<Body>> {
    let (parts, body) = request.into_parts();
    let mut headers: HeaderMap = parts.headers;
    for name in HOP {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::HOST, HeaderValue::from_str(host).map_err(Status::internal)?);
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = path;
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}

fn kubelet_path(pod: &Value, sub: Subresource, query: &Query, uri: &Uri) -> Result<Uri> {
    let (namespace, pod_name) = (text(pod, "/metadata/namespace"), name(pod));
    let verb = match sub {
        Subresource::Log => "containerLogs",
        Subresource::Exec => "exec",
        Subresource::Attach => "attach",
        _ => "portForward",
    };
    let container = match sub {
        Subresource::PortForward => String::new(),
        _ => format!("/{}", container(pod, query.get("container"))?),
    };
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    format!("/{verb}/{namespace}/{pod_name}{container}{query}").parse().map_err(Status::internal)
}

/// How somebody wants to be connected to a pod, as those see it who have a say in that.
fn connect_options(sub: Subresource, query: &Query) -> Option<(&'static str, Value)> {
    let kind = match sub {
        Subresource::Exec => "PodExecOptions",
        Subresource::Attach => "PodAttachOptions",
        Subresource::PortForward => "PodPortForwardOptions",
        _ => return None,
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    if sub == Subresource::PortForward {
        let ports: Vec<u16> = query.all("ports").filter_map(|port| port.parse().ok()).collect();
        options["ports"] = json!(ports);
        return Some((kind, options));
    }
    for stream in ["stdin", "stdout", "stderr", "tty"] {
        if query.flag(stream) {
            options[stream] = true.into();
        }
    }
    if let Some(container) = query.get("container") {
        options["container"] = container.into();
    }
    if sub == Subresource::Exec {
        options["command"] = query.all("command").collect();
    }
    Some((kind, options))
}

/// The container meant: the one named, the only one, or the one the pod says is its main one.
fn container(pod: &Value, asked: Option<&str>) -> Result<String> {
    let of = |pointer: &str| list(pod, pointer).iter().map(name_of).map(str::to_owned).collect::<Vec<_>>();
    let main = of("/spec/containers");
    let pod_name = name(pod);
    if let Some(asked) = asked {
        let other = [of("/spec/initContainers"), of("/spec/ephemeralContainers")].concat();
        let known = main.iter().chain(&other).any(|c| c == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
        };
    }
    let annotated = text(pod, "/metadata/annotations/kubectl.kubernetes.io~1default-container");
    match main.as_slice() {
        [one] => Ok(one.clone()),
        all if all.iter().any(|c| c == annotated) => Ok(annotated.to_owned()),
        all => {
            let choice = all.join(" ");
            let message =
                format!("a container name must be specified for pod {pod_name}, choose one of: [{choice}]");
            Err(Status::bad_request(message))
        }
    }
}

fn name_of(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    /// A client and a server, and what carries between them.
    fn carried() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<()>) {
        let ((client, near), (far, server)) = (duplex(64), duplex(64));
        (client, server, tokio::spawn(relay(near, far)))
    }

    #[tokio::test]
    async fn a_client_that_has_said_all_still_hears() {
        let (mut client, mut server, relay) = carried();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        heard.clear();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "answer");
        relay.await.unwrap();
    }

    /// As long as it reads, it may take its time.
    #[tokio::test(start_paused = true)]
    async fn a_client_hears_all_that_a_server_said_before_it_hung_up() {
        let (mut client, mut server, relay) = carried();
        let feeder = tokio::spawn(async move {
            server.write_all(&[7; 1000]).await.unwrap();
            // The server is gone, with the client's words unread.
        });
        let mut got = Vec::new();
        while got.len() < 1000 {
            tokio::time::sleep(LINGER / 2).await;
            let mut piece = [0; 100];
            let read = client.read(&mut piece).await.unwrap();
            assert!(read > 0, "only {} bytes", got.len());
            got.extend_from_slice(&piece[..read]);
        }
        feeder.await.unwrap();
        drop(client);
        relay.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_hang_up_is_hung_up_on() {
        let (mut client, server, relay) = carried();
        drop(server);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let ended = tokio::time::timeout(LINGER * 2, relay).await;
        ended.expect("the relay ends, though the client does not").unwrap();
    }

    #[test]
    fn the_container_that_is_meant() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, None).unwrap(), "a");
        assert_eq!(container(&two, Some("i")).unwrap(), "i");
        let why = container(&two, None).unwrap_err().message;
        assert_eq!(why, "a container name must be specified for pod p, choose one of: [a b]");
        assert_eq!(container(&one, Some("z")).unwrap_err().message, "container z is not valid for pod p");
    }
}
