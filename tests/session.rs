//! The session of the 2016 talk, typed on node 1 word for word, with the oldest and the newest stock kubectl.

use std::collections::BTreeSet;

use tests::{Lab, NEW_KUBECTL, OLD_KUBECTL};

const WELCOME: &str = "<p>WELCOME TO NGINX</p>";

#[test]
fn the_session_of_2016() {
    let mut lab = Lab::up("talk", "--nodes 3 --subnet 192.168.1.0/24");
    for kubectl in [NEW_KUBECTL, OLD_KUBECTL] {
        lab.with_kubectl(kubectl);
        nodes(&lab);
        my_nginx(&lab);
        hello_kube(&lab);
        lab.ok(1, "kubectl delete service,deployment my-nginx");
        lab.until("no pods left", 60, |lab| lab.pods("run=my-nginx").is_empty().then_some(()));
    }
}

fn nodes(lab: &Lab) {
    let info = lab.ok(1, "kube-config info");
    for line in [
        "Architecture: ",
        "Kernel: Linux ",
        "RAM Memory: ",
        "kubernetes server version: v1.36",
        "role: master",
    ] {
        assert!(info.contains(line), "{line:?} is missing in:\n{info}");
    }
    let nodes = lab.ok(1, "kubectl get nodes");
    assert!(nodes.starts_with("NAME"), "{nodes}");
    assert_eq!(nodes.lines().filter(|l| l.contains(" Ready ")).count(), 3, "{nodes}");
    let info = lab.ok(1, "kubectl cluster-info");
    assert!(info.contains("is running at") && info.contains("https://127.0.0.1:6443"), "{info}");
}

fn my_nginx(lab: &Lab) {
    let made = lab.ok(1, "kubectl run my-nginx --image=luxas/nginx-test --replicas=3 --expose --port=80");
    assert_eq!(made, "service/my-nginx created\ndeployment.apps/my-nginx created\n");
    lab.available("my-nginx", 3);
    let pods = lab.ok(1, "kubectl get pods");
    assert_eq!(pods.lines().filter(|l| l.starts_with("my-nginx-") && l.contains("1/1")).count(), 3, "{pods}");
    let services = lab.ok(1, "kubectl get svc");
    assert!(services.contains("kubernetes") && services.contains("10.0.0.1 "), "{services}");
    let ip = lab.cluster_ip("my-nginx");
    assert!(ip.starts_with("10.0.0."), "{ip}");
    assert!(
        services.lines().any(|l| l.starts_with("my-nginx") && l.contains(&ip) && l.contains("80/TCP")),
        "{services}"
    );
    let deployments = lab.ok(1, "kubectl get deployments");
    assert!(deployments.contains("3/3"), "{deployments}");
    for node in 1..=3 {
        let said = lab.says(node, &format!("curl -s --max-time 5 {ip}"), WELCOME, 10);
        assert_eq!(said.trim(), WELCOME, "node {node}");
    }
    let pod = &lab.pods("run=my-nginx")[0];
    let said = lab.ok(1, &format!("kubectl exec {pod} -- curl -s --max-time 5 {ip}"));
    assert_eq!(said.trim(), WELCOME, "from a pod");
}

fn hello_kube(lab: &Lab) {
    let made = lab.ok(1, "kubectl run hello-kube --image=hypriot/rpi-nano-httpd --replicas=3 --port=80");
    assert_eq!(made, "deployment.apps/hello-kube created\n");
    lab.available("hello-kube", 3);
    lab.ok(
        1,
        "kubectl expose deployment hello-kube --port=8300 --target-port=80 --type=\"LoadBalancer\" --external-ip=\"192.168.1.102\"",
    );
    let ip = lab.cluster_ip("hello-kube");
    for (from, address) in [
        ("1", ip.as_str()),
        ("2", &ip),
        ("1", "192.168.1.102"),
        ("3", "192.168.1.102"),
        ("lan", "192.168.1.102"),
    ] {
        let said = lab.says(from, &format!("curl -s --max-time 5 {address}:8300"), "html", 15);
        assert!(said.to_lowercase().contains("<html"), "{from} -> {address}: {said}");
    }
    across_nodes(lab);
    let deleted = lab.ok(1, "kubectl delete service,deployment hello-kube");
    assert!(
        deleted.contains("service \"hello-kube\" deleted") && deleted.contains("hello-kube\" deleted"),
        "{deleted}"
    );
    lab.until("no pods left", 60, |lab| lab.pods("run=hello-kube").is_empty().then_some(()));
    lab.until("the external address closes", 10, |lab| {
        (lab.types("lan", "curl -s --max-time 2 192.168.1.102:8300").code != 0).then_some(())
    });
}

/// Pods are on more than one node and answer from every node.
fn across_nodes(lab: &Lab) {
    let wide = lab.ok(1, "kubectl get pods -o wide");
    assert!(wide.contains("NODE"), "{wide}");
    let list = lab.get("pods -l run=hello-kube");
    let items = list["items"].as_array().expect("a list");
    let nodes: BTreeSet<&str> = items.iter().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
    assert!(nodes.len() > 1, "all pods are on {nodes:?}");
    for pod in items {
        let ip = pod["status"]["podIP"].as_str().expect("a running pod has an address");
        for node in 1..=3 {
            let said = lab.ok(node, &format!("curl -s --max-time 5 {ip}"));
            assert!(said.to_lowercase().contains("<html"), "node {node} -> {ip}: {said}");
        }
    }
}
