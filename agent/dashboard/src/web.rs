//! Routes and headers.

use crate::hub::Hub;
use crate::view::View;
use crate::{Config, live, metrics, page};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use http::{HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Shared {
    config: Arc<Config>,
    hub: Hub,
    seats: Arc<Semaphore>,
}

pub(crate) fn router(config: Config, hub: Hub) -> Router {
    let seats = Arc::new(Semaphore::new(live::MAX_VIEWERS));
    Router::new()
        .route("/", get(root))
        .route("/api/status", get(status))
        .route("/events", get(events))
        .route("/metrics", get(numbers))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/style.css", get(|| asset("text/css; charset=utf-8", page::STYLE)))
        .route("/live.js", get(|| asset("text/javascript; charset=utf-8", page::SCRIPT)))
        .route("/icon.svg", get(|| asset("image/svg+xml", page::ICON)))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here\n") })
        .layer(from_fn(guard))
        .with_state(Shared { config: Arc::new(config), hub, seats })
}

/// Only reading is possible, whatever the path; and every answer has the headers that keep a browser safe.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => next.run(request).await,
        _ => {
            let allow = [(header::ALLOW, "GET, HEAD")];
            (StatusCode::METHOD_NOT_ALLOWED, allow, "these pages can only be read\n").into_response()
        }
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn root(State(shared): State<Shared>) -> Response {
    let view = shared.hub.view().await;
    match page::render(&shared.config, &view, Timestamp::now()) {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            tracing::error!(%error, "the page was not rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn status(State(shared): State<Shared>) -> Json<View> {
    Json(shared.hub.view().await)
}

async fn events(State(shared): State<Shared>, method: Method) -> Response {
    match method {
        // A stream has no length to tell; looking at its head must not start the watches.
        Method::HEAD => [(header::CONTENT_TYPE, "text/event-stream")].into_response(),
        _ => live::events(&shared.hub, &shared.seats),
    }
}

async fn numbers(State(shared): State<Shared>) -> Response {
    let view = shared.hub.view().await;
    let text = metrics::render(&view, metrics::Usage::read(), &shared.config.version);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
