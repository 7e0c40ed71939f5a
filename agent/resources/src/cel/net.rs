//! Kubernetes' own functions: quantities, URLs, addresses.

use super::Error;
use super::value::{Cel, fault};
use crate::quantity::Quantity;
use ipnet::IpNet;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::rc::Rc;

type Found<'v> = Result<Option<Cel<'v>>, Error>;

/// A URL that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// An absolute URL, or an absolute path.
    fn read(text: &str) -> Option<Self> {
        if text.contains(|c: char| c.is_control() || c == ' ') {
            return None;
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if !scheme.is_empty() => {
                let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
                (good.then_some(scheme)?, rest)
            }
            _ if text.starts_with('/') => ("", text),
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let at = if scheme.is_empty() { 0 } else { before.find('/').unwrap_or(before.len()) };
        let host = before[..at].rsplit('@').next().unwrap_or_default();
        let own = str::to_owned;
        Some(Self {
            text: own(text),
            scheme: own(scheme),
            host: own(host),
            path: own(&before[at..]),
            query: own(query),
        })
    }

    fn port(&self) -> &str {
        match self.host.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port,
            _ => "",
        }
    }

    fn hostname(&self) -> &str {
        let port = self.port();
        let name = if port.is_empty() { &self.host } else { &self.host[..self.host.len() - port.len() - 1] };
        name.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Calls one of these functions, if it is one.
pub fn call<'v>(name: &str, given: &[Cel<'v>]) -> Found<'v> {
    let bool = |value: bool| Ok(Some(Cel::Bool(value)));
    match (name, given) {
        ("isQuantity", [Cel::Text(text)]) => bool(Quantity::parse(text).is_ok()),
        ("quantity", [Cel::Text(text)]) => match Quantity::parse(text) {
            Ok(amount) => Ok(Some(Cel::Amount(amount))),
            Err(_) => fault(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        },
        ("isURL", [Cel::Text(text)]) => bool(Url::read(text).is_some()),
        ("url", [Cel::Text(text)]) => match Url::read(text) {
            Some(url) => Ok(Some(Cel::Url(Rc::new(url)))),
            None => fault(format!(
                "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
            )),
        },
        ("isIP", [Cel::Text(text)]) => bool(text.parse::<IpAddr>().is_ok()),
        ("ip", [Cel::Text(text)]) => match text.parse() {
            Ok(ip) => Ok(Some(Cel::Ip(ip))),
            Err(_) => fault(format!("IP Address {text:?} parse error during conversion from string")),
        },
        ("isCIDR", [Cel::Text(text)]) => bool(text.parse::<IpNet>().is_ok()),
        ("cidr", [Cel::Text(text)]) => match text.parse() {
            Ok(range) => Ok(Some(Cel::Cidr(range))),
            Err(_) => fault(format!("network address parse error during conversion from string: {text:?}")),
        },
        (name, [Cel::Amount(a), rest @ ..]) => amount(name, a, rest),
        (name, [Cel::Url(url)]) => Ok(url_part(name, url)),
        (name, [Cel::Ip(ip)]) => Ok(address(name, ip)),
        (name, [Cel::Cidr(range), rest @ ..]) => cidr(name, range, rest),
        _ => Ok(None),
    }
}

#[allow(clippy::cast_precision_loss, reason = "asked for: an approximate number")]
fn amount<'v>(name: &str, a: &Quantity, rest: &[Cel<'v>]) -> Found<'v> {
    let whole = Quantity::from_value(a.value()) == *a;
    Ok(Some(match (name, rest) {
        ("isLessThan", [Cel::Amount(b)]) => Cel::Bool(a < b),
        ("isGreaterThan", [Cel::Amount(b)]) => Cel::Bool(a > b),
        ("compareTo", [Cel::Amount(b)]) => Cel::Int(match a.cmp(b) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }),
        ("sign", []) => Cel::Int(if a.is_zero() {
            0
        } else if a.is_negative() {
            -1
        } else {
            1
        }),
        ("isInteger", []) => Cel::Bool(whole),
        ("asInteger", []) if whole => Cel::Int(a.value()),
        ("asInteger", []) => return fault("cannot convert value to integer"),
        ("asApproximateFloat", []) => Cel::Double(a.milli_value() as f64 / 1000.0),
        ("add", [Cel::Amount(b)]) => Cel::Amount(*a + *b),
        ("add", [Cel::Int(b)]) => Cel::Amount(*a + Quantity::from_value(*b)),
        ("sub", [Cel::Amount(b)]) => Cel::Amount(*a - *b),
        ("sub", [Cel::Int(b)]) => Cel::Amount(*a - Quantity::from_value(*b)),
        _ => return Ok(None),
    }))
}

fn url_part<'v>(name: &str, url: &Url) -> Option<Cel<'v>> {
    let part = match name {
        "getScheme" => url.scheme.as_str(),
        "getHost" => &url.host,
        "getHostname" => url.hostname(),
        "getPort" => url.port(),
        "getEscapedPath" => &url.path,
        "getQuery" => {
            let mut query: Vec<(Cel<'v>, Cel<'v>)> = Vec::new();
            for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let (key, value) = (Cel::text(key.to_owned()), Cel::text(value.to_owned()));
                match query.iter_mut().find(|(own, _)| own.same(&key)) {
                    Some((_, Cel::List(values))) => Rc::make_mut(values).push(value),
                    _ => query.push((key, Cel::list(vec![value]))),
                }
            }
            return Some(Cel::Map(Rc::new(query)));
        }
        _ => return None,
    };
    Some(Cel::text(part.to_owned()))
}

fn address<'v>(name: &str, ip: &IpAddr) -> Option<Cel<'v>> {
    Some(match name {
        "family" => Cel::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Cel::Bool(ip.is_unspecified()),
        "isLoopback" => Cel::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Cel::Bool(match ip {
            IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
            IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
        }),
        "isLinkLocalUnicast" => Cel::Bool(match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
        }),
        "isGlobalUnicast" => Cel::Bool(!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()),
        _ => return None,
    })
}

fn cidr<'v>(name: &str, range: &IpNet, rest: &[Cel<'v>]) -> Found<'v> {
    let inner = |text: &str| {
        text.parse::<IpNet>().map_err(|_| {
            Error::Fault(format!("network address parse error during conversion from string: {text:?}"))
        })
    };
    Ok(Some(match (name, rest) {
        ("containsIP", [Cel::Ip(ip)]) => Cel::Bool(range.contains(ip)),
        ("containsIP", [Cel::Text(text)]) => match text.parse::<IpAddr>() {
            Ok(ip) => Cel::Bool(range.contains(&ip)),
            Err(_) => return fault(format!("IP Address {text:?} parse error during conversion from string")),
        },
        ("containsCIDR", [Cel::Cidr(inner)]) => Cel::Bool(range.contains(inner)),
        ("containsCIDR", [Cel::Text(text)]) => Cel::Bool(range.contains(&inner(text)?)),
        ("ip", []) => Cel::Ip(range.addr()),
        ("masked", []) => Cel::Cidr(range.trunc()),
        ("prefixLength", []) => Cel::Int(i64::from(range.prefix_len())),
        _ => return Ok(None),
    }))
}
