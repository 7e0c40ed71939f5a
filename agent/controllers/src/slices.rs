//! Endpoint slices of services.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    endpoints::{Backend, Port, backends, is_api_service, is_managed},
    hash::random_name,
    owned::{namespace_ends, owner_reference},
    reconcile::Context,
    write::{Outcome, Target, Write},
};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Most endpoints of one slice.
const SLICE_BOUND: usize = 100;

/// Reconciles the slices of one service.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let world = cx.world;
    let own: Vec<&EndpointSlice> = world
        .slices
        .in_namespace(namespace)
        .filter(|s| label(s, SERVICE_NAME) == Some(name) && label(s, MANAGED_BY) == Some(MANAGER))
        .filter(|s| s.metadata.deletion_timestamp.is_none())
        .collect();
    let Some(service) = world.services.get(namespace, name).filter(|s| is_managed(s)) else {
        return Outcome::new(own.into_iter().map(|s| Write::delete(Target::of(s))).collect());
    };
    if service.metadata.deletion_timestamp.is_some() || namespace_ends(world, namespace) {
        return Outcome::default();
    }
    Outcome::new(writes(service, &own, backends(service, cx), cx))
}

fn writes(
    service: &Service,
    own: &[&EndpointSlice],
    backends: Vec<Backend>,
    cx: &mut Context<'_>,
) -> Vec<Write> {
    let mut groups: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for backend in backends {
        groups.entry(backend.ports.clone()).or_default().push(endpoint(backend));
    }
    // A service without anybody behind it still has one, empty, slice: "nobody" differs from "not yet looked at".
    if groups.is_empty() {
        groups.insert(own.first().map(|s| ports_of(s)).unwrap_or_default(), Vec::new());
    }
    let mut result = Vec::new();
    let mut used: Vec<&str> = Vec::new();
    for (ports, endpoints) in groups {
        let same: Vec<&EndpointSlice> = own.iter().copied().filter(|s| ports_of(s) == ports).collect();
        for (slice, endpoints) in place(&same, endpoints) {
            match slice {
                Some(old) => {
                    used.push(old.metadata.name.as_deref().unwrap_or_default());
                    result.extend(changed(service, old, endpoints));
                }
                None => result.push(Write::create(new_slice(service, &ports, endpoints, cx))),
            }
        }
    }
    let idle = own.iter().filter(|s| !used.contains(&s.metadata.name.as_deref().unwrap_or_default()));
    result.extend(idle.map(|s| Write::delete(Target::of(*s))));
    result
}

/// Spreads endpoints over slices so that as few slices as possible change: whoever has a place keeps it.
fn place<'a>(
    slices: &[&'a EndpointSlice],
    mut endpoints: Vec<Endpoint>,
) -> Vec<(Option<&'a EndpointSlice>, Vec<Endpoint>)> {
    let mut placed: Vec<(Option<&EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        for old in slice.endpoints.iter().flatten() {
            if let Some(at) = endpoints.iter().position(|e| e.addresses == old.addresses) {
                kept.push(endpoints.remove(at));
            }
        }
        placed.push((Some(slice), kept));
    }
    for (_, list) in &mut placed {
        let room = SLICE_BOUND.saturating_sub(list.len()).min(endpoints.len());
        list.extend(endpoints.drain(..room));
    }
    while !endpoints.is_empty() {
        let rest = endpoints.split_off(endpoints.len().min(SLICE_BOUND));
        placed.push((None, std::mem::replace(&mut endpoints, rest)));
    }
    let any = placed.iter().any(|(_, list)| !list.is_empty());
    if !any {
        placed.truncate(1);
        return if placed.is_empty() { vec![(None, Vec::new())] } else { placed };
    }
    placed.retain(|(_, list)| !list.is_empty());
    placed
}

fn changed(service: &Service, old: &EndpointSlice, endpoints: Vec<Endpoint>) -> Option<Write> {
    let labels = Some(labels(service));
    let same =
        old.metadata.labels == labels && old.endpoints.as_deref().unwrap_or_default() == endpoints.as_slice();
    let metadata = ObjectMeta { labels, ..old.metadata.clone() };
    (!same).then(|| Write::update(EndpointSlice { metadata, endpoints: Some(endpoints), ..old.clone() }))
}

fn new_slice(
    service: &Service,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
    cx: &mut Context<'_>,
) -> EndpointSlice {
    let meta = &service.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let api = is_api_service(meta.namespace.as_deref().unwrap_or_default(), name);
    let first = api && cx.world.slices.get("default", name).is_none();
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(if first { name.to_owned() } else { random_name(&format!("{name}-"), cx.rng) }),
            namespace: meta.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![owner_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.iter().map(slice_port).collect()),
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn slice_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let ports = slice.ports.iter().flatten().map(|p| Port {
        name: p.name.clone().unwrap_or_default(),
        protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: p.app_protocol.clone(),
        port: p.port.unwrap_or(0),
    });
    let mut ports: Vec<Port> = ports.collect();
    ports.sort();
    ports
}

fn endpoint(backend: Backend) -> Endpoint {
    Endpoint {
        addresses: vec![backend.ip],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname,
        node_name: backend.node,
        target_ref: backend.reference,
        ..Endpoint::default()
    }
}
