//! What is wrong with a Service.

use super::pod_spec::target_port;
use crate::cause::{Causes, duplicate, forbidden, invalid, not_supported, required};
use crate::json::{int, items, text};
use crate::{metadata, names};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];

/// All that is wrong.
pub fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_1035_label);
    let kind = text(new, "/spec/type");
    let headless = text(new, "/spec/clusterIP") == "None";
    if !TYPES.contains(&kind) {
        causes.push(not_supported("spec.type", kind, &TYPES));
    }
    if items(new, "/spec/ports").is_empty() && !headless && kind != "ExternalName" {
        causes.push(required("spec.ports", ""));
    }
    check_ports(new, kind, &mut causes);
    check_addresses(new, kind, headless, &mut causes);
    metadata::labels(new, "/spec/selector", "spec.selector", &mut causes);
    let affinity = text(new, "/spec/sessionAffinity");
    if !matches!(affinity, "ClientIP" | "None") {
        causes.push(not_supported("spec.sessionAffinity", affinity, &["ClientIP", "None"]));
    }
    if let Some(seconds) = int(new, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds")
        && !(1..=86_400).contains(&seconds)
    {
        let detail = "must be greater than 0 and less than 86400";
        causes.push(invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, detail));
    }
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let policy = text(new, &format!("/spec/{field}"));
        if !policy.is_empty() && !POLICIES.contains(&policy) {
            causes.push(not_supported(format!("spec.{field}"), policy, &POLICIES));
        }
    }
    if !text(new, "/spec/externalTrafficPolicy").is_empty() && !matches!(kind, "NodePort" | "LoadBalancer") {
        let policy = text(new, "/spec/externalTrafficPolicy");
        let detail = "may only be set for externally-accessible services";
        causes.push(invalid("spec.externalTrafficPolicy", policy, detail));
    }
    if let Some(old) = old {
        check_update(new, old, &mut causes);
    }
    causes
}

fn check_ports(service: &Value, kind: &str, causes: &mut Causes) {
    let ports = items(service, "/spec/ports");
    let (mut seen_names, mut seen_numbers, mut seen_node) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let (name, protocol) = (text(port, "/name"), text(port, "/protocol"));
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(required(format!("{field}.name"), ""));
            }
        } else {
            causes.extend(names::dns_label(name).iter().map(|f| invalid(format!("{field}.name"), name, f)));
            if !seen_names.insert(name) {
                causes.push(duplicate(format!("{field}.name"), name));
            }
        }
        let number = int(port, "/port").unwrap_or(0);
        causes.extend(names::port_number(number).iter().map(|f| invalid(format!("{field}.port"), number, f)));
        if protocol.is_empty() {
            causes.push(required(format!("{field}.protocol"), ""));
        } else if !PROTOCOLS.contains(&protocol) {
            causes.push(not_supported(format!("{field}.protocol"), protocol, &PROTOCOLS));
        }
        target_port(port.get("targetPort"), &format!("{field}.targetPort"), causes);
        if !seen_numbers.insert((number, protocol)) {
            causes.push(duplicate(field.as_str(), json!({"port": number, "protocol": protocol})));
        }
        if let Some(node_port) = int(port, "/nodePort").filter(|n| *n != 0) {
            if !matches!(kind, "NodePort" | "LoadBalancer") {
                let detail = "may not be used when `type` is 'ClusterIP'";
                causes.push(forbidden(format!("{field}.nodePort"), detail));
            }
            if !seen_node.insert((node_port, protocol)) {
                causes.push(duplicate(format!("{field}.nodePort"), node_port));
            }
        }
    }
}

fn check_addresses(service: &Value, kind: &str, headless: bool, causes: &mut Causes) {
    let address = text(service, "/spec/clusterIP");
    if kind == "ExternalName" {
        if !address.is_empty() {
            causes.push(forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
        }
        let name = text(service, "/spec/externalName").trim_end_matches('.');
        if name.is_empty() {
            causes.push(required("spec.externalName", ""));
        } else {
            let faults = names::dns_subdomain(name);
            causes.extend(faults.iter().map(|f| invalid("spec.externalName", name, f)));
        }
    } else if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        causes.push(invalid("spec.clusterIPs[0]", address, &detail));
    } else if !address.is_empty() && !headless && address.parse::<IpAddr>().is_err() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        causes.push(invalid("spec.clusterIPs[0]", address, detail));
    }
    if let Some(first) = service.pointer("/spec/clusterIPs/0").and_then(Value::as_str)
        && first != address
    {
        causes.push(invalid("spec.clusterIPs", first, "first value must match `clusterIP`"));
    }
    for (i, external) in items(service, "/spec/externalIPs").iter().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        match external.as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) {
            None => {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.push(invalid(field, external.clone(), detail));
            }
            Some(ip) if ip.is_loopback() => {
                let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
                causes.push(invalid(field, ip.to_string(), detail));
            }
            Some(ip) if ip.is_unspecified() => {
                causes.push(invalid(field, ip.to_string(), "may not be unspecified (0.0.0.0 or ::)"));
            }
            Some(_) => {}
        }
    }
}

/// Clients keep a cluster IP: it stays as long as the service has one.
fn check_update(new: &Value, old: &Value, causes: &mut Causes) {
    let (before, after) = (text(old, "/spec/clusterIP"), text(new, "/spec/clusterIP"));
    let external = |service| text(service, "/spec/type") == "ExternalName";
    if !before.is_empty() && before != after && !external(old) && !external(new) {
        causes.push(invalid("spec.clusterIPs[0]", json!([after]), "may not change once set"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(spec: Value) -> Vec<String> {
        let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
        (super::super::service::SERVICE.defaults)(&mut service);
        validate(&service, None).iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn many_ports_need_names() {
        let found = found(
            json!({"ports": [{"port": 80}, {"port": 80, "name": "b", "protocol": "ABC"}, {"port": 0}]}),
        );
        assert_eq!(
            found,
            [
                "spec.ports[0].name: Required value",
                "spec.ports[1].protocol: Unsupported value: \"ABC\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.ports[2].name: Required value",
                "spec.ports[2].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[2].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }

    #[test]
    fn headless_and_external_services_need_no_ports() {
        assert!(found(json!({"clusterIP": "None"})).is_empty());
        assert!(found(json!({"type": "ExternalName", "externalName": "a.example"})).is_empty());
        assert_eq!(found(json!({})), ["spec.ports: Required value"]);
        assert_eq!(found(json!({"type": "X", "ports": [{"port": 1}]})).len(), 1);
        assert_eq!(found(json!({"clusterIP": "x", "ports": [{"port": 1}]})).len(), 1);
    }

    #[test]
    fn a_cluster_ip_stays() {
        let service = |ip: &str| {
            let mut service =
                json!({"metadata": {"name": "web"}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
            (super::super::service::SERVICE.defaults)(&mut service);
            service
        };
        let causes = validate(&service("10.0.0.8"), Some(&service("10.0.0.7")));
        assert_eq!(causes[0].message, "Invalid value: [\"10.0.0.8\"]: may not change once set");
        assert_eq!(causes[0].field, "spec.clusterIPs[0]");
    }
}
