//! What has to listen, and where it leads: a pure function of the Services and EndpointSlices.

use crate::Config;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Bounds what objects can make this node open.
const MAX_FRONTENDS: usize = 8192;
const MAX_ENDPOINTS: usize = 1000;
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Where clients connect to. `0.0.0.0` stands for every address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port.
    pub address: SocketAddr,
}

/// The Service a frontend belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Where a frontend leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// Whose it is.
    pub service: ServiceRef,
    /// The endpoints, sorted.
    pub endpoints: Vec<SocketAddr>,
    /// How long a client keeps its endpoint, if it does.
    pub affinity: Option<Duration>,
    /// The networks clients may come from; empty for any.
    pub sources: Vec<IpNet>,
}

/// All that has to listen.
pub type Table = BTreeMap<Frontend, Backends>;

/// A step from one table to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop listening.
    Close(Frontend),
    /// Start listening.
    Open(Frontend, Backends),
    /// Lead new connections elsewhere.
    Update(Frontend, Backends),
}

/// The steps that turn `current` into `wanted`; closing comes first, as it may free what is opened.
pub fn diff(current: &Table, wanted: &Table) -> Vec<Action> {
    let closed = current.keys().filter(|frontend| !wanted.contains_key(frontend)).copied().map(Action::Close);
    let changed = wanted.iter().filter_map(|(frontend, backends)| match current.get(frontend) {
        None => Some(Action::Open(*frontend, backends.clone())),
        Some(old) if old != backends => Some(Action::Update(*frontend, backends.clone())),
        Some(_) => None,
    });
    closed.chain(changed).collect()
}

/// Builds the table. Where two Services claim one address and port, the older one by name order keeps it.
pub fn build<S: Borrow<Service>, E: Borrow<EndpointSlice>>(
    config: &Config,
    services: &[S],
    slices: &[E],
) -> Table {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().map(Borrow::borrow) {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        if let (Some(namespace), Some(name)) = (slice.metadata.namespace.as_deref(), name) {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut services: Vec<&Service> = services.iter().map(Borrow::borrow).collect();
    services.sort_by_key(|service| (&service.metadata.namespace, &service.metadata.name));
    let mut table = Table::new();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        let slices = by_service.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        for (frontend, backends) in of_service(config, service, spec, slices) {
            if table.len() < MAX_FRONTENDS && !config.reserved.contains(&frontend.address) {
                table.entry(frontend).or_insert(backends);
            }
        }
    }
    break_circles(config, &mut table);
    table
}

/// Takes out endpoints that would lead back here. An object may say anything, and one connection that is forwarded to
/// this forwarder itself becomes as many as it may have.
fn break_circles(config: &Config, table: &mut Table) {
    let mut own: BTreeSet<Frontend> = table.keys().copied().collect();
    for frontend in table.keys().filter(|f| f.address.ip().is_unspecified()) {
        let local = config.node_ips.iter().copied().chain([Ipv4Addr::LOCALHOST.into()]);
        own.extend(
            local.map(|ip| Frontend { address: SocketAddr::new(ip, frontend.address.port()), ..*frontend }),
        );
    }
    let in_services = |ip: IpAddr| matches!(ip, IpAddr::V4(ip) if config.service_cidr.contains(&ip));
    for (frontend, backends) in table {
        let leads_away = |endpoint: &SocketAddr| {
            let there = Frontend { protocol: frontend.protocol, address: *endpoint };
            // Services are answered on every node: another node's circle is no better.
            !in_services(endpoint.ip()) && !own.contains(&there)
        };
        backends.endpoints.retain(leads_away);
    }
}

fn of_service(
    config: &Config,
    service: &Service,
    spec: &ServiceSpec,
    slices: &[&EndpointSlice],
) -> Vec<(Frontend, Backends)> {
    let cluster_ips: Vec<IpAddr> = cluster_ips(config, spec);
    if cluster_ips.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let meta = &service.metadata;
    let owner = ServiceRef {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    };
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let inside = is_local(&spec.internal_traffic_policy).then_some(config.node_name.as_str());
    let outside = is_local(&spec.external_traffic_policy).then_some(config.node_name.as_str());
    let mut frontends = Vec::new();
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Some(number)) =
            (Protocol::parse(port.protocol.as_deref()), port_number(port.port))
        else {
            continue;
        };
        let mut lead = |ip: IpAddr, number: u16, only_on: Option<&str>, sources: &[IpNet]| {
            let backends = Backends {
                service: owner.clone(),
                endpoints: endpoints(spec, port, protocol, slices, only_on),
                affinity: affinity(spec),
                sources: sources.to_vec(),
            };
            frontends.push((Frontend { protocol, address: SocketAddr::new(ip, number) }, backends));
        };
        for ip in &cluster_ips {
            lead(*ip, number, inside, &[]);
        }
        for ip in parse_all(spec.external_ips.iter().flatten()).filter(|ip| config.node_ips.contains(ip)) {
            lead(ip, number, outside, &[]);
        }
        for ip in load_balancer_ips(service).filter(|ip| config.node_ips.contains(ip)) {
            lead(ip, number, outside, &sources(spec));
        }
        if let Some(node_port) = port.node_port.and_then(port_number) {
            lead(Ipv4Addr::UNSPECIFIED.into(), node_port, outside, &[]);
        }
    }
    frontends
}

/// Headless services and those without an address yet have none.
fn cluster_ips(config: &Config, spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
    let inside = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if config.service_cidr.contains(ip));
    parse_all(all).filter(inside).collect::<BTreeSet<_>>().into_iter().collect()
}

fn load_balancer_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}

/// A source range that cannot be read must not open the service to everybody: it lets nobody in.
fn sources(spec: &ServiceSpec) -> Vec<IpNet> {
    let nobody = IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    ranges.map(|range| range.trim().parse().unwrap_or(nobody)).collect()
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    let configured = || spec.session_affinity_config.as_ref()?.client_ip.as_ref()?.timeout_seconds;
    (spec.session_affinity.as_deref() == Some("ClientIP"))
        .then(|| configured().unwrap_or(DEFAULT_AFFINITY_SECONDS))
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs)
}

/// The endpoints of one port: those that are ready, or else those that still serve while they terminate.
fn endpoints(
    spec: &ServiceSpec,
    port: &ServicePort,
    protocol: Protocol,
    slices: &[&EndpointSlice],
    only_on: Option<&str>,
) -> Vec<SocketAddr> {
    let (mut ready, mut leaving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|slice| matches!(slice.address_type.as_str(), "IPv4" | "IPv6")) {
        let numbers: Vec<u16> = numbers(slice, port, protocol).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if only_on.is_some_and(|node| endpoint.node_name.as_deref() != Some(node)) {
                continue;
            }
            let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let into = match state(endpoint, spec.publish_not_ready_addresses == Some(true)) {
                State::Ready => &mut ready,
                State::Leaving => &mut leaving,
                State::Unusable => continue,
            };
            into.extend(numbers.iter().map(|number| SocketAddr::new(ip, *number)));
        }
    }
    let chosen = if ready.is_empty() { leaving } else { ready };
    chosen.into_iter().take(MAX_ENDPOINTS).collect()
}

/// A slice's ports are matched to the Service's by name.
fn numbers(slice: &EndpointSlice, port: &ServicePort, protocol: Protocol) -> impl Iterator<Item = u16> {
    let name = port.name.as_deref().unwrap_or_default();
    slice
        .ports
        .iter()
        .flatten()
        .filter(move |candidate| candidate.name.as_deref().unwrap_or_default() == name)
        .filter(move |candidate| Protocol::parse(candidate.protocol.as_deref()) == Some(protocol))
        .filter_map(|candidate| candidate.port.and_then(port_number))
}

enum State {
    Ready,
    Leaving,
    Unusable,
}

fn state(endpoint: &Endpoint, even_if_not_ready: bool) -> State {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready || even_if_not_ready, serving && terminating) {
        (true, _) => State::Ready,
        (false, true) => State::Leaving,
        (false, false) => State::Unusable,
    }
}

fn parse_all<'a>(texts: impl Iterator<Item = &'a String>) -> impl Iterator<Item = IpAddr> {
    texts.filter_map(|text| text.parse().ok())
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

#[cfg(test)]
mod tests;
