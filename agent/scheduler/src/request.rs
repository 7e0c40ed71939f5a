//! What a pod asks for.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::quantity::milli;

/// Amounts in thousandths, by resource name.
pub(crate) type Resources = BTreeMap<String, i128>;

/// A port on the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) ip: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

impl HostPort {
    /// Whether two pods could not both have these.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// All amounts of a list.
pub(crate) fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Resources {
    list.into_iter().flatten().map(|(name, quantity)| (name.clone(), milli(quantity))).collect()
}

/// What a pod needs from its node: the sum of what runs side by side, or what a step of the start needs if more.
pub(crate) fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::new() };
    let mut total = Resources::new();
    for container in &spec.containers {
        add(&mut total, &container_requests(container));
    }
    let mut sidecars = Resources::new();
    let mut start = Resources::new();
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            raise(&mut start, &sidecars);
        } else {
            let mut step = sidecars.clone();
            add(&mut step, &own);
            raise(&mut start, &step);
        }
    }
    add(&mut total, &sidecars);
    raise(&mut total, &start);
    raise_to_pod_level(&mut total, spec);
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

/// Resources given for the pod as a whole stand in for those of its containers.
fn raise_to_pod_level(total: &mut Resources, spec: &PodSpec) {
    let pod_level = spec.resources.as_ref().map(|r| amounts(r.requests.as_ref()));
    total.extend(pod_level.into_iter().flatten());
}

fn container_requests(container: &Container) -> Resources {
    let Some(resources) = &container.resources else { return Resources::new() };
    let mut requests = amounts(resources.limits.as_ref());
    requests.extend(amounts(resources.requests.as_ref()));
    requests
}

/// Adds amounts.
pub(crate) fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(total: &mut Resources, least: &Resources) {
    for (name, amount) in least {
        let present = total.entry(name.clone()).or_default();
        *present = (*present).max(*amount);
    }
}

/// Ports the pod wants on its node.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let host_network = spec.host_network == Some(true);
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let implied = host_network.then_some(p.container_port);
            Some(HostPort {
                port: p.host_port.filter(|port| *port > 0).or(implied)?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                ip: p.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}
