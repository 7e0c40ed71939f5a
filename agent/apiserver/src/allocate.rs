//! Addresses and ports that at most one Service has.
//!
//! Who holds what is kept beside the objects, one key each, written in the transaction that writes the Service: two
//! writers that choose the same one cannot both succeed, and the loser chooses again.

use crate::engine::Engine;
use crate::object::{self, list, text};
use crate::status::{Result, Status};
use rand::seq::IndexedRandom;
use resources::{Cause, Descriptor};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use store::{Expect, Write};

const ADDRESSES: &str = "/bramble/allocations/clusterips/";
const PORTS: &str = "/bramble/allocations/nodeports/";

fn is_service(kind: &Descriptor) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

/// Gives a Service what it needs, keeps what it has, and says what to write beside it.
pub(crate) fn plan(
    engine: &Engine,
    kind: &Descriptor,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<Vec<Write>> {
    if !is_service(kind) {
        return Ok(Vec::new());
    }
    if let Some(old) = old {
        inherit(old, service);
    }
    let held = old.map(keys).unwrap_or_default();
    address(engine, &held, service)?;
    ports(engine, &held, service)?;
    let needed = keys(service);
    let owner = format!("{}/{}", text(service, "/metadata/namespace"), object::name(service));
    let taken = needed.difference(&held).map(|key| Write {
        key: key.clone(),
        expect: Expect::Absent,
        value: Some(owner.clone().into_bytes().into()),
    });
    let freed =
        held.difference(&needed).map(|key| Write { key: key.clone(), expect: Expect::Any, value: None });
    Ok(taken.chain(freed).collect())
}

/// What is to be freed along with a Service.
pub(crate) fn release(kind: &Descriptor, service: &Value) -> Vec<Write> {
    if !is_service(kind) {
        return Vec::new();
    }
    keys(service).into_iter().map(|key| Write { key, expect: Expect::Any, value: None }).collect()
}

/// The keys of all that a Service has.
fn keys(service: &Value) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let ip = text(service, "/spec/clusterIP");
    if wants_address(service) && !ip.is_empty() {
        keys.insert(format!("{ADDRESSES}{ip}"));
    }
    if wants_ports(service) {
        keys.extend(list(service, "/spec/ports").iter().filter_map(node_port).map(|p| format!("{PORTS}{p}")));
    }
    keys
}

fn wants_address(service: &Value) -> bool {
    text(service, "/spec/type") != "ExternalName" && text(service, "/spec/clusterIP") != "None"
}

fn wants_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn node_port(port: &Value) -> Option<i64> {
    port["nodePort"].as_i64().filter(|n| *n != 0)
}

/// An update that does not speak of what was allocated keeps it; one that needs it no longer loses it.
fn inherit(old: &Value, service: &mut Value) {
    let (had, wants) = (wants_ports(old), wants_ports(service));
    let old_ports = list(old, "/spec/ports").to_vec();
    let (address, addresses) = (old["spec"]["clusterIP"].clone(), old["spec"]["clusterIPs"].clone());
    let external = text(service, "/spec/type") == "ExternalName";
    let spec = object::field(object::as_map(service), "spec");
    if external && spec.get("clusterIP") == Some(&address) {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    if !external && unset(spec.get("clusterIP")) && !address.is_null() {
        spec.insert("clusterIP".into(), address);
        spec.insert("clusterIPs".into(), addresses);
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        let before = old_ports.iter().find(same).and_then(node_port);
        let Some(fields) = port.as_object_mut() else { continue };
        let now = fields.get("nodePort").and_then(Value::as_i64).filter(|n| *n != 0);
        match (before, now) {
            (Some(before), None) if wants && had => {
                fields.insert("nodePort".into(), before.into());
            }
            (Some(before), Some(now)) if !wants && before == now => {
                fields.remove("nodePort");
            }
            _ => {}
        }
    }
}

fn unset(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v.is_null() || v == "")
}

fn address(engine: &Engine, held: &BTreeSet<String>, service: &mut Value) -> Result<()> {
    if !wants_address(service) {
        return Ok(());
    }
    let range = engine.config.service_cidr;
    let given = text(service, "/spec/clusterIP").to_owned();
    if given.is_empty() {
        let ip = choose_address(engine)?;
        let spec = object::field(object::as_map(service), "spec");
        spec.insert("clusterIP".into(), ip.to_string().into());
        spec.insert("clusterIPs".into(), json!([ip.to_string()]));
        return Ok(());
    }
    let key = format!("{ADDRESSES}{given}");
    if held.contains(&key) {
        return Ok(());
    }
    let refuse = |why: &str| {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: [{given:?}]: failed to allocate IP {given}: {why}"),
            field: "spec.clusterIPs".into(),
        };
        Err(invalid(service, cause))
    };
    match given.parse::<Ipv4Addr>() {
        // Validation says what is wrong with it.
        Err(_) => Ok(()),
        Ok(ip) if !range.contains(&ip) || ip == range.network() || ip == range.broadcast() => refuse(
            &format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"),
        ),
        Ok(_) if engine.durable.get(&key).is_some() => refuse("provided IP is already allocated"),
        Ok(_) => Ok(()),
    }
}

/// A free address: not the first, which is the API's, nor the tenth, which is DNS'.
fn choose_address(engine: &Engine) -> Result<Ipv4Addr> {
    let range = engine.config.service_cidr;
    let network = u32::from(range.network());
    let taken = taken(engine, ADDRESSES);
    let free: Vec<Ipv4Addr> = range
        .hosts()
        .filter(|ip| ![1, 10].contains(&(u32::from(*ip) - network)))
        .filter(|ip| !taken.contains(&ip.to_string()))
        .collect();
    free.choose(&mut rand::rng())
        .copied()
        .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))
}

fn ports(engine: &Engine, held: &BTreeSet<String>, service: &mut Value) -> Result<()> {
    if !wants_ports(service) {
        return Ok(());
    }
    let range = engine.config.node_ports.clone();
    let mut taken = taken(engine, PORTS);
    let mut chosen = Vec::new();
    for (i, port) in list(service, "/spec/ports").iter().enumerate() {
        let refuse = |number: i64, why: String| {
            let cause = Cause {
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {number}: {why}"),
                field: format!("spec.ports[{i}].nodePort"),
            };
            Err(invalid(service, cause))
        };
        let number = match node_port(port) {
            Some(number) if held.contains(&format!("{PORTS}{number}")) => number,
            Some(number) if !u16::try_from(number).is_ok_and(|n| range.contains(&n)) => {
                let valid = format!("{}-{}", range.start(), range.end());
                return refuse(
                    number,
                    format!("provided port is not in the valid range. The range of valid ports is {valid}"),
                );
            }
            // One number may serve TCP and UDP of the same Service.
            Some(number) if taken.contains(&number.to_string()) && !chosen.contains(&number) => {
                return refuse(number, "provided port is already allocated".into());
            }
            Some(number) => number,
            None => {
                let free: Vec<u16> = range.clone().filter(|n| !taken.contains(&n.to_string())).collect();
                let number = free.choose(&mut rand::rng());
                i64::from(
                    *number
                        .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?,
                )
            }
        };
        taken.insert(number.to_string());
        chosen.push(number);
    }
    let spec = object::field(object::as_map(service), "spec");
    let listed = spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
    for (port, number) in listed.zip(chosen) {
        object::as_map(port).insert("nodePort".into(), number.into());
    }
    Ok(())
}

fn taken(engine: &Engine, prefix: &str) -> BTreeSet<String> {
    let page = engine.durable.list(prefix, None, 0);
    page.records.iter().filter_map(|r| r.key.strip_prefix(prefix)).map(str::to_owned).collect()
}

fn invalid(service: &Value, cause: Cause) -> Status {
    match resources::find("", "v1", "services") {
        Some(kind) => Status::invalid(kind, object::name(service), &[cause]),
        None => Status::internal(cause.message),
    }
}
