//! A node's own life: what it says when it cannot start, how it leaves whatever the cluster says, and that a new
//! address is not a new node.

use tests::Lab;

/// An agent that is in a cluster and finds its port taken says so, keeps trying, and starts once it is free.
#[test]
fn a_node_that_cannot_start_says_why_and_tries_again() {
    let lab = Lab::up("trouble", "--nodes 1");
    lab.ok(1, "setsid python3 -m http.server 7443 >/dev/null 2>&1 & echo $! >/tmp/taker");
    lab.says(1, "ss -Hltn 'sport = :7443'", "7443", 10);
    lab.ok(1, "sed -i '1i status_port = 7443' /etc/bramble/config.toml");
    lab.act(1, "--kill-agent");
    lab.says(1, "kube-config info", "problem: port 7443, which the status page needs, cannot be used", 10);
    let info = lab.ok(1, "kube-config info");
    assert!(info.contains("role: master"), "{info}");
    let error = lab.fails(1, "kube-config enable-master");
    assert!(error.contains("this node is a master of a cluster already"), "{error}");
    let error = lab.fails(1, "kube-config disable-node");
    assert!(error.contains("port 7443") && error.contains("--force"), "{error}");
    lab.ok(1, "kill $(cat /tmp/taker)");
    lab.says(1, "kubectl get nodes", " Ready", 20);
}

/// What the store has lost is lost: the agent says so instead of ending, and `--force` makes the card usable again.
#[test]
fn a_node_leaves_a_dead_cluster_by_force() {
    let lab = Lab::up("force", "--nodes 2");
    // Node 2 holds no replica: two nodes have one voter.
    lab.says(2, "kube-config info", "leader: node1", 10);
    assert!(lab.ok(2, "kube-config info").contains("voters: node1"));
    lab.ok(2, "kube-config healthy");
    lab.says(2, "curl -sSf http://127.0.0.1:8080/api/status", "\"leader\":\"node1\"", 10);
    lab.ok(1, "kubectl run keeps --image=busybox:latest --restart=Never -- sleep 600");
    lab.act(1, "--kill");
    let error = lab.fails(2, "timeout 60 kube-config disable-node");
    assert!(error.contains("the cluster") && error.contains("--force"), "{error}");
    let said = lab.ok(2, "kube-config disable-node --force");
    assert!(said.contains("The cluster was not told") && said.contains("services disabled"), "{said}");
    assert!(lab.ok(2, "kube-config info").contains("role: none"));
    let left = lab.ok(2, "ip -o link; ip route show table all; nft list tables");
    assert!(!left.contains("bram") && !left.contains("10.0.0.0/24") && !left.contains("10.1."), "{left}");
    // Damage: every file of the log and the state is cut to nothing.
    lab.act(1, "--start");
    lab.ok(1, "find /var/lib/bramble/raft -type f -size +0 -exec sh -c 'echo damaged > \"$1\"' - {} ';'");
    lab.act(1, "--kill-agent");
    lab.says(1, "kube-config info", "problem: ", 10);
    lab.ok(1, "kube-config disable-node --force");
    assert!(!lab.ok(1, "ls /var/lib/bramble").contains("node.json"));
    lab.ok(1, "kube-config enable-master");
    lab.says(1, "kubectl get nodes", " Ready", 20);
}

/// Who was thrown out while away can still tidy up after itself without force.
#[test]
fn a_forgotten_node_leaves() {
    let lab = Lab::up("forgotten", "--nodes 2");
    // Another card takes the name; then the old one is put back.
    lab.ok(2, "cp -a /var/lib/bramble /var/lib/old && kube-config disable-node");
    lab.ok(2, &format!("kube-config enable-worker {}", lab.address(1)));
    lab.ok(2, "cd /var/lib && mv bramble new && mv old bramble");
    lab.act(2, "--kill-agent");
    lab.until("the old card leaves", 20, |lab| {
        let said = lab.types(2, "kube-config disable-node");
        (said.code == 0).then_some(())
    });
    assert!(lab.ok(2, "kube-config info").contains("role: none"));
    assert!(lab.ok(1, "kubectl get nodes").contains("node2"), "the newer one is still a member");
}

/// DHCP gives nodes new addresses: first two of three at once, the leader among them, then all of them. The cluster
/// heals by itself, and answers for `bramble.local`.
#[test]
fn nodes_that_move_stay_the_same_nodes() {
    let lab = Lab::up("moves", "--nodes 3");
    lab.three_vote(1);
    lab.share_kubeconfig(3);
    lab.ok(1, "kubectl create configmap before");
    moved(&lab, &[(1, 202), (2, 201)]);
    lab.ok(1, "kubectl get configmap before && kubectl create configmap between");
    moved(&lab, &[(1, 32), (2, 31), (3, 30)]);
    lab.ok(1, "kubectl get configmap before between && kubectl create configmap after");
    assert!(lab.ok(2, "kube-config info").contains("role: worker"));
    let ask = r#"python3 - NODE <<'E'
import socket, struct, sys
p = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); p.connect((sys.argv[1], 9))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(p.getsockname()[0]))
q = struct.pack('>6H', 7, 0, 1, 0, 0, 0) + b'\x07bramble\x05local\x00' + struct.pack('>2H', 1, 1)
s.sendto(q, ('224.0.0.251', 5353))
print(sorted(socket.inet_ntoa(s.recv(512)[-4:]) for _ in range(3)))
E"#;
    let said = lab.ok("lan", &ask.replace("NODE", &lab.address(1)));
    for node in 1..=3 {
        assert!(said.contains(&lab.address(node)), "node {node} does not answer for bramble.local: {said}");
    }
}

/// Gives nodes new addresses, all at the same time, and waits until the cluster has got over it.
fn moved(lab: &Lab, nodes: &[(usize, u8)]) {
    let mut new = Vec::new();
    for (node, last) in nodes {
        let old = lab.address(*node);
        let address = format!("{}.{last}", old.rsplit_once('.').expect("an IPv4 address").0);
        let line = format!(
            "set -e; route=$(ip -4 route show default); prefix=$(ip -4 -o addr show eth0 | sed 's,.*/\\([0-9]*\\) .*,\\1,'); \
             ip addr flush dev eth0; ip addr add {address}/$prefix dev eth0; [ -z \"$route\" ] || ip route add $route"
        );
        lab.ok(*node, &line);
        new.push(address);
    }
    lab.until("the Node objects have the new addresses", 60, |lab| {
        let said = lab.types(3, "kubectl --request-timeout=5s get nodes -o wide");
        let ready = said.out.matches(" Ready ").count() == 3;
        (ready && new.iter().all(|address| said.out.contains(address))).then_some(())
    });
}

/// A node that is asked to upgrade answers on its own object, and takes pods again when it could not.
#[test]
fn a_node_without_a_second_slot_says_so_when_asked_to_upgrade() {
    let lab = Lab::up("upgrade", "--nodes 2");
    lab.ok(1, "kubectl cordon node2");
    lab.says(1, "kubectl get node node2", "Ready,SchedulingDisabled", 10);
    let request = r#"{"id":"1","from":"http://192.0.2.1/x","uncordon":true}"#;
    lab.ok(1, &format!("kubectl annotate node node2 bramble.io/upgrade='{request}'"));
    lab.says(1, "kubectl get node node2 -o yaml", "not booted from a Bramble card", 20);
    lab.says(1, "kubectl get node node2", " Ready ", 10);
    let error = lab.fails(1, "kube-config upgrade http://192.0.2.1/x --cluster");
    assert!(error.contains("install the next version's package"), "{error}");
}
