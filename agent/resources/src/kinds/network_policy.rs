//! NetworkPolicy: who may talk to pods, and to whom they may talk.

use super::BASE;
use super::columns::{AGE, NAME, selector, string};
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::json::{child, children, default, fields, int, items, text};
use crate::labels::Selector;
use crate::{Builtin, metadata, names};
use ipnet::IpNet;
use serde_json::{Value, json};

pub const NETWORK_POLICY: Builtin = Builtin {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    columns: &[NAME, string("Pod-Selector", |policy, _| selector(policy, "/spec/podSelector")), AGE],
    defaults,
    validate,
    generation: "spec",
    idle: true,
    ..BASE
};

fn defaults(object: &mut Value) {
    let egress = !items(object, "/spec/egress").is_empty();
    let Some(spec) = crate::json::spec(object) else { return };
    child(spec, "podSelector");
    if items(&json!({"types": spec.get("policyTypes")}), "/types").is_empty() {
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".to_owned(), types);
    }
    for side in ["ingress", "egress"] {
        for rule in children(spec, side) {
            for port in children(rule, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_selector(new.pointer("/spec/podSelector"), "spec.podSelector", &mut causes);
    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(new, &format!("/spec/{side}")).iter().enumerate() {
            let field = format!("spec.{side}[{i}]");
            for (j, port) in items(rule, "/ports").iter().enumerate() {
                check_port(port, &format!("{field}.ports[{j}]"), &mut causes);
            }
            for (j, peer) in items(rule, &format!("/{peers}")).iter().enumerate() {
                check_peer(peer, &format!("{field}.{peers}[{j}]"), &mut causes);
            }
        }
    }
    let types = items(new, "/spec/policyTypes");
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        causes.push(invalid("spec.policyTypes", json!(types), detail));
    } else {
        for (i, kind) in types.iter().filter_map(Value::as_str).enumerate() {
            if !["Ingress", "Egress"].contains(&kind) {
                causes.push(not_supported(format!("spec.policyTypes[{i}]"), kind, &["Egress", "Ingress"]));
            }
        }
    }
    causes
}

fn check_selector(selector: Option<&Value>, field: &str, causes: &mut Causes) {
    if let Some(selector) = selector.filter(|s| !s.is_null())
        && let Err(error) = Selector::from_label_selector(selector)
    {
        causes.push(invalid(field, selector.clone(), &error.to_string()));
    }
}

fn check_port(port: &Value, field: &str, causes: &mut Causes) {
    let protocol = text(port, "/protocol");
    if !["TCP", "UDP", "SCTP"].contains(&protocol) {
        causes.push(not_supported(format!("{field}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
    }
    let end = int(port, "/endPort");
    match port.get("port") {
        Some(Value::Number(number)) => {
            let number = number.as_i64().unwrap_or(0);
            let faults = names::port_number(number);
            causes.extend(faults.iter().map(|fault| invalid(format!("{field}.port"), number, fault)));
            if end.is_some_and(|end| end < number) {
                let detail = "must be greater than or equal to `port`";
                causes.push(invalid(format!("{field}.endPort"), end.unwrap_or(0), detail));
            }
        }
        Some(Value::String(name)) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                causes.push(invalid(format!("{field}.endPort"), end, detail));
            }
            let faults = names::port_name(name);
            causes.extend(faults.iter().map(|fault| invalid(format!("{field}.port"), name.as_str(), fault)));
        }
        _ => {
            if end.is_some() {
                let detail = "may not be specified when `port` is not specified";
                causes.push(invalid(format!("{field}.endPort"), end.unwrap_or(0), detail));
            }
        }
    }
}

fn check_peer(peer: &Value, field: &str, causes: &mut Causes) {
    let there = fields(peer, "").into_iter().flatten().filter(|(_, value)| !value.is_null());
    let there: Vec<&str> = there.map(|(name, _)| name.as_str()).collect();
    if there.is_empty() {
        causes.push(required(field, "must specify a peer"));
    }
    check_selector(peer.get("podSelector"), &format!("{field}.podSelector"), causes);
    check_selector(peer.get("namespaceSelector"), &format!("{field}.namespaceSelector"), causes);
    let Some(block) = peer.get("ipBlock").filter(|block| block.is_object()) else { return };
    if there.len() > 1 {
        causes.push(forbidden(field, "may not specify both ipBlock and another peer"));
    }
    let own = format!("{field}.ipBlock");
    let cidr = text(block, "/cidr");
    let outer = cidr.parse::<IpNet>();
    const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    if cidr.is_empty() {
        causes.push(required(format!("{own}.cidr"), ""));
    } else if outer.is_err() {
        causes.push(invalid(format!("{own}.cidr"), cidr, CIDR));
    }
    for (i, except) in items(block, "/except").iter().enumerate() {
        let except = except.as_str().unwrap_or_default();
        let field = format!("{own}.except[{i}]");
        match (except.parse::<IpNet>(), &outer) {
            (Err(_), _) => causes.push(invalid(field, except, CIDR)),
            (Ok(inner), Ok(outer))
                if !(outer.contains(&inner) && inner.prefix_len() > outer.prefix_len()) =>
            {
                causes.push(invalid(field, except, "must be a strict subset of `cidr`"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {"egress": [{"ports": [{"port": 53}]}]}});
        defaults(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(validate(&policy, None), []);
        assert_eq!(selector(&policy, "/spec/podSelector"), "<none>");
    }

    #[test]
    fn peers_are_one_thing() {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"policyTypes": ["Ingress"], "ingress": [{"from": [
            {}, {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/16", "x"]}},
        ], "ports": [{"protocol": "TCP", "port": 80, "endPort": 70}, {"protocol": "ICMP", "port": "http"}]}]}});
        let fields: Vec<String> = validate(&policy, None).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            [
                "spec.ingress[0].ports[0].endPort",
                "spec.ingress[0].ports[1].protocol",
                "spec.ingress[0].from[0]",
                "spec.ingress[0].from[1]",
                "spec.ingress[0].from[2].ipBlock.except[1]",
                "spec.ingress[0].from[2].ipBlock.except[2]",
                "spec.ingress[0].from[2].ipBlock.except[3]",
            ]
        );
    }
}
