use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn config() -> Config {
    Config {
        reserved: vec!["10.0.0.10:53".parse().unwrap()],
        ..Config::new("pi-1", "10.0.0.0/24".parse().unwrap(), vec!["192.168.1.7".parse().unwrap()])
    }
}

fn service(name: &str, spec: Value) -> Service {
    let object = json!({"metadata": {"namespace": "default", "name": name, "uid": "u"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn slice(service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    let labels = json!({SERVICE_LABEL: service});
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": format!("{service}-1"), "labels": labels},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    }))
    .unwrap()
}

/// The table as text: one line a frontend.
fn check(services: &[Service], slices: &[EndpointSlice], expect: &[&str]) {
    let table = build(&config(), services, slices);
    let lines: Vec<String> = table
        .iter()
        .map(|(frontend, backends)| {
            let endpoints: Vec<String> = backends.endpoints.iter().map(ToString::to_string).collect();
            format!("{:?} {} -> {}", frontend.protocol, frontend.address, endpoints.join(" "))
                .trim_end()
                .to_owned()
        })
        .collect();
    assert_eq!(lines, expect);
}

fn web() -> Service {
    service("web", json!({"clusterIP": "10.0.0.5", "ports": [{"port": 80}]}))
}

fn tcp(port: u16) -> Value {
    json!([{"name": "", "port": port, "protocol": "TCP"}])
}

#[test]
fn only_ready_endpoints_unless_none_is() {
    let states = |first: Value, second: Value| {
        json!([
            {"addresses": ["10.1.0.2"], "conditions": first},
            {"addresses": ["10.1.0.3"], "conditions": second},
        ])
    };
    let (ready, not) = (json!({"ready": true}), json!({"ready": false, "serving": false}));
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let cases = [
        (json!({}), ready.clone(), "10.1.0.2:8080 10.1.0.3:8080"),
        (ready.clone(), not.clone(), "10.1.0.2:8080"),
        (ready, leaving.clone(), "10.1.0.2:8080"),
        (not.clone(), leaving, "10.1.0.3:8080"),
        (not.clone(), not, ""),
    ];
    for (first, second, expect) in cases {
        let line = format!("Tcp 10.0.0.5:80 -> {expect}");
        check(&[web()], &[slice("web", tcp(8080), states(first, second))], &[line.trim_end()]);
    }
}

#[test]
fn a_service_may_publish_endpoints_that_are_not_ready() {
    let spec = json!({"clusterIP": "10.0.0.5", "ports": [{"port": 80}], "publishNotReadyAddresses": true});
    let slice = slice("web", tcp(80), json!([{"addresses": ["10.1.0.2"], "conditions": {"ready": false}}]));
    check(&[service("web", spec)], &[slice], &["Tcp 10.0.0.5:80 -> 10.1.0.2:80"]);
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "sctp", "port": 99, "protocol": "SCTP"}, {"name": "none", "port": 7},
    ]);
    let service = service("dns", json!({"clusterIP": "10.0.0.20", "ports": ports}));
    let targets = json!([
        {"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354, "protocol": "TCP"},
        {"name": "dns", "port": 1, "protocol": "TCP"}, {"name": "dns-tcp", "protocol": "TCP"},
    ]);
    let slice = slice("dns", targets, json!([{"addresses": ["10.1.0.2"]}]));
    let expect =
        ["Tcp 10.0.0.20:7 ->", "Tcp 10.0.0.20:53 -> 10.1.0.2:5354", "Udp 10.0.0.20:53 -> 10.1.0.2:5353"];
    check(&[service], &[slice], &expect);
}

#[test]
fn every_kind_of_address_is_a_frontend_if_it_is_this_nodes() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.0.0.5", "ports": [{"port": 80, "nodePort": 30080}],
        "externalIPs": ["192.168.1.7", "8.8.8.8"], "loadBalancerSourceRanges": ["10.9.0.0/16", "bad"],
    });
    let mut service = service("web", spec);
    service.status = serde_json::from_value(
        json!({"loadBalancer": {"ingress": [{"ip": "192.168.1.7"}, {"ip": "192.168.1.8"}]}}),
    )
    .unwrap();
    let expect = ["Tcp 0.0.0.0:30080 ->", "Tcp 10.0.0.5:80 ->", "Tcp 192.168.1.7:80 ->"];
    check(&[service.clone()], &[], &expect);
    service.spec.as_mut().unwrap().external_ips = None;
    let table = build::<_, EndpointSlice>(&config(), &[service], &[]);
    let sources = |address: &str| {
        let frontend = Frontend { protocol: Protocol::Tcp, address: address.parse().unwrap() };
        table[&frontend].sources.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(sources("192.168.1.7:80"), ["10.9.0.0/16", "0.0.0.0/32"]);
    assert!(sources("10.0.0.5:80").is_empty());
}

#[test]
fn services_without_an_address_of_ours_are_left_out() {
    let ports = json!([{"port": 80}]);
    let without = [
        service("headless", json!({"clusterIP": "None", "ports": ports})),
        service("fresh", json!({"ports": ports})),
        service("elsewhere", json!({"clusterIP": "192.168.1.7", "ports": ports})),
        service("name", json!({"type": "ExternalName", "clusterIP": "10.0.0.9", "ports": ports})),
        service(
            "port",
            json!({"clusterIP": "10.0.0.9", "ports": [{"port": 0}, {"port": 70000}, {"port": -1}]}),
        ),
        service("reserved", json!({"clusterIP": "10.0.0.10", "ports": [{"port": 53, "protocol": "UDP"}]})),
        Service::default(),
    ];
    check(&without, &[], &[]);
}

#[test]
fn traffic_policy_local_means_this_node() {
    let spec = json!({
        "clusterIP": "10.0.0.5", "ports": [{"port": 80, "nodePort": 30080}],
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
    });
    let endpoints = json!([
        {"addresses": ["10.1.0.2"], "nodeName": "pi-1"}, {"addresses": ["10.1.1.2"], "nodeName": "pi-2"},
        {"addresses": ["10.1.2.2"]},
    ]);
    let slice = slice("web", tcp(80), endpoints);
    let all = "Tcp 10.0.0.5:80 -> 10.1.0.2:80 10.1.1.2:80 10.1.2.2:80";
    check(&[service("web", spec)], std::slice::from_ref(&slice), &["Tcp 0.0.0.0:30080 -> 10.1.0.2:80", all]);
    let spec = json!({"clusterIP": "10.0.0.5", "ports": [{"port": 80}], "internalTrafficPolicy": "Local"});
    check(&[service("web", spec)], &[slice], &["Tcp 10.0.0.5:80 -> 10.1.0.2:80"]);
}

#[test]
fn several_slices_are_one_set_and_other_services_slices_are_none() {
    let slices = [
        slice("web", tcp(80), json!([{"addresses": ["10.1.0.3"]}, {"addresses": ["10.1.0.2"]}])),
        slice(
            "web",
            tcp(80),
            json!([{"addresses": ["10.1.0.3"]}, {"addresses": ["nonsense"]}, {"addresses": []}]),
        ),
        slice("other", tcp(80), json!([{"addresses": ["10.1.0.9"]}])),
    ];
    check(&[web()], &slices, &["Tcp 10.0.0.5:80 -> 10.1.0.2:80 10.1.0.3:80"]);
}

#[test]
fn the_first_of_two_claims_holds() {
    let claim = |name: &str| service(name, json!({"clusterIP": "10.0.0.5", "ports": [{"port": 80}]}));
    let table = build::<_, EndpointSlice>(&config(), &[claim("b"), claim("a")], &[]);
    assert_eq!(table.values().map(|backends| backends.service.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn affinity_is_read() {
    let affinity = |more: Value| {
        let mut spec = json!({"clusterIP": "10.0.0.5", "ports": [{"port": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        build::<_, EndpointSlice>(&config(), &[service("web", spec)], &[])
            .into_values()
            .next()
            .unwrap()
            .affinity
    };
    assert_eq!(affinity(json!({})), None);
    assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), Some(Duration::from_secs(10_800)));
    let config =
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}});
    assert_eq!(affinity(config), Some(Duration::from_secs(5)));
}

fn tables() -> impl Strategy<Value = Table> {
    let frontend = (any::<bool>(), 1_u8..5, 1_u16..4).prop_map(|(tcp, host, port)| Frontend {
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
        address: SocketAddr::from(([10, 0, 0, host], port)),
    });
    let backends = proptest::collection::vec(1_u8..5, 0..3).prop_map(|hosts| Backends {
        endpoints: hosts.into_iter().map(|host| SocketAddr::from(([10, 1, 0, host], 80))).collect(),
        ..Backends::default()
    });
    proptest::collection::btree_map(frontend, backends, 0..12)
}

proptest! {
    #[test]
    fn the_difference_leads_from_one_table_to_the_other(current in tables(), wanted in tables()) {
        let mut table = current.clone();
        let mut opened = false;
        for action in diff(&current, &wanted) {
            match action {
                Action::Close(frontend) => {
                    prop_assert!(!opened && table.remove(&frontend).is_some());
                }
                Action::Open(frontend, backends) => {
                    opened = true;
                    prop_assert!(table.insert(frontend, backends).is_none());
                }
                Action::Update(frontend, backends) => {
                    prop_assert!(table.insert(frontend, backends.clone()).is_some_and(|old| old != backends));
                }
            }
        }
        prop_assert_eq!(&table, &wanted);
        prop_assert!(diff(&table, &wanted).is_empty());
    }
}

#[test]
fn nothing_is_forwarded_in_a_circle() {
    let looped = service(
        "web",
        json!({"clusterIP": "10.0.0.5", "externalIPs": ["192.168.1.7"], "type": "NodePort",
               "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let ports = json!([{"name": "", "port": 80, "protocol": "TCP"}]);
    // The service itself, another service, this node's external address; and one that is right.
    let addresses = ["10.0.0.5", "10.0.0.9", "192.168.1.7", "192.168.1.8"];
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    let expect = [
        "Tcp 0.0.0.0:30080 -> 192.168.1.8:80",
        "Tcp 10.0.0.5:80 -> 192.168.1.8:80",
        "Tcp 192.168.1.7:80 -> 192.168.1.8:80",
    ];
    check(&[looped], &[slice("web", ports, json!(endpoints))], &expect);
    // A node port leads to itself by every address of the node.
    let node_port = service(
        "web",
        json!({"clusterIP": "10.0.0.5", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let back = json!([{"addresses": ["192.168.1.7"]}]);
    let expect = ["Tcp 0.0.0.0:30080 ->", "Tcp 10.0.0.5:80 ->"];
    check(&[node_port], &[slice("web", tcp(30080), back)], &expect);
}
