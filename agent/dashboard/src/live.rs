//! Pushes: the page's sections as server-sent events, each when it changed.

use crate::hub::{Hub, Look};
use crate::page::Section;
use crate::view::View;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{StatusCode, header};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Viewers with a stream at once; each holds a connection.
pub(crate) const MAX_VIEWERS: usize = 64;
/// Shows a viewer that went away without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The page's sections, rendered once for all viewers.
#[derive(Default)]
pub(crate) struct Fragments {
    view: Option<View>,
    sections: [Fragment; Section::ALL.len()],
    /// No more will come.
    pub(crate) ended: bool,
}

#[derive(Clone, Default)]
struct Fragment {
    /// How often it changed; zero before the first rendering.
    version: u64,
    html: Arc<str>,
}

impl Fragments {
    /// Renders the sections that say something else than before. Returns whether there was one.
    pub(crate) fn update(&mut self, view: View, now: Timestamp) -> bool {
        self.ended = false;
        let mut changed = false;
        for (section, fragment) in Section::ALL.into_iter().zip(&mut self.sections) {
            // Ages run on in the browser; only what they are counted from matters here.
            if self.view.as_ref().is_some_and(|old| section.is_same(old, &view)) {
                continue;
            }
            match section.render(&view, now) {
                Ok(html) => {
                    *fragment = Fragment { version: fragment.version + 1, html: html.into() };
                    changed = true;
                }
                Err(error) => tracing::error!(%error, section = section.id(), "a section was not rendered"),
            }
        }
        self.view = Some(view);
        changed
    }
}

/// One stream.
struct Viewer {
    fragments: watch::Receiver<Fragments>,
    sent: [u64; Section::ALL.len()],
    waiting: VecDeque<Event>,
    _seat: OwnedSemaphorePermit,
    _look: Look,
}

impl Viewer {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            self.fragments.changed().await.ok()?;
            let fragments = self.fragments.borrow_and_update();
            if fragments.ended {
                return None;
            }
            for ((section, fragment), sent) in
                Section::ALL.iter().zip(&fragments.sections).zip(&mut self.sent)
            {
                if fragment.version > *sent {
                    *sent = fragment.version;
                    self.waiting.push_back(Event::default().event(section.id()).data(&fragment.html));
                }
            }
        }
    }
}

/// A stream, if there is a seat left.
pub(crate) fn events(hub: &Hub, seats: &Arc<Semaphore>) -> Response {
    let Ok(seat) = seats.clone().try_acquire_owned() else {
        let retry = [(header::RETRY_AFTER, "30")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, "too many viewers: reload the page instead\n")
            .into_response();
    };
    let look = hub.look();
    let mut fragments = hub.fragments();
    // The page may be older than the last push.
    fragments.mark_changed();
    let viewer =
        Viewer { fragments, sent: Default::default(), waiting: VecDeque::new(), _seat: seat, _look: look };
    let stream = stream::unfold(viewer, |mut viewer| async move {
        let event = viewer.next().await?;
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
