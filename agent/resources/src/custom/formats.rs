//! The formats that texts and numbers may be held to. Others say nothing, as upstream has it.

use crate::names;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a text is of the format.
pub fn fits(format: &str, text: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is_mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(format, text),
        "byte" => BASE64_STANDARD.decode(text).is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "duration" => is_duration(text),
        "email" => is_email(text),
        "hostname" => !text.is_empty() && text.len() <= 253 && text.split('.').all(is_host_label),
        "uri" => is_uri(text),
        "hexcolor" => is_hex_color(text),
        "k8s-short-name" => names::dns_label(text).is_empty(),
        "k8s-long-name" => names::dns_subdomain(text).is_empty(),
        _ => true,
    }
}

/// Whether a number is of the format.
pub fn number_fits(format: &str, number: &Value) -> bool {
    let in_range = |min: f64, max: f64| number.as_f64().is_some_and(|n| (min..=max).contains(&n));
    match format {
        "int32" => in_range(f64::from(i32::MIN), f64::from(i32::MAX)),
        "int64" => number.as_u64().is_none_or(|n| i64::try_from(n).is_ok()),
        "float" => in_range(f64::from(f32::MIN), f64::from(f32::MAX)),
        _ => true,
    }
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_uuid(format: &str, text: &str) -> bool {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) || text.len() > 36 {
        return false;
    }
    match format.strip_prefix("uuid") {
        Some("") | None => true,
        Some(version) => hex.get(12..13) == Some(version),
    }
}

/// Go's durations: `1h30m`, and days and weeks in words as upstream's formats have them.
fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 9] = ["ns", "us", "µs", "ms", "s", "m", "h", "d", "w"];
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if digits == 0 {
            return false;
        }
        let unit_start = rest[digits..].trim_start();
        let end = unit_start.find(|c: char| c.is_ascii_digit()).unwrap_or(unit_start.len());
        let unit = unit_start[..end].trim();
        let nought = unit.is_empty() && &rest[..digits] == "0";
        if !nought && !UNITS.contains(&unit) {
            return false;
        }
        rest = unit_start[end..].trim_start();
    }
    true
}

fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.rsplit_once('@') else { return false };
    !local.is_empty()
        && !local.contains(char::is_whitespace)
        && (host.split('.').all(is_host_label) || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok())
}

fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// An absolute URI, or an absolute path.
fn is_uri(text: &str) -> bool {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        && !rest.is_empty()
}

fn is_hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "fe80::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("byte", "aGk=", "a"),
            ("date", "2026-11-24", "24.11.2026"),
            ("date-time", "2026-11-24T15:00:00Z", "2026-11-24"),
            ("duration", "1h30m", "soon"),
            ("email", "a@example.com", "a"),
            ("hostname", "pi-1.local", "-x"),
            ("uri", "https://example.com/a", "example"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("made-up", "anything"));
        assert!(number_fits("int32", &5.into()) && !number_fits("int32", &5_000_000_000_i64.into()));
    }
}
