//! Endpoints: where the pods of a service are.

use super::BASE;
use super::columns::{AGE, NAME, shortened, string};
use crate::cause::{Causes, invalid, not_supported, required};
use crate::json::{children, default, int, items, text};
use crate::{Builtin, metadata, names};
use serde_json::Value;
use std::net::IpAddr;

pub const ENDPOINTS: Builtin = Builtin {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    columns: &[NAME, string("Endpoints", |object, _| shortened(&addresses(object), 3).into()), AGE],
    defaults,
    validate,
    ..BASE
};

fn defaults(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for subset in children(fields, "subsets") {
        for port in children(subset, "ports") {
            default(port, "protocol", "TCP");
        }
    }
}

/// `10.1.0.2:80`, port by port.
fn addresses(object: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        let ips = || items(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        let ports = items(subset, "/ports");
        if ports.is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in ports {
            let number = int(port, "/port").unwrap_or(0);
            all.extend(ips().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{number}"),
                false => format!("{ip}:{number}"),
            }));
        }
    }
    all
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    for (i, subset) in items(new, "/subsets").iter().enumerate() {
        let field = format!("subsets[{i}]");
        let empty = |name: &str| items(subset, name).is_empty();
        if empty("/addresses") && empty("/notReadyAddresses") {
            causes.push(required(field.as_str(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (j, address) in items(subset, &format!("/{list}")).iter().enumerate() {
                check_ip(text(address, "/ip"), &format!("{field}.{list}[{j}].ip"), &mut causes);
            }
        }
        for (j, port) in items(subset, "/ports").iter().enumerate() {
            let own = format!("{field}.ports[{j}]");
            if items(subset, "/ports").len() > 1 && text(port, "/name").is_empty() {
                causes.push(required(format!("{own}.name"), ""));
            }
            check_port(port, &own, &mut causes);
        }
    }
    causes
}

/// An address that something outside this host can be.
pub fn check_ip(ip: &str, field: &str, causes: &mut Causes) {
    match ip.parse::<IpAddr>() {
        Err(_) => {
            causes.push(invalid(field, ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
        }
        Ok(address) if address.is_loopback() => {
            causes.push(invalid(field, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)"));
        }
        Ok(address) if address.is_unspecified() => {
            causes.push(invalid(field, ip, "may not be unspecified (0.0.0.0 or ::)"));
        }
        Ok(_) => {}
    }
}

/// A port of an endpoint.
pub fn check_port(port: &Value, field: &str, causes: &mut Causes) {
    const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
    if let Some(number) = int(port, "/port") {
        causes.extend(names::port_number(number).iter().map(|f| invalid(format!("{field}.port"), number, f)));
    }
    let protocol = text(port, "/protocol");
    if !PROTOCOLS.contains(&protocol) {
        causes.push(not_supported(format!("{field}.protocol"), protocol, &PROTOCOLS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn three_addresses_are_shown() {
        let ips: Vec<Value> = (2..7).map(|n| json!({"ip": format!("10.1.0.{n}")})).collect();
        let endpoints = json!({"subsets": [{"addresses": ips, "ports": [{"port": 80}]}]});
        assert_eq!(shortened(&addresses(&endpoints), 3), "10.1.0.2:80,10.1.0.3:80,10.1.0.4:80 + 2 more...");
        assert_eq!(shortened(&addresses(&json!({})), 3), "<none>");
    }

    #[test]
    fn addresses_are_checked() {
        let mut endpoints = json!({"metadata": {"name": "e"}, "subsets": [
            {"addresses": [{"ip": "127.0.0.1"}, {"ip": "x"}], "ports": [{"port": 70000}]}]});
        defaults(&mut endpoints);
        assert_eq!(validate(&endpoints, None).len(), 3);
    }
}
