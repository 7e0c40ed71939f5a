//! Moments and spans of time.

use super::Error;
use super::value::{Cel, fault};
use jiff::Timestamp;
use jiff::tz::TimeZone;

const HOUR: i128 = 3_600_000_000_000;
const UNITS: [(&str, i128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", HOUR),
];

/// RFC 3339, or a date alone.
pub fn timestamp(text: &str) -> Result<Timestamp, Error> {
    let date =
        || text.parse::<jiff::civil::Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp());
    let read = text.parse::<Timestamp>().ok().or_else(|| date().filter(|_| text.len() == 10));
    read.ok_or_else(|| Error::Fault(format!("parsing time {text:?}: cannot be read as RFC 3339")))
}

/// `1h30m`, `-1.5s`.
pub fn span(text: &str) -> Result<i128, Error> {
    let bad = || Error::Fault(format!("time: invalid duration {text:?}"));
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() || rest.len() > 64 {
        return Err(bad());
    }
    let mut total = 0_i128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let size = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, n)| *n).ok_or_else(bad)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        let mut worth = whole.checked_mul(size).ok_or_else(bad)?;
        let mut unit = size;
        for digit in part.bytes() {
            unit /= 10;
            worth += i128::from(digit - b'0') * unit;
        }
        total = total.checked_add(worth).ok_or_else(bad)?;
        rest = next;
    }
    if total > i128::from(i64::MAX) { Err(bad()) } else { Ok(sign * total) }
}

/// `5400s`, as CEL writes spans.
pub fn span_text(span: i128) -> String {
    let (seconds, rest) = (span / 1_000_000_000, (span % 1_000_000_000).abs());
    if rest == 0 {
        return format!("{seconds}s");
    }
    let sign = if span < 0 && seconds == 0 { "-" } else { "" };
    format!("{sign}{seconds}.{}s", format!("{rest:09}").trim_end_matches('0'))
}

/// A moment, later by a span.
pub fn moved<'v>(at: Timestamp, span: i128) -> Result<Cel<'v>, Error> {
    let moved = at.as_nanosecond().checked_add(span).and_then(|n| Timestamp::from_nanosecond(n).ok());
    moved.map_or_else(|| fault("timestamp overflow"), |at| Ok(Cel::Time(at)))
}

/// Calls a function of time, if it is one.
pub fn call<'v>(name: &str, given: &[Cel<'v>]) -> Result<Option<Cel<'v>>, Error> {
    match (name, given) {
        ("timestamp", [Cel::Text(text)]) => Ok(Some(Cel::Time(timestamp(text)?))),
        ("timestamp", [Cel::Int(seconds)]) => match Timestamp::from_second(*seconds) {
            Ok(at) => Ok(Some(Cel::Time(at))),
            Err(_) => fault("range error: timestamp overflow"),
        },
        ("timestamp", [Cel::Time(at)]) => Ok(Some(Cel::Time(*at))),
        ("duration", [Cel::Text(text)]) => Ok(Some(Cel::Span(span(text)?))),
        ("duration", [Cel::Span(span)]) => Ok(Some(Cel::Span(*span))),
        (name, [Cel::Span(span)]) => {
            let unit = match name {
                "getHours" => HOUR,
                "getMinutes" => 60_000_000_000,
                "getSeconds" => 1_000_000_000,
                "getMilliseconds" => 1_000_000,
                _ => return Ok(None),
            };
            let whole = i64::try_from(span / unit).unwrap_or(i64::MAX);
            Ok(Some(Cel::Int(whole)))
        }
        (name, [Cel::Time(at)]) => Ok(part(name, &at.to_zoned(TimeZone::UTC))),
        (name, [Cel::Time(at), Cel::Text(zone)]) => match zone_of(zone) {
            Some(zone) => Ok(part(name, &at.to_zoned(zone))),
            None => fault(format!("unknown time zone {zone}")),
        },
        _ => Ok(None),
    }
}

fn zone_of(text: &str) -> Option<TimeZone> {
    let signed = text.strip_prefix('-').map(|rest| (-1, rest)).unwrap_or((1, text.trim_start_matches('+')));
    if let Some((hours, minutes)) = signed.1.split_once(':') {
        let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
        let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
        return jiff::tz::Offset::from_seconds(signed.0 * seconds).ok().map(|offset| offset.to_time_zone());
    }
    TimeZone::get(text).ok()
}

fn part<'v>(name: &str, at: &jiff::Zoned) -> Option<Cel<'v>> {
    Some(Cel::Int(i64::from(match name {
        "getFullYear" => i32::from(at.year()),
        "getMonth" => i32::from(at.month()) - 1,
        "getDate" => i32::from(at.day()),
        "getDayOfMonth" => i32::from(at.day()) - 1,
        "getDayOfYear" => i32::from(at.day_of_year()) - 1,
        "getDayOfWeek" => i32::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i32::from(at.hour()),
        "getMinutes" => i32::from(at.minute()),
        "getSeconds" => i32::from(at.second()),
        "getMilliseconds" => i32::from(at.millisecond()),
        _ => return None,
    })))
}
