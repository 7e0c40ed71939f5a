//! From a request to an upgraded connection that speaks a protocol both sides know.

use axum::body::Body;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;

use super::refuse;
use crate::spdy::session::Session;

/// Longest WebSocket message taken; the Python client sends a whole standard input as one.
const MESSAGE_BYTES: usize = 4 << 20;
const SPDY_VERSION: &str = "x-stream-protocol-version";

/// Whether the request is to be upgraded to this.
pub fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    words(headers, header::UPGRADE.as_str()).any(|word| word.eq_ignore_ascii_case(protocol))
}

/// Whether a WebSocket client offers this subprotocol.
pub fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    words(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str()).any(|word| word == protocol)
}

/// A header's words, from lists and from repetitions of it.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// The first of ours that the client offers.
fn choose(ours: &[&'static str], offered: &[&str]) -> Option<&'static str> {
    ours.iter().find(|protocol| offered.contains(protocol)).copied()
}

/// Upgrades to WebSocket with the first of `protocols` that the client offers.
pub async fn websocket<F, Fut>(request: Request, protocols: &[&'static str], work: F) -> Response
where
    F: FnOnce(WebSocket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (mut parts, _) = request.into_parts();
    let offered: Vec<&str> = words(&parts.headers, header::SEC_WEBSOCKET_PROTOCOL.as_str()).collect();
    let Some(protocol) = choose(protocols, &offered) else {
        let text = format!("unable to upgrade: of {offered:?} none is known, only {protocols:?}");
        return refuse(StatusCode::BAD_REQUEST, text);
    };
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade
            .protocols([protocol])
            .max_message_size(MESSAGE_BYTES)
            .max_frame_size(MESSAGE_BYTES)
            .on_upgrade(work),
        Err(refusal) => refusal.into_response(),
    }
}

/// Upgrades to SPDY/3.1 with the first of `protocols` that the client offers.
pub fn spdy<F, Fut>(mut request: Request, protocols: &[&'static str], work: F) -> Response
where
    F: FnOnce(Session, &'static str) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    if !asks_for(request.headers(), "spdy/3.1") {
        return refuse(StatusCode::BAD_REQUEST, "Upgrade request required: to WebSocket or SPDY/3.1");
    }
    let offered: Vec<&str> = words(request.headers(), SPDY_VERSION).collect();
    let Some(protocol) = choose(protocols, &offered) else {
        let text = format!("unable to upgrade: of {offered:?} none is known, only {protocols:?}");
        return refuse(StatusCode::FORBIDDEN, text);
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
        .header(SPDY_VERSION, protocol)
        .body(Body::empty());
    answer.unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_read_from_lists_and_repeated_headers() {
        let mut headers = HeaderMap::new();
        headers.append("upgrade", "SPDY/3.1".parse().unwrap());
        headers.append(SPDY_VERSION, "v4.channel.k8s.io, v3.channel.k8s.io".parse().unwrap());
        headers.append(SPDY_VERSION, "channel.k8s.io".parse().unwrap());
        assert!(asks_for(&headers, "spdy/3.1") && !asks_for(&headers, "websocket"));
        let offered: Vec<&str> = words(&headers, SPDY_VERSION).collect();
        assert_eq!(offered, ["v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"]);
        assert_eq!(choose(&["v5.channel.k8s.io", "v3.channel.k8s.io"], &offered), Some("v3.channel.k8s.io"));
        assert_eq!(choose(&["v5.channel.k8s.io"], &offered), None);
    }
}
