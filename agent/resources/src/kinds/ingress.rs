//! Ingress and IngressClass: how a service is reached by name from outside.

use super::BASE;
use super::columns::{AGE, NAME, or_none, shortened, string, text_at};
use crate::cause::{Causes, invalid, not_supported, required};
use crate::json::{child, default, int, items, text};
use crate::{Builtin, CellContext, Subresource, metadata, names};
use serde_json::{Value, json};
use std::net::IpAddr;

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];

pub const INGRESS: Builtin = Builtin {
    group: "networking.k8s.io",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Class", |ingress, _| or_none(class(ingress))),
        string("Hosts", hosts),
        string("Address", addresses),
        string("Ports", |ingress, _| {
            if items(ingress, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()
        }),
        AGE,
    ],
    defaults: |object| {
        if let Some(ingress) = object.as_object_mut() {
            child(ingress, "spec");
            if let Some(status) = child(ingress, "status") {
                child(status, "loadBalancer");
            }
        }
    },
    validate,
    generation: "spec",
    idle: true,
    ..BASE
};

pub const INGRESS_CLASS: Builtin = Builtin {
    group: "networking.k8s.io",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    namespaced: false,
    columns: &[
        NAME,
        string("Controller", |class, _| text_at(class, "/spec/controller")),
        string("Parameters", parameters),
        AGE,
    ],
    defaults: |object| {
        let parameters = object.pointer_mut("/spec/parameters").and_then(Value::as_object_mut);
        if let Some(parameters) = parameters {
            default(parameters, "scope", "Cluster");
        }
    },
    validate: validate_class,
    generation: "spec",
    idle: true,
    ..BASE
};

fn class(ingress: &Value) -> &str {
    match text(ingress, "/spec/ingressClassName") {
        "" => text(ingress, "/metadata/annotations/kubernetes.io~1ingress.class"),
        class => class,
    }
}

fn hosts(ingress: &Value, _: &CellContext) -> Value {
    let hosts = items(ingress, "/spec/rules").iter().map(|rule| text(rule, "/host"));
    let hosts: Vec<String> = hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect();
    if hosts.is_empty() { "*".into() } else { shortened(&hosts, 3).into() }
}

fn addresses(ingress: &Value, _: &CellContext) -> Value {
    let points = items(ingress, "/status/loadBalancer/ingress").iter();
    let of = |point| match text(point, "/ip") {
        "" => text(point, "/hostname"),
        ip => ip,
    };
    points.map(of).collect::<Vec<_>>().join(",").into()
}

fn parameters(class: &Value, _: &CellContext) -> Value {
    let of = |name: &str| text(class, &format!("/spec/parameters/{name}"));
    match (of("apiGroup"), of("kind"), of("name")) {
        ("", "", "") => or_none(""),
        ("", kind, name) => format!("{kind}/{name}").into(),
        (group, kind, name) => format!("{kind}.{group}/{name}").into(),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let rules = items(new, "/spec/rules");
    let backend = new.pointer("/spec/defaultBackend").filter(|b| b.is_object());
    if rules.is_empty() && backend.is_none() {
        let spec = new.get("spec").cloned().unwrap_or_else(|| json!({}));
        causes.push(invalid("spec", spec, "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = backend {
        check_backend(backend, "spec.defaultBackend", &mut causes);
    }
    for (i, tls) in items(new, "/spec/tls").iter().enumerate() {
        for (j, host) in items(tls, "/hosts").iter().filter_map(Value::as_str).enumerate() {
            check_host(host, &format!("spec.tls[{i}].hosts[{j}]"), &mut causes);
        }
    }
    for (i, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        let host = text(rule, "/host");
        if !host.is_empty() {
            check_host(host, &format!("{field}.host"), &mut causes);
        }
        let Some(http) = rule.get("http").filter(|http| http.is_object()) else { continue };
        let paths = items(http, "/paths");
        if paths.is_empty() {
            causes.push(required(format!("{field}.http.paths"), ""));
        }
        for (j, path) in paths.iter().enumerate() {
            check_path(path, &format!("{field}.http.paths[{j}]"), &mut causes);
        }
    }
    let class = text(new, "/spec/ingressClassName");
    if !class.is_empty() {
        let faults = names::dns_subdomain(class);
        causes.extend(faults.iter().map(|fault| invalid("spec.ingressClassName", class, fault)));
    }
    causes
}

fn check_host(host: &str, field: &str, causes: &mut Causes) {
    if host.parse::<IpAddr>().is_ok() {
        causes.push(invalid(field, host, "must be a DNS name, not an IP address"));
        return;
    }
    let faults = names::dns_subdomain(host.strip_prefix("*.").unwrap_or(host));
    causes.extend(faults.iter().map(|fault| invalid(field, host, fault)));
}

fn check_path(path: &Value, field: &str, causes: &mut Causes) {
    let text_of = |name: &str| text(path, &format!("/{name}"));
    let own = format!("{field}.path");
    match text_of("pathType") {
        "" => causes.push(required(format!("{field}.pathType"), "pathType must be specified")),
        "Exact" | "Prefix" => {
            let value = text_of("path");
            if !value.starts_with('/') {
                causes.push(invalid(own.as_str(), value, "must be an absolute path"));
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|bad| value.contains(**bad)) {
                causes.push(invalid(own.as_str(), value, &format!("must not contain '{bad}'")));
            }
            for bad in ["/..", "/."].iter().filter(|bad| value.ends_with(**bad)) {
                causes.push(invalid(own.as_str(), value, &format!("cannot end with '{bad}'")));
            }
        }
        "ImplementationSpecific" => {
            let value = text_of("path");
            if !value.is_empty() && !value.starts_with('/') {
                causes.push(invalid(own, value, "must be an absolute path"));
            }
        }
        other => causes.push(not_supported(format!("{field}.pathType"), other, &PATH_TYPES)),
    }
    check_backend(path.get("backend").unwrap_or(&Value::Null), &format!("{field}.backend"), causes);
}

fn check_backend(backend: &Value, field: &str, causes: &mut Causes) {
    let there = |name: &str| backend.get(name).is_some_and(Value::is_object);
    match (there("service"), there("resource")) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            causes.push(invalid(field, "", detail));
        }
        (false, true) => {}
        (false, false) => causes.push(required(field, "resource or service backend is required")),
        (true, false) => {
            let name = text(backend, "/service/name");
            let own = format!("{field}.service.name");
            if name.is_empty() {
                causes.push(required(own, ""));
            } else {
                causes.extend(names::dns_1035_label(name).iter().map(|f| invalid(own.as_str(), name, f)));
            }
            let (port, number) = (text(backend, "/service/port/name"), int(backend, "/service/port/number"));
            match (port, number) {
                ("", None | Some(0)) => causes.push(required(field, "port name or number is required")),
                ("", Some(number)) => {
                    let own = format!("{field}.service.port.number");
                    causes
                        .extend(names::port_number(number).iter().map(|f| invalid(own.as_str(), number, f)));
                }
                (_, Some(number)) if number != 0 => {
                    causes.push(invalid(field, "", "cannot set both port name & port number"));
                }
                (port, _) => {
                    let own = format!("{field}.service.port.name");
                    causes.extend(names::port_name(port).iter().map(|f| invalid(own.as_str(), port, f)));
                }
            }
        }
    }
}

fn validate_class(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let controller = text(new, "/spec/controller");
    if controller.len() > 250 {
        causes.push(crate::cause::too_long("spec.controller", 250));
    }
    let (domain, path) = controller.split_once('/').unwrap_or(("", ""));
    if domain.is_empty() || path.is_empty() || !names::dns_subdomain(domain).is_empty() {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        causes.push(invalid("spec.controller", controller, detail));
    }
    metadata::immutable(new, old, "/spec/controller", "spec.controller", &mut causes);
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(causes: Causes) -> Vec<String> {
        causes.into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn an_ingress_leads_somewhere() {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        let rule = |host: &str, path: Value| json!({"host": host, "http": {"paths": [path]}});
        let good = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "nginx", "tls": [{"hosts": ["a.b"]}],
            "rules": [rule("*.a.b", json!({"path": "/", "pathType": "Prefix", "backend": backend}))]}});
        assert_eq!(validate(&good, None), []);
        let context = CellContext { now: 0 };
        assert_eq!((hosts(&good, &context), class(&good)), (json!("*.a.b"), "nginx"));
        assert_eq!((INGRESS.columns[4].cell)(&good, &context), "80, 443");
        let bad = json!({"metadata": {"name": "i"}, "spec": {"rules": [
            rule("10.0.0.1", json!({"path": "a", "pathType": "Prefix", "backend": {"service": {"name": "web"}}})),
            rule("a.b", json!({"path": "/", "pathType": "Any", "backend": {}})), rule("", json!({"backend": backend}))]}});
        assert_eq!(
            fields(validate(&bad, None)),
            [
                "spec.rules[0].host",
                "spec.rules[0].http.paths[0].path",
                "spec.rules[0].http.paths[0].backend",
                "spec.rules[1].http.paths[0].pathType",
                "spec.rules[1].http.paths[0].backend",
                "spec.rules[2].http.paths[0].pathType",
            ]
        );
        assert_eq!(fields(validate(&json!({"metadata": {"name": "i"}, "spec": {}}), None)), ["spec"]);
    }

    #[test]
    fn a_class_keeps_its_controller() {
        let class = |controller: &str| json!({"metadata": {"name": "c"}, "spec": {"controller": controller}});
        assert_eq!(validate_class(&class("example.com/ingress"), None), []);
        assert_eq!(fields(validate_class(&class("ingress"), None)), ["spec.controller"]);
        let old = class("example.com/a");
        assert_eq!(fields(validate_class(&class("example.com/b"), Some(&old))), ["spec.controller"]);
    }
}
