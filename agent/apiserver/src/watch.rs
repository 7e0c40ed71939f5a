//! watch: changes as a stream of JSON lines.

use crate::engine::Engine;
use crate::object::{self, load, load_at};
use crate::path::Target;
use crate::query::{Match, Query};
use crate::read::Selection;
use crate::respond::Format;
use crate::status::{Result, Status};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use resources::Descriptor;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use store::{Event, Record, Revision, Watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How often a quiet watch says how far it has seen.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` ends after this long, up to twice as long, so that not all come back at once.
const LONGEST: u64 = 1800;
/// How many events are sent in one piece.
const BATCH: usize = 256;
/// And about how many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// What a watch asks for, read from its parameters. Pure.
struct Plan {
    /// Existing objects are sent first.
    initial: bool,
    /// A bookmark marks the end of the existing objects.
    mark_initial: bool,
    bookmarks: bool,
    /// Changes after this revision; none: from now.
    after: Option<Revision>,
    /// A revision that must have been reached.
    at_least: Option<Revision>,
    timeout: Duration,
}

impl Plan {
    fn read(query: &Query) -> Result<Self> {
        let bookmarks = query.flag("allowWatchBookmarks");
        let revision = query.revision()?;
        let wanted = query.version_match()?;
        let seconds = query.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        let timeout =
            Duration::from_secs(seconds.unwrap_or_else(|| LONGEST + rand::random_range(0..LONGEST)));
        let asked = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        if asked.is_some() && wanted != Some(Match::NotOlderThan) {
            return Err(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
        }
        if asked.is_none() && wanted.is_some() {
            return Err(forbidden(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        Ok(match asked {
            Some(true) => Self {
                initial: true,
                mark_initial: bookmarks,
                bookmarks,
                after: None,
                at_least: revision,
                timeout,
            },
            // Without a revision, an old watch shows what there is first.
            None if revision.is_none() => {
                Self { initial: true, mark_initial: false, bookmarks, after: None, at_least: None, timeout }
            }
            _ => Self {
                initial: false,
                mark_initial: false,
                bookmarks,
                after: revision,
                at_least: None,
                timeout,
            },
        })
    }
}

fn forbidden(why: &str) -> Status {
    Status::unprocessable(format!(
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {why}"
    ))
}

/// The state of one running watch.
struct Stream {
    kind: Arc<Descriptor>,
    format: Format,
    selection: Selection,
    watch: Box<dyn Watch>,
    /// What there was when it began, as far as it is not told yet.
    existing: std::vec::IntoIter<Record>,
    /// The revision of the mark that ends that.
    mark_initial: Option<Revision>,
    ready: VecDeque<Bytes>,
    leading: tokio::sync::watch::Receiver<bool>,
    bookmarks: Option<Interval>,
    marked: Revision,
    end: Instant,
    columns_told: bool,
    over: bool,
}

impl Engine {
    /// The answer to a watch.
    pub fn watch(&self, target: &Target, query: &Query, format: Format) -> Result<Response<Body>> {
        let kind = &target.kind;
        let mut selection = Selection::read(kind, query)?;
        if let Some(name) = &target.name {
            selection = selection.named(kind, name)?;
        }
        let plan = Plan::read(query)?;
        let kv = self.kv(kind);
        let prefix = object::prefix(kind, target.namespace.as_deref());
        let current = kv.revision();
        if let Some(asked) = plan.at_least.filter(|asked| *asked > current) {
            return Err(Status::too_new(asked, current));
        }
        // A revision from the future is another history's (Leases begin anew with each leader).
        let expired = || {
            let asked = plan.after.unwrap_or_default();
            Status::expired(format!("too old resource version: {asked} ({current})"))
        };
        let (existing, after) = if plan.initial {
            let page = kv.list(&prefix, None, 0);
            (page.records, page.revision)
        } else {
            (Vec::new(), plan.after.unwrap_or(current))
        };
        if after > kv.revision() {
            return Err(expired());
        }
        let watch = kv.watch(&prefix, after).map_err(|_| expired())?;
        let mut stream =
            Stream::new(Arc::clone(kind), format, selection, watch, self.leading.clone(), &plan, after);
        stream.existing = existing.into_iter();
        stream.mark_initial = plan.mark_initial.then_some(after);
        let mut response = Response::new(Body::from_stream(stream.lines()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

impl Stream {
    fn new(
        kind: Arc<Descriptor>,
        format: Format,
        selection: Selection,
        watch: Box<dyn Watch>,
        leading: tokio::sync::watch::Receiver<bool>,
        plan: &Plan,
        after: Revision,
    ) -> Self {
        let bookmarks = plan.bookmarks.then(|| {
            let mut interval = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let end = Instant::now() + plan.timeout;
        let (ready, columns_told, over) = (VecDeque::new(), false, false);
        Self {
            kind,
            format,
            selection,
            watch,
            existing: Vec::new().into_iter(),
            mark_initial: None,
            ready,
            leading,
            bookmarks,
            marked: after,
            end,
            columns_told,
            over,
        }
    }

    fn lines(self) -> impl futures::Stream<Item = std::result::Result<Bytes, Infallible>> + Send {
        futures::stream::unfold(self, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok(bytes), stream))
        })
    }

    /// The next lines; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        self.begin();
        while self.ready.is_empty() && !self.over {
            self.step().await;
        }
        let count = self.ready.len().min(BATCH);
        let batch: Vec<Bytes> = self.ready.drain(..count).collect();
        match batch.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            many => Some(many.concat().into()),
        }
    }

    /// Tells the next ones of those that were there before: no more than the client takes at once, so one that does not
    /// read costs nothing.
    fn begin(&mut self) {
        let mut bytes = 0;
        while self.ready.len() < BATCH && bytes < BATCH_BYTES && !self.over {
            let told = if let Some(record) = self.existing.next() {
                load(&self.kind, &record).and_then(|object| match self.selection.matches(&object) {
                    true => self.push("ADDED", object),
                    false => Ok(()),
                })
            } else if let Some(revision) = self.mark_initial.take() {
                self.push_bookmark(revision, true)
            } else {
                return;
            };
            if let Err(status) = told {
                self.fail(&status);
            }
            bytes += self.ready.back().map_or(0, Bytes::len);
        }
    }

    async fn step(&mut self) {
        enum Next {
            Event(Option<std::sync::Arc<Event>>),
            Mark,
            Over,
        }
        let next = tokio::select! {
            event = self.watch.next() => Next::Event(event),
            () = tick(&mut self.bookmarks) => Next::Mark,
            _ = self.leading.wait_for(|leading| !leading) => Next::Over,
            () = tokio::time::sleep_until(self.end) => Next::Over,
        };
        match next {
            Next::Event(Some(event)) => {
                if let Err(status) = self.take(&event) {
                    self.fail(&status);
                }
            }
            Next::Mark => {
                let seen = self.watch.progress();
                if seen > self.marked && self.push_bookmark(seen, false).is_err() {
                    self.over = true;
                }
            }
            Next::Event(None) | Next::Over => self.over = true,
        }
    }

    /// What a change means to this watch.
    fn take(&mut self, event: &Event) -> Result<()> {
        let seen = |record: &Option<Record>, at: Revision| -> Result<Option<Value>> {
            let object = record.as_ref().map(|r| load_at(&self.kind, r, at)).transpose()?;
            Ok(object.filter(|o| self.selection.matches(o)))
        };
        let current = seen(&event.current, event.revision)?;
        let previous = seen(&event.previous, event.revision)?;
        match (current, previous) {
            (Some(object), None) => self.push("ADDED", object),
            (Some(object), Some(_)) => self.push("MODIFIED", object),
            (None, Some(object)) => self.push("DELETED", object),
            (None, None) => Ok(()),
        }
    }

    fn push(&mut self, what: &str, object: Value) -> Result<()> {
        let object = self.format.object(&self.kind, object, !self.columns_told);
        self.columns_told = true;
        self.line(&json!({"type": what, "object": object}))
    }

    fn push_bookmark(&mut self, revision: Revision, initial: bool) -> Result<()> {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta});
        let object = match self.format.view {
            crate::respond::View::Table => {
                // A Table's bookmark is a Table of one row without cells, its object the mark.
                let mut table = self.format.object(&self.kind, object.clone(), !self.columns_told);
                self.columns_told = true;
                table["metadata"] = json!({"resourceVersion": revision.to_string()});
                table
            }
            _ => self.format.object(&self.kind, object, false),
        };
        self.marked = revision;
        self.line(&json!({"type": "BOOKMARK", "object": object}))
    }

    fn fail(&mut self, status: &Status) {
        self.over = true;
        let line = format!("{}\n", json!({"type": "ERROR", "object": status.to_value()}));
        self.ready.push_back(line.into());
    }

    fn line(&mut self, event: &Value) -> Result<()> {
        let mut line = serde_json::to_vec(event).map_err(Status::internal)?;
        line.push(b'\n');
        self.ready.push_back(line.into());
        Ok(())
    }
}

/// The next bookmark's moment; never, if there are none.
async fn tick(bookmarks: &mut Option<Interval>) {
    match bookmarks {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
