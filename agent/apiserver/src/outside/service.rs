//! Where a service's port leads: to the pods behind it, which every node has a route to. So a webhook is reached
//! whether or not this node forwards services.

use crate::engine::Engine;
use crate::object::{list, text};
use rand::seq::SliceRandom;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

impl Engine {
    /// The addresses behind a port of a service, in any order; the port by its number or its name.
    pub async fn service_addresses(
        &self,
        namespace: &str,
        name: &str,
        port: &str,
    ) -> Result<Vec<SocketAddr>, String> {
        let service = self.one("", "services", namespace, name);
        let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
        let wanted = find_port(&service, port);
        if text(&service, "/spec/type") == "ExternalName" {
            let number = wanted.and_then(|port| number(&port["port"])).or_else(|| port.parse().ok());
            let number = number.ok_or_else(|| no_port(name, port))?;
            return super::lookup(text(&service, "/spec/externalName"), number).await;
        }
        let wanted = wanted.ok_or_else(|| no_port(name, port))?;
        let slices = self.all("discovery.k8s.io", "endpointslices", namespace);
        let own = |slice: &&Value| text(slice, "/metadata/labels/kubernetes.io~1service-name") == name;
        let mut found = behind(slices.iter().filter(own), text(wanted, "/name"));
        if found.is_empty()
            && let Some(endpoints) = self.one("", "endpoints", namespace, name)
        {
            found = behind_endpoints(&endpoints, text(wanted, "/name"));
        }
        if found.is_empty() {
            return Err(format!("no endpoints available for service {name:?}"));
        }
        found.shuffle(&mut rand::rng());
        Ok(found)
    }
}

fn no_port(service: &str, port: &str) -> String {
    format!("no service port {port} found for service {service:?}")
}

fn number(port: &Value) -> Option<u16> {
    port.as_u64().and_then(|port| u16::try_from(port).ok())
}

/// The port that is meant: by number, by name, or the only one.
fn find_port<'s>(service: &'s Value, port: &str) -> Option<&'s Value> {
    let ports = list(service, "/spec/ports");
    match (port, ports) {
        ("", [only]) => Some(only),
        _ => ports.iter().find(|own| text(own, "/name") == port && !port.is_empty()).or_else(|| {
            ports.iter().find(|own| own["port"].as_u64().map(|n| n.to_string()) == Some(port.to_owned()))
        }),
    }
}

/// Ready endpoints.
fn behind<'s>(slices: impl Iterator<Item = &'s Value>, port: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for slice in slices {
        let own = list(slice, "/ports").iter().find(|own| text(own, "/name") == port);
        let Some(number) = own.and_then(|own| number(&own["port"])) else { continue };
        for endpoint in list(slice, "/endpoints") {
            if endpoint["conditions"]["ready"] != false {
                found.extend(addresses(list(endpoint, "/addresses").iter(), number));
            }
        }
    }
    found
}

fn behind_endpoints(endpoints: &Value, port: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for subset in list(endpoints, "/subsets") {
        let own = list(subset, "/ports").iter().find(|own| text(own, "/name") == port);
        let Some(number) = own.and_then(|own| number(&own["port"])) else { continue };
        found.extend(addresses(list(subset, "/addresses").iter().map(|address| &address["ip"]), number));
    }
    found
}

fn addresses<'v>(texts: impl Iterator<Item = &'v Value>, port: u16) -> Vec<SocketAddr> {
    let parsed = texts.filter_map(Value::as_str).filter_map(|text| text.parse::<IpAddr>().ok());
    parsed.map(|address| SocketAddr::new(address, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_port_is_found_by_number_by_name_or_alone() {
        let two = json!({"spec": {"ports": [{"name": "web", "port": 80}, {"name": "443", "port": 8443}]}});
        assert_eq!(find_port(&two, "80").unwrap()["name"], "web");
        assert_eq!(find_port(&two, "web").unwrap()["port"], 80);
        assert_eq!(find_port(&two, "443").unwrap()["port"], 8443);
        assert!(find_port(&two, "").is_none() && find_port(&two, "81").is_none());
        assert_eq!(find_port(&json!({"spec": {"ports": [{"port": 1}]}}), "").unwrap()["port"], 1);
    }

    #[test]
    fn only_what_is_ready_is_reached() {
        let slice = json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}], "endpoints": [
            {"addresses": ["10.1.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}}, {"addresses": ["10.1.0.4"]}]});
        let found = behind([&slice].into_iter(), "b");
        assert_eq!(found, ["10.1.0.2:2".parse().unwrap(), "10.1.0.4:2".parse().unwrap()]);
        assert!(behind([&slice].into_iter(), "c").is_empty());
        let old = json!({"subsets": [{"addresses": [{"ip": "10.1.0.5"}], "ports": [{"port": 3}]}]});
        assert_eq!(behind_endpoints(&old, ""), ["10.1.0.5:3".parse().unwrap()]);
    }
}
