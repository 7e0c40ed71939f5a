//! The status pages, in a real browser and without one.

use std::process::Command;

use tests::Lab;

#[test]
fn the_pages_show_the_cluster() {
    let lab = Lab::up("pages", "--nodes 3");
    lab.three_vote(1);
    lab.ok(1, "kubectl run seen --image=luxas/nginx-test --replicas=2 --expose --port=80");
    lab.available("seen", 2);

    // Without JavaScript, from every node.
    for node in 1..=3 {
        let page = lab.ok("lan", &format!("curl -s --max-time 10 http://{}:8080/", lab.address(node)));
        for text in ["node1", "node2", "node3", "seen-", "leader", "SuccessfulCreate"] {
            assert!(page.contains(text), "node {node} does not show {text:?}:\n{page}");
        }
    }
    let status: serde_json::Value =
        serde_json::from_str(&lab.ok(2, "curl -s http://127.0.0.1:8080/api/status")).expect("JSON");
    assert_eq!(status["raft"]["voters"].as_array().map(Vec::len), Some(3), "{status}");
    let metrics = lab.ok(3, "curl -s http://127.0.0.1:8080/metrics");
    assert!(metrics.contains("# TYPE"), "{metrics}");

    // Nothing can be changed, and no secret is shown.
    lab.ok(1, "kubectl create secret generic hidden --from-literal=password=correct-horse");
    let page = lab.ok(1, "curl -s http://127.0.0.1:8080/; curl -s http://127.0.0.1:8080/api/status");
    assert!(!page.contains("correct-horse") && !page.contains("PRIVATE KEY"));
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let line = format!("curl -s -o /dev/null -w '%{{http_code}}' -X {method} http://127.0.0.1:8080/");
        assert_eq!(lab.ok(1, &line), "405", "{method}");
    }

    browser(&lab);
}

/// A browser that runs the page's script sees a change without loading the page again.
fn browser(lab: &Lab) {
    let url = format!("http://127.0.0.1:{}/", lab.page_port());
    let picture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../out/page.png");
    let profile = std::env::temp_dir().join(format!("bramble-browser-{}", std::process::id()));
    let chromium = |more: &[String]| {
        let output = Command::new("timeout")
            .args([
                "60",
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(more)
            .output()
            .expect("chromium is installed by hack/setup --test");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shot = [format!("--screenshot={}", picture.display()), "--window-size=1280,1600".into(), url.clone()];
    chromium(&shot);
    assert!(std::fs::metadata(&picture).is_ok_and(|m| m.len() > 10_000), "no picture of the page");
    lab.ok(1, "kubectl create deployment later --image=luxas/nginx-test");
    let dom = chromium(&["--dump-dom".into(), url]);
    assert!(dom.contains("node3") && dom.contains("later-"), "{dom}");
    let _ = std::fs::remove_dir_all(profile);
}
