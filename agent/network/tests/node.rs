//! One node: pods, their addresses, services, the way out, restarts. Needs root, `ip` and `nft`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Lan, Node, Ns, config, exchange, seen_from};
use network::{Config, Error, Network};
use std::io::copy;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

fn lone_node() -> (Lan, Node, Config) {
    let (lan, node) = (Lan::new(), Node::new());
    lan.plug(&node.ns, "eth0", "node", "192.168.77.2/24");
    (lan, node, config("192.168.77.2", "10.1.0.0/24"))
}

/// The node's links by index and name.
fn links(node: &Node) -> Vec<String> {
    let all = node.ns.ip("-o link");
    all.lines().map(|line| line.split_whitespace().take(2).collect()).collect()
}

#[test]
fn pods_reach_each_other_and_the_node() {
    let (_lan, node, config) = lone_node();
    let network = node.start(&config);
    let (a, b) = (Ns::new(), Ns::new());
    let (a_ip, b_ip) = (node.attach(&network, "a", &a), node.attach(&network, "b", &b));
    assert_ne!(a_ip, b_ip);
    assert_eq!(network.address_of("a"), Some(a_ip));
    assert_eq!(seen_from(&a, &b, b_ip.into()), IpAddr::V4(a_ip));
    assert_eq!(seen_from(&node.ns, &a, a_ip.into()), IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)));
    assert_eq!(seen_from(&a, &node.ns, config.node_ip), IpAddr::V4(a_ip));
    assert_eq!(seen_from(&a, &a, Ipv4Addr::LOCALHOST.into()), IpAddr::V4(Ipv4Addr::LOCALHOST));
}

#[test]
fn a_pod_reaches_itself_through_a_service_address() {
    let (_lan, node, config) = lone_node();
    let network = node.start(&config);
    let pod = Ns::new();
    let pod_ip = node.attach(&network, "pod", &pod);
    let server = pod.listen("0.0.0.0:8080");
    let service: SocketAddr = "10.0.0.77:80".parse().unwrap();
    let front = node.ns.listen("10.0.0.77:80");
    let mut near = pod.connect(service).unwrap();
    let (client, from) = front.accept().unwrap();
    assert_eq!(from.ip(), IpAddr::V4(pod_ip));
    let backend = node.ns.connect((pod_ip, 8080).into()).unwrap();
    for (mut from, mut to) in [(client.try_clone().unwrap(), backend.try_clone().unwrap()), (backend, client)]
    {
        std::thread::spawn(move || copy(&mut from, &mut to));
    }
    exchange(&mut near, &mut server.accept().unwrap().0);
    assert!(node.ns.command("bridge", "-d link show").contains("hairpin on"));
}

#[test]
fn only_what_leaves_the_cluster_is_masqueraded() {
    let (lan, node, config) = lone_node();
    let outside = Ns::new();
    lan.plug(&outside, "eth0", "outside", "192.168.77.100/24");
    let network = node.start(&config);
    let pod = Ns::new();
    let pod_ip = node.attach(&network, "pod", &pod);
    assert_eq!(seen_from(&pod, &outside, "192.168.77.100".parse().unwrap()), config.node_ip);
    // Another pod network, behind the outside host: addresses stay as they are.
    outside.ip("address add 10.1.9.9/32 dev lo");
    outside.ip("route add 10.1.0.0/24 via 192.168.77.2");
    node.ns.ip("route add 10.1.9.0/24 via 192.168.77.100");
    assert_eq!(seen_from(&pod, &outside, "10.1.9.9".parse().unwrap()), IpAddr::V4(pod_ip));

    let rules = node.ns.command("nft", "list table ip bramble");
    assert!(rules.contains("type nat hook postrouting priority srcnat"), "{rules}");
    let rule = r#"ip saddr 10.1.0.0/24 ip daddr != 10.1.0.0/16 oifname != "bramble0" masquerade"#;
    assert_eq!(rules.matches(rule).count(), 1, "{rules}");
}

#[test]
fn attaching_again_changes_nothing_and_mends_what_is_broken() {
    let (_lan, node, config) = lone_node();
    let network = node.start(&config);
    let (pod, other) = (Ns::new(), Ns::new());
    let address = node.attach(&network, "pod", &pod);
    let before = pod.ip("-4 -o address show dev eth0");
    assert_eq!(node.attach(&network, "pod", &pod), address);
    assert_eq!(pod.ip("-4 -o address show dev eth0"), before);

    pod.ip("address flush dev eth0");
    pod.ip("link set eth0 down");
    assert_eq!(node.attach(&network, "pod", &pod), address);
    assert_eq!(seen_from(&node.ns, &pod, address.into()), IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)));

    // A new sandbox under the same id.
    assert_eq!(node.attach(&network, "pod", &other), address);
    assert_eq!(seen_from(&node.ns, &other, address.into()), IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)));
    assert!(!pod.ip("-o link").contains("eth0"));
}

#[test]
fn detaching_leaves_nothing() {
    let (_lan, node, config) = lone_node();
    let network = node.start(&config);
    let before = links(&node);
    let pod = Ns::new();
    let address = node.attach(&network, "pod", &pod);
    node.detach(&network, "pod");
    node.detach(&network, "pod");
    assert_eq!(network.address_of("pod"), None);
    assert!(!pod.ip("-o link").contains("eth0"));
    assert_eq!(links(&node), before);
    assert_ne!(node.attach(&network, "next", &pod), address);
}

#[test]
fn removed_it_leaves_nothing() {
    let (_lan, node, config) = lone_node();
    let look = |node: &Node| {
        let local = node.ns.ip("route show table local");
        (node.ns.ip("-o addr"), node.ns.ip("route"), local, node.ns.command("nft", "list tables"))
    };
    node.ns.ip("link set lo up");
    let before = look(&node);
    let network = node.start(&config);
    node.attach(&network, "pod", &Ns::new());
    assert_ne!(look(&node), before);
    drop(network);
    for _ in 0..2 {
        node.block(async { network::remove().await.unwrap() });
        assert_eq!(look(&node), before);
    }
}

#[test]
fn a_failed_attach_keeps_no_address() {
    let (_lan, node, config) = lone_node();
    let network = node.start(&config);
    let attach = |path: &'static str, id: &'static str| {
        let network = network.clone();
        node.block(async move { network.attach(id, Path::new(path)).await })
    };
    assert!(matches!(attach("/nowhere", "pod"), Err(Error::File { .. })));
    assert!(matches!(attach("/proc/self/ns/mnt", "pod"), Err(Error::Netlink { .. } | Error::Namespace(_))));
    assert!(matches!(attach("/proc/self/ns/net", "no/id"), Err(Error::InvalidId(_))));
    assert_eq!(network.address_of("pod"), None);
    assert!(!node.ns.ip("-o link").contains("bramble pod"));
}

#[test]
fn a_restart_disturbs_nobody() {
    let (_lan, node, config) = lone_node();
    let network = node.start(&config);
    let (a, b) = (Ns::new(), Ns::new());
    let (a_ip, b_ip) = (node.attach(&network, "a", &a), node.attach(&network, "b", &b));
    let listener = b.listen("0.0.0.0:7000");
    let mut near = a.connect((b_ip, 7000).into()).unwrap();
    let mut far = listener.accept().unwrap().0;
    let before = links(&node);
    drop(network);

    let network = node.start(&config);
    assert_eq!(links(&node), before);
    exchange(&mut near, &mut far);
    let again = network.clone();
    assert_eq!(node.block(async move { again.attached().await }), ["a", "b"]);
    assert_eq!(node.attach(&network, "a", &a), a_ip);
    assert_eq!(network.address_of("b"), Some(b_ip));
    exchange(&mut near, &mut far);
    // A third pod gets neither address.
    let c_ip = node.attach(&network, "c", &Ns::new());
    assert!(c_ip != a_ip && c_ip != b_ip);
    let rules = node.ns.command("nft", "list table ip bramble");
    assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
}

#[test]
fn a_new_pod_network_replaces_the_old_one() {
    let (_lan, node, config) = lone_node();
    drop(node.start(&config));
    let moved = Config {
        pod_cidr: "10.1.4.0/24".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        ..config
    };
    let network = node.start(&moved);
    let pod = Ns::new();
    let address = node.attach(&network, "pod", &pod);
    assert!(moved.pod_cidr.contains(&address));
    assert_eq!(seen_from(&pod, &node.ns, "10.96.1.2".parse().unwrap()), IpAddr::V4(address));
    let addresses = node.ns.ip("-4 -o address show dev bramble0");
    assert!(addresses.contains("10.1.4.1/24") && addresses.lines().count() == 1, "{addresses}");
    assert!(!node.ns.ip("route show table local").contains("10.0.0.0/24"));
    assert!(node.ns.command("nft", "list table ip bramble").contains("ip saddr 10.1.4.0/24"));
}

#[test]
fn a_foreign_interface_is_not_taken_over() {
    let (_lan, node, config) = lone_node();
    common::cable(&node.ns, "bramble0", &Ns::new(), "other");
    let started = node.block(Network::start(config));
    assert!(matches!(started, Err(Error::Taken { .. })));
}
