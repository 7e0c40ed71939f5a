//! Addresses and ports of Services.

use super::*;
use std::collections::BTreeSet;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut service =
        json!({"metadata": {"name": name}, "spec": {"selector": {"run": name}, "ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

#[tokio::test]
async fn the_api_has_the_first_address() {
    let world = World::new().await;
    let own = world.get(&format!("{SERVICES}/kubernetes")).await.ok(200);
    assert_eq!(own["spec"]["clusterIP"], "10.0.0.1");
    // Again is no error.
    world.api.bootstrap().await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_taken_or_elsewhere_is_refused() {
    let world = World::new().await;
    let dns = world.made(SERVICES, service("dns", json!({"clusterIP": "10.0.0.10"}))).await;
    assert_eq!(dns["spec"]["clusterIPs"], json!(["10.0.0.10"]));
    let (_, message) =
        world.post(SERVICES, service("b", json!({"clusterIP": "10.0.0.10"}))).await.failure(422);
    assert!(message.contains("provided IP is already allocated"), "{message}");
    let (_, message) =
        world.post(SERVICES, service("b", json!({"clusterIP": "10.9.0.1"}))).await.failure(422);
    assert!(message.contains("not in the valid range. The range of valid IPs is 10.0.0.0/24"), "{message}");
    let headless = world.made(SERVICES, service("c", json!({"clusterIP": "None"}))).await;
    assert_eq!(headless["spec"]["clusterIP"], "None");
}

#[tokio::test]
async fn an_address_is_kept_by_updates_and_freed_by_the_delete() {
    let world = World::new().await;
    let made = world.made(SERVICES, service("a", json!({"type": "NodePort"}))).await;
    let (ip, port) = (made["spec"]["clusterIP"].clone(), made["spec"]["ports"][0]["nodePort"].clone());
    assert!((30_000..=32_767).contains(&port.as_i64().unwrap()), "{port}");
    let path = format!("{SERVICES}/a");
    let again = world
        .put(&path, service("a", json!({"type": "NodePort", "sessionAffinity": "ClientIP"})))
        .await
        .ok(200);
    assert_eq!((&again["spec"]["clusterIP"], &again["spec"]["ports"][0]["nodePort"]), (&ip, &port));
    let inside = world.put(&path, service("a", json!({"type": "ClusterIP"}))).await.ok(200);
    assert_eq!(inside["spec"]["ports"][0].get("nodePort"), None);
    let wanted = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    world.made(SERVICES, service("b", wanted.clone())).await;
    assert_eq!(world.post(SERVICES, service("c", wanted)).await.code, 422);
    world.delete(&path, Value::Null).await.ok(200);
    world.made(SERVICES, service("d", json!({"clusterIP": ip}))).await;
}

#[tokio::test]
async fn services_made_at_once_share_nothing() {
    let world = Arc::new(World::new().await);
    let makers: Vec<_> = (0..120)
        .map(|i| {
            let world = world.clone();
            tokio::spawn(async move {
                world.made(SERVICES, service(&format!("s{i}"), json!({"type": "NodePort"}))).await
            })
        })
        .collect();
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for maker in makers {
        let made = maker.await.unwrap();
        addresses.insert(text(&made["spec"]["clusterIP"]));
        ports.insert(made["spec"]["ports"][0]["nodePort"].as_i64().unwrap());
    }
    assert_eq!((addresses.len(), ports.len()), (120, 120));
    assert!(!addresses.contains("10.0.0.1") && !addresses.contains("10.0.0.10"));
}

#[tokio::test]
async fn a_full_range_says_so() {
    let world = World::new().await;
    // 254 hosts, less the API's and the one kept for DNS.
    for i in 0..252 {
        world.made(SERVICES, service(&format!("s{i}"), json!({}))).await;
    }
    let (_, message) = world.post(SERVICES, service("late", json!({}))).await.failure(500);
    assert!(message.contains("range is full"), "{message}");
    world.made(SERVICES, service("dns", json!({"clusterIP": "10.0.0.10"}))).await;
}
