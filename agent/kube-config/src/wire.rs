//! What goes over the agent's socket: HTTP/1.1, one JSON request, JSON lines back.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

/// Where the agent listens.
pub const SOCKET: &str = "/run/bramble/agent.sock";

/// `POST /enable-master`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EnableMaster {
    /// This node's own address, when it has several.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// `POST /disable-node`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DisableNode {
    /// Whatever the cluster says.
    #[serde(default)]
    pub force: bool,
}

/// `POST /enable-worker`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnableWorker {
    /// Any node of the cluster.
    pub master: IpAddr,
    /// A token from `enable-master`; without one the baked secret is used.
    pub token: Option<String>,
    /// Never vote.
    pub no_vote: bool,
    /// This node's own address, when it has several.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// `POST /load`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// An archive on this node.
    pub path: PathBuf,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// Something was done, for the user to read.
    Progress(String),
    /// It did not work; the text says what is wrong and what to do. The last line.
    Error(String),
    /// It worked; what is left to say. The last line.
    Done(serde_json::Value),
}

/// `GET /info`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Info {
    /// The agent's version.
    pub version: String,
    /// Kubernetes version served.
    pub kubernetes: String,
    /// `none`, or what this node is.
    pub role: String,
    /// The node's name.
    pub node: String,
    /// The Raft leader's name, when one is known.
    pub leader: Option<String>,
    /// Names of the voters.
    pub voters: Vec<String>,
    /// Why the node does not run, or no container can run on it, if so.
    pub problem: Option<String>,
}

/// What can go wrong between the command and the agent.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Nobody listens.
    #[error("the agent does not answer at {}: is `bramble agent` running (systemctl status bramble), and are you root?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke before the answer was complete.
    #[error("the agent's answer broke off; see its log (journalctl -u bramble)")]
    Broken,
    /// The agent refused; its own words.
    #[error("{0}")]
    Refused(String),
}

/// Sends one request; `each` sees every progress line; the result is the last line's.
pub async fn call(
    socket: &Path,
    method: &str,
    path: &str,
    body: &impl Serialize,
    mut each: impl FnMut(&str),
) -> Result<serde_json::Value, WireError> {
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .map_err(|source| WireError::Connect { path: socket.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| WireError::Broken)?;
    let driver = tokio::spawn(connection);
    let body = serde_json::to_vec(body).map_err(|_| WireError::Broken)?;
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "agent")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| WireError::Broken)?;
    let mut response = sender.send_request(request).await.map_err(|_| WireError::Broken)?.into_body();
    let mut buffer = Vec::new();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|_| WireError::Broken)?;
        buffer.extend_from_slice(frame.data_ref().map_or(&[], |d| d.as_ref()));
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(|_| WireError::Broken)? {
                Line::Progress(text) => each(&text),
                Line::Error(text) => return Err(WireError::Refused(text)),
                Line::Done(value) => {
                    driver.abort();
                    return Ok(value);
                }
            }
        }
    }
    Err(WireError::Broken)
}
