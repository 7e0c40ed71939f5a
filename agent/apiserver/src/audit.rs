//! The audit log: who asked for what, and what became of it, as `audit.k8s.io/v1` events, one JSON object a line.
//!
//! A request that a policy wants written down carries a [`Trail`]. Whoever learns something of the request adds it there;
//! [`Trail::end`] writes the event when the answer is known. What goes on after that (a watch, a stream) holds the trail,
//! and the last holder's end is written as the request's. Requests wait while the log's queue is full; only ends that
//! nobody can wait for are lost then, and counted.

mod event;
mod log;
mod policy;

pub(crate) use event::{ID, id};
pub use log::Limits;
pub use policy::Policy;

use crate::auth::User;
use crate::body;
use crate::object::{self, text};
use crate::path::Route;
use crate::review::user_info;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use event::{anonymous, asked, first, now};
use http::{Request, Response, header};
use http_body_util::BodyExt;
use log::Log;
use policy::{Decision, Level, Stage};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// A larger event goes without what was sent and answered.
const MAX_EVENT: usize = 100 << 10;
/// Events on their way to the file.
const QUEUE: usize = 64;
/// A longer address or name of a program is cut.
const MAX_TEXT: usize = 4 << 10;
/// Whose answers go on for as long as the client likes.
const STREAMS: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

/// Where a request came from, put among its extensions by the listener.
#[derive(Clone, Copy, Debug)]
pub struct Remote(pub IpAddr);

/// What is written down, and where to.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    lines: mpsc::Sender<Vec<u8>>,
    written: AtomicU64,
    lost: Arc<AtomicU64>,
}

impl Audit {
    /// Into a queue.
    #[must_use]
    pub fn new(policy: Policy, lines: mpsc::Sender<Vec<u8>>) -> Self {
        Self { policy, lines, written: AtomicU64::new(0), lost: Arc::default() }
    }

    /// Into a file, by a thread of its own.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn to_file(policy: Policy, path: &Path, limits: Limits) -> std::io::Result<Self> {
        let log = Log::open(path, limits)?;
        let (sender, lines) = mpsc::channel(QUEUE);
        let audit = Self::new(policy, sender);
        let lost = Arc::clone(&audit.lost);
        std::thread::Builder::new().name("audit".into()).spawn(move || log::write(log, lines, &lost))?;
        Ok(audit)
    }

    /// How many events were written, and how many lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }

    async fn put(&self, line: Vec<u8>) {
        self.written.fetch_add(1, Ordering::Relaxed);
        if self.lines.send(line).await.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn put_now(&self, line: Vec<u8>) {
        self.written.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What is known of a request that is written down.
struct Record {
    audit: Arc<Audit>,
    decided: Decision,
    streams: bool,
    event: Mutex<Map<String, Value>>,
}

/// A request's trail; of one that is not written down it is nothing.
#[derive(Clone, Default)]
pub(crate) struct Trail(Option<Arc<Record>>);

impl Trail {
    /// Of a request that comes. `user`: whoever was let in.
    pub fn new(
        audit: Option<&Arc<Audit>>,
        request: &Request<Body>,
        route: &Route,
        user: Option<&User>,
        id: &str,
    ) -> Self {
        let Some(audit) = audit else { return Self::default() };
        let nobody = anonymous();
        let user = user.unwrap_or(&nobody);
        let asked = asked(request, route, user);
        let decided = audit.policy.decide(&asked);
        if decided.level == Level::None {
            return Self::default();
        }
        let streams = asked.verb == "watch" || STREAMS.contains(&asked.subresource);
        let event = Mutex::new(first(request, route, user, &asked, &decided, id));
        Self(Some(Arc::new(Record { audit: Arc::clone(audit), decided, streams, event })))
    }

    /// The request is about to be handled.
    pub async fn begin(&self) {
        self.put(Stage::RequestReceived).await;
    }

    /// The trail of a request.
    pub fn of(request: &Request<Body>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Notes something under a key.
    pub fn annotate(&self, key: &str, value: &str) {
        let Some(record) = &self.0 else { return };
        object::as_map(record.event().entry("annotations").or_insert_with(|| json!({})))
            .insert(key.to_owned(), value.into());
    }

    /// Whether it was allowed.
    pub fn decided(&self, allowed: bool, why: &str) {
        self.annotate("authorization.k8s.io/decision", if allowed { "allow" } else { "forbid" });
        self.annotate("authorization.k8s.io/reason", why);
    }

    /// Somebody acts as somebody else.
    pub fn acts_as(&self, user: &User) {
        if let Some(record) = &self.0 {
            record.event().insert("impersonatedUser".to_owned(), user_info(user));
        }
    }

    /// What was sent.
    pub fn sent(&self, object: &Value) {
        let Some(record) = &self.0 else { return };
        let mut event = record.event();
        if let Some(Value::Object(about)) = event.get_mut("objectRef") {
            for field in ["namespace", "name", "uid", "resourceVersion"] {
                let said = text(object, &format!("/metadata/{field}"));
                if !said.is_empty() && said.len() <= MAX_TEXT && !about.contains_key(field) {
                    about.insert(field.to_owned(), said.into());
                }
            }
        }
        if record.decided.level >= Level::Request && event.contains_key("objectRef") && !object.is_null() {
            event.insert("requestObject".to_owned(), record.shown(object));
        }
    }

    /// The request is answered: `status` says how, if it failed.
    pub async fn end(self, response: Response<Body>, status: Option<Value>) -> Response<Body> {
        let Some(record) = &self.0 else { return response };
        let mut told = json!({"metadata": {}, "code": response.status().as_u16()});
        for (field, value) in status.iter().flat_map(|status| status.as_object().into_iter().flatten()) {
            if !["kind", "apiVersion"].contains(&field.as_str()) {
                told[field] = value.clone();
            }
        }
        record.event().insert("responseStatus".to_owned(), told);
        if record.streams && status.is_none() {
            self.put(Stage::ResponseStarted).await;
            // The answer holds the trail until it has ended.
            return response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &self;
                    frame
                }))
            });
        }
        let response = self.answered(response).await;
        self.put(Stage::ResponseComplete).await;
        response
    }

    /// Notes what is answered, if that is wanted and short.
    async fn answered(&self, response: Response<Body>) -> Response<Body> {
        let wanted = |record: &Arc<Record>| record.decided.level == Level::RequestResponse;
        let Some(record) = self.0.as_ref().filter(|record| wanted(record)) else { return response };
        if !record.event().contains_key("objectRef") {
            return response;
        }
        let (parts, body) = response.into_parts();
        let size = HttpBody::size_hint(&body).exact();
        if size.is_none_or(|size| size > MAX_EVENT as u64)
            || parts.headers.contains_key(header::CONTENT_ENCODING)
        {
            record.event().remove("requestObject");
            self.annotate(TRUNCATED, "true");
            return Response::from_parts(parts, body);
        }
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) => {
                let broken = futures::stream::once(async { Err::<Bytes, _>(error) });
                return Response::from_parts(parts, Body::from_stream(broken));
            }
        };
        if let Ok((object, _)) = body::decode(&body::media_type(&parts.headers), &bytes, MAX_EVENT) {
            let shown = record.shown(&object);
            record.event().insert("responseObject".to_owned(), shown);
        }
        Response::from_parts(parts, Body::from(bytes))
    }

    async fn put(&self, stage: Stage) {
        let Some(record) = &self.0 else { return };
        if let Some(line) = record.line(stage) {
            record.audit.put(line).await;
        }
    }
}

const TRUNCATED: &str = "audit.k8s.io/truncated";

impl Record {
    fn event(&self) -> MutexGuard<'_, Map<String, Value>> {
        self.event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object without what the policy leaves out.
    fn shown(&self, object: &Value) -> Value {
        let mut shown = object.clone();
        if self.decided.omit_managed_fields {
            let items = shown.get_mut("items").and_then(Value::as_array_mut);
            for item in items.into_iter().flatten() {
                object::meta(item).remove("managedFields");
            }
            if shown["metadata"].is_object() {
                object::meta(&mut shown).remove("managedFields");
            }
        }
        shown
    }

    /// The event at a stage, unless that stage is left out or was told.
    fn line(&self, stage: Stage) -> Option<Vec<u8>> {
        let mut event = self.event();
        let told = event.insert("stage".to_owned(), stage.name().into());
        if told.is_some_and(|told| told == Stage::ResponseComplete.name()) {
            event.insert("stage".to_owned(), Stage::ResponseComplete.name().into());
            return None;
        }
        if self.decided.omit.contains(&stage) {
            return None;
        }
        event.insert("stageTimestamp".to_owned(), now().into());
        let line = serde_json::to_vec(&*event).ok()?;
        if line.len() <= MAX_EVENT {
            return Some(line);
        }
        event.remove("requestObject");
        event.remove("responseObject");
        object::as_map(event.entry("annotations").or_insert_with(|| json!({})))
            .insert(TRUNCATED.to_owned(), "true".into());
        serde_json::to_vec(&*event).ok()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Nobody is there who could wait. Whose end was told is not told again.
        if let Some(line) = self.line(Stage::ResponseComplete) {
            self.audit.put_now(line);
        }
    }
}
