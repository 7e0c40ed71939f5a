//! metrics.k8s.io, through a played kubelet.

use super::kubelet::{Played, bound};
use super::*;

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// A node with a pod that says what they use.
async fn world() -> World {
    let cpu = |nanocores: Value| json!({"time": "2026-01-02T03:04:05.678Z", "usageCoreNanoSeconds": 1, "usageNanoCores": nanocores, "windowSeconds": 15.0025});
    let memory = |bytes: u64| json!({"workingSetBytes": bytes});
    let world = World::with(Arc::new(Played::default()), 64).await;
    bound(&world, "web", pod("web")).await;
    bound(&world, "new", pod("new")).await;
    let uid = |pod: Value| pod["metadata"]["uid"].clone();
    let web = uid(world.get(&format!("{PODS}/web")).await.ok(200));
    let new = uid(world.get(&format!("{PODS}/new")).await.ok(200));
    let mut unknown = cpu(Value::Null);
    unknown.as_object_mut().unwrap().remove("usageNanoCores");
    let summary = json!({"node": {"nodeName": "n1", "cpu": cpu(json!(250_000_000)), "memory": memory(64 << 20)}, "pods": [
        {"podRef": {"uid": web}, "containers": [{"name": "main", "cpu": cpu(json!(1_500_000)), "memory": memory(2 << 20)}]},
        {"podRef": {"uid": new}, "containers": [{"name": "main", "cpu": unknown, "memory": memory(1)}]}]});
    // The same objects, and a kubelet that has measured.
    world.with_kubelets(Arc::new(Played { summary, ..Played::default() })).await
}

#[tokio::test]
async fn nodes_and_pods_tell_what_they_use() {
    let world = world().await;
    let nodes = world.get(&format!("{METRICS}/nodes")).await.ok(200);
    assert_eq!(nodes["kind"], "NodeMetricsList");
    assert_eq!(nodes["items"][0]["metadata"]["name"], "n1");
    assert_eq!(nodes["items"][0]["usage"], json!({"cpu": "250000000n", "memory": "65536Ki"}));
    assert_eq!(nodes["items"][0]["timestamp"], "2026-01-02T03:04:05Z");
    assert_eq!(nodes["items"][0]["window"], "15.003s");
    let pods = world.get(&format!("{METRICS}/namespaces/default/pods?labelSelector=run")).await.ok(200);
    assert_eq!(pods["items"].as_array().unwrap().len(), 1, "what is not measured yet is left out: {pods}");
    let web = world.get(&format!("{METRICS}/namespaces/default/pods/web")).await.ok(200);
    assert_eq!(web["kind"], "PodMetrics");
    assert_eq!(web["metadata"]["labels"], json!({"run": "web"}));
    assert_eq!(
        web["containers"],
        json!([{"name": "main", "usage": {"cpu": "1500000n", "memory": "2048Ki"}}])
    );
    let none = world.get(&format!("{METRICS}/pods?labelSelector=run=other")).await.ok(200);
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn what_is_not_measured_is_not_there() {
    let world = world().await;
    let pods = format!("{METRICS}/namespaces/default/pods");
    let (reason, message) = world.get(&format!("{pods}/new")).await.failure(404);
    assert_eq!((reason.as_str(), message.as_str()), ("NotFound", "pods.metrics.k8s.io \"new\" not found"));
    world.get(&format!("{pods}/none")).await.failure(404);
    world.post(&pods, json!({"metadata": {"name": "a"}})).await.failure(405);
    world.get(&format!("{pods}?watch=true")).await.failure(405);
    world.delete(&format!("{pods}/web"), Value::Null).await.failure(405);
    // A node that cannot be asked is left out.
    let alone = world.with_kubelets(Arc::new(NoKubelets)).await;
    assert_eq!(alone.get(&format!("{METRICS}/nodes")).await.ok(200)["items"], json!([]));
}
