//! Watches the cluster while somebody looks, and only then.

use crate::RaftStatus;
use crate::known::Known;
use crate::live::Fragments;
use crate::rows::{EventRow, NodeRow, PodRow, Row, ServiceRow};
use crate::text::clip;
use crate::view::View;
use futures::StreamExt;
use jiff::Timestamp;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The watches end this long after the last viewer left.
const LINGER: Duration = Duration::from_secs(60);
/// A request waits at most this long for the first lists.
const FIRST_SYNC: Duration = Duration::from_secs(2);
/// A burst of changes makes one push.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// A watch that failed is begun again after this long, then twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(4);

/// A handle; clones watch together.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

struct Inner {
    client: Client,
    raft: watch::Receiver<RaftStatus>,
    audience: watch::Sender<Audience>,
    known: watch::Sender<Known>,
    fragments: watch::Sender<Fragments>,
}

#[derive(Default)]
struct Audience {
    viewers: usize,
    /// Whether the task that watches runs.
    watching: bool,
}

/// Somebody looks for as long as this lives.
pub(crate) struct Look(Hub);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.0.audience.send_modify(|audience| audience.viewers -= 1);
    }
}

impl Hub {
    pub(crate) fn new(client: Client, raft: watch::Receiver<RaftStatus>) -> Self {
        Self(Arc::new(Inner {
            client,
            raft,
            audience: watch::Sender::default(),
            known: watch::Sender::default(),
            fragments: watch::Sender::default(),
        }))
    }

    /// Starts the watches if they do not run.
    pub(crate) fn look(&self) -> Look {
        let mut start = false;
        self.0.audience.send_modify(|audience| {
            audience.viewers += 1;
            start = !std::mem::replace(&mut audience.watching, true);
        });
        if start {
            self.0.known.send_modify(Known::begin);
            tokio::spawn(self.clone().watch());
        }
        Look(self.clone())
    }

    /// What there is to see, once the API has answered or has had its time.
    pub(crate) async fn view(&self) -> View {
        let _look = self.look();
        let mut known = self.0.known.subscribe();
        // In either case the view says how fresh it is.
        let _ = timeout(FIRST_SYNC, known.wait_for(Known::is_settled)).await;
        self.current()
    }

    /// The sections of the page as HTML, as they change.
    pub(crate) fn fragments(&self) -> watch::Receiver<Fragments> {
        self.0.fragments.subscribe()
    }

    /// What Raft says now.
    pub(crate) fn raft(&self) -> RaftStatus {
        self.0.raft.borrow().clone()
    }

    fn current(&self) -> View {
        let raft = self.raft();
        View::new(&self.0.known.borrow(), &raft)
    }

    async fn watch(self) {
        let watches = async {
            tokio::join!(
                self.follow::<NodeRow>(),
                self.follow::<PodRow>(),
                self.follow::<ServiceRow>(),
                self.follow::<EventRow>(),
                self.publish(),
            )
        };
        tokio::select! {
            _ = watches => {}
            () = self.nobody_looks() => {}
        }
    }

    /// Ends when nobody has looked for a while; from then on the next look starts anew.
    async fn nobody_looks(&self) {
        let mut audience = self.0.audience.subscribe();
        loop {
            // The sender lives in `self`, so waiting cannot fail.
            let _ = audience.wait_for(|audience| audience.viewers == 0).await;
            tokio::select! {
                () = sleep(LINGER) => {}
                _ = audience.wait_for(|audience| audience.viewers > 0) => continue,
            }
            let mut ended = false;
            self.0.audience.send_if_modified(|audience| {
                ended = audience.viewers == 0;
                if ended {
                    // Under the lock of the audience: a look that comes now begins after this.
                    self.0.known.send_modify(|known| known.end(Timestamp::now()));
                    audience.watching = false;
                }
                false
            });
            if ended {
                return;
            }
        }
    }

    /// Follows one kind for ever. After a failure it lists again: only a complete list proves that the API is back.
    async fn follow<R: Row>(&self) {
        let mut failing: Option<(Timestamp, Duration)> = None;
        loop {
            let mut events =
                pin!(watcher(Api::<R::Object>::all(self.0.client.clone()), watcher::Config::default()));
            let error = loop {
                match events.next().await {
                    Some(Ok(event)) => {
                        if matches!(event, watcher::Event::InitDone) {
                            failing = None;
                        }
                        self.0.known.send_if_modified(|known| R::table(known).take(event));
                    }
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            };
            // One failure is what a change of leaders looks like; the second tells.
            if let (Some((since, _)), Some(error)) = (failing, &error) {
                let reason = explain(error);
                self.0.known.send_modify(|known| R::table(known).lose(since, reason));
            }
            let (since, pause) = failing.unwrap_or_else(|| (Timestamp::now(), FIRST_RETRY));
            failing = Some((since, (pause * 2).min(LAST_RETRY)));
            sleep(pause).await;
        }
    }

    /// Renders what changed, for all viewers at once.
    async fn publish(&self) {
        let mut known = self.0.known.subscribe();
        let mut raft = self.0.raft.clone();
        self.note_leader(&mut raft);
        // Whoever looks first has a page already; half of a list would be no news.
        let _ = timeout(FIRST_SYNC, known.wait_for(Known::is_settled)).await;
        known.mark_changed();
        loop {
            let ended = tokio::select! {
                changed = raft.changed() => changed.is_err(),
                changed = known.changed() => changed.is_err(),
            };
            if ended {
                // The agent stops: streams must not keep the server from ending.
                return self.0.fragments.send_modify(|fragments| fragments.ended = true);
            }
            self.note_leader(&mut raft);
            sleep(DEBOUNCE).await;
            self.note_leader(&mut raft);
            known.mark_unchanged();
            let view = self.current();
            self.0.fragments.send_if_modified(|fragments| fragments.update(view, Timestamp::now()));
        }
    }

    /// Being without a leader is known from the moment at which Raft says so.
    fn note_leader(&self, raft: &mut watch::Receiver<RaftStatus>) {
        let leads = raft.borrow_and_update().leader.is_some();
        self.0.known.send_if_modified(|known| known.leader(leads, Timestamp::now()));
    }
}

/// One sentence for a page: what a person can act on, without addresses of this machine.
fn explain(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => {
            format!("The API answers {} {}.", status.code, clip(&status.reason, 64))
        }
        _ => "The API does not answer.".to_owned(),
    }
}
