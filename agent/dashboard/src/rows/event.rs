//! Events.

use super::{Row, Tone};
use crate::known::{Known, Table};
use crate::text::{MAX_MESSAGE, Moment, clip, word, word_or_empty};
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde::Serialize;

/// A line of the event table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventRow {
    /// When it was seen last.
    pub(crate) last_timestamp: Moment,
    #[serde(rename = "type")]
    pub(crate) type_: String,
    pub(crate) reason: String,
    pub(crate) namespace: String,
    /// `pod/web-1`.
    pub(crate) object: String,
    pub(crate) message: String,
    pub(crate) count: u32,
}

impl EventRow {
    pub(crate) fn tone(&self) -> Tone {
        match self.type_.as_str() {
            "Normal" => Tone::Quiet,
            _ => Tone::Bad,
        }
    }
}

impl Row for EventRow {
    type Object = Event;

    fn new(event: &Event) -> Self {
        let series = event.series.as_ref().and_then(|series| series.count);
        let count = series.or(event.count).and_then(|count| u32::try_from(count).ok());
        Self {
            last_timestamp: last_seen(event),
            type_: word(event.type_.as_deref().unwrap_or("Normal")),
            reason: word_or_empty(event.reason.as_deref()),
            namespace: word_or_empty(event.metadata.namespace.as_deref()),
            object: object(&event.involved_object),
            message: clip(event.message.as_deref().unwrap_or_default().trim(), MAX_MESSAGE),
            count: count.unwrap_or(1).max(1),
        }
    }

    fn table(known: &mut Known) -> &mut Table<Self> {
        &mut known.events
    }
}

/// Writers of events fill different fields; the latest is the one that counts.
fn last_seen(event: &Event) -> Moment {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let times: [Moment; 4] = [
        series.into(),
        event.last_timestamp.as_ref().into(),
        event.event_time.as_ref().into(),
        event.first_timestamp.as_ref().into(),
    ];
    // A missing time is less than any other.
    match times.into_iter().max() {
        Some(Moment(Some(time))) => Moment(Some(time)),
        _ => event.metadata.creation_timestamp.as_ref().into(),
    }
}

fn object(reference: &ObjectReference) -> String {
    let kind = reference.kind.as_deref().unwrap_or("object").to_lowercase();
    word(&format!("{kind}/{}", reference.name.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn row(mut object: Value) -> EventRow {
        object["involvedObject"] = json!({ "kind": "Pod", "name": "web-1" });
        EventRow::new(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_latest_time_and_the_highest_count_are_shown() {
        let created = json!({ "creationTimestamp": "2026-01-01T00:00:00Z" });
        let old = row(
            json!({ "metadata": created, "lastTimestamp": "2026-01-01T00:00:09Z", "count": 4, "type": "Warning" }),
        );
        assert_eq!((old.last_timestamp.to_string().as_str(), old.count), ("2026-01-01T00:00:09Z", 4));
        assert_eq!(old.tone(), Tone::Bad);
        let new = row(json!({ "metadata": created, "eventTime": "2026-01-01T00:00:01.5Z",
            "series": { "count": 3, "lastObservedTime": "2026-01-01T00:01:00Z" } }));
        assert_eq!((new.last_timestamp.to_string().as_str(), new.count), ("2026-01-01T00:01:00Z", 3));
        let bare = row(json!({ "metadata": created }));
        assert_eq!((bare.last_timestamp.to_string().as_str(), bare.count), ("2026-01-01T00:00:00Z", 1));
        assert_eq!((bare.object.as_str(), bare.tone()), ("pod/web-1", Tone::Quiet));
    }
}
