//! The Kubernetes API alone, driven by stock clients: no node, no lab, no root.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Said, bin};

/// One `bramble agent --roles control-plane`.
struct Plane {
    folder: tempfile::TempDir,
    port: u16,
    args: Vec<String>,
    child: Child,
}

/// In an argument: the folder that is the process's own.
const FOLDER: &str = "FOLDER";
/// Who a process runs as that may do nothing.
const NOBODY: u32 = 65534;

impl Plane {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root owns the machine");
        // Bound and given back: nobody else on the machine asks for ports meanwhile.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let own = folder.path().display().to_string();
        let args: Vec<String> = args.iter().map(|arg| arg.replace(FOLDER, &own)).collect();
        let child = Self::spawn(&folder, port, &args);
        Self { folder, port, args, child }
    }

    fn spawn(folder: &tempfile::TempDir, port: u16, args: &[String]) -> Child {
        use std::os::unix::process::CommandExt;
        Command::new(bin())
            .args(["agent", "--roles", "control-plane", "--bind", &format!("127.0.0.1:{port}")])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(args)
            .uid(NOBODY)
            .gid(NOBODY)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("bramble starts")
    }

    /// The time until it can answer.
    fn ready(&self) -> Duration {
        let began = Instant::now();
        while self.curl("/readyz").out != "ok" {
            assert!(began.elapsed() < Duration::from_secs(30), "not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        began.elapsed()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("data/kubeconfig")
    }

    fn curl(&self, path: &str) -> Said {
        self.curl_with(&[], path)
    }

    fn curl_with(&self, args: &[&str], path: &str) -> Said {
        let url = format!("https://127.0.0.1:{}{path}", self.port);
        Command::new("curl").args(["-sk", &url]).args(args).output().expect("curl is there").into()
    }

    fn code(&self, args: &[&str], path: &str) -> String {
        self.curl_with(&[&["-o", "/dev/null", "-w", "%{http_code}"], args].concat(), path).out
    }

    fn kubectl(&self, client: &str, line: &str) -> Said {
        let client =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../out/clients").join(client).join("kubectl");
        let line = format!("'{}' --kubeconfig '{}' {line}", client.display(), self.kubeconfig().display());
        Command::new("bash").arg("-c").arg(line).output().expect("bash starts").into()
    }

    fn ok(&self, line: &str) -> String {
        let said = self.kubectl("new", line);
        assert_eq!(said.code, 0, "{line}\n{}{}", said.out, said.err);
        said.out.trim_end().to_owned()
    }

    fn fails(&self, line: &str) -> String {
        let said = self.kubectl("new", line);
        assert_ne!(said.code, 0, "{line}\n{}", said.out);
        said.err
    }

    /// Waits until a line says this.
    fn says(&self, line: &str, expect: &str) {
        let began = Instant::now();
        loop {
            let said = self.kubectl("new", line);
            if said.out.trim() == expect {
                return;
            }
            let text = format!("{line}\n{}{}", said.out, said.err);
            assert!(began.elapsed() < Duration::from_secs(20), "{text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn signal(&mut self, signal: &str) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(sent.success());
        self.child.wait().expect("a child").code()
    }

    fn again(&mut self) {
        self.child = Self::spawn(&self.folder, self.port, &self.args);
        self.ready();
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_api_for_stock_clients() {
    let mut plane = Plane::start(&["--service-cidr", "10.7.0.0/24"]);
    let took = plane.ready();
    assert!(took < Duration::from_secs(1), "ready after {took:?}");
    for client in ["old", "new"] {
        let said = plane.kubectl(client, "get namespaces -o name");
        let names =
            "namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system\n";
        assert_eq!(said.out, names, "{client}: {}", said.err);
        assert_eq!(
            plane.kubectl(client, "get service kubernetes -o jsonpath={.spec.clusterIP}").out,
            "10.7.0.1"
        );
        assert_eq!(plane.kubectl(client, "get nodes").err.trim(), "No resources found", "{client}");
    }
    health(&plane);
    handshake(&plane);
    // Controllers run; so does the scheduler, which says why a pod waits.
    plane.ok("create deployment web --image=nginx --replicas=2");
    plane.says("get deployment web -o jsonpath={.status.replicas}", "2");
    plane.says(
        "get events -o jsonpath='{.items[?(@.reason==\"FailedScheduling\")].type}' | tr ' ' '\\n' | sort -u",
        "Warning",
    );
    accounts(&plane);
    certificates(&plane);
    quotas(&plane);
    durable(&mut plane);
}

fn health(plane: &Plane) {
    let verbose = plane.curl("/readyz?verbose").out;
    assert!(verbose.starts_with("[+]ping ok\n") && verbose.ends_with("readyz check passed\n"), "{verbose}");
    assert_eq!(plane.curl("/livez/ping").out, "ok");
    assert_eq!(plane.code(&[], "/livez/nothing"), "404");
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(plane.code(&[], path), "200", "{path}");
    }
    // Everything else is for those who say who they are.
    for path in ["/metrics", "/api", "/api/v1/pods"] {
        assert_eq!(plane.code(&[], path), "401", "{path}");
    }
    let metrics = plane.ok("get --raw /metrics");
    assert!(
        metrics.contains("apiserver_request_total{code=\"200\"")
            && metrics.contains("process_resident_memory_bytes")
    );
    assert_eq!(plane.ok("get --raw /readyz"), "ok");
}

/// Clients choose a certificate by the names of the authorities that the server tells.
fn handshake(plane: &Plane) {
    let line = format!("openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null", plane.port);
    let said: Said = Command::new("bash").arg("-c").arg(line).output().expect("openssl is there").into();
    let (_, names) = said.out.split_once("Acceptable client certificate CA names").expect(&said.out);
    assert!(names.contains("CN = bramble-") || names.contains("CN=bramble-"), "{names}");
}

fn accounts(plane: &Plane) {
    plane.says("get serviceaccount default -n kube-public -o name", "serviceaccount/default");
    plane.says("get configmap kube-root-ca.crt -n kube-public -o name", "configmap/kube-root-ca.crt");
    plane.ok("create serviceaccount robot");
    plane.ok("create role look --verb=get,list --resource=configmaps");
    plane.ok("create rolebinding robot --role=look --serviceaccount=default:robot");
    let token = plane.ok("create token robot --duration=20m");
    let bearer = format!("Authorization: Bearer {token}");
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(plane.code(&["-H", &bearer], maps), "200");
    assert_eq!(plane.code(&["-H", &bearer], "/api/v1/namespaces/default/secrets"), "403");
    assert_eq!(plane.code(&["-H", &format!("{bearer}x")], maps), "401");
    // The file names no user, only the token does.
    let server =
        format!("--kubeconfig /dev/null -s https://127.0.0.1:{} --insecure-skip-tls-verify", plane.port);
    let me = plane.ok(&format!("{server} --token={token} auth whoami -o jsonpath='{{.status.userInfo.username}} {{.status.userInfo.groups}}'"));
    assert_eq!(
        me,
        r#"system:serviceaccount:default:robot ["system:serviceaccounts","system:serviceaccounts:default","system:authenticated"]"#
    );
    let error = plane.fails("create token robot --duration=1m");
    assert!(error.contains("may not specify a duration less than 10 minutes"), "{error}");
    let error = plane.fails("create token nobody");
    assert!(error.contains(r#"serviceaccounts "nobody" not found"#), "{error}");
    let key: Value = serde_json::from_str(&plane.ok("get --raw /openid/v1/jwks")).expect("JSON");
    assert_eq!(key["keys"][0]["alg"], "ES256");
    let about: Value =
        serde_json::from_str(&plane.ok("get --raw /.well-known/openid-configuration")).expect("JSON");
    assert_eq!(about["issuer"], "https://kubernetes.default.svc.cluster.local");
    // Without the account it is nothing.
    plane.ok("delete serviceaccount robot");
    assert_eq!(plane.code(&["-H", &bearer], maps), "401");
}

/// A user makes a key and asks; an administrator approves; the user is in.
fn certificates(plane: &Plane) {
    let dir = plane.folder.path().display().to_string();
    let ask = |name: &str, subject: &str| {
        let line = format!(
            "cd {dir} && openssl req -new -newkey rsa:2048 -nodes -keyout {name}.key -subj {subject} 2>/dev/null | base64 -w0"
        );
        let said: Said = Command::new("bash").arg("-c").arg(line).output().expect("openssl is there").into();
        let manifest = format!(
            "{{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {{name: {name}}}, spec: \
             {{request: {}, signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], expirationSeconds: 3600}}}}",
            said.out
        );
        plane.ok(&format!("create -f - <<'E'\n{manifest}\nE\n"));
    };
    ask("eve", "/CN=eve/O=people");
    let row = plane.ok("get csr eve --no-headers");
    assert!(
        row.contains("kubernetes.io/kube-apiserver-client")
            && row.contains("kubernetes-admin")
            && row.ends_with("Pending"),
        "{row}"
    );
    assert!(plane.ok("certificate approve eve").contains("eve approved"));
    plane.says("get csr eve --no-headers | awk '{print $NF}'", "Approved,Issued");
    let line = format!("get csr eve -o jsonpath={{.status.certificate}} | base64 -d > {dir}/eve.crt");
    plane.ok(&line);
    let pair = [&format!("{dir}/eve.crt"), &format!("{dir}/eve.key")];
    assert_eq!(plane.code(&["--cert", pair[0], "--key", pair[1]], "/apis"), "200");
    assert_eq!(plane.code(&["--cert", pair[0], "--key", pair[1]], "/api/v1/pods"), "403");
    ask("mallory", "/CN=mallory/O=people");
    plane.ok("certificate deny mallory");
    assert!(plane.ok("get csr mallory --no-headers").ends_with("Denied"));
    // Approved by mistake: nobody becomes the master of all that way.
    ask("king", "/CN=king/O=system:masters");
    plane.ok("certificate approve king");
    plane.says("get csr king --no-headers | awk '{print $NF}'", "Approved,Failed");
}

fn quotas(plane: &Plane) {
    plane.ok("create namespace small");
    plane.ok("create quota q -n small --hard=configmaps=2");
    plane.says("get quota q -n small -o jsonpath={.status.used.configmaps}", "1");
    plane.ok("create configmap one -n small");
    plane.says("get quota q -n small -o jsonpath={.status.used.configmaps}", "2");
    let error = plane.fails("create configmap two -n small");
    assert!(
        error.contains(
            "exceeded quota: q, requested: configmaps=1, used: configmaps=2, limited: configmaps=2"
        ),
        "{error}"
    );
}

fn durable(plane: &mut Plane) {
    plane.ok("create configmap kept --from-literal=a=b");
    assert_eq!(plane.signal("-TERM"), Some(0), "a clean end");
    plane.again();
    assert_eq!(plane.ok("get configmap kept -o jsonpath={.data.a}"), "b");
    plane.ok("create configmap late --from-literal=a=b");
    plane.signal("-KILL");
    plane.again();
    assert_eq!(plane.ok("get configmap kept late -o name"), "configmap/kept\nconfigmap/late");
    // Another range would make a lie of every Service.
    assert_eq!(plane.signal("-TERM"), Some(0));
    plane.args = vec!["--service-cidr".into(), "10.8.0.0/24".into()];
    let mut child = Plane::spawn(&plane.folder, plane.port, &plane.args);
    assert_eq!(child.wait().expect("a child").code(), Some(1));
}

#[test]
fn several_side_by_side_with_tokens_of_a_file() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut file, b"letmein,eve,42,\"people,system:masters\"\nlook,adam,43\n")
        .expect("written");
    std::os::unix::fs::chown(file.path(), Some(NOBODY), None).expect("root owns the machine");
    let tokens = file.path().display().to_string();
    let one = Plane::start(&["--token-file", &tokens, "--no-controllers", "--no-scheduler"]);
    let two = Plane::start(&["--disable-admission", "ServiceAccount,LimitRanger"]);
    one.ready();
    two.ready();
    let list = "/api/v1/namespaces";
    assert_eq!(one.code(&["-H", "Authorization: Bearer letmein"], list), "200");
    assert_eq!(one.code(&["-H", "Authorization: Bearer look"], list), "403");
    assert_eq!(one.code(&["-H", "Authorization: Bearer wrong"], list), "401");
    assert_eq!(two.code(&["-H", "Authorization: Bearer letmein"], list), "401");
    // No controller: nobody acts on what is written.
    one.ok("create deployment web --image=nginx");
    assert_eq!(one.ok("get deployment web -o jsonpath={.status.replicas}"), "");
    one.ok("run p --image=nginx");
    assert!(one.ok("get pod p -o jsonpath={.spec.volumes[0].name}").starts_with("kube-api-access-"));
    two.ok("run p --image=nginx");
    assert_eq!(two.ok("get pod p -o jsonpath={.spec.volumes}"), "");
    // A name that means nothing is a mistake.
    let said: Said = Command::new(bin())
        .args(["agent", "--roles", "control-plane", "--disable-admission", "Nonsense"])
        .output()
        .expect("bramble starts")
        .into();
    assert!(said.code == 1 && said.err.contains("\"Nonsense\" is unknown"), "{}", said.err);
    let said: Said =
        Command::new(bin()).args(["agent", "--no-scheduler"]).output().expect("bramble starts").into();
    assert!(said.code == 2 && said.err.contains("--roles"), "{}", said.err);
}

#[test]
fn what_is_asked_is_written_down() {
    let mut plane = Plane::start(&["--audit-log-path", "FOLDER/log/audit.log"]);
    plane.ready();
    let events = |plane: &Plane| -> Vec<Value> {
        let text = std::fs::read_to_string(plane.folder.path().join("log/audit.log")).expect("the log");
        text.lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect()
    };
    let made = |plane: &Plane, name: &str| {
        plane.ok(&format!("create configmap {name}"));
        let is_it = |event: &&Value| event["verb"] == "create" && event["objectRef"]["name"] == name;
        // Written by then: the answer waits for the queue, not for the disk.
        let began = Instant::now();
        loop {
            if let Some(event) = events(plane).iter().find(is_it) {
                return event.clone();
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{name} is not in the log");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let event = made(&plane, "first");
    assert_eq!((&event["stage"], &event["level"]), (&"ResponseComplete".into(), &"Metadata".into()));
    assert_eq!(event["user"]["username"], "kubernetes-admin");
    assert_eq!(event["sourceIPs"], serde_json::json!(["127.0.0.1"]));
    assert!(event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubectl")), "{event}");
    assert_eq!(plane.code(&[], "/api/v1/secrets"), "401");
    assert_eq!(events(&plane).last().expect("an event")["responseStatus"]["code"], 401);
    // It goes on where it was, whatever ended it.
    plane.signal("-KILL");
    plane.again();
    made(&plane, "second");
    let named = |name: &str| events(&plane).iter().any(|event| event["objectRef"]["name"] == name);
    assert!(named("first") && named("second"));
    assert!(plane.ok("get --raw /metrics").contains("apiserver_audit_error_total{plugin=\"log\"} 0"));
}

#[test]
fn a_wrong_policy_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Everything}]\n")
        .expect("written");
    let said: Said = Command::new(bin())
        .args(["agent", "--roles", "control-plane", "--bind", "127.0.0.1:0", "--audit-log-path", "/dev/null"])
        .arg("--audit-policy-file")
        .arg(&policy)
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .output()
        .expect("bramble starts")
        .into();
    assert_ne!(said.code, 0);
    assert!(
        said.err.contains("policy.yaml") && said.err.contains("unknown variant `Everything`"),
        "{}",
        said.err
    );
}
