//! exec and attach: from an HTTP request to a session.

use std::sync::Arc;

use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use runtime::{Error, ExecSpec, Streams};

use super::remote::{self, Kind};
use super::{negotiate, refuse};
use crate::pods::Node;

type Pairs = Query<Vec<(String, String)>>;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    command: Vec<String>,
    /// To send standard input.
    pub stdin: bool,
    /// To see standard output.
    pub stdout: bool,
    /// To see standard error.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

impl Wanted {
    /// Both the API's names and the kubelet's older ones are in use.
    fn parse(pairs: &[(String, String)]) -> Result<Wanted, &'static str> {
        let flag = |names: &[&str]| {
            pairs
                .iter()
                .any(|(key, value)| names.contains(&key.as_str()) && matches!(value.as_str(), "1" | "true"))
        };
        let command = pairs.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.clone());
        let tty = flag(&["tty"]);
        let wanted = Wanted {
            // As long as a request line may be; cut, it would be another command.
            command: command.collect(),
            stdin: flag(&["stdin", "input"]),
            stdout: flag(&["stdout", "output"]),
            // A terminal has only one output.
            stderr: flag(&["stderr", "error"]) && !tty,
            tty,
        };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            Ok(wanted)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

pub(super) async fn exec(
    State(node): State<Arc<Node>>,
    UrlPath(container): UrlPath<(String, String, String)>,
    Query(pairs): Pairs,
    request: Request,
) -> Response {
    if !pairs.iter().any(|(key, _)| key == "command") {
        return refuse(StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container");
    }
    serve(node, Kind::Exec, container, &pairs, request).await
}

pub(super) async fn attach(
    State(node): State<Arc<Node>>,
    UrlPath(container): UrlPath<(String, String, String)>,
    Query(pairs): Pairs,
    request: Request,
) -> Response {
    serve(node, Kind::Attach, container, &pairs, request).await
}

/// Answers with whichever protocol the client offers; the streams are opened once it has been upgraded.
async fn serve(
    node: Arc<Node>,
    kind: Kind,
    (namespace, pod, name): (String, String, String),
    pairs: &[(String, String)],
    request: Request,
) -> Response {
    let wanted = match Wanted::parse(pairs) {
        Ok(wanted) => wanted,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    let id = match running(&node, &namespace, &pod, &name).await {
        Ok(id) => id,
        Err(refusal) => return refusal,
    };
    let start = open(node, kind, id, wanted.clone());
    if negotiate::asks_for(request.headers(), "websocket") {
        let work = move |socket| remote::websocket::serve(socket, kind, wanted, start);
        return negotiate::websocket(request, &remote::websocket::PROTOCOLS, work).await;
    }
    negotiate::spdy(request, &remote::spdy::PROTOCOLS, move |session, protocol| {
        remote::spdy::serve(session, protocol, kind, wanted, start)
    })
}

async fn open(node: Arc<Node>, kind: Kind, id: String, wanted: Wanted) -> Result<Streams, Error> {
    match kind {
        Kind::Exec => {
            let spec = ExecSpec { command: wanted.command, tty: wanted.tty, stdin: wanted.stdin };
            node.runtime.exec(&id, spec).await
        }
        Kind::Attach => node.runtime.attach(&id, wanted.stdin).await,
    }
}

async fn running(node: &Node, namespace: &str, pod: &str, name: &str) -> Result<String, Response> {
    let all = super::incarnations(node, namespace, pod, name).await?;
    let alive = all.into_iter().rev().find(|container| container.exit.is_none());
    let missing = || refuse(StatusCode::NOT_FOUND, format!("container not found (\"{name}\")"));
    alive.map(|container| container.id).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_by_old_and_new_names() {
        let parse = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Wanted::parse(&pairs.collect::<Vec<_>>())
        };
        let new =
            parse(&[("command", "ls"), ("command", "-l"), ("stdin", "true"), ("stderr", "true")]).unwrap();
        assert_eq!(new.command, ["ls", "-l"]);
        assert!(new.stdin && new.stderr && !new.stdout && !new.tty);
        let old = parse(&[("input", "1"), ("output", "1"), ("error", "1"), ("tty", "1")]).unwrap();
        assert!(old.stdin && old.stdout && old.tty && !old.stderr);
        assert!(parse(&[("command", "ls"), ("tty", "true")]).is_err());
    }
}
