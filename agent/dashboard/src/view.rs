//! What a page says: all that is known, put into the order and the bounds of a page. Pure.

use crate::RaftStatus;
use crate::known::{Away, Known, Table};
use crate::rows::{EventRow, NodeRow, PodRow, Row, ServiceRow};
use crate::text::{MAX_MESSAGE, clip, word};
use serde::{Serialize, Serializer};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The most rows of a table.
pub(crate) const MAX_ROWS: usize = 500;
/// The most events.
pub(crate) const MAX_EVENTS: usize = 50;

/// Everything on a page, and in `/api/status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct View {
    pub(crate) headline: Headline,
    pub(crate) nodes: Shown<NodeRow>,
    pub(crate) pods: Shown<PodRow>,
    pub(crate) services: Shown<ServiceRow>,
    pub(crate) raft: RaftStatus,
    pub(crate) events: Shown<EventRow>,
    /// Pods by phase.
    #[serde(skip)]
    pub(crate) phases: BTreeMap<String, usize>,
}

/// The first thing to know.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Headline {
    pub(crate) nodes_ready: usize,
    pub(crate) nodes: usize,
    pub(crate) pods_running: usize,
    /// Those that have not ended.
    pub(crate) pods: usize,
    pub(crate) leader: Option<String>,
    /// Set while what is shown may not be what is.
    pub(crate) away: Option<Away>,
}

/// The rows that fit, and how many there are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown<R> {
    pub(crate) rows: Vec<R>,
    pub(crate) total: usize,
}

/// As a Kubernetes list: `items`, and `remainingItemCount` if it was cut.
impl<R: Serialize> Serialize for Shown<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct List<'a, R> {
            items: &'a [R],
            #[serde(skip_serializing_if = "Option::is_none")]
            remaining_item_count: Option<usize>,
        }
        let remaining = self.total - self.rows.len();
        let remaining_item_count = (remaining > 0).then_some(remaining);
        List { items: &self.rows, remaining_item_count }.serialize(serializer)
    }
}

impl<R: Row> Shown<R> {
    fn first(table: &Table<R>) -> Self {
        Self { rows: table.rows().take(MAX_ROWS).cloned().collect(), total: table.len() }
    }

    /// Whether some rows are missing.
    pub(crate) fn is_cut(&self) -> bool {
        self.rows.len() < self.total
    }
}

impl View {
    /// Puts together what is known of the cluster and of Raft.
    pub(crate) fn new(known: &Known, raft: &RaftStatus) -> Self {
        let mut per_node = BTreeMap::<&str, usize>::new();
        let mut phases = BTreeMap::<String, usize>::new();
        for pod in known.pods.rows() {
            *phases.entry(pod.phase.clone()).or_default() += 1;
            if pod.is_active() {
                *per_node.entry(&pod.node_name).or_default() += 1;
            }
        }
        let mut nodes = Shown::first(&known.nodes);
        for node in &mut nodes.rows {
            node.pods = per_node.get(node.name.as_str()).copied().unwrap_or_default();
        }
        Self {
            headline: Headline {
                nodes_ready: known.nodes.rows().filter(|node| node.ready).count(),
                nodes: known.nodes.len(),
                pods_running: phases.get("Running").copied().unwrap_or_default(),
                pods: per_node.values().sum(),
                leader: raft.leader.as_deref().map(word),
                away: known.away(),
            },
            nodes,
            pods: Shown::first(&known.pods),
            services: Shown::first(&known.services),
            raft: harmless(raft),
            events: newest(&known.events),
            phases,
        }
    }
}

/// Names of nodes are what a joining machine called itself.
fn harmless(raft: &RaftStatus) -> RaftStatus {
    let names = |names: &[String]| names.iter().take(MAX_ROWS).map(|name| word(name)).collect();
    RaftStatus {
        leader: raft.leader.as_deref().map(word),
        voters: names(&raft.voters),
        learners: names(&raft.learners),
        this_node: word(&raft.this_node),
        this_role: word(&raft.this_role),
        disk_error: raft.disk_error.as_deref().map(|error| clip(error, MAX_MESSAGE)),
        ..*raft
    }
}

fn newest(table: &Table<EventRow>) -> Shown<EventRow> {
    let mut rows: Vec<&EventRow> = table.rows().collect();
    // A stable sort: events of one second stay in the order of their names.
    rows.sort_by_key(|row| Reverse(row.last_timestamp));
    Shown { rows: rows.into_iter().take(MAX_EVENTS).cloned().collect(), total: table.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Event, Node, Pod};
    use kube::runtime::watcher;
    use serde_json::json;

    fn pod(name: &str, phase: &str, node: &str) -> Pod {
        serde_json::from_value(json!({ "metadata": { "namespace": "default", "name": name },
            "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase } }))
        .unwrap()
    }

    fn node(name: &str, ready: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] } }))
        .unwrap()
    }

    fn event(name: &str, second: u32) -> Event {
        serde_json::from_value(json!({ "metadata": { "name": name }, "involvedObject": {},
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"), "message": name }))
        .unwrap()
    }

    #[test]
    fn the_headline_counts_what_should_run() {
        let mut known = Known::default();
        known.nodes.take(watcher::Event::Apply(node("a", "True")));
        known.nodes.take(watcher::Event::Apply(node("b", "Unknown")));
        for (name, phase, node) in
            [("p", "Running", "a"), ("q", "Pending", ""), ("r", "Succeeded", "a"), ("s", "Running", "a")]
        {
            known.pods.take(watcher::Event::Apply(pod(name, phase, node)));
        }
        let view = View::new(&known, &RaftStatus { leader: Some("a".into()), ..RaftStatus::default() });
        let headline = &view.headline;
        assert_eq!((headline.nodes_ready, headline.nodes), (1, 2));
        assert_eq!((headline.pods_running, headline.pods), (2, 3));
        assert_eq!(view.nodes.rows.iter().map(|node| node.pods).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(view.phases.get("Succeeded"), Some(&1));
    }

    #[test]
    fn tables_are_bounded_and_say_so() {
        let mut known = Known::default();
        for index in 0..MAX_ROWS + 7 {
            known.pods.take(watcher::Event::Apply(pod(&format!("p{index}"), "Running", "a")));
        }
        let view = View::new(&known, &RaftStatus::default());
        assert_eq!((view.pods.rows.len(), view.pods.total), (MAX_ROWS, MAX_ROWS + 7));
        assert!(view.pods.is_cut() && !view.nodes.is_cut());
        assert_eq!(view.headline.pods_running, MAX_ROWS + 7);
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["pods"]["remainingItemCount"], json!(7));
        assert_eq!(json["nodes"], json!({ "items": [] }));
    }

    #[test]
    fn the_newest_events_come_first() {
        let mut known = Known::default();
        for second in 0..60 {
            known.events.take(watcher::Event::Apply(event(&format!("e{second}"), second)));
        }
        let view = View::new(&known, &RaftStatus::default());
        assert_eq!(view.events.rows.len(), MAX_EVENTS);
        assert_eq!(view.events.rows[0].message, "e59");
        assert_eq!(view.events.rows[MAX_EVENTS - 1].message, "e10");
    }
}
