//! port-forward over SPDY: for each of its connections the client opens a pair of streams, one for the bytes and one for
//! what goes wrong.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::ws::WebSocket;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use kube::ResourceExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::websocket::carry;
use super::{PIECE_BYTES, QUEUE, negotiate, refuse, remote};
use crate::pods::Node;
use crate::spdy::session::{Outgoing, Session, Stream};

mod websocket;

const PROTOCOL: &str = "portforward.k8s.io";
/// The same inside WebSocket messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Streams whose partner has not come yet.
const UNPAIRED: usize = 64;
/// What lies between a WebSocket and the SPDY session inside it.
const PIPE_BYTES: usize = 64 << 10;

/// Where connections go.
#[derive(Clone)]
struct Pod {
    node: Arc<Node>,
    /// Its network; the machine's own if there is none.
    netns: Option<PathBuf>,
}

impl Pod {
    async fn dial(&self, port: u16) -> Result<TcpStream, String> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let dialed = self.node.runtime.dial(self.netns.clone(), address, port).await;
        dialed.map_err(|error| format!("error forwarding port {port} to pod: {error}"))
    }
}

pub(super) async fn port_forward(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod)): UrlPath<(String, String)>,
    Query(pairs): Query<Vec<(String, String)>>,
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
    let pod = Pod { node, netns };
    if !negotiate::asks_for(request.headers(), "websocket") {
        return negotiate::spdy(request, &[PROTOCOL], move |session, _| forward_all(session, pod));
    }
    if negotiate::offers(request.headers(), TUNNEL) {
        return negotiate::websocket(request, &[TUNNEL], move |socket| tunnel(socket, pod)).await;
    }
    match websocket::ports(&pairs) {
        Ok(ports) => {
            let work = move |socket| websocket::serve(socket, ports, pod);
            negotiate::websocket(request, &remote::websocket::PROTOCOLS, work).await
        }
        Err(why) => refuse(StatusCode::BAD_REQUEST, why),
    }
}

/// Forwards until the client is gone.
async fn forward_all(mut session: Session, pod: Pod) {
    // Dropped with the session, and its connections with it.
    let mut connections = JoinSet::new();
    let mut unpaired: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = session.accept().await {
        while connections.try_join_next().is_some() {}
        let Some((data, error)) = pair(&mut unpaired, stream).await else { continue };
        let pod = pod.clone();
        connections.spawn(async move {
            if let Err(why) = forward(data, &error, &pod).await {
                error.send(Bytes::from(why)).await;
                error.finish().await;
            }
        });
    }
}

/// Finds a stream's partner, by request and port. Gives the data stream and the way for errors.
async fn pair(unpaired: &mut HashMap<String, Stream>, stream: Stream) -> Option<(Stream, Outgoing)> {
    let is_data = |stream: &Stream| match stream.header("streamtype") {
        Some("data") => Some(true),
        Some("error") => Some(false),
        _ => None,
    };
    let key = format!("{:?} {:?}", stream.header("requestid"), stream.header("port"));
    match (is_data(&stream), unpaired.remove(&key)) {
        (Some(data), Some(other)) if is_data(&other) == Some(!data) => {
            let (data, error) = if data { (stream, other) } else { (other, stream) };
            return Some((data, error.outgoing));
        }
        (Some(_), None) if unpaired.len() < UNPAIRED => {
            unpaired.insert(key, stream);
        }
        (_, other) => {
            stream.outgoing.refuse().await;
            unpaired.extend(other.map(|other| (key, other)));
        }
    }
    None
}

/// Carries one connection.
async fn forward(data: Stream, error: &Outgoing, pod: &Pod) -> Result<(), String> {
    let outgoing = data.outgoing.clone();
    let connection = match data.header("port").map(str::parse) {
        Some(Ok(port)) => pod.dial(port).await,
        _ => Err("no valid port".into()),
    };
    let (read, write) = match connection {
        Ok(connection) => connection.into_split(),
        Err(why) => {
            outgoing.finish().await;
            return Err(why);
        }
    };
    let outward = async {
        from_pod(read, &outgoing).await;
        // Clients hold their user's connection open until they know that nothing went wrong, so this must not wait for
        // the other direction.
        error.finish().await;
    };
    tokio::select! {
        // Whoever resets a stream has no more interest in either direction.
        () = outgoing.cancelled() => {}
        _ = async { tokio::join!(to_pod(data, write), outward) } => {}
    }
    Ok(())
}

async fn to_pod(mut data: Stream, mut pod: impl AsyncWrite + Unpin) {
    while let Some(bytes) = data.incoming.recv().await {
        if pod.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The pod may have closed first.
    let _ = pod.shutdown().await;
}

async fn from_pod(mut pod: impl AsyncRead + Unpin, outgoing: &Outgoing) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = pod.read(&mut buffer).await {
        if !outgoing.send(Bytes::copy_from_slice(&buffer[..length])).await {
            return;
        }
    }
    outgoing.finish().await;
}

/// Forwards over SPDY whose bytes come in WebSocket messages, cut wherever.
async fn tunnel(socket: WebSocket, pod: Pod) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let session = match Session::new(theirs) {
        Ok(session) => session,
        Err(error) => return tracing::debug!(%error, "SPDY session"),
    };
    let (read, mut write) = tokio::io::split(ours);
    let (to_client, queue) = mpsc::channel(QUEUE);
    let take = async move |bytes: Bytes| {
        // The session may have ended over something that broke its protocol.
        let _ = write.write_all(&bytes).await;
    };
    let carried = carry(socket, take, queue, std::convert::identity);
    let session = async { tokio::join!(forward_all(session, pod), unwrap(read, to_client)) };
    let (mut carried, mut session) = (std::pin::pin!(carried), std::pin::pin!(session));
    tokio::select! {
        // The client is gone; the session is dropped.
        () = &mut carried => return,
        _ = &mut session => {}
    }
    carried.await;
}

async fn unwrap(mut pipe: ReadHalf<DuplexStream>, to_client: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        if to_client.send(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
            return;
        }
    }
}
