//! The `kubectl` front: stock kubectl, but `run` as the 2016 talk types it.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde_json::{Value, json};

/// The node's own kubeconfig.
pub const KUBECONFIG: &str = "/var/lib/bramble/kubeconfig";
/// Where the image keeps stock kubectl.
pub const STOCK: &str = "/usr/lib/bramble/kubectl";

/// What `run` was asked to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Objects to create, the Service first as in 2016.
    pub objects: Vec<Value>,
    /// Arguments for stock kubectl's `create` (namespace, context, dry run ...).
    pub rest: Vec<String>,
}

/// Why a `run` cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// No name.
    #[error("NAME is required for run")]
    Name,
    /// No image.
    #[error("required flag(s) \"image\" not set")]
    Image,
    /// `--expose` without a port.
    #[error("--port must be set when exposing a service")]
    Port,
    /// A number that is none.
    #[error("invalid argument {value:?} for \"--{flag}\": not a number in range")]
    Number {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// A form that has no meaning for a Deployment.
    #[error("{0} cannot be combined with --replicas or --expose; run it as a pod without them")]
    Combination(String),
    /// A value is missing.
    #[error("flag needs an argument: --{0}")]
    Value(String),
}

/// Flags of 2016's `run` that take a value and are translated here.
const VALUED: &[&str] =
    &["image", "replicas", "port", "hostport", "env", "labels", "limits", "requests", "image-pull-policy"];
/// Flags that go on to stock `create` with their value.
const PASSED: &[&str] = &[
    "namespace",
    "context",
    "kubeconfig",
    "cluster",
    "user",
    "server",
    "token",
    "dry-run",
    "output",
    "as",
    "request-timeout",
    "v",
    "certificate-authority",
    "client-certificate",
    "client-key",
];

/// What kubectl does by itself.
const LOCAL: &[&str] = &["completion", "config", "help", "kustomize", "options", "plugin", "version"];

/// Whether kubectl would look for an API server where none is: at port 8080 of this machine, where the status page is.
fn lost(args: &[String]) -> bool {
    let end = args.iter().position(|a| a == "--").unwrap_or(args.len());
    let args = &args[..end];
    let given = |a: &String| a.starts_with('-') && ["kubeconfig", "server", "help", "h"].contains(&long(a));
    verb(args).is_some_and(|verb| !LOCAL.contains(&args[verb].as_str())) && !args.iter().any(given)
}

/// Translates `run` arguments (those after the program's name). `None`: stock kubectl's own business.
pub fn translate(args: &[String]) -> Option<Result<Run, RunError>> {
    let own = |a: &String| {
        let name = a.split('=').next().unwrap_or(a);
        name == "--replicas" || name == "-r" || (name == "--expose" && a != "--expose=false")
    };
    let end = args.iter().position(|a| a == "--").unwrap_or(args.len());
    let verb = verb(&args[..end])?;
    if args[verb] != "run" || !args[..end].iter().any(own) {
        return None;
    }
    Some(Flags::read(args, verb).and_then(Flags::objects))
}

/// Where the first word is that is neither a flag nor a flag's value.
fn verb(args: &[String]) -> Option<usize> {
    let mut at = 0;
    while at < args.len() {
        let arg = &args[at];
        if !arg.starts_with('-') {
            return Some(at);
        }
        let name = long(arg);
        at += if !arg.contains('=') && PASSED.contains(&name) { 2 } else { 1 };
    }
    None
}

/// The long name of a flag as written.
fn long(arg: &str) -> &str {
    let name = arg.split('=').next().unwrap_or(arg);
    match name {
        "-r" => "replicas",
        "-l" => "labels",
        "-n" => "namespace",
        "-s" => "server",
        "-o" => "output",
        "-i" => "stdin",
        "-t" => "tty",
        other => other.trim_start_matches('-'),
    }
}

#[derive(Debug, Default)]
struct Flags {
    name: Option<String>,
    values: Vec<(&'static str, String)>,
    expose: bool,
    command: bool,
    trailing: Vec<String>,
    rest: Vec<String>,
}

impl Flags {
    fn read(args: &[String], verb: usize) -> Result<Self, RunError> {
        let mut flags = Self::default();
        let mut words = args.iter().enumerate().filter(|(at, _)| *at != verb).map(|(_, a)| a);
        while let Some(arg) = words.next() {
            if arg == "--" {
                flags.trailing.extend(words.by_ref().cloned());
                break;
            }
            if !arg.starts_with('-') {
                if flags.name.is_none() {
                    flags.name = Some(arg.clone())
                } else {
                    flags.trailing.push(arg.clone())
                }
                continue;
            }
            flags.flag(arg, &mut words)?;
        }
        Ok(flags)
    }

    fn flag<'a>(&mut self, arg: &str, words: &mut impl Iterator<Item = &'a String>) -> Result<(), RunError> {
        let name = long(arg);
        let inline = arg.split_once('=').map(|(_, v)| v.to_owned());
        let on = inline.as_deref() != Some("false");
        match name {
            "expose" => self.expose = on,
            "command" => self.command = on,
            "restart" => {
                let value = inline.or_else(|| words.next().cloned()).unwrap_or_default();
                if value != "Always" {
                    return Err(RunError::Combination(format!("--restart={value}")));
                }
            }
            // What chose between generators in 2016; a Deployment it is.
            "generator" | "service-generator" => {
                if inline.is_none() {
                    words.next();
                }
            }
            "stdin" | "tty" | "attach" | "rm" if on => return Err(RunError::Combination(arg.to_owned())),
            _ => {
                if let Some(known) = VALUED.iter().find(|k| **k == name) {
                    let value = inline.or_else(|| words.next().cloned());
                    self.values.push((known, value.ok_or_else(|| RunError::Value(name.to_owned()))?));
                } else {
                    self.rest.push(arg.to_owned());
                    if inline.is_none() && PASSED.contains(&name) {
                        self.rest.extend(words.next().cloned());
                    }
                }
            }
        }
        Ok(())
    }

    fn last(&self, flag: &str) -> Option<&str> {
        self.values.iter().rev().find(|(name, _)| *name == flag).map(|(_, v)| v.as_str())
    }

    fn number(
        &self,
        flag: &'static str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, RunError> {
        let Some(text) = self.last(flag) else { return Ok(None) };
        let number = text.parse().ok().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| RunError::Number { flag, value: text.to_owned() })
    }

    fn objects(self) -> Result<Run, RunError> {
        let name = self.name.clone().ok_or(RunError::Name)?;
        let image = self.last("image").ok_or(RunError::Image)?;
        let replicas = self.number("replicas", 0..=10_000)?.unwrap_or(1);
        let port = self.number("port", 1..=65_535)?;
        let mut container = json!({"name": name, "image": image});
        if let Some(port) = port {
            container["ports"] = json!([{"containerPort": port}]);
            if let Some(host) = self.number("hostport", 1..=65_535)? {
                container["ports"][0]["hostPort"] = host.into();
            }
        }
        self.fill(&mut container);
        let mut labels = json!({"run": name});
        for (key, value) in pairs(self.last("labels")) {
            labels[key] = value.into();
        }
        let mut objects = Vec::new();
        if self.expose {
            let port = port.ok_or(RunError::Port)?;
            let ports = json!([{"port": port, "protocol": "TCP", "targetPort": port}]);
            objects.push(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
                "spec": {"ports": ports, "selector": labels}}),
            );
        }
        objects.push(json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}}));
        Ok(Run { objects, rest: self.rest })
    }

    fn fill(&self, container: &mut Value) {
        let env: Vec<Value> = self
            .values
            .iter()
            .filter(|(name, _)| *name == "env")
            .filter_map(|(_, text)| text.split_once('='))
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        if !env.is_empty() {
            container["env"] = env.into();
        }
        if !self.trailing.is_empty() {
            container[if self.command { "command" } else { "args" }] = json!(self.trailing);
        }
        if let Some(policy) = self.last("image-pull-policy") {
            container["imagePullPolicy"] = policy.into();
        }
        for kind in ["limits", "requests"] {
            for (resource, amount) in pairs(self.last(kind)) {
                container["resources"][kind][resource] = amount.into();
            }
        }
    }
}

/// `a=b,c=d`.
fn pairs(text: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    text.into_iter().flat_map(|t| t.split(',')).filter_map(|pair| pair.split_once('='))
}

/// Runs the front; `args` begins with the program's name. Returns only when it could not become stock kubectl.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    let stock = std::env::var_os("BRAMBLE_KUBECTL").map_or_else(|| PathBuf::from(STOCK), PathBuf::from);
    let mut command = Command::new(&stock);
    let text: Option<Vec<String>> = args.iter().map(|a| a.to_str().map(str::to_owned)).collect();
    if std::env::var_os("KUBECONFIG").is_none() {
        if Path::new(KUBECONFIG).exists() {
            command.env("KUBECONFIG", KUBECONFIG);
        } else if !own_config() && text.as_deref().is_some_and(lost) {
            eprintln!(
                "error: this node has no kubeconfig: the node where `kube-config enable-master` was typed has one\n\
                 Type kubectl there, or copy its {KUBECONFIG} to ~/.kube/config here."
            );
            return ExitCode::FAILURE;
        }
    }
    match text.as_deref().and_then(translate) {
        None => become_stock(command.args(&args), stock.as_os_str()),
        Some(Ok(run)) => create(&mut command, &run, stock.as_os_str()),
        Some(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether whoever types has a kubeconfig of their own, or is a pod.
fn own_config() -> bool {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() || home.is_some_and(|path| path.exists())
}

fn become_stock(command: &mut Command, stock: &OsStr) -> ExitCode {
    let error = command.exec();
    eprintln!("error: {}: {error}: stock kubectl belongs there", stock.display());
    ExitCode::from(127)
}

fn create(command: &mut Command, run: &Run, stock: &OsStr) -> ExitCode {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": run.objects});
    let child = command.args(["create", "-f", "-"]).args(&run.rest).stdin(Stdio::piped()).spawn();
    let status = child.and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl that ends early says itself why.
            let _ = stdin.write_all(list.to_string().as_bytes());
        }
        child.wait()
    });
    match status {
        Ok(status) => ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {}: {error}: stock kubectl belongs there", stock.display());
            ExitCode::from(127)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(line: &str) -> Option<Result<Run, RunError>> {
        translate(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_talk_of_2016() {
        let made =
            run("run my-nginx --image=luxas/nginx-test --replicas=3 --expose --port=80").unwrap().unwrap();
        let [service, deployment] = made.objects.as_slice() else { panic!("{made:?}") };
        assert_eq!(service["kind"], "Service");
        assert_eq!(service["spec"]["selector"], json!({"run": "my-nginx"}));
        assert_eq!(service["spec"]["ports"][0]["port"], 80);
        assert_eq!(deployment["spec"]["replicas"], 3);
        assert_eq!(deployment["spec"]["selector"]["matchLabels"], json!({"run": "my-nginx"}));
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "luxas/nginx-test");
        let made =
            run("run hello-kube --image=hypriot/rpi-nano-httpd --replicas=3 --port=80").unwrap().unwrap();
        assert_eq!(made.objects.len(), 1);
    }

    #[test]
    fn the_rest_is_stock() {
        for line in [
            "get pods",
            "run x --image=y",
            "run x --image=y --expose=false",
            "expose deployment x",
            "exec x -- run --replicas=3",
            "run x --image=y -- tool --replicas=2",
            "",
        ] {
            assert_eq!(run(line), None, "{line}");
        }
    }

    #[test]
    fn only_what_asks_a_server_is_lost_without_one() {
        let lost = |line: &str| lost(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for line in ["get nodes", "-n x get pods", "run x --image=y", "exec x -- tool --server y"] {
            assert!(lost(line), "{line}");
        }
        for line in [
            "version --client",
            "config view",
            "--server https://x get nodes",
            "-s x get nodes",
            "--help",
            "get --help",
            "get nodes --kubeconfig=/x",
        ] {
            assert!(!lost(line), "{line}");
        }
    }

    #[test]
    fn flags_reach_their_place() {
        let made = run("-n prod run web --image i -r 2 --env A=b=c -l app=web,tier=front --limits cpu=1 \
                        --dry-run=client -- a b")
        .unwrap()
        .unwrap();
        let spec = &made.objects[0]["spec"]["template"];
        let container = &spec["spec"]["containers"][0];
        assert_eq!(made.rest, ["-n", "prod", "--dry-run=client"]);
        assert_eq!(container["env"], json!([{"name": "A", "value": "b=c"}]));
        assert_eq!(container["args"], json!(["a", "b"]));
        assert_eq!(container["resources"]["limits"]["cpu"], "1");
        assert_eq!(spec["metadata"]["labels"], json!({"run": "web", "app": "web", "tier": "front"}));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |line| run(line).unwrap().unwrap_err();
        assert_eq!(error("run --replicas=3 --image=x"), RunError::Name);
        assert_eq!(error("run a --replicas=3"), RunError::Image);
        assert_eq!(error("run a --image=x --expose"), RunError::Port);
        assert!(error("run a --image=x --replicas=-1").to_string().contains("replicas"));
        assert!(
            error("run a --image=x --replicas=2 --restart=Never").to_string().contains("--restart=Never")
        );
    }

    proptest! {
        #[test]
        fn never_panics(args in proptest::collection::vec("(run|--?[a-z-]{0,9}(=[a-z0-9]{0,4})?|[a-z]{0,5})", 0..9)) {
            let _ = translate(&args);
        }
    }
}
