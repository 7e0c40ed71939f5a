//! Servers outside this process: webhooks, and what is reached through the API. How to find one, to trust it, and to ask it
//! one question in bounded time and space.

mod service;
mod trust;

pub(crate) use trust::Trust;

use crate::engine::Engine;
use crate::kubelet::Stream;
use crate::object::text;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Time for one address to take a connection, when there are others.
const CONNECT: Duration = Duration::from_secs(3);
/// Addresses that are tried.
const MAX_TRIES: usize = 8;
/// Bytes of an error's body that are told.
const MAX_TOLD: usize = 256;

/// Where a server is, and how it is spoken to.
pub(crate) struct Place {
    /// `host:port`
    authority: String,
    path: String,
    name: ServerName<'static>,
    at: Vec<SocketAddr>,
}

impl Engine {
    /// Posts a question to the server that a webhook's client configuration names, and gives its answer. `query` is
    /// added to its URL.
    pub async fn ask_outside(
        &self,
        client: &Value,
        query: &str,
        question: &Value,
        within: Duration,
    ) -> Result<Value, String> {
        let mut url = match client["url"].as_str() {
            Some(url) => url.to_owned(),
            None => service_url(&client["service"]),
        };
        url.extend((!query.is_empty()).then(|| format!("?{query}")));
        let asked = async {
            let place = self.place(client, &url).await?;
            let bundle = STANDARD.decode(text(client, "/caBundle")).unwrap_or_default();
            let trust = self.trust.by(&bundle)?;
            post(&place, trust, question, self.config.max_body.saturating_mul(2)).await
        };
        let late = || "context deadline exceeded".to_owned();
        let done = tokio::time::timeout(within, asked).await.unwrap_or_else(|_| Err(late()));
        done.map_err(|why| format!("Post \"{url}\": {why}"))
    }

    async fn place(&self, client: &Value, url: &str) -> Result<Place, String> {
        let uri: Uri = url.parse().map_err(|e| format!("the URL cannot be read: {e}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let at = if client["url"].is_string() {
            lookup(&host, port).await?
        } else {
            let service = &client["service"];
            self.service_addresses(text(service, "/namespace"), text(service, "/name"), &port.to_string())
                .await?
        };
        let name = ServerName::try_from(host).map_err(|e| e.to_string())?;
        let authority = uri.authority().map_or_else(String::new, ToString::to_string);
        Ok(Place { authority, path, name, at })
    }
}

/// By what URL a service is asked; its certificate has to be for that name.
fn service_url(service: &Value) -> String {
    let (namespace, name, path) =
        (text(service, "/namespace"), text(service, "/name"), text(service, "/path"));
    let port = service["port"].as_u64().unwrap_or(443);
    format!("https://{name}.{namespace}.svc:{port}/{}", path.trim_start_matches('/'))
}

/// The addresses of a name, as this host knows them.
async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(format!("dial tcp: lookup {host}: {error}")),
    }
}

/// A connection to the first of these that takes one.
pub(crate) async fn dial(to: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut last = "no address is known".to_owned();
    for address in to.iter().take(MAX_TRIES) {
        let opened = TcpStream::connect(address);
        let opened = if to.len() > 1 {
            tokio::time::timeout(CONNECT, opened)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        } else {
            opened.await
        };
        match opened {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = format!("dial tcp {address}: {error}"),
        }
    }
    Err(last)
}

/// The same with TLS inside.
pub(crate) async fn dial_tls(
    to: &[SocketAddr],
    trust: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Box<dyn Stream>, String> {
    let stream = dial(to).await?;
    let connector = tokio_rustls::TlsConnector::from(trust);
    let secured = connector.connect(name, stream).await.map_err(|error| format!("tls: {error}"))?;
    Ok(Box::new(secured))
}

async fn post(
    place: &Place,
    trust: Arc<ClientConfig>,
    question: &Value,
    limit: usize,
) -> Result<Value, String> {
    let stream = dial_tls(&place.at, trust, place.name.clone()).await?;
    let client = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = client.map_err(|e| e.to_string())?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let body = serde_json::to_vec(question).map_err(|e| e.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(&place.path)
        .header(header::HOST, &place.authority)
        .header(header::ACCEPT, "application/json, */*")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(bytes::Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let bytes = match Limited::new(response.into_body(), limit).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        Err(error) => return Err(format!("the answer cannot be read: {error}")),
    };
    if !status.is_success() {
        return Err(unsuccessful(status, &bytes));
    }
    let answer = serde_json::from_slice::<Value>(&bytes);
    answer.map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
}

/// As upstream's client words it.
fn unsuccessful(status: StatusCode, body: &[u8]) -> String {
    let told = String::from_utf8_lossy(&body[..body.len().min(MAX_TOLD)]);
    let told = told.trim();
    match status {
        StatusCode::NOT_FOUND => "the server could not find the requested resource".to_owned(),
        status if status.is_server_error() => {
            let told = if told.is_empty() { "unknown" } else { told };
            format!("an error on the server ({told:?}) has prevented the request from succeeding")
        }
        status => format!(
            "the server responded with the status code {} but did not return more information",
            status.as_u16()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_is_asked_by_its_name() {
        let service = json!({"name": "s", "namespace": "n", "port": 8443, "path": "/a/b"});
        assert_eq!(service_url(&service), "https://s.n.svc:8443/a/b");
        assert_eq!(service_url(&json!({"name": "s", "namespace": "n"})), "https://s.n.svc:443/");
    }

    #[test]
    fn failures_are_told_as_clients_know_them() {
        let told = unsuccessful(StatusCode::INTERNAL_SERVER_ERROR, b"no luck\n");
        assert_eq!(told, "an error on the server (\"no luck\") has prevented the request from succeeding");
        let told = unsuccessful(StatusCode::FOUND, b"");
        assert_eq!(told, "the server responded with the status code 302 but did not return more information");
    }

    #[tokio::test]
    async fn the_next_address_is_tried() {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = open.local_addr().unwrap();
        assert_eq!(dial(&[closed, at]).await.unwrap().peer_addr().unwrap(), at);
        let why = dial(&[closed]).await.unwrap_err();
        assert!(why.starts_with(&format!("dial tcp {closed}: Connection refused")), "{why}");
    }
}
