//! Who is let in, and what a wrong command line or a bad request gets.

use tests::Lab;

#[test]
fn strangers_and_mistakes() {
    let lab = Lab::up("trust", "--nodes 3 --no-enable");
    let ip1 = lab.address(1);
    before_there_is_a_cluster(&lab, &ip1);
    lab.ok(1, "kube-config enable-master");
    let again = lab.fails(1, "kube-config enable-master");
    assert!(again.contains("already") && again.contains("disable-node"), "{again}");
    anonymous(&lab, &ip1);
    joins(&lab, &ip1);
    bad_requests(&lab);
}

fn before_there_is_a_cluster(lab: &Lab, ip1: &str) {
    lab.until("agents answer", 30, |lab| {
        (1..=3).all(|n| lab.types(n, "kube-config info").out.contains("role: none")).then_some(())
    });
    let error = lab.fails(2, "kube-config enable-worker 127.0.0.1");
    assert!(error.contains("127.0.0.1 is this node itself"), "{error}");
    let error = lab.fails(2, "kube-config enable-worker 300.1.2.3");
    assert!(error.contains("300.1.2.3"), "{error}");
    let error = lab.fails(2, &format!("kube-config enable-worker {ip1}"));
    assert!(error.contains("no Bramble node answers") && error.contains("enable-master"), "{error}");
    // A port that is taken is found out before anything is changed.
    let line = "python3 -m http.server 6443 >/dev/null 2>&1 & pid=$!; \
        until ss -ltn | grep -q :6443; do :; done; kube-config enable-master; code=$?; kill $pid; exit $code";
    let error = lab.fails(1, line);
    assert!(error.contains("6443") && error.contains("in use"), "{error}");
    assert!(lab.ok(1, "kube-config info").contains("role: none"));
}

fn anonymous(lab: &Lab, ip1: &str) {
    let code = |args: &str| lab.ok("lan", &format!("curl -sk -o /dev/null -w '%{{http_code}}' {args}"));
    assert_eq!(code(&format!("https://{ip1}:6443/api/v1/pods")), "401");
    assert_eq!(code(&format!("-H 'Authorization: Bearer nonsense' https://{ip1}:6443/api/v1/pods")), "401");
    assert_eq!(code(&format!("https://{ip1}:6443/healthz")), "200");
    // The kubelet takes nobody without a certificate.
    assert_ne!(lab.types("lan", &format!("curl -sk --max-time 5 https://{ip1}:10250/pods")).code, 0);
    // A node's certificate is no administrator's.
    let line = "curl -s --cacert /var/lib/bramble/pki/ca.crt --cert /var/lib/bramble/pki/node.crt \
        --key /var/lib/bramble/pki/node.key -o /dev/null -w '%{http_code}' -X DELETE https://127.0.0.1:6443/api/v1/namespaces/default";
    assert_eq!(lab.ok(1, line), "403");
    // The page changes nothing.
    assert_eq!(code(&format!("-X POST http://{ip1}:8080/")), "405");
}

fn joins(lab: &Lab, ip1: &str) {
    // A card of another batch.
    lab.ok(2, "sed -i 's/^cluster_secret.*/cluster_secret = \"00000000000000000000000000000000\"/' /etc/bramble/config.toml");
    lab.act(2, "--restart-agent");
    lab.until("the agent is back", 30, |lab| {
        (lab.types(2, "kube-config info").out.contains("role: none")).then_some(())
    });
    let error = lab.fails(2, &format!("kube-config enable-worker {ip1}"));
    assert!(error.contains("secret"), "{error}");
    assert!(lab.ok(2, "kube-config info").contains("role: none"));
    // With a token it joins all the same.
    let token = lab.ok(1, "kube-config token");
    let wrong = format!("{}x", token.trim());
    let error = lab.fails(2, &format!("kube-config enable-worker {ip1} --token {wrong}"));
    assert!(error.contains("secret"), "{error}");
    lab.ok(2, &format!("kube-config enable-worker {ip1} --token {}", token.trim()));
    // A host that is something else.
    lab.ok("lan", "cd /tmp && nohup python3 -m http.server 6443 >/dev/null 2>&1 & true");
    let lan = format!("{}.1", ip1.rsplit_once('.').expect("an address").0);
    lab.until("the web server listens", 10, |lab| {
        (lab.types("lan", &format!("curl -s -o /dev/null http://{lan}:6443/")).code == 0).then_some(())
    });
    let error = lab.fails(3, &format!("kube-config enable-worker {lan}"));
    assert!(error.contains("not a Bramble master"), "{error}");
    // Through a node that is not the master.
    let ip2 = lab.address(2);
    lab.ok(3, &format!("kube-config enable-worker {ip2}"));
    lab.says(1, "kubectl get nodes --no-headers | grep -c ' Ready '", "3", 60);
    lab.ok(3, "kube-config disable-node");
    assert!(lab.ok(3, "kube-config info").contains("role: none"));
    lab.until("the node is gone", 30, |lab| {
        (!lab.ok(1, "kubectl get nodes").contains("node3")).then_some(())
    });
}

fn bad_requests(lab: &Lab) {
    lab.write("bad.yaml", "this: is: not: yaml");
    let error = lab.fails(1, "kubectl apply -f /root/bad.yaml");
    assert!(error.contains("error"), "{error}");
    lab.write("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {containers: []}");
    let error = lab.fails(1, "kubectl create -f /root/bad.yaml");
    assert!(
        error.contains("is invalid") && error.contains("Bad_Name") && error.contains("spec.containers"),
        "{error}"
    );
    // 100 MB are refused, and the agent lives on.
    let line = "head -c 100000000 /dev/zero | curl -s --http1.1 --cacert /var/lib/bramble/pki/ca.crt \
        --cert /var/lib/bramble/pki/node.crt --key /var/lib/bramble/pki/node.key -H 'Content-Type: application/json' \
        -w '%{http_code}' -X POST --data-binary @- https://127.0.0.1:6443/api/v1/nodes";
    let said = lab.types(1, line).out;
    assert!(said.contains("RequestEntityTooLarge") && said.ends_with("413"), "{said}");
    lab.ok(1, "(printf '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"big\"},\"data\":{\"a\":\"'; head -c 20000000 /dev/zero | tr '\\0' x; printf '\"}}') > /root/big.json");
    let error = lab.fails(1, "kubectl create -f /root/big.json");
    assert!(error.contains("RequestEntityTooLarge"), "{error}");
    lab.ok(1, "kubectl get nodes");
}
