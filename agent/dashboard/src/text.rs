//! Text that came from outside, made fit for a page: bounded, without control characters; and times as people say them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use std::fmt;

/// Names and addresses longer than this are cut.
pub(crate) const MAX_WORD: usize = 256;
/// Messages longer than this are cut.
pub(crate) const MAX_MESSAGE: usize = 1024;
/// Lists (roles, ports, external IPs) longer than this are cut.
const MAX_ITEMS: usize = 32;

/// At most `max` characters. Control characters (they end a line of an event stream) and those that turn the direction
/// of writing (they make text look like other text) become the replacement character.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let mut chars = text.chars();
    let mut clipped: String = chars.by_ref().take(max).map(harmless).collect();
    if chars.next().is_some() {
        clipped.push('…');
    }
    clipped
}

/// A name, an address, a reason.
pub(crate) fn word(text: &str) -> String {
    clip(text, MAX_WORD)
}

/// The same for what may be missing; missing is empty.
pub(crate) fn word_or_empty(text: Option<&str>) -> String {
    text.map(word).unwrap_or_default()
}

/// A list of words, cut where it gets long.
pub(crate) fn words<'a>(items: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    items.into_iter().take(MAX_ITEMS).map(word).collect()
}

fn harmless(c: char) -> char {
    match c {
        '\n' | '\t' => ' ',
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

/// A time from an object; it may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) Option<Timestamp>);

impl Moment {
    /// How long ago, in at most two units: `45s`, `3m20s`, `5h12m`, `4d`.
    pub(crate) fn age(self, now: Timestamp) -> String {
        match self.0 {
            Some(then) => span(now.as_second().saturating_sub(then.as_second())),
            None => "–".to_owned(),
        }
    }

    /// The time of day, for a sentence.
    pub(crate) fn clock(self) -> String {
        match self.0 {
            Some(then) => then.strftime("%H:%M:%S UTC").to_string(),
            None => "an unknown time".to_owned(),
        }
    }
}

/// RFC 3339 with seconds, as Kubernetes writes times; empty when missing.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(then) => write!(f, "{}", then.strftime("%Y-%m-%dT%H:%M:%SZ")),
            None => Ok(()),
        }
    }
}

impl serde::Serialize for Moment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(_) => serializer.collect_str(self),
            None => serializer.serialize_none(),
        }
    }
}

impl From<Option<&Time>> for Moment {
    fn from(time: Option<&Time>) -> Self {
        Self(time.map(|time| time.0))
    }
}

impl From<Option<&MicroTime>> for Moment {
    fn from(time: Option<&MicroTime>) -> Self {
        Self(time.map(|time| time.0))
    }
}

/// `live.js` writes ages by the same table.
fn span(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..=0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

fn two(first: i64, first_unit: &str, second: i64, second_unit: &str) -> String {
    match second {
        0 => format!("{first}{first_unit}"),
        _ => format!("{first}{first_unit}{second}{second_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_in_at_most_two_units() {
        let table = [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_799, "179m"),
            (18_720, "5h12m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (864_000, "10d"),
        ];
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        for (seconds, expected) in table {
            let then = Timestamp::from_second(1_700_000_000 - seconds).unwrap();
            assert_eq!(Moment(Some(then)).age(now), expected, "{seconds}");
        }
        assert_eq!(Moment(None).age(now), "–");
    }

    #[test]
    fn text_is_bounded_and_has_no_control_or_direction_characters() {
        assert_eq!(clip("abcdef", 3), "abc…");
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("a\r\nb\u{202e}c\0\u{85}", 20), "a\u{fffd} b\u{fffd}c\u{fffd}\u{fffd}");
        let long = vec!["x"; 1000];
        assert_eq!(words(long).len(), MAX_ITEMS);
    }

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        let then = Moment(Some(Timestamp::from_second(1_700_000_000).unwrap()));
        assert_eq!(then.to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(serde_json::to_string(&then).unwrap(), "\"2023-11-14T22:13:20Z\"");
        assert_eq!(serde_json::to_string(&Moment(None)).unwrap(), "null");
    }
}
