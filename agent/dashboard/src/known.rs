//! What this node knows of the cluster, and how fresh that is. Pure: events and times come in as arguments.

use crate::rows::{EventRow, NodeRow, PodRow, Row, ServiceRow};
use crate::text::Moment;
use jiff::Timestamp;
use kube::Resource;
use kube::runtime::watcher::Event;
use std::collections::BTreeMap;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// The rows of all kinds.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) nodes: Table<NodeRow>,
    pub(crate) pods: Table<PodRow>,
    pub(crate) services: Table<ServiceRow>,
    pub(crate) events: Table<EventRow>,
    /// Since when there is no Raft leader, while there is none.
    leaderless: Option<Timestamp>,
}

/// Whether a table follows the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// A watch has begun, or none has yet.
    #[default]
    Waiting,
    /// What is shown is what is.
    Live,
    /// The API does not answer; why.
    Lost(String),
}

/// The rows of one kind.
#[derive(Debug)]
pub(crate) struct Table<R> {
    rows: BTreeMap<Key, R>,
    /// A list that is not complete yet.
    incoming: BTreeMap<Key, R>,
    freshness: Freshness,
    /// The last moment at which the rows were what is; kept while they are not.
    heard: Option<Timestamp>,
}

/// Why what is shown may not be what is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Away {
    /// The last moment for which it was; missing when nothing was ever heard.
    pub(crate) since: Moment,
    /// One sentence.
    pub(crate) reason: String,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), incoming: BTreeMap::new(), freshness: Freshness::Waiting, heard: None }
    }
}

impl<R: Row> Table<R> {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// In the order of namespace and name.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    /// A watch begins: nothing is certain until its list is complete.
    pub(crate) fn begin(&mut self) {
        self.freshness = Freshness::Waiting;
        self.incoming.clear();
    }

    /// The watch ends at `now`, because nobody looks.
    pub(crate) fn end(&mut self, now: Timestamp) {
        if self.freshness == Freshness::Live {
            self.heard = Some(now);
            self.freshness = Freshness::Waiting;
        }
    }

    /// The API does not answer since `since`.
    pub(crate) fn lose(&mut self, since: Timestamp, reason: String) {
        if self.freshness == Freshness::Live {
            self.heard = Some(since);
        }
        self.freshness = Freshness::Lost(reason);
        self.incoming.clear();
    }

    /// Takes what a watch said. Returns whether anything that is shown changed.
    pub(crate) fn take(&mut self, event: Event<R::Object>) -> bool {
        match event {
            Event::Init => {
                self.incoming.clear();
                false
            }
            Event::InitApply(object) => {
                self.incoming.insert(key(&object), R::new(&object));
                false
            }
            Event::InitDone => {
                self.rows = std::mem::take(&mut self.incoming);
                self.freshness = Freshness::Live;
                true
            }
            Event::Apply(object) => {
                let row = R::new(&object);
                self.rows.insert(key(&object), row.clone()) != Some(row)
            }
            Event::Delete(object) => self.rows.remove(&key(&object)).is_some(),
        }
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

impl Known {
    pub(crate) fn begin(&mut self) {
        self.nodes.begin();
        self.pods.begin();
        self.services.begin();
        self.events.begin();
    }

    pub(crate) fn end(&mut self, now: Timestamp) {
        self.nodes.end(now);
        self.pods.end(now);
        self.services.end(now);
        self.events.end(now);
        self.leaderless = None;
    }

    /// What Raft says. Returns whether that is news.
    pub(crate) fn leader(&mut self, present: bool, now: Timestamp) -> bool {
        let news = present == self.leaderless.is_some();
        self.leaderless = (!present).then(|| self.leaderless.unwrap_or(now));
        news
    }

    /// Whether every kind is live or known not to be: nothing better comes by waiting.
    pub(crate) fn is_settled(&self) -> bool {
        self.freshness().into_iter().all(|(freshness, _)| *freshness != Freshness::Waiting)
    }

    /// Nothing while all is live and somebody leads.
    pub(crate) fn away(&self) -> Option<Away> {
        let stale = || self.freshness().into_iter().filter(|(freshness, _)| **freshness != Freshness::Live);
        let heard = stale().map(|(_, heard)| Moment(heard)).min();
        let since = match (heard, self.leaderless) {
            (None, None) => return None,
            (None, leaderless) => Moment(leaderless),
            (Some(heard), None) => heard,
            (Some(heard), leaderless) => heard.min(Moment(leaderless)),
        };
        let lost = stale().find_map(|(freshness, _)| match freshness {
            Freshness::Lost(reason) => Some(reason.clone()),
            _ => None,
        });
        let reason = match self.leaderless {
            Some(_) => "There is no Raft leader: more than half of the voters must be up.".to_owned(),
            None => lost.unwrap_or_else(|| "The API has not answered yet.".to_owned()),
        };
        Some(Away { since, reason })
    }

    fn freshness(&self) -> [(&Freshness, Option<Timestamp>); 4] {
        [
            (&self.nodes.freshness, self.nodes.heard),
            (&self.pods.freshness, self.pods.heard),
            (&self.services.freshness, self.services.heard),
            (&self.events.freshness, self.events.heard),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": name }, "status": { "phase": phase } })).unwrap()
    }

    fn live() -> Known {
        let mut known = Known::default();
        known.begin();
        known.nodes.take(Event::<Node>::InitDone);
        known.pods.take(Event::InitDone);
        known.services.take(Event::InitDone);
        known.events.take(Event::InitDone);
        known
    }

    #[test]
    fn a_list_takes_effect_when_it_is_complete() {
        let mut table = Table::<PodRow>::default();
        assert!(!table.take(Event::Init));
        assert!(!table.take(Event::InitApply(pod("a", "Pending"))));
        assert_eq!(table.len(), 0);
        assert!(table.take(Event::InitDone));
        assert!(!table.take(Event::Apply(pod("a", "Pending"))), "the same again is no news");
        assert!(table.take(Event::Apply(pod("a", "Running"))));
        assert!(table.take(Event::Delete(pod("a", "Running"))));
        assert!(!table.take(Event::Delete(pod("a", "Running"))));
    }

    #[test]
    fn a_relist_replaces_the_rows() {
        let mut table = Table::<PodRow>::default();
        table.take(Event::Apply(pod("old", "Running")));
        table.take(Event::Init);
        table.take(Event::InitApply(pod("new", "Running")));
        assert_eq!(table.rows().next().map(|row| row.name.as_str()), Some("old"));
        table.take(Event::InitDone);
        assert_eq!(table.rows().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn the_last_state_stays_when_the_api_goes_away() {
        let mut known = live();
        assert_eq!((known.away(), known.is_settled()), (None, true));
        known.pods.take(Event::Apply(pod("a", "Running")));
        known.pods.lose(at(100), "refused".into());
        known.pods.lose(at(200), "refused".into());
        assert_eq!(known.away(), Some(Away { since: Moment(Some(at(100))), reason: "refused".into() }));
        assert_eq!(known.pods.len(), 1);
        known.pods.take(Event::InitDone);
        assert_eq!(known.away(), None);
    }

    #[test]
    fn losing_the_leader_is_being_away() {
        let mut known = live();
        assert!(!known.leader(true, at(1)));
        assert!(known.leader(false, at(50)));
        assert!(!known.leader(false, at(60)));
        assert_eq!(known.away().map(|away| away.since), Some(Moment(Some(at(50)))));
        known.leader(true, at(70));
        assert_eq!(known.away(), None);
    }

    #[test]
    fn a_watch_that_ended_for_want_of_viewers_is_told_from_then() {
        let mut known = live();
        known.end(at(300));
        known.begin();
        assert!(!known.is_settled());
        assert_eq!(known.away().map(|away| away.since), Some(Moment(Some(at(300)))));
        known.nodes.lose(at(400), "refused".into());
        assert_eq!(known.away().map(|away| away.since), Some(Moment(Some(at(300)))));
    }

    #[test]
    fn nothing_ever_heard_has_no_since() {
        let known = Known::default();
        assert_eq!(known.away().map(|away| away.since), Some(Moment(None)));
    }
}
