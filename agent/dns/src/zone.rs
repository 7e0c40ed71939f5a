//! What the cluster's zone holds, made from services and endpoint slices.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use hickory_proto::rr::Name;
use ipnet::Ipv4Net;
use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

/// Label of a slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Most endpoints of one service that are answered.
const ENDPOINT_BOUND: usize = 1000;

/// A port by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    /// `tcp`, `udp`, `sctp`.
    pub(crate) protocol: String,
    pub(crate) number: u16,
}

/// One backend, under its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The pod's hostname, or its address with dashes.
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) ready: bool,
    pub(crate) ports: Vec<Port>,
}

/// What a service's name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Its cluster IP.
    Cluster { ip: Ipv4Addr, ports: Vec<Port> },
    /// Its backends.
    Headless,
    /// Another name.
    External(Name),
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) target: Target,
    pub(crate) hosts: Vec<Host>,
}

impl Entry {
    /// Backends that take traffic.
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.ready)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    pub(crate) domain: Name,
    pub(crate) reverse: Vec<Ipv4Net>,
    /// By namespace, by name.
    pub(crate) services: BTreeMap<String, BTreeMap<String, Entry>>,
    pub(crate) pointers: HashMap<Ipv4Addr, Name>,
    /// Rises with every change.
    pub(crate) serial: u32,
}

/// A domain in lower case, fully qualified.
pub(crate) fn parse_domain(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok().filter(|name| !name.is_root())?.to_lowercase();
    name.set_fqdn(true);
    Some(name)
}

impl Zone {
    /// Builds the zone.
    pub(crate) fn new<'a>(
        domain: Name,
        reverse: Vec<Ipv4Net>,
        serial: u32,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut hosts = hosts(slices);
        let mut zone = Self { domain, reverse, services: BTreeMap::new(), pointers: HashMap::new(), serial };
        for service in services {
            zone.add(service, &mut hosts);
        }
        zone
    }

    fn add(&mut self, service: &Service, hosts: &mut HashMap<(String, String), Vec<Host>>) -> Option<()> {
        let namespace = service.metadata.namespace.clone()?;
        let name = service.metadata.name.clone()?;
        let target = target(service.spec.as_ref()?)?;
        let hosts = hosts.remove(&(namespace.clone(), name.clone())).unwrap_or_default();
        if let Target::Cluster { ip, .. } = &target
            && let Some(full) = self.service_name(&namespace, &name)
        {
            self.pointers.insert(*ip, full);
        }
        for host in &hosts {
            if let Some(full) = self.host_name(&namespace, &name, &host.name) {
                // A name given to the pod is better than one made of its address.
                let named = host.name != dashed(host.ip);
                if named || !self.pointers.contains_key(&host.ip) {
                    self.pointers.insert(host.ip, full);
                }
            }
        }
        self.services.entry(namespace).or_default().insert(name, Entry { target, hosts });
        Some(())
    }

    /// `name.namespace.svc.domain`.
    pub(crate) fn service_name(&self, namespace: &str, name: &str) -> Option<Name> {
        Name::from_labels([name.as_bytes(), namespace.as_bytes(), b"svc"])
            .ok()?
            .append_domain(&self.domain)
            .ok()
    }

    /// `host.name.namespace.svc.domain`.
    pub(crate) fn host_name(&self, namespace: &str, name: &str, host: &str) -> Option<Name> {
        let labels = [host.as_bytes(), name.as_bytes(), namespace.as_bytes(), b"svc"];
        Name::from_labels(labels).ok()?.append_domain(&self.domain).ok()
    }
}

fn target(spec: &ServiceSpec) -> Option<Target> {
    if spec.type_.as_deref() == Some("ExternalName") {
        let mut name = Name::from_ascii(spec.external_name.as_deref()?.trim_end_matches('.')).ok()?;
        name.set_fqdn(true);
        return Some(Target::External(name));
    }
    match spec.cluster_ip.as_deref()? {
        "None" => Some(Target::Headless),
        ip => Some(Target::Cluster { ip: ip.parse().ok()?, ports: service_ports(spec) }),
    }
}

fn service_ports(spec: &ServiceSpec) -> Vec<Port> {
    let ports = spec.ports.as_deref().unwrap_or_default();
    ports.iter().filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), Some(p.port))).collect()
}

fn port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number?).ok()?,
    })
}

fn hosts<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> HashMap<(String, String), Vec<Host>> {
    let mut all: HashMap<(String, String), Vec<Host>> = HashMap::new();
    let mut seen: BTreeSet<(String, String, Ipv4Addr)> = BTreeSet::new();
    for slice in slices.filter(|s| s.address_type == "IPv4") {
        let labels = slice.metadata.labels.as_ref();
        let (Some(namespace), Some(service)) =
            (slice.metadata.namespace.clone(), labels.and_then(|l| l.get(SERVICE_NAME)).cloned())
        else {
            continue;
        };
        let ports = slice.ports.as_deref().unwrap_or_default();
        let ports: Vec<Port> =
            ports.iter().filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port)).collect();
        let list = all.entry((namespace.clone(), service.clone())).or_default();
        for endpoint in slice.endpoints.iter().flatten() {
            for host in endpoint_hosts(endpoint, &ports) {
                if list.len() < ENDPOINT_BOUND && seen.insert((namespace.clone(), service.clone(), host.ip)) {
                    list.push(host);
                }
            }
        }
    }
    all
}

fn endpoint_hosts(endpoint: &Endpoint, ports: &[Port]) -> Vec<Host> {
    let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
    let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<Ipv4Addr>().ok());
    addresses
        .map(|ip| Host {
            name: endpoint.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| dashed(ip)),
            ip,
            ready,
            ports: ports.to_vec(),
        })
        .collect()
}

/// `1-2-3-4`.
pub(crate) fn dashed(ip: Ipv4Addr) -> String {
    ip.to_string().replace('.', "-")
}
