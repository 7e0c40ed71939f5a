//! Whole clusters for tests: real nodes in network namespaces, made by `hack/up` and driven by `hack/node`, with stock
//! kubectl. A [`Lab`] is one cluster; it is taken down when dropped, and what its agents said is shown when a test fails.

pub mod machine;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(100);

/// One cluster.
pub struct Lab {
    name: String,
    kubectl: &'static str,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

/// The stock client of today.
pub const NEW_KUBECTL: &str = "/usr/lib/bramble/kubectl";
/// The oldest stock client that the package registries offer.
pub const OLD_KUBECTL: &str = "/usr/lib/bramble/kubectl-old";

fn repo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `cargo build` makes.
pub fn dev_build() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), PathBuf::from);
    target.join("debug/bramble")
}

/// The binary under test: `BRAMBLE_BIN`, or what `hack/test` built.
pub fn bin() -> PathBuf {
    std::env::var_os("BRAMBLE_BIN").map_or_else(dev_build, PathBuf::from)
}

impl Lab {
    /// Makes a cluster with these further arguments of `hack/up`.
    pub fn up(name: &str, args: &str) -> Self {
        let lab = Self::named(name);
        let line = format!("hack/up --no-workload --name {} --bin {} {args}", lab.name, bin().display());
        let said = lab.script(&line);
        assert_eq!(said.code, 0, "{line}\n{}\n{}", said.out, said.err);
        lab
    }

    /// A cluster that is not there yet.
    pub fn named(name: &str) -> Self {
        let lab = Self { name: format!("test-{name}"), kubectl: NEW_KUBECTL };
        lab.down();
        lab
    }

    /// Its name, as the scripts take it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder on the machine.
    pub fn folder(&self) -> PathBuf {
        let root =
            std::env::var_os("BRAMBLE_LAB").map_or_else(|| "/var/lib/bramble-lab".into(), PathBuf::from);
        root.join(&self.name)
    }

    /// What `hack/up` settled: `SUBNET`, `NODES`, `API_PORT` or `PAGE_PORT`.
    pub fn setting(&self, name: &str) -> String {
        let line = format!("source {}/cluster.env && echo ${name}", self.folder().display());
        self.script(&line).out.trim().to_owned()
    }

    /// The same cluster, seen by another kubectl.
    pub fn with_kubectl(&mut self, kubectl: &'static str) {
        self.kubectl = kubectl;
    }

    /// A line of shell, to be run on the machine in the repository.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg("-c").arg(line).current_dir(repo());
        // What cargo tells this test about itself is not for a cargo that a script starts: it would build all again.
        let about_us = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars().filter(|(name, _)| about_us.iter().any(|a| name.starts_with(a))) {
            command.env_remove(name);
        }
        command.env_remove("CARGO");
        command
    }

    /// Runs it.
    pub fn script(&self, line: &str) -> Said {
        self.command(line).output().expect("bash starts").into()
    }

    /// The machine's own stock kubectl.
    pub fn machine_kubectl(&self) -> PathBuf {
        repo().join("out/clients/new/kubectl")
    }

    fn down(&self) {
        self.script(&format!("hack/down --name {}", self.name));
    }

    /// A node's address.
    pub fn address(&self, node: usize) -> String {
        let text = self.ok(node, "ip -4 -o addr show eth0");
        let address = text.split_whitespace().nth(3).and_then(|a| a.split('/').next());
        address.expect("a node has an address").to_owned()
    }

    /// The loopback port of the machine that leads to the status pages.
    pub fn page_port(&self) -> u16 {
        self.setting("PAGE_PORT").parse().expect("a port")
    }

    /// Takes the registry away.
    pub fn stop_registry(&self) {
        let line = format!("kill $(cat {}/registry.pid)", self.folder().display());
        assert_eq!(self.script(&line).code, 0, "{line}");
    }

    /// Where the test images are, on the machine and on the nodes alike.
    pub fn images(&self) -> PathBuf {
        std::fs::canonicalize(repo().join("out/images")).expect("hack/images made them")
    }

    /// Does something to a node: `--kill`, `--start`, ...
    pub fn act(&self, node: usize, actions: &str) {
        let said = self.script(&format!("hack/node --name {} {node} {actions}", self.name));
        assert_eq!(said.code, 0, "node {node} {actions}: {}{}", said.out, said.err);
    }

    /// Types a line on a node (or on `lan`, the machine on the bridge that is no node).
    pub fn types(&self, node: impl std::fmt::Display, line: &str) -> Said {
        let output = Command::new(repo().join("hack/node"))
            .args([
                "--name",
                &self.name,
                &node.to_string(),
                "env",
                &format!("BRAMBLE_KUBECTL={}", self.kubectl),
            ])
            .args(["sh", "-c", line])
            .current_dir(repo())
            .output();
        output.expect("hack/node starts").into()
    }

    /// Types a line that must succeed.
    pub fn ok(&self, node: impl std::fmt::Display, line: &str) -> String {
        let said = self.types(&node, line);
        assert_eq!(said.code, 0, "on node {node}: {line}\n{}{}", said.out, said.err);
        said.out
    }

    /// Types a line that must fail; what it says on standard error.
    pub fn fails(&self, node: impl std::fmt::Display, line: &str) -> String {
        let said = self.types(&node, line);
        assert_ne!(said.code, 0, "on node {node}: {line}\n{}", said.out);
        said.err
    }

    /// `kubectl get ... -o json` on node 1.
    pub fn get(&self, what: &str) -> serde_json::Value {
        self.get_from(1, what)
    }

    /// The same on another node.
    pub fn get_from(&self, node: usize, what: &str) -> serde_json::Value {
        let text = self.ok(node, &format!("kubectl get {what} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{what}: {e}: {text}"))
    }

    /// Gives node 1's kubeconfig to another node, so that a test can go on when node 1 is gone.
    pub fn share_kubeconfig(&self, node: usize) {
        let text = self.ok(1, "cat /var/lib/bramble/kubeconfig");
        let line = format!("umask 077; cat > /var/lib/bramble/kubeconfig <<'E'\n{text}\nE");
        self.ok(node, &line);
    }

    /// Writes a manifest to `/root/NAME` of node 1.
    pub fn write(&self, name: &str, manifest: &str) {
        self.ok(1, &format!("cat > /root/{name} <<'E'\n{manifest}\nE"));
    }

    /// Waits until a question is answered; the answer.
    pub fn until<T>(&self, what: &str, seconds: u64, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(answer) = ask(self) {
                return answer;
            }
            if Instant::now() >= deadline {
                let pods =
                    self.types(1, "kubectl get nodes,pods -A -o wide; kubectl get events -A | tail -n 30");
                panic!("not within {seconds} s: {what}\n{}{}", pods.out, pods.err);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until a line says this somewhere in its output.
    pub fn says(&self, node: impl std::fmt::Display, line: &str, needle: &str, seconds: u64) -> String {
        self.until(&format!("{line} says {needle:?}"), seconds, |lab| {
            let said = lab.types(&node, line);
            said.out.contains(needle).then_some(said.out)
        })
    }

    /// Waits until all of a deployment's pods are available.
    pub fn available(&self, deployment: &str, replicas: u64) {
        self.until(&format!("{deployment} has {replicas} available"), 120, |lab| {
            let said = lab.types(1, &format!("kubectl get deployment {deployment} -o json"));
            let object: serde_json::Value = serde_json::from_str(&said.out).ok()?;
            (object["status"]["availableReplicas"] == replicas).then_some(())
        });
    }

    /// The cluster IP of a service.
    pub fn cluster_ip(&self, service: &str) -> String {
        self.ok(1, &format!("kubectl get service {service} -o jsonpath='{{.spec.clusterIP}}'"))
    }

    /// Names of running, not terminating pods with a label.
    pub fn pods(&self, label: &str) -> Vec<String> {
        let list = self.get(&format!("pods -l {label}"));
        let alive = list["items"].as_array().into_iter().flatten().filter(|pod| {
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
        });
        alive.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
    }

    /// The name of the leader, as a node says it.
    pub fn leader(&self, node: usize) -> Option<String> {
        let said = self.types(node, "kube-config info");
        let name = said.out.lines().find_map(|l| l.strip_prefix("leader: "))?;
        name.starts_with("node").then(|| name.to_owned())
    }

    /// Waits until three nodes vote.
    pub fn three_vote(&self, node: usize) {
        self.until("three voters", 60, |lab| {
            let said = lab.types(node, "kube-config info");
            let voters = said.out.lines().find_map(|l| l.strip_prefix("voters: "))?.split(' ').count();
            (voters == 3).then_some(())
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = format!("tail -n 60 {}/n*.log", self.folder().display());
            eprintln!("{}", self.script(&logs).out);
        }
        if std::env::var_os("BRAMBLE_KEEP_LAB").is_none() {
            self.down();
        }
    }
}
