//! Services.

use super::Row;
use crate::known::{Known, Table};
use crate::text::{Moment, word, word_or_empty, words};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use serde::Serialize;
use std::collections::BTreeSet;

/// A line of the service table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceRow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) type_: String,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: String,
    /// Those asked for and those a load balancer gave.
    #[serde(rename = "externalIPs")]
    pub(crate) external_ips: Vec<String>,
    /// `80/TCP`, `80:30080/TCP` with a node port.
    pub(crate) ports: Vec<String>,
    pub(crate) creation_timestamp: Moment,
}

impl Row for ServiceRow {
    type Object = Service;

    fn new(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let ports: Vec<String> = spec.ports.iter().flatten().map(port).collect();
        let target = spec.external_name.as_deref().filter(|_| spec.type_.as_deref() == Some("ExternalName"));
        Self {
            namespace: word_or_empty(service.metadata.namespace.as_deref()),
            name: word_or_empty(service.metadata.name.as_deref()),
            type_: word(spec.type_.as_deref().unwrap_or("ClusterIP")),
            cluster_ip: word_or_empty(spec.cluster_ip.as_deref().or(target)),
            external_ips: external_ips(service),
            ports: words(ports.iter().map(String::as_str)),
            creation_timestamp: service.metadata.creation_timestamp.as_ref().into(),
        }
    }

    fn table(known: &mut Known) -> &mut Table<Self> {
        &mut known.services
    }
}

fn port(port: &ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match port.node_port.filter(|node_port| *node_port != 0) {
        Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
        None => format!("{}/{protocol}", port.port),
    }
}

fn external_ips(service: &Service) -> Vec<String> {
    let asked = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten()).map(String::as_str);
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let given = ingress.filter_map(|ingress| ingress.ip.as_deref().or(ingress.hostname.as_deref()));
    words(asked.chain(given).collect::<BTreeSet<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_and_addresses_are_listed_once() {
        let service = serde_json::from_value(json!({
            "metadata": { "namespace": "default", "name": "hello-kube" },
            "spec": { "type": "LoadBalancer", "clusterIP": "10.0.0.55", "externalIPs": ["192.168.1.102"],
                "ports": [{ "port": 8300, "nodePort": 30123 }, { "port": 53, "protocol": "UDP" }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.168.1.102" }, { "ip": "192.168.1.101" }] } },
        }));
        let row = ServiceRow::new(&service.unwrap());
        assert_eq!(row.ports, ["8300:30123/TCP", "53/UDP"]);
        assert_eq!(row.external_ips, ["192.168.1.101", "192.168.1.102"]);
        assert_eq!((row.type_.as_str(), row.cluster_ip.as_str()), ("LoadBalancer", "10.0.0.55"));
    }

    #[test]
    fn an_external_name_stands_where_the_cluster_ip_would() {
        let service = serde_json::from_value(json!({
            "metadata": { "name": "db" }, "spec": { "type": "ExternalName", "externalName": "db.example" } }));
        let row = ServiceRow::new(&service.unwrap());
        assert_eq!((row.cluster_ip.as_str(), row.ports.len()), ("db.example", 0));
    }
}
