//! What a machine lacks when a person types `enable-master` or `enable-worker` on it: one clear error, and all is as it
//! was. And cards without a common secret, which join by the token that `enable-master` prints.

use tests::Lab;

#[test]
fn what_a_node_lacks_is_named() {
    let lab = Lab::up("lacks", "--nodes 2 --no-enable");
    no_cgroup(&lab);
    another_address(&lab);
    full_disk(&lab);
    without_a_secret(&lab);
    token(&lab);
}

/// A command that fails for this reason and changes nothing.
fn refused(lab: &Lab, node: usize, line: &str, reasons: &[&str]) {
    let files = "cd /var/lib/bramble && find . -type f -path './pki/*' -o -path './raft/*' -o -name node.json -o -name kubeconfig";
    assert_eq!(lab.ok(node, files), "", "before {line}");
    let error = lab.fails(node, &format!("timeout 30 {line}"));
    for reason in reasons {
        assert!(error.contains(reason), "{line}: {error}");
    }
    assert_eq!(error.trim_end().lines().count(), 1, "{line}: {error}");
    assert!(lab.ok(node, "kube-config info").contains("role: none"), "after {line}");
    assert_eq!(lab.ok(node, files), "", "after {line}");
}

/// The agent anew, with what its disk has now.
fn new_agent(lab: &Lab, node: usize) {
    lab.act(node, "--kill-agent");
    lab.says(node, "kube-config info", "role: none", 20);
}

fn without_a_secret(lab: &Lab) {
    for node in [1, 2] {
        lab.ok(node, "sed -i '/^cluster_secret/d' /etc/bramble/config.toml");
        new_agent(lab, node);
    }
}

fn no_cgroup(lab: &Lab) {
    // On this node only: its mounts are its own.
    let v1 = lab.types(1, "test -d /sys/fs/cgroup/memory").code == 0;
    lab.ok(1, if v1 { "umount /sys/fs/cgroup/memory" } else { "umount /sys/fs/cgroup" });
    refused(lab, 1, "kube-config enable-master", &["cgroup", "memory"]);
    let info = lab.ok(1, "kube-config info");
    assert!(info.lines().any(|line| line.starts_with("problem: ") && line.contains("cgroup")), "{info}");
    lab.act(1, "--stop --start");
    lab.says(1, "kube-config info", "role: none", 20);
    assert!(!lab.ok(1, "kube-config info").contains("problem: "));
}

fn another_address(lab: &Lab) {
    let wanted = ["203.0.113.7", "not an address of this machine"];
    refused(lab, 1, "kube-config enable-master --address 203.0.113.7", &wanted);
    let master = lab.address(1);
    refused(lab, 2, &format!("kube-config enable-worker {master} --address 203.0.113.7 --token x"), &wanted);
}

fn full_disk(lab: &Lab) {
    lab.ok(1, "mount -t tmpfs -o size=256k card /var/lib/bramble");
    new_agent(lab, 1);
    lab.fails(1, "head -c 1m /dev/zero > /var/lib/bramble/filler");
    refused(lab, 1, "kube-config enable-master", &["No space left on device", "/var/lib/bramble"]);
    lab.ok(1, "umount -l /var/lib/bramble");
    new_agent(lab, 1);
}

/// The very line that `enable-master` prints is what the other node needs.
fn token(lab: &Lab) {
    let said = lab.ok(1, "kube-config enable-master");
    let line = said.lines().find_map(|line| line.strip_prefix("On the other nodes: ")).expect("what to type");
    assert!(line.contains(" --token "), "{said}");
    let master = lab.address(1);
    refused(lab, 2, &format!("kube-config enable-worker {master}"), &["no baked cluster secret", "--token"]);
    refused(lab, 2, &format!("kube-config enable-worker {master} --token nonsense"), &["--token"]);
    // A port that is taken here is found out before the master hears of anything.
    let taken = "python3 -m http.server 10250 >/dev/null 2>&1 & echo $! > /tmp/taker";
    lab.ok(2, &format!("setsid {taken}"));
    lab.says(2, "ss -Hltn 'sport = :10250'", "10250", 10);
    refused(lab, 2, line, &["10250", "in use"]);
    lab.ok(2, "kill $(cat /tmp/taker)");
    assert!(!lab.ok(1, "kubectl get nodes").contains("node2"));
    lab.says(2, "ss -Hltn 'sport = :10250' | wc -l", "0", 10);
    let said = lab.ok(2, line);
    assert!(said.contains("knows our secret"), "{said}");
    lab.says(1, "kubectl get nodes --no-headers | grep -c ' Ready '", "2", 60);
}
