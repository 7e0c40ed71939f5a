use k8s_openapi::api::{
    core::v1::{Endpoints, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    kind::Object,
    reconcile::{Controller, Key},
    testing::{Sim, config, run},
    write::Write,
};

fn add_pod(sim: &mut Sim, name: &str, ip: &str, ready: bool, port: i32) {
    sim.add::<Pod>(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"podIP": ip, "phase": "Running",
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    }));
}

fn service(extra: &Value) -> Value {
    let mut spec = json!({"selector": {"app": "web"}, "clusterIP": "10.0.0.7",
        "ports": [{"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn settle(sim: &mut Sim, namespace: &str, name: &str) {
    let now = Instant::now();
    for _ in 0..10 {
        let seed = sim.revision;
        let world = sim.world(now);
        let mut writes =
            run(&world, &Key::new(Controller::Endpoints, namespace, name), &config(), now, seed).writes;
        writes.extend(
            run(&world, &Key::new(Controller::EndpointSlices, namespace, name), &config(), now, seed).writes,
        );
        if writes.is_empty() {
            return;
        }
        sim.execute(writes).1.unwrap();
    }
    panic!("does not come to rest");
}

type View = (Vec<(String, i32)>, Vec<(String, i32)>, Vec<(String, i32, bool)>);

/// Ready and other addresses with their port, of Endpoints and of slices.
fn view(sim: &Sim, name: &str) -> View {
    let endpoints = sim.get::<Endpoints>("default", name).unwrap();
    let (mut ready, mut other) = (Vec::new(), Vec::new());
    for subset in endpoints.subsets.unwrap_or_default() {
        let port = subset.ports.unwrap_or_default().first().map_or(0, |p| p.port);
        ready.extend(subset.addresses.unwrap_or_default().into_iter().map(|a| (a.ip, port)));
        other.extend(subset.not_ready_addresses.unwrap_or_default().into_iter().map(|a| (a.ip, port)));
    }
    let mut sliced = Vec::new();
    for slice in sim.all::<EndpointSlice>() {
        let port = slice.ports.unwrap_or_default().first().and_then(|p| p.port).unwrap_or(0);
        for e in slice.endpoints.unwrap_or_default() {
            sliced.push((e.addresses[0].clone(), port, e.conditions.unwrap().ready.unwrap()));
        }
    }
    sliced.sort();
    (ready, other, sliced)
}

#[test]
fn named_ports_readiness_and_ends() {
    let mut sim = Sim::new();
    sim.add::<Service>(service(&json!({})));
    settle(&mut sim, "default", "web");
    assert_eq!(sim.all::<EndpointSlice>().len(), 1, "an empty slice says: nobody");
    add_pod(&mut sim, "a", "10.1.0.2", true, 8080);
    add_pod(&mut sim, "b", "10.1.0.3", false, 8080);
    add_pod(&mut sim, "c", "10.1.0.4", true, 9090);
    settle(&mut sim, "default", "web");
    let (ready, other, sliced) = view(&sim, "web");
    assert_eq!(ready, vec![("10.1.0.2".into(), 8080), ("10.1.0.4".into(), 9090)]);
    assert_eq!(other, vec![("10.1.0.3".into(), 8080)]);
    assert_eq!(
        sliced,
        vec![
            ("10.1.0.2".into(), 8080, true),
            ("10.1.0.3".into(), 8080, false),
            ("10.1.0.4".into(), 9090, true)
        ]
    );
    sim.edit::<Pod>("default", "a", |v| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z"));
    settle(&mut sim, "default", "web");
    let (ready, _, sliced) = view(&sim, "web");
    assert_eq!(ready, vec![("10.1.0.4".into(), 9090)]);
    assert_eq!(sliced[0], ("10.1.0.2".into(), 8080, false), "terminating, but still there");
}

#[test]
fn unready_addresses_may_be_published() {
    let mut sim = Sim::new();
    sim.add::<Service>(service(&json!({"clusterIP": "None", "publishNotReadyAddresses": true})));
    add_pod(&mut sim, "a", "10.1.0.2", false, 8080);
    settle(&mut sim, "default", "web");
    assert_eq!(view(&sim, "web").0, vec![("10.1.0.2".into(), 8080)]);
    assert_eq!(view(&sim, "web").2, vec![("10.1.0.2".into(), 8080, true)]);
}

#[test]
fn slices_hold_a_hundred_and_keep_their_places() {
    let mut sim = Sim::new();
    sim.add::<Service>(service(&json!({})));
    for i in 0..250 {
        add_pod(&mut sim, &format!("p{i}"), &format!("10.1.{}.{}", i / 100, i % 100 + 2), true, 80);
    }
    settle(&mut sim, "default", "web");
    let sizes = |sim: &Sim| {
        let mut sizes: Vec<usize> =
            sim.all::<EndpointSlice>().iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&sim), vec![50, 100, 100]);
    let revision = sim.revision;
    let gone = sim.all::<Pod>().into_iter().find(|p| p.metadata.name.as_deref() == Some("p7")).unwrap();
    sim.remove(&(<Pod as crate::kind::Typed>::KIND, "default".into(), gone.metadata.name.unwrap()));
    settle(&mut sim, "default", "web");
    assert_eq!(sizes(&sim).iter().sum::<usize>(), 249);
    assert!(sim.revision <= revision + 3, "one slice and the endpoints changed, not all");
}

#[test]
fn the_api_is_on_every_ready_node() {
    let mut sim = Sim::new();
    sim.add::<Service>(json!({"metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}}));
    for (name, ip, ready) in
        [("a", "192.168.1.100", "True"), ("b", "192.168.1.101", "Unknown"), ("c", "192.168.1.102", "True")]
    {
        sim.add::<Node>(json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": ip}], "conditions": [{"type": "Ready", "status": ready}]}}));
    }
    settle(&mut sim, "default", "kubernetes");
    assert_eq!(
        view(&sim, "kubernetes").0,
        vec![("192.168.1.100".into(), 6443), ("192.168.1.102".into(), 6443)]
    );
    assert_eq!(sim.all::<EndpointSlice>()[0].metadata.name.as_deref(), Some("kubernetes"));
}

#[test]
fn a_control_plane_without_nodes_leads_to_itself() {
    let mut sim = Sim::new();
    sim.add::<Service>(json!({"metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}}));
    let now = Instant::now();
    // No endpoint may be a loopback address.
    let api_addresses = vec!["127.0.0.1".parse().unwrap(), "192.168.1.9".parse().unwrap()];
    let config = crate::Config { api_addresses, ..config() };
    let key = Key::new(Controller::Endpoints, "default", "kubernetes");
    let outcome = run(&sim.world(now), &key, &config, now, 1);
    let Write::Create { object: Object::Endpoints(made), .. } = &outcome.writes[0] else {
        panic!("{:?}", outcome.writes)
    };
    let addresses = made.subsets.iter().flatten().flat_map(|s| s.addresses.iter().flatten());
    assert_eq!(addresses.map(|a| a.ip.as_str()).collect::<Vec<_>>(), ["192.168.1.9"]);
}
