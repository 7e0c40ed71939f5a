use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, RecordType},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};

use super::{Resolution, resolve};
use crate::zone::{Zone, parse_domain};

fn services() -> Vec<Service> {
    let service =
        |name: &str, spec: Value| json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    [
        service("web", json!({"clusterIP": "10.0.0.5", "ports": ports})),
        service("db", json!({"clusterIP": "None", "ports": ports})),
        service("idle", json!({"clusterIP": "None"})),
        service("out", json!({"type": "ExternalName", "externalName": "example.org"})),
        service("in", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"})),
    ]
    .into_iter()
    .map(|value| serde_json::from_value(value).unwrap())
    .collect()
}

fn slices() -> Vec<EndpointSlice> {
    let endpoints = json!([
        {"addresses": ["10.1.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.1.1.3"], "conditions": {"ready": true}},
        {"addresses": ["10.1.1.4"], "conditions": {"ready": false}},
    ]);
    let slice = json!({"metadata": {"name": "db-x", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
    vec![serde_json::from_value(slice).unwrap()]
}

pub(crate) fn zone() -> Zone {
    let reverse = vec!["10.0.0.0/24".parse().unwrap(), "10.1.0.0/16".parse().unwrap()];
    Zone::new(parse_domain("Cluster.Local").unwrap(), reverse, 7, services().iter(), slices().iter())
}

fn show(data: &RData) -> String {
    match data {
        RData::A(a) => a.0.to_string(),
        RData::CNAME(name) => format!("-> {}", name.0),
        RData::PTR(name) => name.0.to_string(),
        RData::SRV(srv) => format!("{}:{}", srv.target, srv.port),
        RData::SOA(_) => "soa".to_owned(),
        RData::TXT(txt) => txt.to_string(),
        other => format!("{other:?}"),
    }
}

/// The answer as text: records, or the reason why there are none.
fn ask(name: &str, kind: RecordType) -> String {
    let name = Name::from_ascii(name).unwrap();
    let Resolution::Here(answer) = resolve(&zone(), &name, kind, 0) else { return "upstream".to_owned() };
    let mut list: Vec<String> = answer.records.iter().map(|r| show(&r.data)).collect();
    list.extend(answer.elsewhere.map(|name| format!("ask {name}")));
    if list.is_empty() {
        assert_eq!(show(&answer.authority[0].data), "soa", "a no says how long it lasts");
        return if answer.code == ResponseCode::NXDomain { "nxdomain" } else { "nodata" }.to_owned();
    }
    assert_eq!(answer.code, ResponseCode::NoError);
    list.join(" ")
}

#[test]
fn names() {
    use RecordType::{A, AAAA, ANY, CNAME, PTR, SOA, SRV, TXT};
    for (name, kind, expect) in [
        ("web.default.svc.cluster.local.", A, "10.0.0.5"),
        ("WEB.Default.SVC.cluster.LOCAL.", A, "10.0.0.5"),
        ("web.default.svc.cluster.local.", AAAA, "nodata"),
        ("web.default.svc.cluster.local.", ANY, "10.0.0.5"),
        ("nope.default.svc.cluster.local.", A, "nxdomain"),
        ("web.other.svc.cluster.local.", A, "nxdomain"),
        ("default.svc.cluster.local.", A, "nodata"),
        ("other.svc.cluster.local.", A, "nxdomain"),
        ("svc.cluster.local.", A, "nodata"),
        ("cluster.local.", SOA, "soa"),
        ("cluster.local.", A, "nodata"),
        ("google.com.cluster.local.", A, "nxdomain"),
        ("db.default.svc.cluster.local.", A, "10.1.0.2 10.1.1.3"),
        ("idle.default.svc.cluster.local.", A, "nxdomain"),
        ("db-0.db.default.svc.cluster.local.", A, "10.1.0.2"),
        ("10-1-1-3.db.default.svc.cluster.local.", A, "10.1.1.3"),
        ("10-1-1-4.db.default.svc.cluster.local.", A, "nxdomain"),
        ("_http._tcp.web.default.svc.cluster.local.", SRV, "web.default.svc.cluster.local.:80"),
        (
            "_http._tcp.db.default.svc.cluster.local.",
            SRV,
            "db-0.db.default.svc.cluster.local.:8080 10-1-1-3.db.default.svc.cluster.local.:8080",
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, "nxdomain"),
        ("_tcp.web.default.svc.cluster.local.", A, "nodata"),
        ("1-2-3-4.any.pod.cluster.local.", A, "1.2.3.4"),
        ("1-2-3.any.pod.cluster.local.", A, "nxdomain"),
        ("out.default.svc.cluster.local.", A, "-> example.org. ask example.org."),
        ("out.default.svc.cluster.local.", CNAME, "-> example.org."),
        ("in.default.svc.cluster.local.", A, "-> web.default.svc.cluster.local. 10.0.0.5"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("5.0.0.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
        ("2.0.1.10.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
        ("9.0.0.10.in-addr.arpa.", PTR, "nxdomain"),
        ("8.8.8.8.in-addr.arpa.", PTR, "upstream"),
        ("example.org.", A, "upstream"),
        ("evilcluster.local.", A, "upstream"),
        (".", A, "upstream"),
    ] {
        assert_eq!(ask(name, kind), expect, "{name} {kind}");
    }
}

#[test]
fn aliases_in_a_circle_end() {
    let answer = ask("loop.default.svc.cluster.local.", RecordType::A);
    assert_eq!(answer.matches("->").count(), super::ALIAS_BOUND);
}

#[test]
fn lists_turn() {
    let name = Name::from_ascii("db.default.svc.cluster.local.").unwrap();
    let first = |turn| match resolve(&zone(), &name, RecordType::A, turn) {
        Resolution::Here(answer) => show(&answer.records[0].data),
        Resolution::Upstream => unreachable!("in the zone"),
    };
    assert_ne!(first(0), first(1));
}
