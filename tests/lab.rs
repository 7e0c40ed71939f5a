//! The scripts that make a cluster on one machine: what they do the second time, how a node that lost its disk comes
//! back, what they refuse, and that nothing is left behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::machine::{self, Machine};
use tests::{Lab, Said};

/// A folder for temporary files that the scripts must leave empty.
const SCRATCH: &str = "/tmp/test-lab.scratch";

/// Builds what is tested itself, as `hack/up` does for a person, only not in release mode.
fn up(lab: &Lab, args: &str) -> Said {
    lab.script(&format!("TMPDIR={SCRATCH} hack/up --profile dev --name {} {args}", lab.name()))
}

#[test]
fn up_again_and_down() {
    std::fs::create_dir_all(SCRATCH).expect("a folder in /tmp");
    let lab = Lab::named("lab");
    let before = Machine::look(lab.name());
    first(&lab);
    again(&lab);
    lab.ok(1, "kubectl create configmap kept --from-literal=a=b");
    between_two_agents(&lab);
    node_1_dies(&lab);
    node_1_is_wiped(&lab);
    let inhabitants = Inhabitants::of(&lab);
    let said = lab.script(&format!("TMPDIR={SCRATCH} hack/down --name {}", lab.name()));
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    inhabitants.are_gone();
    nothing_is_left(&lab, &before);
    std::fs::remove_dir(SCRATCH).expect("no temporary file is left");
    // Nothing there: nothing to do, and nothing to talk to.
    assert_eq!(lab.script(&format!("hack/down --name {}", lab.name())).code, 0);
    let error = lab.fails(1, "true");
    assert!(error.contains("there is no cluster test-lab") && error.contains("hack/up"), "{error}");
}

fn first(lab: &Lab) {
    let machine = machine::networks();
    let said = up(lab, "--nodes 3");
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let built = std::fs::read(tests::dev_build()).expect("hack/up built it");
    assert!(built == std::fs::read(lab.folder().join("bin/bramble")).expect("a binary"), "another binary");
    let subnet = lab.setting("SUBNET");
    for other in machine {
        assert!(!machine::overlap(machine::network(&subnet), other), "{subnet} is the machine's own");
    }
    let prefix = subnet.trim_end_matches("0/24");
    for wanted in
        ["102", "101", "100"].map(|last| format!("{prefix}{last}")).iter().chain(&["KUBECONFIG=".into()])
    {
        assert!(said.out.contains(wanted.as_str()), "{wanted}: {}", said.out);
    }
    for (node, last) in [(1, 102), (2, 101), (3, 100)] {
        assert_eq!(lab.address(node), format!("{prefix}{last}"));
        assert_eq!(lab.ok(node, "hostname").trim(), format!("node{node}"));
    }
    // From the machine itself, through its loopback.
    let page = format!("http://127.0.0.1:{}/", lab.page_port());
    assert!(said.out.contains(&page), "{}", said.out);
    assert_eq!(lab.script(&format!("curl -sSf -o /dev/null {page}")).code, 0);
    let nodes = from_machine(lab, "get nodes --no-headers");
    assert_eq!(nodes.out.matches(" Ready ").count(), 3, "{}{}", nodes.out, nodes.err);
    lab.available("web", 3);
}

/// Stock kubectl on the machine, with the kubeconfig that `hack/up` names.
fn from_machine(lab: &Lab, args: &str) -> Said {
    lab.script(&format!("out/clients/new/kubectl --kubeconfig {}/kubeconfig {args}", lab.folder().display()))
}

/// Everything that a second `hack/up` could have started anew, with the time it was started.
fn lives(lab: &Lab) -> Vec<String> {
    let folder = lab.folder();
    let mut pids: Vec<String> = ["registry", "forward"]
        .iter()
        .map(|s| std::fs::read_to_string(folder.join(format!("{s}.pid"))).expect("a pid"))
        .collect();
    for node in 1..=3 {
        let init = lab.script(&format!("hack/node --name {} {node} --pid", lab.name())).out;
        let agent = lab.ok(node, "cat /run/agent.pid && stat -c %Y /run/agent.pid");
        pids.extend([init, agent]);
    }
    let changed = std::fs::metadata(folder.join("bin/bramble")).and_then(|m| m.modified()).expect("a binary");
    pids.push(format!("{changed:?}"));
    pids
}

fn again(lab: &Lab) {
    let alive = lives(lab);
    let begun = Instant::now();
    let said = up(lab, "");
    let taken = begun.elapsed();
    println!("the second hack/up took {taken:?}");
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(lives(lab), alive, "something was started again");
    let all = format!("{}{}", said.out, said.err);
    for work in ["Compiling", "installing", "fetching", "layer ", "pushing", "starting", "enable-"] {
        assert!(!all.contains(work), "{work}: {all}");
    }
    assert!(taken < Duration::from_secs(30), "{taken:?}");
    // What does not fit the cluster that is there is refused.
    let said = up(lab, "--subnet 192.168.249.0/24");
    assert!(
        said.code != 0 && said.err.contains("is in 192.168.") && said.err.contains("hack/down"),
        "{}",
        said.err
    );
    let said = up(lab, "--nodes 2");
    assert!(said.code != 0 && said.err.contains("has 3 nodes"), "{}", said.err);
    assert_eq!(lives(lab), alive, "something was started again");
}

/// What a node is told while its agent is down and not yet started again reaches the node, not its whole session.
fn between_two_agents(lab: &Lab) {
    let init = |lab: &Lab| lab.script(&format!("hack/node --name {} 2 --pid", lab.name())).out;
    let before = init(lab);
    lab.act(2, "--kill-agent --restart-agent");
    lab.says(2, "kube-config info", "role: worker", 20);
    assert_eq!(init(lab), before, "the node was restarted with its agent");
    lab.act(2, "--kill-agent --stop --start");
    assert_ne!(init(lab), before);
    lab.says(2, "kube-config info", "role: worker", 20);
}

/// The machine's clients get through to the others, and hang on to none that is gone.
fn node_1_dies(lab: &Lab) {
    let kubeconfig = lab.folder().join("kubeconfig");
    let mut watch = std::process::Command::new(lab.machine_kubectl())
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .args(["get", "configmaps", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let line = lines.next().expect("the watch begins").expect("a line");
    assert!(line.contains("configmap/"), "{line}");
    lab.act(1, "--kill");
    let killed = Instant::now();
    lab.until("an answer through another node", 10, |lab| {
        (from_machine(lab, "--request-timeout=5s get configmap kept").code == 0).then_some(())
    });
    println!("an answer {:?} after node 1 was switched off", killed.elapsed());
    // The node that answered is asked first from now on.
    let begun = Instant::now();
    assert_eq!(from_machine(lab, "--request-timeout=5s get configmap kept").code, 0);
    println!("the next after {:?}", begun.elapsed());
    lab.until("the watch through node 1 ends", 15, |_| watch.try_wait().expect("a child"));
}

/// It joins the others again: there is no second cluster, and the administrator's kubeconfig is on it again.
fn node_1_is_wiped(lab: &Lab) {
    lab.act(1, "--wipe");
    let said = up(lab, "--nodes 4");
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(!said.out.contains("enable-master"), "{}", said.out);
    let nodes = lab.ok(1, "kubectl get nodes --no-headers");
    assert_eq!(nodes.matches(" Ready ").count(), 4, "{nodes}");
    assert_eq!(from_machine(lab, "get configmap kept").code, 0);
    assert!(lab.ok(1, "kube-config info").contains("role: worker"));
    assert!(lab.address(4).ends_with(".103"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = Lab::named("odd");
    let before = Machine::look(lab.name());
    let bin = tests::bin();
    for (args, wanted) in [
        ("--nodes 0", "from 1 to"),
        ("--nodes 1000", "from 1 to"),
        ("--nodes many", "from 1 to"),
        ("--subnet 192.168.1.0/16", "192.168.1.0/16"),
        ("--subnet 192.168.1.5/24", "192.168.1.5/24"),
        ("--subnet 300.168.1.0/24", "300.168.1.0/24"),
        ("--subnet 10.0.0.0/24", "overlaps"),
        ("--subnet 10.1.7.0/24", "overlaps"),
        ("--subnet", "needs a value"),
        ("--name Bad_Name", "Bad_Name"),
        ("--name ../up", "../up"),
        ("--bin /etc/hostname", "/etc/hostname is not a bramble"),
        ("--fast", "--fast"),
    ] {
        let said = lab.script(&format!("hack/up --name {} --bin {} {args}", lab.name(), bin.display()));
        assert!(said.code != 0 && said.err.contains(wanted), "{args}: {}{}", said.out, said.err);
        assert!(!lab.folder().exists(), "{args} left {}", lab.folder().display());
    }
    nothing_is_left(&lab, &before);
}

/// A `hack/up` that is killed in the middle of its work leaves nothing that `hack/down` does not find.
#[test]
fn half_a_cluster_goes_too() {
    let lab = Lab::named("half");
    let before = Machine::look(lab.name());
    let mut half = lab
        .command(&format!(
            "exec hack/up --no-workload --name {} --bin {}",
            lab.name(),
            tests::bin().display()
        ))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("bash starts");
    let mut lines = BufReader::new(half.stdout.take().expect("piped")).lines();
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains("starting node2"));
    half.kill().expect("it can be killed");
    half.wait().expect("it ends");
    assert!(found, "hack/up ended before it started node 2");
    let inhabitants = Inhabitants::of(&lab);
    let said = lab.script(&format!("hack/down --name {}", lab.name()));
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    inhabitants.are_gone();
    nothing_is_left(&lab, &before);
}

fn nothing_is_left(lab: &Lab, before: &Machine) {
    // The kernel takes its time with namespaces; other work on the machine comes and goes.
    let mut left = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        left = Machine::look(lab.name()).changes_since(before);
        if left.is_empty() {
            return;
        }
    }
    panic!("left behind or taken away:\n{}", left.join("\n"));
}

/// The processes of a cluster and the namespaces they live in.
struct Inhabitants {
    name: String,
    namespaces: Vec<String>,
}

impl Inhabitants {
    fn of(lab: &Lab) -> Self {
        let groups = format!(
            "find /sys/fs/cgroup -path '*/bramble-lab/{}/*' -name cgroup.procs -exec cat {{}} + | sort -u",
            lab.name()
        );
        let own: Vec<String> = namespaces("self");
        let mut found: Vec<String> = lab.script(&groups).out.lines().flat_map(namespaces).collect();
        found.retain(|namespace| !own.contains(namespace));
        assert!(found.len() >= 5, "a node has five namespaces: {found:?}");
        Self { name: lab.name().to_owned(), namespaces: found }
    }

    fn are_gone(&self) {
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.map(|p| p.file_name().to_string_lossy().into_owned());
        for pid in pids.filter(|p| p.bytes().all(|b| b.is_ascii_digit())) {
            let read =
                |name| std::fs::read_to_string(Path::new("/proc").join(&pid).join(name)).unwrap_or_default();
            if read("stat").contains(") Z ") {
                continue; // Dead, holds nothing; its parent has not asked yet.
            }
            let line = read("cmdline").replace('\0', " ");
            assert!(!read("cgroup").contains(&format!("/bramble-lab/{}/", self.name)), "{pid} {line}");
            assert!(!line.contains(&format!("/bramble-lab/{}/", self.name)), "{pid} {line}");
            let lives = namespaces(&pid);
            assert!(!lives.iter().any(|n| self.namespaces.contains(n)), "{pid} {line} {lives:?}");
        }
    }
}

fn namespaces(pid: &str) -> Vec<String> {
    let folder = Path::new("/proc").join(pid).join("ns");
    let link = |name| std::fs::read_link(folder.join(name)).ok();
    let found = ["net", "mnt", "pid", "uts", "ipc"].into_iter().filter_map(link);
    found.map(|path| path.to_string_lossy().into_owned()).collect()
}
