//! The files in /etc that a pod gets from the node, and where a pod's things are on disk.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// What the resolver of glibc and musl looks at.
const MOST_SEARCHES: usize = 32;
const MOST_SERVERS: usize = 3;

/// One pod's folder: `<state>/pods/<uid>`.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// Of one pod. The uid comes from the API: only what a uid can hold is kept of it.
    pub fn new(state: &Path, uid: &str) -> PodDir {
        let safe: String = uid.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        PodDir(state.join("pods").join(if safe.is_empty() { "-".to_owned() } else { safe }))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A volume's folder.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.0.join("volumes").join(name)
    }

    /// One of the files in /etc.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.0.join("etc").join(name)
    }

    /// One incarnation's log.
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.0.join("logs").join(container).join(format!("{attempt}.log"))
    }

    /// One incarnation's termination message.
    pub fn termination(&self, id: &str) -> PathBuf {
        self.0.join("termination").join(id)
    }

    /// Where a subPath is pinned.
    pub fn sub_path(&self, container: &str, index: usize) -> PathBuf {
        self.0.join("subpaths").join(format!("{container}-{index}"))
    }
}

/// The hostname inside a pod.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let name = own.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// Name, as others can look it up, when the pod has a subdomain.
fn fqdn(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref()?;
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// A pod's /etc/hosts.
pub fn hosts(pod: &Pod, ip: Option<IpAddr>, domain: &str) -> String {
    let mut out = String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
    out.push_str(
        "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n",
    );
    out.push_str("fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
    if let Some(ip) = ip {
        let name = hostname(pod);
        match fqdn(pod, domain) {
            Some(full) => out.push_str(&format!("{ip}\t{full}\t{name}\n")),
            None => out.push_str(&format!("{ip}\t{name}\n")),
        }
    }
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_ref());
    for alias in aliases.into_iter().flatten() {
        let names = alias.hostnames.clone().unwrap_or_default();
        out.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    out
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
                Some("search") => resolver.searches = words.map(str::to_owned).collect(),
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        resolver
    }

    fn print(self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            let searches: Vec<_> = self.searches.into_iter().take(MOST_SEARCHES).collect();
            out.push_str(&format!("search {}\n", searches.join(" ")));
        }
        for server in self.servers.iter().take(MOST_SERVERS) {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

/// A pod's /etc/resolv.conf; `node` is the node's.
pub fn resolv_conf(spec: &PodSpec, namespace: &str, dns: Ipv4Addr, domain: &str, node: &str) -> String {
    let host = spec.host_network == Some(true);
    let mut resolver = match spec.dns_policy.as_deref() {
        Some("None") => Resolver::default(),
        Some("Default") => Resolver::parse(node),
        Some("ClusterFirstWithHostNet") => cluster_first(namespace, dns, domain, node),
        _ if host => Resolver::parse(node),
        _ => cluster_first(namespace, dns, domain, node),
    };
    if let Some(config) = &spec.dns_config {
        resolver.servers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|old| old.split(':').next() != Some(name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    resolver.print()
}

fn cluster_first(namespace: &str, dns: Ipv4Addr, domain: &str, node: &str) -> Resolver {
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    for name in Resolver::parse(node).searches {
        if name != "." && !searches.contains(&name) {
            searches.push(name);
        }
    }
    Resolver { servers: vec![dns.to_string()], searches, options: vec!["ndots:5".to_owned()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "# x\nnameserver 192.168.1.1\nsearch home.lan\noptions edns0\n";

    fn check(spec: serde_json::Value, expect: &str) {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(resolv_conf(&spec, "ns", Ipv4Addr::new(10, 0, 0, 10), "cluster.local", NODE), expect);
    }

    #[test]
    fn the_resolver_follows_the_policy() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local home.lan\n\
                       nameserver 10.0.0.10\noptions ndots:5\n";
        let node = "search home.lan\nnameserver 192.168.1.1\noptions edns0\n";
        check(serde_json::json!({}), cluster);
        check(serde_json::json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"}), node);
        check(serde_json::json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster);
        check(serde_json::json!({"dnsPolicy": "Default"}), node);
        let own = serde_json::json!({"dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]}});
        check(own, "search a.b\nnameserver 1.1.1.1\noptions ndots:2\n");
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "ns"},
            "spec": {"containers": [], "subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]},
        }))
        .unwrap();
        let text = hosts(&pod, Some("10.1.0.5".parse().unwrap()), "cluster.local");
        assert!(text.contains("10.1.0.5\tweb-0.web.ns.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.contains("1.2.3.4\ta\tb\n"), "{text}");
        assert!(text.contains("127.0.0.1\tlocalhost\n"), "{text}");
    }

    #[test]
    fn a_uid_cannot_leave_the_pods_folder() {
        assert_eq!(PodDir::new(Path::new("/s"), "../../etc").path(), Path::new("/s/pods/etc"));
    }
}
