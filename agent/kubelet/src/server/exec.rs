//! exec, attach and port-forward: from an HTTP request to a session.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use kube::ResourceExt;
use runtime::{Error, ExecSpec, Streams};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::remote::{self, Input, Output, QUEUE};
use super::{refuse, websocket};
use crate::pods::Node;
use crate::spdy::session::{Session, Stream};

/// SPDY protocols for exec and attach, newest first. From v4 on the error stream carries a Status.
const SPDY_PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];
const PORT_FORWARD: &str = "portforward.k8s.io";
const PORT_FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// How long a client may take to open its streams.
const STREAMS_PATIENCE: Duration = Duration::from_secs(30);
/// What lies between a WebSocket and the SPDY session inside it.
const TUNNEL_BYTES: usize = 64 << 10;
const PIECE_BYTES: usize = 32 << 10;

type Pairs = Query<Vec<(String, String)>>;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// Both the API's names and the kubelet's older ones are in use.
    fn parse(pairs: &[(String, String)]) -> Wanted {
        let flag = |names: [&str; 2]| {
            pairs
                .iter()
                .any(|(key, value)| names.contains(&key.as_str()) && matches!(value.as_str(), "1" | "true"))
        };
        let command = pairs.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.clone());
        let tty = flag(["tty", "tty"]);
        Wanted {
            // As long as a request line may be; cut, it would be another command.
            command: command.collect(),
            stdin: flag(["stdin", "input"]),
            stdout: flag(["stdout", "output"]),
            // A terminal has only one output.
            stderr: flag(["stderr", "error"]) && !tty,
            tty,
        }
    }
}

pub(super) async fn exec(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod, name)): UrlPath<(String, String, String)>,
    Query(pairs): Pairs,
    request: Request,
) -> Response {
    let wanted = Wanted::parse(&pairs);
    if wanted.command.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container");
    }
    let id = match running(&node, &namespace, &pod, &name).await {
        Ok(id) => id,
        Err(refusal) => return refusal,
    };
    let spec = ExecSpec { command: wanted.command.clone(), tty: wanted.tty, stdin: wanted.stdin };
    let start = async move { node.runtime.exec(&id, spec).await };
    upgrade(remote::Session::Exec, wanted, request, start).await
}

pub(super) async fn attach(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod, name)): UrlPath<(String, String, String)>,
    Query(pairs): Pairs,
    request: Request,
) -> Response {
    let wanted = Wanted::parse(&pairs);
    let id = match running(&node, &namespace, &pod, &name).await {
        Ok(id) => id,
        Err(refusal) => return refusal,
    };
    let stdin = wanted.stdin;
    let start = async move { node.runtime.attach(&id, stdin).await };
    upgrade(remote::Session::Attach, wanted, request, start).await
}

async fn running(node: &Node, namespace: &str, pod: &str, name: &str) -> Result<String, Response> {
    let all = super::incarnations(node, namespace, pod, name).await?;
    let alive = all.into_iter().rev().find(|container| container.exit.is_none());
    let missing = || refuse(StatusCode::NOT_FOUND, format!("container not found (\"{name}\")"));
    alive.map(|container| container.id).ok_or_else(missing)
}

/// Answers with whichever protocol the client offers.
async fn upgrade(
    kind: remote::Session,
    wanted: Wanted,
    request: Request,
    start: impl Future<Output = Result<Streams, Error>> + Send + 'static,
) -> Response {
    if asks_for(request.headers(), "websocket") {
        let (mut parts, _) = request.into_parts();
        return match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
            Ok(upgrade) => {
                let upgrade =
                    upgrade.protocols(websocket::PROTOCOLS).max_message_size(websocket::MESSAGE_BYTES);
                upgrade.on_upgrade(move |socket| async move {
                    let (input, from_client) = mpsc::channel(QUEUE);
                    let (to_client, output) = mpsc::channel(QUEUE);
                    let session = async { remote::run(kind, start.await, from_client, to_client).await };
                    tokio::join!(session, websocket::carry(socket, input, output));
                })
            }
            Err(refusal) => axum::response::IntoResponse::into_response(refusal),
        };
    }
    spdy(request, &SPDY_PROTOCOLS, move |session, protocol| async move {
        spdy_command(kind, wanted, session, protocol, start).await;
    })
}

fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    let offered = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    offered.to_ascii_lowercase().starts_with(protocol)
}

/// Switches to SPDY with the best protocol that both know.
fn spdy<F, W>(mut request: Request, ours: &[&'static str], work: F) -> Response
where
    F: FnOnce(Session, &'static str) -> W + Send + 'static,
    W: Future<Output = ()> + Send,
{
    if !asks_for(request.headers(), "spdy/3.1") {
        return refuse(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let offered = request.headers().get_all("x-stream-protocol-version");
    let offered: Vec<&str> = offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    let Some(protocol) = ours.iter().find(|protocol| offered.contains(protocol)).copied() else {
        return refuse(StatusCode::FORBIDDEN, format!("unable to upgrade: of {offered:?} none is known"));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await.map(|io| Session::new(TokioIo::new(io))) {
            Ok(Ok(session)) => work(session, protocol).await,
            Ok(Err(error)) => tracing::debug!(%error, "SPDY session"),
            Err(error) => tracing::debug!(%error, "upgrade to SPDY"),
        }
    });
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Body::empty());
    answer.unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[derive(Default)]
struct CommandStreams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl CommandStreams {
    /// Waits for the streams that the request announced.
    async fn accept(session: &mut Session, wanted: &Wanted, protocol: &str) -> Option<CommandStreams> {
        let mut streams = CommandStreams::default();
        let resizes = wanted.tty && protocol != "v2.channel.k8s.io";
        loop {
            let complete = streams.error.is_some()
                && streams.stdin.is_some() == wanted.stdin
                && streams.stdout.is_some() == wanted.stdout
                && streams.stderr.is_some() == wanted.stderr
                && streams.resize.is_some() == resizes;
            if complete {
                return Some(streams);
            }
            let stream = session.accept().await?;
            let place = match stream.header("streamtype")? {
                "error" => &mut streams.error,
                "stdin" => &mut streams.stdin,
                "stdout" => &mut streams.stdout,
                "stderr" => &mut streams.stderr,
                "resize" => &mut streams.resize,
                _ => return None,
            };
            *place = Some(stream);
        }
    }
}

async fn spdy_command(
    kind: remote::Session,
    wanted: Wanted,
    mut session: Session,
    protocol: &'static str,
    start: impl Future<Output = Result<Streams, Error>> + Send,
) {
    let accept = CommandStreams::accept(&mut session, &wanted, protocol);
    let Ok(Some(streams)) = tokio::time::timeout(STREAMS_PATIENCE, accept).await else { return };
    let (input, from_client) = mpsc::channel(QUEUE);
    let (to_client, output) = mpsc::channel(QUEUE);
    let inward = spdy_input(streams.stdin, streams.resize, input, &mut session);
    let out = (streams.stdout, streams.stderr, streams.error);
    let outward = spdy_output(out, output, !matches!(protocol, "v2.channel.k8s.io" | "v3.channel.k8s.io"));
    let carried = async {
        tokio::join!(async { remote::run(kind, start.await, from_client, to_client).await }, outward);
    };
    // Input goes on to be heard until the session is over: that it ends says that the client is gone.
    tokio::select! {
        () = carried => {}
        () = inward => {}
    }
    session.close().await;
}

async fn spdy_input(
    stdin: Option<Stream>,
    resize: Option<Stream>,
    input: mpsc::Sender<Input>,
    session: &mut Session,
) {
    let stdin = async {
        let Some(mut stdin) = stdin else { return };
        while let Some(bytes) = stdin.incoming.recv().await {
            if input.send(Input::Stdin(bytes)).await.is_err() {
                return;
            }
        }
        // As below.
        let _ = input.send(Input::CloseStdin).await;
    };
    let resize = async {
        let Some(mut resize) = resize else { return };
        while let Some(bytes) = resize.incoming.recv().await {
            if let Some(size) = remote::size(bytes.trim_ascii()) {
                // The session may be over.
                let _ = input.send(Input::Resize(size)).await;
            }
        }
    };
    // No further streams are expected: what comes is the connection's end.
    let gone = async { while session.accept().await.is_some() {} };
    tokio::select! {
        () = gone => {}
        _ = async { tokio::join!(stdin, resize, std::future::pending::<()>()) } => {}
    }
}

async fn spdy_output(
    (stdout, stderr, error): (Option<Stream>, Option<Stream>, Option<Stream>),
    mut output: mpsc::Receiver<Output>,
    structured: bool,
) {
    while let Some(message) = output.recv().await {
        let (stream, bytes) = match message {
            Output::Stdout(bytes) => (&stdout, bytes),
            Output::Stderr(bytes) => (&stderr, bytes),
            Output::Status(status) if structured => (&error, Bytes::from(status.to_string())),
            Output::Status(status) if status["status"] == "Success" => continue,
            Output::Status(status) => {
                (&error, Bytes::from(status["message"].as_str().unwrap_or_default().to_owned()))
            }
        };
        if let Some(stream) = stream
            && !stream.outgoing.send(bytes).await
        {
            return;
        }
    }
    for stream in [stdout, stderr, error].into_iter().flatten() {
        stream.outgoing.finish().await;
    }
}

pub(super) async fn port_forward(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod)): UrlPath<(String, String)>,
    request: Request,
) -> Response {
    let found = match super::find(&node, &namespace, &pod) {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let uid = found.uid().unwrap_or_default();
    let host_network = found.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let netns = node.netns(&uid);
    if netns.is_none() && !host_network {
        return refuse(StatusCode::BAD_REQUEST, format!("pod {pod} has no network yet"));
    }
    if !asks_for(request.headers(), "websocket") {
        return spdy(request, &[PORT_FORWARD], move |session, _| forward_all(node, netns, session));
    }
    let (mut parts, _) = request.into_parts();
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => {
            let upgrade = upgrade.protocols([PORT_FORWARD_TUNNEL]).max_message_size(websocket::MESSAGE_BYTES);
            upgrade.on_upgrade(move |socket| async move {
                let (ours, theirs) = tokio::io::duplex(TUNNEL_BYTES);
                let Ok(session) = Session::new(theirs) else { return };
                tokio::join!(tunnel(socket, ours), forward_all(node, netns, session));
            })
        }
        Err(refusal) => axum::response::IntoResponse::into_response(refusal),
    }
}

/// SPDY's bytes in WebSocket messages, cut wherever.
async fn tunnel(socket: axum::extract::ws::WebSocket, pipe: tokio::io::DuplexStream) {
    use axum::extract::ws::Message;
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(pipe);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) if write.write_all(&bytes).await.is_err() => return,
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
        // The client may have closed first.
        let _ = sink.send(websocket::bye()).await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

/// One connection into the pod for each pair of an error and a data stream.
async fn forward_all(node: Arc<Node>, netns: Option<PathBuf>, mut session: Session) {
    let mut connections = tokio::task::JoinSet::new();
    let mut waiting: std::collections::HashMap<String, Stream> = std::collections::HashMap::new();
    while let Some(stream) = session.accept().await {
        while connections.try_join_next().is_some() {}
        let key = format!("{:?} {:?}", stream.header("requestid"), stream.header("port"));
        let Some(other) = waiting.remove(&key) else {
            waiting.insert(key, stream);
            continue;
        };
        let (data, error) =
            if stream.header("streamtype") == Some("data") { (stream, other) } else { (other, stream) };
        let (node, netns) = (node.clone(), netns.clone());
        connections.spawn(async move {
            let outgoing = data.outgoing.clone();
            if let Err(why) = forward(&node, netns, data).await {
                error.outgoing.send(Bytes::from(why)).await;
            }
            error.outgoing.finish().await;
            outgoing.finish().await;
        });
    }
}

async fn forward(node: &Node, netns: Option<PathBuf>, data: Stream) -> Result<(), String> {
    let port = data.header("port").and_then(|port| port.parse::<u16>().ok()).ok_or("no valid port")?;
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let failed = |error: Error| format!("error forwarding port {port} to pod: {error}");
    let connection = node.runtime.dial(netns, address, port).await.map_err(failed)?;
    let (read, write) = connection.into_split();
    let outgoing = data.outgoing.clone();
    tokio::join!(to_pod(data, write), from_pod(read, outgoing));
    Ok(())
}

async fn to_pod(mut data: Stream, mut write: impl AsyncWrite + Unpin) {
    while let Some(bytes) = data.incoming.recv().await {
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The pod may have closed first.
    let _ = write.shutdown().await;
}

async fn from_pod(mut read: impl AsyncRead + Unpin, outgoing: crate::spdy::session::Outgoing) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        if !outgoing.send(Bytes::copy_from_slice(&buffer[..length])).await {
            return;
        }
    }
    outgoing.finish().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_by_old_and_new_names() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let new =
            [pair("command", "ls"), pair("command", "-l"), pair("stdin", "true"), pair("stderr", "true")];
        let got = Wanted::parse(&new);
        assert_eq!(got.command, ["ls", "-l"]);
        assert!(got.stdin && got.stderr && !got.stdout && !got.tty);
        let old =
            Wanted::parse(&[pair("input", "1"), pair("output", "1"), pair("error", "1"), pair("tty", "1")]);
        assert!(old.stdin && old.stdout && old.tty && !old.stderr);
    }
}
