//! Nodes that die: the leader, a worker, and disks that are wiped.

use std::time::{Duration, SystemTime};

use tests::Lab;

/// Types writes on a node for as long as a shell loop runs; acknowledged names end in a file there.
const WRITER: &str = "for i in $(seq 1 150); do \
    if kubectl create configmap w-$i --from-literal=n=$i >/dev/null 2>&1; then echo w-$i $(date +%s%N) >> /root/acknowledged; fi; done; touch /root/done";

/// Writes through this node, one after the other; when each was begun and acknowledged, in nanoseconds, ends in a file.
const GAP_WRITER: &str = r#"cd /root
for name in certificate key; do
  kubectl config view --raw -o "jsonpath={.users[0].user.client-$name-data}" | base64 -d > admin.$name
done
while [ ! -e stop ]; do
  begun=$(date +%s%N)
  code=$(curl -s -o /dev/null -w '%{http_code}' --max-time 0.3 --cacert /var/lib/bramble/pki/ca.crt \
    --cert admin.certificate --key admin.key -H 'Content-Type: application/json' \
    -d '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"gap-"}}' \
    https://127.0.0.1:6443/api/v1/namespaces/default/configmaps)
  if [ "$code" = 201 ]; then echo "$begun $(date +%s%N)" >> gap; fi
done"#;

/// Kills a node; how long it takes from its death until a write that is begun after it is acknowledged by another one.
fn gap(lab: &Lab, victim: usize, other: usize) -> Duration {
    lab.ok(other, &format!("cat > /root/gap.sh <<'E'\n{GAP_WRITER}\nE"));
    lab.ok(other, "setsid sh /root/gap.sh >/dev/null 2>&1 & true");
    lab.until("writes through the other node", 30, |lab| {
        let lines = lab.types(other, "wc -l < /root/gap").out;
        lines.trim().parse::<u64>().is_ok_and(|n| n >= 10).then_some(())
    });
    let init = lab.script(&format!("hack/node --name {} {victim} --pid", lab.name())).out;
    let stat = format!("/proc/{}/stat", init.trim());
    // A PID namespace's init is gone when all in it are.
    let death = std::thread::spawn(move || {
        while std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
            std::thread::sleep(Duration::from_millis(1));
        }
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos()
    });
    lab.act(victim, "--kill");
    let death = death.join().expect("it ends");
    let acknowledged = lab.until("a write after the kill", 10, |lab| {
        let text = lab.ok(other, "cat /root/gap");
        let times = text.lines().filter_map(|line| line.split_once(' '));
        let mut times = times.filter_map(|(a, b)| Some((a.parse::<u128>().ok()?, b.parse::<u128>().ok()?)));
        times.find(|(begun, _)| *begun > death).map(|(_, acknowledged)| acknowledged)
    });
    lab.ok(other, "touch /root/stop");
    Duration::from_nanos(u64::try_from(acknowledged - death).expect("less than centuries"))
}

#[test]
fn a_killed_leader_loses_nothing() {
    let lab = Lab::up("failover", "--nodes 3");
    lab.three_vote(1);
    lab.share_kubeconfig(2);
    lab.share_kubeconfig(3);
    let leader = lab.leader(2).expect("a leader");
    let leader: usize = leader.trim_start_matches("node").parse().expect("nodeN");
    let (a, b) = match leader {
        1 => (2, 3),
        2 => (1, 3),
        _ => (1, 2),
    };
    lab.ok(1, "kubectl create deployment web --image=luxas/nginx-test --replicas=3");
    lab.available("web", 3);

    // Writes go on through a node that stays while the leader is killed.
    lab.ok(a, &format!("nohup sh -c '{WRITER}' >/dev/null 2>&1 & echo started"));
    lab.until("the first writes", 30, |lab| {
        let text = lab.types(a, "wc -l < /root/acknowledged").out;
        text.trim().parse::<u64>().is_ok_and(|n| n >= 10).then_some(())
    });
    let gap = gap(&lab, leader, b);
    println!("a write was acknowledged {} ms after the leader's death", gap.as_millis());
    assert!(gap < Duration::from_secs(2), "writes were served again after {gap:?} only");
    assert!(lab.leader(a).is_some_and(|name| name != format!("node{leader}")));

    // NotReady, and the pods move.
    lab.until("the node is NotReady", 30, |lab| {
        let nodes = lab.types(a, "kubectl get nodes").out;
        nodes
            .lines()
            .any(|l| l.starts_with(&format!("node{leader} ")) && l.contains("NotReady"))
            .then_some(())
    });
    lab.until("three pods on the other nodes", 60, |lab| {
        let list = lab.get_from(a, "pods -l app=web");
        let moved = list["items"].as_array()?.iter().filter(|p| {
            p["status"]["phase"] == "Running" && p["spec"]["nodeName"] != format!("node{leader}")
        });
        (moved.count() == 3).then_some(())
    });

    // Every acknowledged write is there.
    lab.until("the writer is done", 180, |lab| (lab.types(a, "test -e /root/done").code == 0).then_some(()));
    let acknowledged = lab.ok(a, "cut -d' ' -f1 /root/acknowledged");
    let there = lab.ok(b, "kubectl get configmaps -o name");
    let there: std::collections::HashSet<&str> =
        there.lines().filter_map(|l| l.strip_prefix("configmap/")).collect();
    let lost: Vec<&str> = acknowledged.lines().filter(|name| !there.contains(name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    // The node comes back with its disk and catches up.
    lab.act(leader, "--start");
    lab.says(a, "kubectl get nodes --no-headers | grep -c ' Ready '", "3", 60);
    lab.until("it follows", 30, |lab| lab.leader(leader).map(|_| ()));

    // And with its disk wiped: it joins again under its name.
    lab.act(leader, "--kill --wipe --start");
    lab.until("the agent answers", 30, |lab| {
        (lab.types(leader, "kube-config info").out.contains("role: none")).then_some(())
    });
    lab.until("the old one is given up", 30, |lab| {
        let nodes = lab.types(a, "kubectl get nodes").out;
        nodes
            .lines()
            .any(|l| l.starts_with(&format!("node{leader} ")) && l.contains("NotReady"))
            .then_some(())
    });
    let address =
        lab.ok(a, "hostname -I 2>/dev/null || ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'");
    let address =
        address.split_whitespace().find(|a| a.starts_with("192.168.")).expect("an address").to_owned();
    lab.ok(leader, &format!("kube-config enable-worker {address}"));
    lab.says(a, "kubectl get nodes --no-headers | grep -c ' Ready '", "3", 60);
    lab.three_vote(a);
    lab.until("the wiped node votes again", 60, |lab| {
        let info = lab.ok(leader, "kube-config info");
        info.lines().any(|l| l.starts_with("voters: ") && l.contains(&format!("node{leader}"))).then_some(())
    });
}
