//! exec, cp, port-forward and logs through a cluster: kubectl on one node, the API's leader on another, the pod on a third
//! where that can be had. By an old client and a new one.

use tests::{Lab, NEW_KUBECTL, OLD_KUBECTL};

fn pod(name: &str, node: usize, image: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: node{node}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {image}\n    {script}\n"
    )
}

/// A cluster, and the two nodes that matter: one whose API passes everything on to the leader, and one for pods.
struct Way {
    lab: Lab,
    /// Where kubectl is.
    here: usize,
    /// Where the pods are.
    there: usize,
}

#[test]
fn streams_go_all_the_way() {
    let mut lab = Lab::up("streams", "--nodes 3");
    lab.three_vote(1);
    let leader = lab.leader(1).expect("a leader");
    let mut others = [1, 2, 3].into_iter().filter(|node| leader != format!("node{node}"));
    let (here, there) = (others.next().expect("a node"), others.next().expect("another"));
    lab.share_kubeconfig(here);
    let sleeper = "command: [sh, -c, \"seq 1 400000; exec sleep 1000000\"]";
    lab.write(
        "pods.yaml",
        &(pod("box", there, "busybox", sleeper) + "---\n" + &pod("web", there, "luxas/nginx-test", "")),
    );
    lab.ok(1, "kubectl apply -f /root/pods.yaml && kubectl wait --for=condition=Ready --timeout=60s pod/box pod/web");
    for kubectl in [NEW_KUBECTL, OLD_KUBECTL] {
        lab.with_kubectl(kubectl);
        let way = Way { lab, here, there };
        way.files_are_copied();
        way.a_pod_may_hang_up_first();
        way.a_command_may_be_slow_to_hear();
        way.a_killed_client_takes_its_command_along();
        lab = way.lab;
    }
    let way = Way { lab, here, there };
    way.a_slow_reader_gets_the_whole_log();
    way.a_client_that_vanishes_takes_its_command_along();
}

impl Way {
    fn ok(&self, line: &str) -> String {
        self.lab.ok(self.here, line)
    }

    fn files_are_copied(&self) {
        self.ok("head -c 50000000 /dev/urandom > /root/file");
        self.ok("timeout 120 kubectl cp /root/file box:/tmp/file && timeout 120 kubectl cp box:/tmp/file /root/back");
        self.ok("cmp /root/file /root/back && kubectl exec box -- rm /tmp/file && rm /root/file /root/back");
    }

    fn a_pod_may_hang_up_first(&self) {
        let line = "kubectl port-forward web :80 > /root/forward & pid=$!; \
            while ! grep -q Forwarding /root/forward; do sleep 0.1; done; \
            port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) .*/\\1/p' /root/forward | head -n 1); \
            for i in 1 2 3; do curl -sS --max-time 20 -H 'Connection: close' http://127.0.0.1:$port/ || exit 1; done; \
            kill $pid";
        let said = self.ok(line);
        assert_eq!(said.matches("WELCOME TO NGINX").count(), 3, "{said}");
    }

    /// Longer than a node that is silent counts as gone.
    fn a_command_may_be_slow_to_hear(&self) {
        let said = self.ok(
            "head -c 20000000 /dev/zero | timeout 60 kubectl exec -i box -- sh -c 'sleep 12; head -c 15000000 | wc -c; exit 0'",
        );
        assert_eq!(said.trim(), "15000000");
    }

    fn commands(&self, mark: &str) -> usize {
        self.lab.ok(self.there, "ps -eo args").lines().filter(|line| line.starts_with(mark)).count()
    }

    fn a_killed_client_takes_its_command_along(&self) {
        // The second one's input is held up.
        self.ok("timeout -s KILL 4 kubectl exec box -- sleep 7001 </dev/null & \
            timeout -s KILL 4 kubectl exec -i box -- sleep 7002 < /dev/zero & sleep 2");
        self.lab.until("the commands run", 30, |_| (self.commands("sleep 700") == 2).then_some(()));
        self.lab.until("the commands end with their clients", 40, |_| {
            (self.commands("sleep 700") == 0).then_some(())
        });
    }

    /// Longer than a client that is silent counts as gone.
    fn a_slow_reader_gets_the_whole_log(&self) {
        let whole = self.ok("kubectl logs box | sha256sum");
        let slowly = self.ok("kubectl logs box | (sleep 45; sha256sum)");
        assert_eq!(slowly, whole);
    }

    fn a_client_that_vanishes_takes_its_command_along(&self) {
        self.ok("nohup kubectl exec box -- sh -c 'while true; do date; sleep 1; done; sleep 7003' >/dev/null 2>&1 & \
            nohup kubectl exec box -- sleep 7003 >/dev/null 2>&1 & sleep 1");
        self.lab.until("the commands run", 30, |_| {
            (self.commands("sleep 7003") == 1 && self.commands("sh -c while true") == 1).then_some(())
        });
        self.lab.act(self.here, "--cut");
        self.lab.until("the commands end without a word from their clients", 90, |_| {
            (self.commands("sleep 7003") == 0 && self.commands("sh -c while true") == 0).then_some(())
        });
        self.lab.act(self.here, "--mend");
    }
}
