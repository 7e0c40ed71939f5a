//! A container's environment and command line: references resolved, `$(NAME)` expanded.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod, Service};
use runtime::Image;

use crate::limits;
use crate::sources::{Data, Sources};

/// Text of a field that the downward API offers.
pub fn field(pod: &Pod, path: &str, host_ip: &str, pod_ip: &str) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let keyed = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" | "status.hostIPs" => host_ip.to_owned(),
        "status.podIP" | "status.podIPs" => pod_ip.to_owned(),
        _ => {
            return keyed(&meta.labels, "metadata.labels['")
                .or_else(|| keyed(&meta.annotations, "metadata.annotations['"));
        }
    })
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// Text of a container's request or limit, as the downward API offers it.
pub fn resource(
    container: &Container,
    name: &str,
    divisor: Option<&str>,
    node: &NodeCapacity,
) -> Option<String> {
    let (side, kind) = name.split_once('.')?;
    let quantity = match side {
        "limits" => limits::limit(container, kind),
        "requests" => limits::request(container, kind),
        _ => return None,
    };
    let milli = match (quantity, kind) {
        (Some(quantity), _) => limits::milli(quantity)?,
        (None, "cpu") if side == "limits" => node.cpu_milli,
        (None, "memory") if side == "limits" => node.memory.saturating_mul(1000),
        (None, _) => 0,
    };
    let divisor = divisor.filter(|text| !text.is_empty() && *text != "0");
    let unit = match divisor {
        Some(text) => {
            limits::milli(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned()))?
        }
        None => 1000,
    };
    let unit = unit.max(1);
    Some((milli.saturating_add(unit - 1) / unit).to_string())
}

/// What a container may use when it has no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeCapacity {
    /// Thousandths of CPUs.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
}

/// What a container's environment is made of.
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Services that it is told of.
    pub services: &'a [Service],
    /// The node's address.
    pub host_ip: &'a str,
    /// The pod's address.
    pub pod_ip: &'a str,
    /// The node's size.
    pub node: NodeCapacity,
}

/// The variables of one container, in the order they take effect. `Err` is what the user has to mend.
pub async fn environment(
    context: &Context<'_>,
    sources: &dyn Sources,
) -> Result<Vec<(String, String)>, String> {
    let mut vars: BTreeMap<String, String> = service_variables(context.services).into_iter().collect();
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or_default();
    for from in context.container.env_from.iter().flatten() {
        let prefix = from.prefix.clone().unwrap_or_default();
        let data = if let Some(reference) = &from.config_map_ref {
            optional(sources.config_map(namespace, &reference.name).await, reference.optional)?
        } else if let Some(reference) = &from.secret_ref {
            optional(sources.secret(namespace, &reference.name).await, reference.optional)?
        } else {
            None
        };
        for (key, value) in data.into_iter().flatten() {
            vars.insert(format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned());
        }
    }
    for var in context.container.env.iter().flatten() {
        if let Some(value) = value_of(var, context, sources, namespace, &vars).await? {
            vars.insert(var.name.clone(), value);
        }
    }
    Ok(vars.into_iter().collect())
}

/// A missing source is no fault when the reference says so.
pub fn optional(found: Result<Data, String>, optional: Option<bool>) -> Result<Option<Data>, String> {
    match found {
        Ok(data) => Ok(Some(data)),
        Err(_) if optional == Some(true) => Ok(None),
        Err(why) => Err(why),
    }
}

async fn value_of(
    var: &EnvVar,
    context: &Context<'_>,
    sources: &dyn Sources,
    namespace: &str,
    vars: &BTreeMap<String, String>,
) -> Result<Option<String>, String> {
    let Some(from) = &var.value_from else {
        return Ok(Some(expand(var.value.as_deref().unwrap_or_default(), vars)));
    };
    if let Some(reference) = &from.config_map_key_ref {
        let found = sources.config_map(namespace, &reference.name).await;
        return key_of(found, &reference.key, reference.optional, "ConfigMap", namespace, &reference.name);
    }
    if let Some(reference) = &from.secret_key_ref {
        let found = sources.secret(namespace, &reference.name).await;
        return key_of(found, &reference.key, reference.optional, "Secret", namespace, &reference.name);
    }
    downward(from, context).map(Some)
}

fn downward(from: &EnvVarSource, context: &Context<'_>) -> Result<String, String> {
    if let Some(reference) = &from.field_ref {
        return field(context.pod, &reference.field_path, context.host_ip, context.pod_ip)
            .ok_or_else(|| format!("unsupported fieldPath: {}", reference.field_path));
    }
    if let Some(reference) = &from.resource_field_ref {
        let spec = context.pod.spec.as_ref();
        let other = reference.container_name.as_deref().and_then(|name| crate::plan::container(spec?, name));
        let container = other.as_ref().unwrap_or(context.container);
        let divisor = reference.divisor.as_ref().map(|divisor| divisor.0.as_str());
        return resource(container, &reference.resource, divisor, &context.node)
            .ok_or_else(|| format!("unsupported container resource: {}", reference.resource));
    }
    Err("valueFrom has no source that this node knows".to_owned())
}

fn key_of(
    found: Result<Data, String>,
    key: &str,
    may_miss: Option<bool>,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, String> {
    let Some(data) = optional(found, may_miss)? else { return Ok(None) };
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if may_miss == Some(true) => Ok(None),
        None => Err(format!("couldn't find key {key} in {kind} {namespace}/{name}")),
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar sign; what is unknown stays as it is.
pub fn expand(text: &str, vars: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match vars.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The argument vector: command and args override the image's entrypoint and cmd the way Kubernetes says.
pub fn arguments(container: &Container, image: &Image, vars: &BTreeMap<String, String>) -> Vec<String> {
    let given = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let (command, args) = (given(&container.command), given(&container.args));
    let expanded = |list: Vec<String>| list.into_iter().map(|text| expand(&text, vars)).collect::<Vec<_>>();
    let args = match (command.is_empty(), args.is_empty()) {
        (true, true) => image.cmd.clone(),
        _ => expanded(args),
    };
    let command = if command.is_empty() { image.entrypoint.clone() } else { expanded(command) };
    command.into_iter().chain(args).collect()
}

/// `NAME_SERVICE_HOST` and its kin for each service that has a cluster address.
pub fn service_variables(services: &[Service]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let name = service.metadata.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
        out.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        out.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        let url = |protocol: &str, port: i32| format!("{}://{ip}:{port}", protocol.to_lowercase());
        let protocol = first.protocol.as_deref().unwrap_or("TCP");
        out.push((format!("{name}_PORT"), url(protocol, first.port)));
        for port in spec.ports.iter().flatten() {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let port_name = port_name.to_uppercase().replace('-', "_");
                out.push((format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string()));
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.push((prefix.clone(), url(protocol, port.port)));
            out.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{prefix}_PORT"), port.port.to_string()));
            out.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_as_documented() {
        let vars = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())]);
        let table = [
            ("$(A)", "1"),
            ("x$(A)y$(B)z", "x1yz"),
            ("$$(A)", "$(A)"),
            ("$(NO)", "$(NO)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$$$(A)", "$1"),
        ];
        for (text, expect) in table {
            assert_eq!(expand(text, &vars), expect, "{text}");
        }
    }

    #[test]
    fn command_and_args_override_the_image() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let image = Image {
            id: String::new(),
            tags: vec![],
            digests: vec![],
            size: 0,
            entrypoint: strings(&["/ep"]),
            cmd: strings(&["c"]),
            env: vec![],
            working_dir: String::new(),
            user: String::new(),
            stop_signal: String::new(),
        };
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/ep", "c"]),
            (&["x"], &[], &["x"]),
            (&[], &["a"], &["/ep", "a"]),
            (&["x"], &["a"], &["x", "a"]),
        ];
        for (command, args, expect) in table {
            let container = Container {
                command: Some(strings(command)),
                args: Some(strings(args)),
                ..Container::default()
            };
            assert_eq!(arguments(&container, &image, &BTreeMap::new()), expect);
        }
    }

    #[test]
    fn services_are_told_of() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-nginx"},
            "spec": {"clusterIP": "10.0.0.7", "ports": [{"port": 80, "name": "web", "protocol": "TCP"}]},
        }))
        .unwrap();
        let vars: BTreeMap<_, _> = service_variables(&[service]).into_iter().collect();
        assert_eq!(vars["MY_NGINX_SERVICE_HOST"], "10.0.0.7");
        assert_eq!(vars["MY_NGINX_SERVICE_PORT_WEB"], "80");
        assert_eq!(vars["MY_NGINX_PORT"], "tcp://10.0.0.7:80");
        assert_eq!(vars["MY_NGINX_PORT_80_TCP_ADDR"], "10.0.0.7");
    }
}
