//! What is wrong with a pod's specification.

use super::{containers, ephemeral};
use crate::cause::{Causes, duplicate, forbidden, invalid, not_supported, required};
use crate::json::{fields, int, items, text};
use crate::{metadata, names};
use serde_json::Value;
use std::collections::HashSet;

/// Where a specification stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a pod.
    Pod,
    /// In the template of something that keeps pods running: its kind.
    Template(&'static str),
    /// In the template of something that runs pods to their end.
    Once,
}

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks the specification that stands at `field`.
pub fn pod_spec(spec: &Value, field: &str, place: Place, causes: &mut Causes) {
    let volumes = check_volumes(spec, field, causes);
    containers::check(spec, field, &volumes, causes);
    check_ephemeral(spec, field, place, causes);
    check_policies(spec, field, place, causes);
    check_numbers(spec, field, place, causes);
    check_names(spec, field, causes);
    metadata::labels(spec, "/nodeSelector", &format!("{field}.nodeSelector"), causes);
    for (i, toleration) in items(spec, "/tolerations").iter().enumerate() {
        check_toleration(toleration, &format!("{field}.tolerations[{i}]"), causes);
    }
    for (i, alias) in items(spec, "/hostAliases").iter().enumerate() {
        let ip = text(alias, "/ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.push(invalid(format!("{field}.hostAliases[{i}].ip"), ip, detail));
        }
    }
}

/// They come into pods that run, and only there.
fn check_ephemeral(spec: &Value, field: &str, place: Place, causes: &mut Causes) {
    if place == Place::Pod {
        ephemeral::check(spec, field, causes);
    } else if !items(spec, "/ephemeralContainers").is_empty() {
        let own = format!("{field}.ephemeralContainers");
        causes.push(forbidden(own, "ephemeral containers not allowed in pod template"));
    }
}

/// Checks volumes; gives their names.
fn check_volumes<'a>(spec: &'a Value, field: &str, causes: &mut Causes) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, volume) in items(spec, "/volumes").iter().enumerate() {
        let own = format!("{field}.volumes[{i}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            causes.push(required(format!("{own}.name"), ""));
        } else if !seen.insert(name) {
            causes.push(duplicate(format!("{own}.name"), name));
        } else {
            causes.extend(names::dns_label(name).iter().map(|f| invalid(format!("{own}.name"), name, f)));
        }
        check_source(volume, &own, causes);
    }
    seen
}

fn check_source(volume: &Value, own: &str, causes: &mut Causes) {
    let sources = fields(volume, "").into_iter().flatten();
    let sources: Vec<&str> =
        sources.filter(|(k, v)| *k != "name" && !v.is_null()).map(|(k, _)| k.as_str()).collect();
    if sources.is_empty() {
        causes.push(required(own, "must specify a volume type"));
    }
    for extra in sources.iter().skip(1) {
        causes.push(forbidden(format!("{own}.{extra}"), "may not specify more than 1 volume type"));
    }
    let needed = [
        ("hostPath", "path"),
        ("secret", "secretName"),
        ("configMap", "name"),
        ("persistentVolumeClaim", "claimName"),
        ("nfs", "server"),
        ("nfs", "path"),
    ];
    for (source, name) in needed {
        if sources.contains(&source) && text(volume, &format!("/{source}/{name}")).is_empty() {
            causes.push(required(format!("{own}.{source}.{name}"), ""));
        }
    }
    if text(volume, "/hostPath/path").split('/').any(|part| part == "..") {
        let path = text(volume, "/hostPath/path");
        causes.push(invalid(format!("{own}.hostPath.path"), path, "must not contain '..'"));
    }
}

/// A field that must be one of a few words.
pub fn one_of(value: &str, field: impl Into<String>, words: &[&str], causes: &mut Causes) {
    if value.is_empty() {
        causes.push(required(field, ""));
    } else if !words.contains(&value) {
        causes.push(not_supported(field, value, words));
    }
}

fn check_policies(spec: &Value, field: &str, place: Place, causes: &mut Causes) {
    let own = format!("{field}.restartPolicy");
    match (place, text(spec, "/restartPolicy")) {
        (Place::Once, "" | "Always") => causes.push(required(own, r#"valid values: "OnFailure", "Never""#)),
        (Place::Once, policy) => one_of(policy, own, &["OnFailure", "Never"], causes),
        (Place::Template(_), policy) => one_of(policy, own, &["Always"], causes),
        (Place::Pod, policy) => one_of(policy, own, &RESTART_POLICIES, causes),
    }
    one_of(text(spec, "/dnsPolicy"), format!("{field}.dnsPolicy"), &DNS_POLICIES, causes);
    if text(spec, "/dnsPolicy") == "None" && items(spec, "/dnsConfig/nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.push(required(format!("{field}.dnsConfig.nameservers"), detail));
    }
}

fn check_numbers(spec: &Value, field: &str, place: Place, causes: &mut Causes) {
    if let Some(seconds) = int(spec, "/activeDeadlineSeconds") {
        let own = format!("{field}.activeDeadlineSeconds");
        if let Place::Template(kind) = place {
            causes.push(forbidden(own, &format!("activeDeadlineSeconds in {kind} is not Supported")));
        } else if !(1..=i64::from(i32::MAX)).contains(&seconds) {
            causes.push(invalid(own, seconds, "must be between 1 and 2147483647, inclusive"));
        }
    }
    if let Some(seconds) = int(spec, "/terminationGracePeriodSeconds").filter(|s| *s < 0) {
        let own = format!("{field}.terminationGracePeriodSeconds");
        causes.push(invalid(own, seconds, "must be greater than or equal to 0"));
    }
}

fn check_names(spec: &Value, field: &str, causes: &mut Causes) {
    let rules: [(&str, metadata::NameRule); 5] = [
        ("nodeName", names::dns_subdomain),
        ("serviceAccountName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("schedulerName", names::qualified_name),
    ];
    for (name, rule) in rules {
        let value = text(spec, &format!("/{name}"));
        if !value.is_empty() {
            causes.extend(rule(value).iter().map(|f| invalid(format!("{field}.{name}"), value, f)));
        }
    }
}

fn check_toleration(toleration: &Value, field: &str, causes: &mut Causes) {
    let (key, operator, effect) =
        (text(toleration, "/key"), text(toleration, "/operator"), text(toleration, "/effect"));
    if !key.is_empty() {
        causes.extend(names::qualified_name(key).iter().map(|f| invalid(format!("{field}.key"), key, f)));
    }
    if key.is_empty() && operator != "Exists" {
        let detail =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(invalid(format!("{field}.operator"), operator, detail));
    }
    if int(toleration, "/tolerationSeconds").is_some() && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(invalid(format!("{field}.effect"), effect, detail));
    }
    let value = text(toleration, "/value");
    match operator {
        "" | "Equal" => {
            causes.extend(
                names::label_value(value).iter().map(|f| invalid(format!("{field}.operator"), value, f)),
            );
        }
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            causes.push(invalid(format!("{field}.operator"), value, detail));
        }
        "Exists" => {}
        other => causes.push(not_supported(format!("{field}.operator"), other, &["Equal", "Exists"])),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        causes.push(not_supported(format!("{field}.effect"), effect, &EFFECTS));
    }
}
