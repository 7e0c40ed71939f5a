//! Functions of texts, and conversions.

use super::eval::Eval;
use super::value::{Cel, fault};
use super::{Error, time};
use crate::custom::Pattern;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::rc::Rc;

type Found<'v> = Result<Option<Cel<'v>>, Error>;

/// The longest text that a function makes.
const MAX_TEXT: usize = 1 << 20;

/// Calls a function of texts, if it is one.
pub fn call<'v>(eval: &mut Eval<'_, 'v>, name: &str, given: &[Cel<'v>]) -> Found<'v> {
    let bool = |value: bool| Ok(Some(Cel::Bool(value)));
    let text = |value: String| Ok(Some(Cel::text(value)));
    match (name, given) {
        ("contains", [Cel::Text(a), Cel::Text(b)]) => bool(a.contains(b.as_ref())),
        ("startsWith", [Cel::Text(a), Cel::Text(b)]) => bool(a.starts_with(b.as_ref())),
        ("endsWith", [Cel::Text(a), Cel::Text(b)]) => bool(a.ends_with(b.as_ref())),
        ("matches", [Cel::Text(a), Cel::Text(b)]) => {
            eval.pay(a.len() as u64 / 10 * (b.len() as u64 / 4 + 1) + 1)?;
            bool(pattern(eval, b)?.is_match(a))
        }
        ("find", [Cel::Text(a), Cel::Text(b)]) => {
            eval.pay(a.len() as u64 / 10 * (b.len() as u64 / 4 + 1) + 1)?;
            text(pattern(eval, b)?.find(a).map_or("", |found| found.as_str()).to_owned())
        }
        ("findAll", [Cel::Text(a), Cel::Text(b), rest @ ..]) => {
            eval.pay(a.len() as u64 / 10 * (b.len() as u64 / 4 + 1) + 1)?;
            let most = match rest {
                [Cel::Int(n)] if *n >= 0 => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            let pattern = pattern(eval, b)?;
            let found = pattern.find_iter(a).take(most).map(|found| Cel::text(found.as_str().to_owned()));
            Ok(Some(Cel::list(found.collect())))
        }
        ("size", [Cel::Text(a)]) => Ok(Some(Cel::Int(length(a.chars().count())))),
        ("size", [Cel::Bytes(a)]) => Ok(Some(Cel::Int(length(a.len())))),
        ("lowerAscii", [Cel::Text(a)]) => text(a.to_ascii_lowercase()),
        ("upperAscii", [Cel::Text(a)]) => text(a.to_ascii_uppercase()),
        ("trim", [Cel::Text(a)]) => text(a.trim().to_owned()),
        ("reverse", [Cel::Text(a)]) => text(a.chars().rev().collect()),
        ("charAt", [Cel::Text(a), Cel::Int(at)]) => char_at(a, *at).map(Some),
        ("indexOf", [Cel::Text(a), Cel::Text(b), rest @ ..]) => index_of(a, b, rest).map(Some),
        ("lastIndexOf", [Cel::Text(a), Cel::Text(b)]) => {
            let found = a.rfind(b.as_ref()).map_or(-1, |at| length(a[..at].chars().count()));
            Ok(Some(Cel::Int(found)))
        }
        ("substring", [Cel::Text(a), Cel::Int(from), rest @ ..]) => substring(a, *from, rest).map(Some),
        ("replace", [Cel::Text(a), Cel::Text(old), Cel::Text(new), rest @ ..]) => {
            replace(eval, a, old, new, rest).map(Some)
        }
        ("split", [Cel::Text(a), Cel::Text(by), rest @ ..]) => split(a, by, rest).map(Some),
        ("format", [Cel::Text(a), arguments]) if arguments.is_list() => {
            format(eval, a, &arguments.items()?).map(Some)
        }
        ("string" | "int" | "uint" | "double" | "bool" | "bytes" | "dyn" | "type", [value]) => {
            convert(name, value).map(Some)
        }
        _ => Ok(None),
    }
}

pub(super) fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn pattern(eval: &mut Eval<'_, '_>, text: &str) -> Result<regex::Regex, Error> {
    // Compiling takes time with the expression's length.
    eval.pay(text.len() as u64 + 10)?;
    Pattern::compile(text).map_err(|_| Error::Fault(format!("error parsing regexp: {text}")))
}

fn char_at<'v>(text: &str, at: i64) -> Result<Cel<'v>, Error> {
    let count = text.chars().count();
    match usize::try_from(at) {
        Ok(at) if at <= count => Ok(Cel::text(text.chars().nth(at).map(String::from).unwrap_or_default())),
        _ => fault(format!("index out of range: {at}")),
    }
}

fn index_of<'v>(text: &str, part: &str, rest: &[Cel<'v>]) -> Result<Cel<'v>, Error> {
    let from = match rest {
        [] => 0,
        [Cel::Int(from)] => {
            usize::try_from(*from).map_err(|_| Error::Fault(format!("index out of range: {from}")))?
        }
        _ => return fault("no such overload"),
    };
    let start = text.char_indices().nth(from).map_or(text.len(), |(at, _)| at);
    let found = text[start..].find(part).map_or(-1, |at| length(text[..start + at].chars().count()));
    Ok(Cel::Int(found))
}

fn substring<'v>(text: &str, from: i64, rest: &[Cel<'v>]) -> Result<Cel<'v>, Error> {
    let count = length(text.chars().count());
    let to = match rest {
        [] => count,
        [Cel::Int(to)] => *to,
        _ => return fault("no such overload"),
    };
    if from < 0 || to > count || from > to {
        return fault(format!("invalid substring range. start: {from}, end: {to}"));
    }
    let (from, to) = (usize::try_from(from).unwrap_or(0), usize::try_from(to).unwrap_or(0));
    Ok(Cel::text(text.chars().skip(from).take(to - from).collect::<String>()))
}

fn replace<'v>(
    eval: &mut Eval<'_, 'v>,
    text: &str,
    old: &str,
    new: &str,
    rest: &[Cel<'v>],
) -> Result<Cel<'v>, Error> {
    let most = match rest {
        [Cel::Int(n)] if *n >= 0 => usize::try_from(*n).unwrap_or(usize::MAX),
        [] | [Cel::Int(_)] => usize::MAX,
        _ => return fault("no such overload"),
    };
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let size = text.len().saturating_add(found.min(most).saturating_mul(new.len()));
    eval.pay(size as u64 / 10 + 1)?;
    if size > MAX_TEXT {
        return Err(Error::TooCostly);
    }
    Ok(Cel::text(text.replacen(old, new, most)))
}

fn split<'v>(text: &str, by: &str, rest: &[Cel<'v>]) -> Result<Cel<'v>, Error> {
    let own = |part: &str| Cel::text(part.to_owned());
    let parts = match rest {
        [Cel::Int(0)] => Vec::new(),
        [Cel::Int(n)] if *n > 0 => {
            text.splitn(usize::try_from(*n).unwrap_or(usize::MAX), by).map(own).collect()
        }
        [] | [Cel::Int(_)] if by.is_empty() => text.chars().map(|c| Cel::text(c.to_string())).collect(),
        [] | [Cel::Int(_)] => text.split(by).map(own).collect(),
        _ => return fault("no such overload"),
    };
    Ok(Cel::list(parts))
}

/// `"%s is %d".format([a, b])`
fn format<'v>(eval: &mut Eval<'_, 'v>, text: &str, arguments: &[Cel<'v>]) -> Result<Cel<'v>, Error> {
    let mut made = String::new();
    let mut next = arguments.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            made.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            made.push('%');
            continue;
        }
        let mut digits = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut count = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                count.push(digit);
            }
            digits = count.parse::<usize>().ok().filter(|n| *n <= 20);
        }
        let (Some(clause), Some(value)) = (chars.next(), next.next()) else {
            return fault(format!("index {} out of range", arguments.len()));
        };
        let part = match (clause, value) {
            ('f', value) => format!("{:.*}", digits.unwrap_or(6), value.float().unwrap_or(0.0)),
            ('x', Cel::Int(n)) => format!("{n:x}"),
            ('X', Cel::Int(n)) => format!("{n:X}"),
            ('b', Cel::Int(n)) => format!("{n:b}"),
            ('o', Cel::Int(n)) => format!("{n:o}"),
            ('e', value) => format!("{:.*e}", digits.unwrap_or(6), value.float().unwrap_or(0.0)),
            ('s' | 'd', value) => shown(value),
            _ => {
                return fault(format!(
                    "could not parse formatting clause: unrecognized formatting clause \"{clause}\""
                ));
            }
        };
        eval.pay(part.len() as u64 / 10 + 1)?;
        made.push_str(&part);
        if made.len() > MAX_TEXT {
            return Err(Error::TooCostly);
        }
    }
    Ok(Cel::text(made))
}

/// A value as text, as messages show it.
pub fn shown(value: &Cel<'_>) -> String {
    match value {
        Cel::Null => "null".to_owned(),
        Cel::Bool(b) => b.to_string(),
        Cel::Int(n) => n.to_string(),
        Cel::Uint(n) => n.to_string(),
        Cel::Double(n) => n.to_string(),
        Cel::Text(text) => text.clone().into_owned(),
        Cel::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Cel::Json(json, _) => json.to_string(),
        Cel::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Cel::Map(entries) => {
            let pair = |(key, value): &(Cel<'_>, Cel<'_>)| format!("{}: {}", shown(key), shown(value));
            format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        Cel::Time(at) => at.to_string(),
        Cel::Span(span) => time::span_text(*span),
        Cel::Maybe(None) => "none".to_owned(),
        Cel::Maybe(Some(value)) => shown(value),
        Cel::Type(name) => (*name).to_owned(),
        Cel::Amount(amount) => amount.to_string(),
        Cel::Url(url) => url.text.clone(),
        Cel::Ip(ip) => ip.to_string(),
        Cel::Cidr(range) => range.to_string(),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ranges are checked")]
fn convert<'v>(to: &str, value: &Cel<'v>) -> Result<Cel<'v>, Error> {
    let range = || Error::Fault("range error: integer overflow".to_owned());
    Ok(match (to, value) {
        ("dyn", value) => value.clone(),
        ("type", value) => Cel::Type(value.type_name()),
        ("string", Cel::Bytes(bytes)) => match String::from_utf8(bytes.to_vec()) {
            Ok(text) => Cel::text(text),
            Err(_) => return fault("invalid UTF-8 in bytes, cannot convert to string"),
        },
        ("string", Cel::Null | Cel::Json(..) | Cel::List(_) | Cel::Map(_)) => {
            return fault("no such overload");
        }
        ("string", value) => Cel::text(shown(value)),
        ("int", Cel::Int(n)) => Cel::Int(*n),
        ("int", Cel::Uint(n)) => Cel::Int(i64::try_from(*n).map_err(|_| range())?),
        ("int", Cel::Double(n)) if n.abs() < 9.2e18 => Cel::Int(*n as i64),
        ("int", Cel::Text(text)) => match text.parse() {
            Ok(n) => Cel::Int(n),
            Err(_) => return fault(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")),
        },
        ("int", Cel::Time(at)) => Cel::Int(at.as_second()),
        ("uint", Cel::Uint(n)) => Cel::Uint(*n),
        ("uint", Cel::Int(n)) => Cel::Uint(u64::try_from(*n).map_err(|_| range())?),
        ("uint", Cel::Double(n)) if (0.0..1.8e19).contains(n) => Cel::Uint(*n as u64),
        ("uint", Cel::Text(text)) => match text.parse() {
            Ok(n) => Cel::Uint(n),
            Err(_) => return fault(format!("strconv.ParseUint: parsing {text:?}: invalid syntax")),
        },
        ("double", Cel::Text(text)) => match text.parse() {
            Ok(n) => Cel::Double(n),
            Err(_) => return fault(format!("strconv.ParseFloat: parsing {text:?}: invalid syntax")),
        },
        ("double", value) if value.float().is_some() => Cel::Double(value.float().unwrap_or(0.0)),
        ("bool", Cel::Bool(b)) => Cel::Bool(*b),
        ("bool", Cel::Text(text)) => match text.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Cel::Bool(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Cel::Bool(false),
            _ => return fault(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
        },
        ("bytes", Cel::Text(text)) => Cel::Bytes(Rc::new(text.as_bytes().to_vec())),
        ("bytes", Cel::Bytes(bytes)) => Cel::Bytes(Rc::clone(bytes)),
        _ => return fault("no such overload"),
    })
}

/// `base64.encode(b)`, `base64.decode(s)`
pub fn base64<'v>(name: &str, given: &[Cel<'v>]) -> Found<'v> {
    match (name, given) {
        ("encode", [Cel::Bytes(bytes)]) => Ok(Some(Cel::text(BASE64_STANDARD.encode(bytes.as_slice())))),
        ("decode", [Cel::Text(text)]) => match BASE64_STANDARD.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Some(Cel::Bytes(Rc::new(bytes)))),
            Err(error) => fault(error.to_string()),
        },
        _ => Ok(None),
    }
}
