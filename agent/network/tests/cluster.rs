//! Two nodes: on one LAN, with a router between, with cables pulled. Needs root and `ip`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Lan, Node, Ns, PATIENCE, config, peer, seen_from};
use network::{Config, Network};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

struct Member {
    node: Node,
    config: Config,
    network: Arc<Network>,
    pod: Ns,
    pod_ip: Ipv4Addr,
}

impl Member {
    fn new(node: Node, config: Config) -> Member {
        let network = node.start(&config);
        let pod = Ns::new();
        let pod_ip = node.attach(&network, "pod", &pod);
        Member { node, config, network, pod, pod_ip }
    }

    fn know(&self, others: &[&Member]) {
        self.node.set_peers(&self.network, others.iter().map(|other| peer(&other.config)).collect());
    }

    fn routes(&self) -> String {
        self.node.ns.ip("-4 route")
    }
}

fn on_one_lan() -> (Lan, Member, Member) {
    let (lan, a, b) = (Lan::new(), Node::new(), Node::new());
    lan.plug(&a.ns, "eth0", "a", "192.168.77.2/24");
    lan.plug(&b.ns, "eth0", "b", "192.168.77.3/24");
    let a = Member::new(a, config("192.168.77.2", "10.1.0.0/24"));
    let b = Member::new(b, config("192.168.77.3", "10.1.1.0/24"));
    a.know(&[&b]);
    b.know(&[&a]);
    (lan, a, b)
}

/// Two subnets, and a router that knows nothing of pods.
fn with_a_router_between() -> (Ns, Member, Member) {
    let (router, a, b) = (Ns::new(), Node::new(), Node::new());
    cable_to_router(&router, &a.ns, "a", "172.16.1");
    cable_to_router(&router, &b.ns, "b", "172.16.2");
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    let a = Member::new(a, config("172.16.1.2", "10.1.0.0/24"));
    let b = Member::new(b, config("172.16.2.2", "10.1.1.0/24"));
    a.know(&[&b]);
    b.know(&[&a]);
    (router, a, b)
}

fn cable_to_router(router: &Ns, node: &Ns, port: &str, subnet: &str) {
    common::cable(node, "eth0", router, port);
    router.ip(&format!("address add {subnet}.1/24 dev {port}"));
    node.ip(&format!("address add {subnet}.2/24 dev eth0"));
    node.ip(&format!("route add default via {subnet}.1"));
}

#[test]
fn pods_on_one_lan_talk_by_plain_routes() {
    let (_lan, a, b) = on_one_lan();
    assert_eq!(seen_from(&a.pod, &b.pod, b.pod_ip.into()), IpAddr::V4(a.pod_ip));
    assert_eq!(seen_from(&b.pod, &a.pod, a.pod_ip.into()), IpAddr::V4(b.pod_ip));
    assert_eq!(seen_from(&a.node.ns, &b.pod, b.pod_ip.into()), a.config.node_ip);
    assert!(a.routes().contains("10.1.1.0/24 via 192.168.77.3 dev eth0"), "{}", a.routes());
    assert!(!a.node.ns.ip("-o link").contains("vxlan"));
}

#[test]
fn a_router_between_is_tunnelled_through() {
    let (_router, a, b) = with_a_router_between();
    assert_eq!(seen_from(&a.pod, &b.pod, b.pod_ip.into()), IpAddr::V4(a.pod_ip));
    assert_eq!(seen_from(&b.pod, &a.pod, a.pod_ip.into()), IpAddr::V4(b.pod_ip));
    // A node's own packets too.
    let bridge = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
    assert_eq!(seen_from(&a.node.ns, &b.pod, b.pod_ip.into()), bridge);
    // New pods leave room for the outer headers.
    let late = Ns::new();
    let late_ip = a.node.attach(&a.network, "late", &late);
    assert!(late.ip("-o link show eth0").contains("mtu 1450"));
    assert_eq!(seen_from(&late, &b.pod, b.pod_ip.into()), IpAddr::V4(late_ip));
}

#[test]
fn peers_told_again_change_nothing_and_peers_gone_leave_nothing() {
    let (_router, a, b) = with_a_router_between();
    let state = |member: &Member| {
        let ns = &member.node.ns;
        let fdb = ns.command("bridge", "fdb show dev bramble.vx");
        (member.routes(), fdb, ns.ip("neighbour show dev bramble.vx nud permanent"))
    };
    let before = state(&a);
    assert!(before.1.contains("dst 172.16.2.2") && before.2.contains("10.1.1.1"), "{before:?}");
    a.know(&[&b]);
    assert_eq!(state(&a), before);

    // The peer moves to another address: the tunnel's end follows.
    let moved = network::Peer { address: "172.16.2.99".parse().unwrap(), ..peer(&b.config) };
    a.node.set_peers(&a.network, vec![moved]);
    let fdb = state(&a).1;
    assert!(fdb.contains("dst 172.16.2.99") && !fdb.contains("dst 172.16.2.2 "), "{fdb}");

    a.node.ns.ip("route add 10.1.200.0/24 via 172.16.1.1");
    a.know(&[]);
    assert!(!a.routes().contains("10.1.1.0/24") && a.routes().contains("10.1.200.0/24"), "{}", a.routes());
    assert!(!a.node.ns.ip("-o link").contains("bramble.vx"));
}

#[test]
fn routes_of_before_a_restart_stay_until_the_peers_are_told() {
    let (_lan, a, b) = on_one_lan();
    let Member { node, config, network, pod, pod_ip } = a;
    drop(network);
    let network = node.start(&config);
    assert_eq!(seen_from(&pod, &b.pod, b.pod_ip.into()), IpAddr::V4(pod_ip));
    node.set_peers(&network, vec![]);
    assert!(!node.ns.ip("-4 route").contains("10.1.1.0/24"));
}

#[test]
fn a_cable_pulled_and_put_back_heals() {
    let (_lan, a, b) = on_one_lan();
    a.node.ns.ip("link set eth0 down");
    assert!(!a.routes().contains("10.1.1.0/24"));
    a.node.ns.ip("link set eth0 up");
    let start = Instant::now();
    while !a.routes().contains("10.1.1.0/24 via 192.168.77.3") {
        assert!(start.elapsed() < PATIENCE, "the route did not come back: {}", a.routes());
    }
    assert_eq!(seen_from(&a.pod, &b.pod, b.pod_ip.into()), IpAddr::V4(a.pod_ip));
}
