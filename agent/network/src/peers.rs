//! The other nodes. Who they are comes from outside; how each is reached, the kernel's own routing says.

use crate::ipam::gateway;
use crate::routes::{self, Reach, Via};
use crate::vxlan::{self, Tunnels};
use crate::{Config, Error, Network, overlap};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's name, for messages only.
    pub name: String,
    /// The address it is reached at.
    pub address: IpAddr,
    /// Its pods.
    pub pod_cidr: Ipv4Net,
}

/// Everything the peers need on this node.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    routes: BTreeMap<Ipv4Net, Via>,
    tunnels: Tunnels,
}

/// Leaves out peers whose pods cannot be where they say: a wrong Node object must not take this node's own pods, its
/// LAN, or another node's pods away. The first of two that claim the same addresses is believed.
fn credible<'a>(config: &Config, peers: &'a [Peer]) -> Vec<&'a Peer> {
    let mut believed: Vec<&Peer> = Vec::new();
    for peer in peers {
        let own = overlap(peer.pod_cidr, config.pod_cidr);
        let outside = !config.cluster_cidr.contains(&peer.pod_cidr);
        let circular = matches!(peer.address, IpAddr::V4(address) if config.cluster_cidr.contains(&address));
        let claimed = believed.iter().any(|other| overlap(other.pod_cidr, peer.pod_cidr));
        if own || outside || circular || claimed || peer.address == config.node_ip {
            tracing::warn!(peer.name, %peer.pod_cidr, %peer.address, "peer left out: its addresses cannot be right");
        } else {
            believed.push(peer);
        }
    }
    believed
}

/// A peer of the other IP version cannot be the far end of this node's tunnel.
fn needs_tunnel(config: &Config, peer: &Peer, reach: Reach) -> bool {
    reach == Reach::Routed && peer.address.is_ipv4() == config.node_ip.is_ipv4()
}

fn plan(config: &Config, peers: &[(&Peer, Reach)], vxlan: Option<u32>) -> Plan {
    let mut plan = Plan::default();
    for (peer, reach) in peers {
        let network = peer.pod_cidr.trunc();
        match (reach, vxlan) {
            (Reach::Link(interface), _) => {
                plan.routes
                    .insert(network, Via { gateway: peer.address, interface: *interface, source: None });
            }
            (Reach::Routed, Some(interface)) if needs_tunnel(config, peer, *reach) => {
                let far = gateway(network);
                let via = Via { gateway: IpAddr::V4(far), interface, source: Some(config.gateway()) };
                plan.routes.insert(network, via);
                plan.tunnels.insert(far, peer.address);
            }
            _ => {}
        }
    }
    plan
}

/// Makes the kernel's state that of the plan.
pub(crate) async fn apply(network: &Network, peers: &[Peer]) -> Result<(), Error> {
    let (config, handle, bridge) = (&network.config, &network.handle, &network.bridge);
    let mut reached = Vec::new();
    for peer in credible(config, peers) {
        reached.push((peer, routes::reach(handle, peer.address).await?));
    }
    let lowered = bridge.full_mtu().saturating_sub(vxlan::OVERHEAD);
    if !reached.iter().any(|(peer, reach)| needs_tunnel(config, peer, *reach)) {
        let routed = routes::reconcile(handle, &plan(config, &reached, None).routes).await;
        vxlan::remove(handle).await?;
        bridge.set_mtu(handle, bridge.full_mtu()).await?;
        return routed;
    }
    let index = vxlan::ensure(handle, config, lowered).await?;
    bridge.set_mtu(handle, lowered).await?;
    let plan = plan(config, &reached, Some(index));
    let tunnelled = vxlan::reconcile(handle, index, &plan.tunnels).await;
    routes::reconcile(handle, &plan.routes).await.and(tunnelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            bridge: "bramble0".into(),
            cluster_cidr: "10.1.0.0/16".parse().unwrap(),
            service_cidr: "10.0.0.0/24".parse().unwrap(),
            pod_cidr: "10.1.0.0/24".parse().unwrap(),
            node_ip: "192.168.1.7".parse().unwrap(),
            vxlan_port: 8472,
        }
    }

    fn peer(address: &str, pod_cidr: &str) -> Peer {
        Peer { name: "n".into(), address: address.parse().unwrap(), pod_cidr: pod_cidr.parse().unwrap() }
    }

    #[test]
    fn peers_that_cannot_be_right_are_left_out() {
        let good = peer("192.168.1.8", "10.1.1.0/24");
        let wrong = [
            peer("192.168.1.9", "10.1.0.0/24"),    // our pods
            peer("192.168.1.9", "10.1.0.0/16"),    // everybody's pods
            peer("192.168.1.9", "192.168.1.0/24"), // the LAN
            peer("192.168.1.9", "10.1.1.128/25"),  // the good one's pods
            peer("10.1.5.2", "10.1.5.0/24"),       // behind itself
            peer("192.168.1.7", "10.1.6.0/24"),    // ourselves
        ];
        let all: Vec<Peer> = [good.clone()].into_iter().chain(wrong).collect();
        assert_eq!(credible(&config(), &all), [&good]);
    }

    #[test]
    fn each_peer_gets_the_route_that_fits() {
        let (near, far) = (peer("192.168.1.8", "10.1.1.0/24"), peer("172.16.0.9", "10.1.2.0/24"));
        let (own, lost) = (peer("192.168.1.200", "10.1.3.0/24"), peer("172.17.0.9", "10.1.4.0/24"));
        let six = peer("2001:db8::1", "10.1.5.0/24");
        let reached = [
            (&near, Reach::Link(3)),
            (&far, Reach::Routed),
            (&own, Reach::Own),
            (&lost, Reach::None),
            (&six, Reach::Routed),
        ];
        let plan = plan(&config(), &reached, Some(9));
        assert_eq!(plan.routes.len(), 2);
        assert_eq!(plan.routes[&near.pod_cidr], Via { gateway: near.address, interface: 3, source: None });
        let tunnel = plan.routes[&far.pod_cidr];
        assert_eq!((tunnel.gateway, tunnel.interface), ("10.1.2.1".parse().unwrap(), 9));
        assert_eq!(tunnel.source, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(plan.tunnels, Tunnels::from([("10.1.2.1".parse().unwrap(), far.address)]));
    }
}
