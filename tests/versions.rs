//! Old agents and new agents in one cluster, as while it is upgraded node by node.
//!
//! `BRAMBLE_OLD_BIN` is an agent built from an older commit: the newest release, or 7f0586f, the oldest that is kept
//! compatible (it does not say which format of the log it understands). What such agents have written is also kept as
//! bytes in the tests of the store's `wire`, which need no older agent.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tests::Lab;

/// Writes through this node until told to stop; the names that were acknowledged end in a file there.
const WRITER: &str = "i=0; while [ ! -e /root/stop ]; do i=$((i+1)); \
    if kubectl create configmap w-$(hostname)-$i --from-literal=n=$i >/dev/null 2>&1; \
    then echo w-$(hostname)-$i >> /root/acknowledged; fi; done; touch /root/done";

fn acknowledged(lab: &Lab) -> Vec<BTreeSet<String>> {
    let of = |node| lab.types(node, "cat /root/acknowledged").out.lines().map(str::to_owned).collect();
    (1..=3).map(of).collect()
}

/// Puts the agent under test on a node and starts it.
fn upgrade(lab: &Lab, node: usize) {
    let to = lab.folder().join(format!("n{node}/disk/root/new-bramble"));
    std::fs::copy(tests::bin(), to).expect("the agent can be copied");
    lab.ok(node, "mount --bind /root/new-bramble /usr/lib/bramble/bramble");
    lab.act(node, "--restart-agent");
    lab.says(node, "cmp /proc/$(cat /run/agent.pid)/exe /root/new-bramble && echo same", "same", 60);
    lab.says(node, "kube-config info", "leader: node", 60);
}

/// Starts the leader's agent again until this node leads.
fn lead(lab: &Lab, node: usize) {
    for _ in 0..12 {
        let leader = lab.until("a leader", 60, |lab| lab.leader(node));
        let leader: usize = leader.trim_start_matches("node").parse().expect("nodeN");
        if leader == node {
            return;
        }
        lab.act(leader, "--restart-agent");
        lab.until("another leader", 60, |lab| {
            lab.leader(node).filter(|name| *name != format!("node{leader}")).map(drop)
        });
        lab.says(leader, "kube-config info", "leader: node", 60);
    }
    panic!("node {node} never led");
}

/// All that was acknowledged is in the leader's replica, and each node takes further writes.
fn nothing_is_lost(lab: &Lab, what: &str) {
    let before = acknowledged(lab);
    let names = lab.until(&format!("{what}: the leader answers"), 60, |lab| {
        let said = lab.types(1, "kubectl get configmaps --no-headers -o custom-columns=N:.metadata.name");
        (said.code == 0).then(|| said.out.lines().map(|l| l.trim().to_owned()).collect::<BTreeSet<_>>())
    });
    for (node, written) in (1..).zip(&before) {
        let lost: Vec<_> = written.difference(&names).collect();
        assert!(lost.is_empty(), "{what}: written through node {node} and lost: {lost:?}");
    }
    lab.until(&format!("{what}: writes through every node"), 120, |lab| {
        let now = acknowledged(lab);
        now.iter().zip(&before).all(|(now, before)| now.len() > before.len() + 2).then_some(())
    });
}

/// The format that a node said last all members understand.
fn understood(lab: &Lab, node: usize) -> Option<String> {
    let log = std::fs::read_to_string(lab.folder().join(format!("n{node}.log"))).ok()?;
    let line = log.lines().rfind(|line| line.contains("all members understand this format"))?;
    line.split_once("format=").map(|(_, format)| format.trim().to_owned())
}

#[test]
#[ignore = "needs BRAMBLE_OLD_BIN, an older agent: hack/test --full"]
fn old_and_new_agents_work_together() {
    let old =
        PathBuf::from(std::env::var_os("BRAMBLE_OLD_BIN").expect("BRAMBLE_OLD_BIN names an older agent"));
    let lab = Lab::up("versions", &format!("--nodes 3 --bin {}", old.display()));
    lab.three_vote(1);
    lab.share_kubeconfig(2);
    lab.share_kubeconfig(3);
    lab.ok(1, "kubectl create deployment web --image=luxas/nginx-test --replicas=3");
    lab.available("web", 3);
    let pods: BTreeSet<String> = lab.pods("app=web").into_iter().collect();
    for node in 1..=3 {
        lab.ok(node, &format!("setsid sh -c '{WRITER}' >/dev/null 2>&1 & true"));
    }
    nothing_is_lost(&lab, "before");

    for node in 1..=3 {
        upgrade(&lab, node);
        lead(&lab, node);
        nothing_is_lost(&lab, &format!("nodes 1 to {node} are new, node {node} leads"));
        if node < 3 {
            assert_eq!(understood(&lab, node).as_deref(), Some("0"), "node 3 is old and says nothing");
            lead(&lab, 3);
            nothing_is_lost(&lab, &format!("nodes 1 to {node} are new, the old node 3 leads"));
        }
    }
    lab.until("all write what all understand", 60, |lab| {
        (1..=3).all(|node| understood(lab, node).as_deref() == Some("1")).then_some(())
    });
    for node in 1..=3 {
        lead(&lab, node);
        nothing_is_lost(&lab, &format!("all are new, node {node} leads"));
    }
    for node in 1..=3 {
        lab.ok(node, "touch /root/stop");
        lab.says(node, "ls /root", "done", 60);
    }
    let written: usize = acknowledged(&lab).iter().map(BTreeSet::len).sum();
    println!("{written} writes, none lost");
    lab.available("web", 3);
    assert_eq!(lab.pods("app=web").into_iter().collect::<BTreeSet<_>>(), pods, "pods outlive their agent");
}
