//! Whether a text is a schedule: five fields, or a word that begins with `@`.

/// The fields, with the least and greatest number and the words that stand for numbers.
const FIELDS: [(u32, u32, &[&str]); 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

const WORDS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// What is wrong with a schedule.
pub fn check(schedule: &str) -> Result<(), String> {
    if schedule.starts_with('@') {
        return check_word(schedule);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (text, (least, greatest, words)) in fields.iter().zip(FIELDS) {
        for part in text.split(',').filter(|part| !part.is_empty()) {
            check_range(part, least, greatest, words)?;
        }
    }
    Ok(())
}

fn check_word(schedule: &str) -> Result<(), String> {
    if WORDS.contains(&schedule) {
        return Ok(());
    }
    match schedule.strip_prefix("@every ") {
        Some(duration) if is_duration(duration) => Ok(()),
        Some(_) => Err(format!("failed to parse duration {schedule}")),
        None => Err(format!("unrecognized descriptor: {schedule}")),
    }
}

/// `1h30m`: numbers with units.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, tail) = rest.split_at(digits);
        let unit = ["ms", "us", "ns", "h", "m", "s"].iter().find(|unit| tail.starts_with(**unit));
        let (Ok(_), Some(unit)) = (number.parse::<f64>(), unit) else { return false };
        rest = &tail[unit.len()..];
    }
    !text.is_empty()
}

/// `*`, `5`, `1-5`, each with an optional `/step`.
fn check_range(text: &str, least: u32, greatest: u32, words: &[&str]) -> Result<(), String> {
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
    let (from, to) = if from == "*" || from == "?" {
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
    if step.map(|step| number(step, 0, &[])).transpose()? == Some(0) {
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
    Ok(())
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

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,40}", word in "@every [0-9hms.µ]{0,10}") {
            let _ = (check(&text), check(&word));
        }
    }
}
