//! What is wrong with a specification's containers.

use super::resources;
use super::validate::one_of;
use crate::cause::{Causes, duplicate, forbidden, invalid, not_found, not_supported, required};
use crate::json::{fields, flag, int, items, text};
use crate::names;
use serde_json::Value;
use std::collections::HashSet;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// Checks all containers of a specification.
pub fn check(spec: &Value, field: &str, volumes: &HashSet<&str>, causes: &mut Causes) {
    if items(spec, "/containers").is_empty() {
        causes.push(required(format!("{field}.containers"), ""));
    }
    let host_network = flag(spec, "/hostNetwork");
    let mut seen = HashSet::new();
    let mut host_ports = HashSet::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            let own = format!("{field}.{list}[{i}]");
            check_name(container, &own, &mut seen, causes);
            check_container(container, &own, volumes, causes);
            check_ports(container, &own, host_network, causes);
            if list == "containers" {
                check_host_ports(container, &own, &mut host_ports, causes);
            }
        }
    }
    for (i, container) in items(spec, "/initContainers").iter().enumerate() {
        check_init(container, &format!("{field}.initContainers[{i}]"), causes);
    }
}

fn check_name<'a>(container: &'a Value, own: &str, seen: &mut HashSet<&'a str>, causes: &mut Causes) {
    let name = text(container, "/name");
    let field = format!("{own}.name");
    if name.is_empty() {
        causes.push(required(field, ""));
    } else if !seen.insert(name) {
        causes.push(duplicate(field, name));
    } else {
        causes.extend(names::dns_label(name).iter().map(|f| invalid(field.as_str(), name, f)));
    }
}

fn check_container(container: &Value, own: &str, volumes: &HashSet<&str>, causes: &mut Causes) {
    let image = text(container, "/image");
    if image.is_empty() {
        causes.push(required(format!("{own}.image"), ""));
    } else if image.trim() != image {
        causes.push(invalid(format!("{own}.image"), image, "must not have leading or trailing whitespace"));
    }
    one_of(text(container, "/imagePullPolicy"), format!("{own}.imagePullPolicy"), &PULL_POLICIES, causes);
    let policy = text(container, "/terminationMessagePolicy");
    one_of(policy, format!("{own}.terminationMessagePolicy"), &["File", "FallbackToLogsOnError"], causes);
    check_env(container, own, causes);
    check_mounts(container, own, volumes, causes);
    resources::check(container, own, causes);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get(probe).filter(|p| p.is_object()) {
            check_probe(value, &format!("{own}.{probe}"), probe != "readinessProbe", causes);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(value) = container.pointer(&format!("/lifecycle/{hook}")).filter(|h| h.is_object()) {
            check_handler(
                value,
                &format!("{own}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                causes,
            );
        }
    }
}

fn check_ports(container: &Value, own: &str, host_network: bool, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (i, port) in items(container, "/ports").iter().enumerate() {
        let field = format!("{own}.ports[{i}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            causes.extend(names::port_name(name).iter().map(|f| invalid(format!("{field}.name"), name, f)));
            if !seen.insert(name) {
                causes.push(duplicate(format!("{field}.name"), name));
            }
        }
        let number = int(port, "/containerPort");
        match number {
            None | Some(0) => causes.push(required(format!("{field}.containerPort"), "")),
            Some(n) => {
                let faults = names::port_number(n);
                causes.extend(faults.iter().map(|f| invalid(format!("{field}.containerPort"), n, f)));
            }
        }
        if let Some(host) = int(port, "/hostPort").filter(|h| *h != 0) {
            causes.extend(
                names::port_number(host).iter().map(|f| invalid(format!("{field}.hostPort"), host, f)),
            );
            if host_network && Some(host) != number {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                causes.push(invalid(format!("{field}.hostPort"), host, detail));
            }
        }
        one_of(text(port, "/protocol"), format!("{field}.protocol"), &PROTOCOLS, causes);
    }
}

/// A port of the host is one container's.
fn check_host_ports(container: &Value, own: &str, seen: &mut HashSet<String>, causes: &mut Causes) {
    for (i, port) in items(container, "/ports").iter().enumerate() {
        let Some(number) = int(port, "/hostPort").filter(|h| *h != 0) else { continue };
        let key = format!("{}/{}/{number}", text(port, "/protocol"), text(port, "/hostIP"));
        if !seen.insert(key.clone()) {
            causes.push(duplicate(format!("{own}.ports[{i}].hostPort"), key));
        }
    }
}

fn check_env(container: &Value, own: &str, causes: &mut Causes) {
    for (i, variable) in items(container, "/env").iter().enumerate() {
        let field = format!("{own}.env[{i}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            causes.push(required(format!("{field}.name"), ""));
        } else {
            causes.extend(names::env_name(name).iter().map(|f| invalid(format!("{field}.name"), name, f)));
        }
        let Some(sources) = fields(variable, "/valueFrom") else { continue };
        let own = format!("{field}.valueFrom");
        if !text(variable, "/value").is_empty() {
            causes.push(invalid(own.as_str(), "", "may not be specified when `value` is not empty"));
        }
        match sources.values().filter(|v| !v.is_null()).count() {
            0 => causes.push(invalid(
                own,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            )),
            1 => {}
            _ => causes.push(invalid(own, "", "may not have more than one field specified at a time")),
        }
    }
}

fn check_mounts(container: &Value, own: &str, volumes: &HashSet<&str>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (i, mount) in items(container, "/volumeMounts").iter().enumerate() {
        let field = format!("{own}.volumeMounts[{i}]");
        match text(mount, "/name") {
            "" => causes.push(required(format!("{field}.name"), "")),
            name if !volumes.contains(name) => causes.push(not_found(format!("{field}.name"), name)),
            _ => {}
        }
        match text(mount, "/mountPath") {
            "" => causes.push(required(format!("{field}.mountPath"), "")),
            path if !seen.insert(path) => {
                causes.push(invalid(format!("{field}.mountPath"), path, "must be unique"));
            }
            _ => {}
        }
        for sub in ["subPath", "subPathExpr"] {
            let path = text(mount, &format!("/{sub}"));
            if path.starts_with('/') {
                causes.push(invalid(format!("{field}.{sub}"), path, "must be a relative path"));
            }
            if path.split('/').any(|part| part == "..") {
                causes.push(invalid(format!("{field}.{sub}"), path, "must not contain '..'"));
            }
        }
    }
}

fn check_probe(probe: &Value, own: &str, success_must_be_one: bool, causes: &mut Causes) {
    check_handler(probe, own, &["exec", "httpGet", "tcpSocket", "grpc"], causes);
    for name in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(number) = int(probe, &format!("/{name}")).filter(|n| *n < 0) {
            causes.push(invalid(format!("{own}.{name}"), number, "must be greater than or equal to 0"));
        }
    }
    if let Some(number) = int(probe, "/successThreshold").filter(|n| success_must_be_one && *n != 1) {
        causes.push(invalid(format!("{own}.successThreshold"), number, "must be 1"));
    }
}

/// Exactly one way to look or to act, with a port where it needs one.
fn check_handler(handler: &Value, own: &str, kinds: &[&str], causes: &mut Causes) {
    let given: Vec<&&str> = kinds.iter().filter(|k| handler.get(**k).is_some_and(|v| !v.is_null())).collect();
    if given.is_empty() {
        causes.push(required(own, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        causes.push(forbidden(format!("{own}.{extra}"), "may not specify more than 1 handler type"));
    }
    for kind in given {
        let field = format!("{own}.{kind}");
        match *kind {
            "exec" if items(handler, "/exec/command").is_empty() => {
                causes.push(required(format!("{field}.command"), ""));
            }
            "httpGet" | "tcpSocket" | "grpc" => {
                let port = handler.pointer(&format!("/{kind}/port"));
                target_port(port, &format!("{field}.port"), causes);
            }
            _ => {}
        }
        if *kind == "httpGet" {
            let scheme = text(handler, "/httpGet/scheme");
            if !matches!(scheme, "HTTP" | "HTTPS") {
                causes.push(not_supported(format!("{field}.scheme"), scheme, &["HTTP", "HTTPS"]));
            }
        }
    }
}

/// A port by number or by name.
pub fn target_port(port: Option<&Value>, field: &str, causes: &mut Causes) {
    match port {
        Some(Value::String(name)) => {
            causes.extend(names::port_name(name).iter().map(|f| invalid(field, name.as_str(), f)));
        }
        Some(Value::Number(number)) => {
            let number = number.as_i64().unwrap_or(0);
            causes.extend(names::port_number(number).iter().map(|f| invalid(field, number, f)));
        }
        _ => causes.push(required(field, "")),
    }
}

/// Only one that runs beside the others (a sidecar) can be probed.
fn check_init(container: &Value, own: &str, causes: &mut Causes) {
    match text(container, "/restartPolicy") {
        "Always" => {}
        "" => {
            for probe in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                if container.get(probe).is_some_and(|p| !p.is_null()) {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    causes.push(forbidden(format!("{own}.{probe}"), detail));
                }
            }
        }
        other => causes.push(not_supported(format!("{own}.restartPolicy"), other, &["Always"])),
    }
}
