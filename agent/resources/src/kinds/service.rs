//! Service: one address for many pods.

use super::BASE;
use super::columns::{AGE, NAME, labels, or_none, string, wide};
use super::service_validate::validate;
use crate::json::{child, children, default, int, items, spec, text};
use crate::{Builtin, CellContext, Subresource};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const SERVICE: Builtin = Builtin {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Proxy],
    columns: &[
        NAME,
        string("Type", |service, _| text(service, "/spec/type").into()),
        string("Cluster-IP", |service, _| or_none(text(service, "/spec/clusterIP"))),
        string("External-IP", |service, _| external(service).into()),
        string("Port(s)", ports),
        AGE,
        wide("Selector", |service, _| labels(service, "/spec/selector")),
    ],
    selectable: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
    defaults,
    validate,
    ..BASE
};

fn defaults(service: &mut Value) {
    if let Some(status) = service.as_object_mut().and_then(|s| child(s, "status")) {
        child(status, "loadBalancer");
    }
    let Some(spec) = spec(service) else { return };
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    if spec.get("sessionAffinity") == Some(&json!("ClientIP")) {
        let config = child(spec, "sessionAffinityConfig").and_then(|c| child(c, "clientIP"));
        if let Some(config) = config {
            default(config, "timeoutSeconds", 10_800);
        }
    }
    for port in children(spec, "ports") {
        default(port, "protocol", "TCP");
        let same = port.get("port").cloned().unwrap_or_default();
        if !same.is_null()
            && matches!(port.get("targetPort"), Some(Value::Number(n)) if n.as_i64() == Some(0))
        {
            port.remove("targetPort");
        }
        if !same.is_null() {
            default(port, "targetPort", same);
        }
    }
    match spec.get("type").and_then(Value::as_str).unwrap_or_default() {
        "ExternalName" => return,
        "NodePort" => default(spec, "externalTrafficPolicy", "Cluster"),
        "LoadBalancer" => {
            default(spec, "externalTrafficPolicy", "Cluster");
            default(spec, "allocateLoadBalancerNodePorts", true);
        }
        _ => {}
    }
    default(spec, "internalTrafficPolicy", "Cluster");
    default(spec, "ipFamilyPolicy", "SingleStack");
    default(spec, "ipFamilies", json!(["IPv4"]));
    let listed = spec.get("clusterIPs").and_then(|ips| ips.get(0)).cloned();
    if let Some(listed) = listed {
        default(spec, "clusterIP", listed);
    }
    let own = spec.get("clusterIP").cloned().filter(|ip| ip.as_str().is_some_and(|ip| !ip.is_empty()));
    if let Some(own) = own {
        default(spec, "clusterIPs", json!([own]));
    }
}

/// Where it is reached from outside.
fn external(service: &Value) -> String {
    let given = || items(service, "/spec/externalIPs").iter().filter_map(Value::as_str);
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = items(service, "/status/loadBalancer/ingress").iter();
            let ingress: BTreeSet<&str> = ingress
                .map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") })
                .filter(|i| !i.is_empty())
                .collect();
            let all: Vec<&str> = ingress.into_iter().chain(given()).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => {
            let all: Vec<&str> = given().collect();
            if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
        }
    }
}

/// `80:30080/TCP,443/TCP`.
fn ports(service: &Value, _: &CellContext) -> Value {
    let ports = items(service, "/spec/ports").iter().map(|port| {
        let number = int(port, "/port").unwrap_or(0);
        let protocol = text(port, "/protocol");
        match int(port, "/nodePort").filter(|n| *n > 0) {
            Some(node_port) => format!("{number}:{node_port}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    });
    or_none(&ports.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
        defaults(&mut service);
        service
    }

    #[test]
    fn a_service_is_filled() {
        let service = service(json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.7"}));
        let expected = json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}],
        });
        assert_eq!(service["spec"], expected);
        assert_eq!(service["status"], json!({"loadBalancer": {}}));
        assert_eq!(validate(&service, None), []);
    }

    #[test]
    fn addresses_and_ports_are_shown() {
        let ports_of = |s: &Value| ports(s, &CellContext { now: 0 });
        let balancer = service(json!({"type": "LoadBalancer", "externalIPs": ["192.168.1.102"],
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}));
        assert_eq!(external(&balancer), "192.168.1.102");
        assert_eq!(ports_of(&balancer), "80:30080/TCP,53/UDP");
        assert_eq!(external(&service(json!({"type": "LoadBalancer"}))), "<pending>");
        assert_eq!(external(&service(json!({}))), "<none>");
        assert_eq!(ports_of(&service(json!({}))), "<none>");
    }
}
