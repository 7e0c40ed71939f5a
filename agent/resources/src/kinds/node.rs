//! Node: a machine.

use super::BASE;
use super::columns::{AGE, NAME, or_none, string, wide};
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::json::{Fields, fields, flag, items, text};
use crate::{Builtin, CellContext, Subresource, metadata, names};
use serde_json::Value;

/// Labels whose suffix is a role.
const ROLE: &str = "node-role.kubernetes.io/";

pub const NODE: Builtin = Builtin {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Proxy],
    columns: &[
        NAME,
        string("Status", |node, _| status(node).into()),
        string("Roles", |node, _| roles(node).into()),
        AGE,
        string("Version", |node, _| text(node, "/status/nodeInfo/kubeletVersion").into()),
        wide("Internal-IP", |node, _| address(node, "InternalIP").into()),
        wide("External-IP", |node, _| address(node, "ExternalIP").into()),
        wide("OS-Image", |node, context| info(node, context, "osImage")),
        wide("Kernel-Version", |node, context| info(node, context, "kernelVersion")),
        wide("Container-Runtime", |node, context| info(node, context, "containerRuntimeVersion")),
    ],
    selectable: &[("spec.unschedulable", "/spec/unschedulable")],
    validate,
    ..BASE
};

/// `Ready,SchedulingDisabled`.
fn status(node: &Value) -> String {
    let ready = items(node, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(node, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let labels = fields(node, "/metadata/labels").into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix(ROLE) {
            Some(role) => Some(role).filter(|r| !r.is_empty()),
            None => value.as_str().filter(|v| key == "kubernetes.io/role" && !v.is_empty()),
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let found = items(node, "/status/addresses").iter().find(|a| text(a, "/type") == kind);
    found.map(|a| text(a, "/address")).filter(|a| !a.is_empty()).unwrap_or("<none>")
}

fn info(node: &Value, _: &CellContext, field: &str) -> Value {
    match text(node, &format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".into(),
        found => or_none(found),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    for (i, taint) in items(new, "/spec/taints").iter().enumerate() {
        validate_taint(taint, &format!("spec.taints[{i}]"), &mut causes);
    }
    if let Some(old) = old {
        keep_pod_cidr(new, old, &mut causes);
    }
    causes
}

fn validate_taint(taint: &Value, field: &str, causes: &mut Causes) {
    let key = text(taint, "/key");
    let field_of = |name: &str| format!("{field}.{name}");
    if key.is_empty() {
        causes.push(required(field_of("key"), ""));
    } else {
        causes.extend(names::qualified_name(key).iter().map(|f| invalid(field_of("key"), key, f)));
    }
    let value = text(taint, "/value");
    causes.extend(names::label_value(value).iter().map(|f| invalid(field_of("value"), value, f)));
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    match text(taint, "/effect") {
        "" => causes.push(required(field_of("effect"), "")),
        effect if !EFFECTS.contains(&effect) => {
            causes.push(not_supported(field_of("effect"), effect, &EFFECTS))
        }
        _ => {}
    }
}

/// Routes hang on the pod CIDR and the provider ID: once given, they stay.
fn keep_pod_cidr(new: &Value, old: &Value, causes: &mut Causes) {
    let fixed = |field: &str| {
        let pointer = format!("/spec/{field}");
        let before = fields(old, "/spec").and_then(|s: &Fields| s.get(field));
        before.is_some_and(|v| !v.is_null() && v != "") && before != new.pointer(&pointer)
    };
    for field in ["podCIDR", "podCIDRs"] {
        if fixed(field) {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            causes.push(forbidden(format!("spec.{field}"), detail));
        }
    }
    if fixed("providerID") {
        causes.push(forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_and_roles_are_shown() {
        let node = json!({
            "metadata": {"name": "pi-1", "labels": {"node-role.kubernetes.io/master": "", "kubernetes.io/role": "a"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.168.1.100"}]},
        });
        assert_eq!(status(&node), "Ready,SchedulingDisabled");
        assert_eq!(roles(&node), "a,master");
        assert_eq!(address(&node, "InternalIP"), "192.168.1.100");
        assert_eq!(address(&node, "ExternalIP"), "<none>");
        assert_eq!(roles(&json!({})), "<none>");
    }

    #[test]
    fn a_pod_cidr_stays() {
        let old = json!({"metadata": {"name": "pi"}, "spec": {"podCIDR": "10.1.0.0/24"}});
        let new = json!({"metadata": {"name": "pi"}, "spec": {"podCIDR": "10.1.1.0/24"}});
        assert_eq!(validate(&new, Some(&old))[0].field, "spec.podCIDR");
        assert_eq!(validate(&old, Some(&json!({"metadata": {"name": "pi"}}))), []);
    }

    #[test]
    fn taints_need_an_effect() {
        let node = json!({"metadata": {"name": "pi"}, "spec": {"taints": [{"key": "a", "effect": "Never"}]}});
        let causes = validate(&node, None);
        assert_eq!(causes[0].reason, "FieldValueNotSupported");
        assert_eq!(causes[0].field, "spec.taints[0].effect");
    }
}
