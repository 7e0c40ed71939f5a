//! Serves the pages with sample data on 127.0.0.1, to look at them: `cargo run -p dashboard --example sample [port]`.
//! With `away` as second argument the API goes away after the first look.

#[allow(missing_docs, dead_code)]
#[path = "../tests/fake/mod.rs"]
mod fake;

use fake::{Api, config, event, node, pod, raft};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::time::Duration;

fn ago(seconds: i64) -> String {
    let then = Timestamp::now() - SignedDuration::from_secs(seconds);
    then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn fill(api: &Api) {
    api.put("nodes", node("pi-100", "192.168.1.100", "True", &[], &ago(7_900)));
    api.put("nodes", node("pi-101", "192.168.1.101", "Unknown", &[], &ago(8_000)));
    api.put("nodes", node("pi-102", "192.168.1.102", "True", &["master"], &ago(8_100)));
    let running = json!({ "running": {} });
    for (name, on) in [("rq0hv", "pi-100"), ("t7x2k", "pi-102"), ("w9d4m", "pi-100")] {
        api.put(
            "pods",
            pod(&format!("my-nginx-6f8c7b5d9-{name}"), on, "Running", running.clone(), true, &ago(3_000)),
        );
    }
    for (name, phase, state) in [
        ("hello-kube-5d4f9-8kzlp", "Running", json!({ "waiting": { "reason": "CrashLoopBackOff" } })),
        ("hello-kube-5d4f9-c2v6n", "Pending", json!({ "waiting": { "reason": "ContainerCreating" } })),
        (
            "backup-29384-lq7wd",
            "Succeeded",
            json!({ "terminated": { "exitCode": 0, "reason": "Completed" } }),
        ),
    ] {
        api.put("pods", pod(name, "pi-102", phase, state, false, &ago(400)));
    }
    for (name, kind, ip, external, port) in [
        ("kubernetes", "ClusterIP", "10.0.0.1", json!([]), json!({ "port": 443 })),
        ("my-nginx", "ClusterIP", "10.0.0.37", json!([]), json!({ "port": 80 })),
        (
            "hello-kube",
            "LoadBalancer",
            "10.0.0.55",
            json!(["192.168.1.102"]),
            json!({ "port": 8300, "nodePort": 30123 }),
        ),
    ] {
        api.put(
            "services",
            json!({ "metadata": { "namespace": "default", "name": name, "creationTimestamp": ago(5_000) },
            "spec": { "type": kind, "clusterIP": ip, "externalIPs": external, "ports": [port] } }),
        );
    }
    api.put(
        "events",
        event(
            "a",
            "Normal",
            "Pulled",
            "Container image \"luxas/nginx-test\" already present on machine",
            &ago(75),
        ),
    );
    api.put("events", event("b", "Warning", "BackOff",
        "Back-off restarting failed container hello-kube in pod hello-kube-5d4f9-8kzlp_default(4f0c2c3e-6a51-4f0e-9d2b-1b0b1c1d1e1f)", &ago(12)));
    api.put(
        "events",
        event("c", "Normal", "NodeNotReady", "Node pi-101 status is now: NodeNotReady", &ago(240)),
    );
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(8080), |port| port.parse())?;
    let api = Api::default();
    fill(&api);
    let (status, receiver) = tokio::sync::watch::channel(raft());
    let router = dashboard::router(config(), api.client(), receiver);
    let away = arguments.next().as_deref() == Some("away");
    tokio::spawn(async move {
        if away {
            let mut seen = api.0.subscribe();
            let _ = seen.wait_for(|world| world.open == 4).await;
            api.set_down(true);
            status.send_modify(|raft| raft.leader = None);
        }
        let mut clock = tokio::time::interval(Duration::from_secs(3));
        loop {
            clock.tick().await;
            status.send_modify(|raft| {
                (raft.committed, raft.applied, raft.last_index) =
                    (raft.last_index, raft.last_index, raft.last_index + 1)
            });
        }
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, router).await?;
    Ok(())
}
