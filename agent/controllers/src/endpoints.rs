//! Endpoints of services: who answers, and on which ports.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{
        EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Node, ObjectReference, Pod, Service,
        ServicePort,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{
    event::reference,
    node,
    owned::namespace_ends,
    pod,
    reconcile::Context,
    selector,
    write::{Outcome, Target, Write},
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Most addresses of one Endpoints object, as upstream cuts it.
const ADDRESS_BOUND: usize = 1000;

/// One backend of a service. Two backends with the same ports go together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    pub(crate) ip: String,
    pub(crate) node: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) reference: Option<ObjectReference>,
    pub(crate) ports: Vec<Port>,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
}

/// A port of a backend, by the service port's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
    pub(crate) port: i32,
}

/// The API's own service.
pub(crate) fn is_api_service(namespace: &str, name: &str) -> bool {
    namespace == "default" && name == "kubernetes"
}

/// Whether the endpoints of a service are ours to make.
pub(crate) fn is_managed(service: &Service) -> bool {
    let meta = &service.metadata;
    let api = is_api_service(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    );
    let spec = service.spec.as_ref();
    let external = spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    let selects = spec.and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty());
    api || (selects && !external)
}

/// All backends of a service, in the order of their addresses.
pub(crate) fn backends(service: &Service, cx: &Context<'_>) -> Vec<Backend> {
    let meta = &service.metadata;
    let (namespace, name) =
        (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let mut all: Vec<Backend> = if is_api_service(namespace, name) {
        let ports = api_ports(service, cx.config.api_port);
        let nodes = cx.world.nodes.all().filter_map(api_address);
        // A control plane without nodes serves it by itself.
        let own = cx.config.api_addresses.iter().filter(|ip| !ip.is_loopback()).map(IpAddr::to_string);
        nodes.chain(own).map(|ip| api_backend(ip, &ports)).collect()
    } else {
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        let pods = cx.world.pods.in_namespace(namespace);
        pods.filter(|p| selector::matches_map(selector, p.metadata.labels.as_ref()))
            .filter_map(|p| pod_backend(service, p))
            .collect()
    };
    all.sort_by(|a, b| a.ip.cmp(&b.ip));
    all.dedup_by(|a, b| a.ip == b.ip && a.ports == b.ports);
    all
}

/// The address of a node that serves the API: all that are ready do.
fn api_address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let ip = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.clone();
    (node::is_ready(node) && node.metadata.deletion_timestamp.is_none()).then_some(ip)
}

fn api_backend(ip: String, ports: &[Port]) -> Backend {
    // The node is not named: the address is the node's, not that of a pod on it.
    Backend {
        ip,
        node: None,
        hostname: None,
        reference: None,
        ports: ports.to_vec(),
        ready: true,
        serving: true,
        terminating: false,
    }
}

fn api_ports(service: &Service, api_port: u16) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports.iter().map(|p| resolved(p, i32::from(api_port))).collect()
}

fn pod_backend(service: &Service, p: &Pod) -> Option<Backend> {
    let ip = p.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    if pod::is_finished(p) {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let publish = spec.publish_not_ready_addresses == Some(true);
    let (serving, terminating) = (pod::is_ready(p), p.metadata.deletion_timestamp.is_some());
    let mut ports: Vec<Port> = spec.ports.iter().flatten().filter_map(|port| pod_port(port, p)).collect();
    ports.sort();
    if ports.is_empty() && spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
        return None;
    }
    let pod_spec = p.spec.as_ref()?;
    let named = pod_spec.subdomain.is_some() && pod_spec.subdomain == service.metadata.name;
    Some(Backend {
        ip,
        node: pod::node(p).map(str::to_owned),
        hostname: pod_spec.hostname.clone().filter(|hostname| named && !hostname.is_empty()),
        // Without the version: a change of the pod that matters not here is no change of the endpoints.
        reference: Some(ObjectReference { resource_version: None, api_version: None, ..reference(p) }),
        ports,
        ready: publish || (serving && !terminating),
        serving,
        terminating,
    })
}

/// The port a service port leads to in this pod.
fn pod_port(port: &ServicePort, p: &Pod) -> Option<Port> {
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(p, name, protocol(port))?,
    };
    Some(resolved(port, number))
}

fn named_port(p: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = p.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|cp| cp.protocol.as_deref().unwrap_or("TCP") == protocol)
        .find(|cp| cp.name.as_deref() == Some(name))
        .map(|cp| cp.container_port)
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn resolved(port: &ServicePort, number: i32) -> Port {
    Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol(port).to_owned(),
        app_protocol: port.app_protocol.clone(),
        port: number,
    }
}

/// Reconciles the Endpoints of one service.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let present = cx.world.endpoints.get(namespace, name);
    let Some(service) = cx.world.services.get(namespace, name) else {
        let gone = present.filter(|e| e.metadata.deletion_timestamp.is_none());
        return Outcome::new(gone.map(|e| Write::delete(Target::of(e))).into_iter().collect());
    };
    if !is_managed(service)
        || service.metadata.deletion_timestamp.is_some()
        || namespace_ends(cx.world, namespace)
    {
        return Outcome::default();
    }
    let subsets = subsets(service, &backends(service, cx));
    let subsets = Some(subsets).filter(|s| !s.is_empty());
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    let writes = match present {
        None => vec![Write::create(Endpoints {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            subsets,
        })],
        Some(old) => {
            let metadata = ObjectMeta { labels: Some(labels), ..old.metadata.clone() };
            let new = Endpoints { metadata, subsets };
            let same = old.metadata.labels == new.metadata.labels
                && old.subsets.clone().unwrap_or_default() == new.subsets.clone().unwrap_or_default();
            if same || old.metadata.deletion_timestamp.is_some() {
                Vec::new()
            } else {
                vec![Write::update(new)]
            }
        }
    };
    Outcome::new(writes)
}

fn subsets(service: &Service, backends: &[Backend]) -> Vec<EndpointSubset> {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let mut subsets: Vec<(&[Port], EndpointSubset)> = Vec::new();
    // Endpoints have no word for an address that ends: it is left out.
    for backend in backends.iter().filter(|b| publish || !b.terminating).take(ADDRESS_BOUND) {
        let at =
            subsets.iter().position(|(ports, _)| *ports == backend.ports.as_slice()).unwrap_or_else(|| {
                subsets.push((
                    &backend.ports,
                    EndpointSubset { ports: subset_ports(&backend.ports), ..Default::default() },
                ));
                subsets.len() - 1
            });
        let subset = &mut subsets[at].1;
        let list = if backend.ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(EndpointAddress {
            ip: backend.ip.clone(),
            hostname: backend.hostname.clone(),
            node_name: backend.node.clone(),
            target_ref: backend.reference.clone(),
        });
    }
    subsets.sort_by(|a, b| a.0.cmp(b.0));
    subsets.into_iter().map(|(_, subset)| subset).collect()
}

fn subset_ports(ports: &[Port]) -> Option<Vec<EndpointPort>> {
    let list = ports.iter().map(|p| EndpointPort {
        name: Some(p.name.clone()).filter(|name| !name.is_empty()),
        port: p.port,
        protocol: Some(p.protocol.clone()),
        app_protocol: p.app_protocol.clone(),
    });
    Some(list.collect::<Vec<_>>()).filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests;
