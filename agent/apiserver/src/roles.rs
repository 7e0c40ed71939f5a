//! The roles that every cluster has: `cluster-admin`, `admin`, `edit` and `view`, made from the kinds that are served.

use crate::rbac::GROUP;
use resources::{Descriptor, Subresource};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

/// Roles and bindings, with the plural of their kind.
pub(crate) fn defaults() -> Vec<(&'static str, Value)> {
    let full = [READ, WRITE].concat();
    let view = [
        rules(is_open, READ),
        vec![json!({"apiGroups": [""], "resources": ["pods/log", "namespaces"], "verbs": READ})],
    ];
    let view = view.concat();
    let secret = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": full});
    let into = ["pods/attach", "pods/exec", "pods/portforward", "pods/eviction"];
    let into = json!({"apiGroups": [""], "resources": into, "verbs": ["create", "get"]});
    let served = json!({"apiGroups": [""], "resources": ["pods/proxy", "services/proxy"], "verbs": full});
    let writes = rules(|kind| is_open(kind) && is_users(kind), WRITE);
    let edit = [view.clone(), writes, vec![secret, into, served]].concat();
    let roles = json!({"apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": full});
    let admin = [edit.clone(), vec![roles]].concat();
    let all = [
        json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}),
        json!({"nonResourceURLs": ["*"], "verbs": ["*"]}),
    ];
    let masters = json!({"metadata": {"name": "cluster-admin"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": "system:masters"}]});
    vec![
        ("clusterroles", role("cluster-admin", &all)),
        ("clusterroles", gathering("admin", &admin)),
        ("clusterroles", gathering("edit", &edit)),
        ("clusterroles", gathering("view", &view)),
        ("clusterroles", metrics_reader()),
        ("clusterrolebindings", masters),
        ("clusterroles", role(DISCOVERY, &[json!({"nonResourceURLs": OPENID, "verbs": ["get"]})])),
        ("clusterrolebindings", to_group(DISCOVERY, "system:serviceaccounts")),
        ("clusterroles", role("system:auth-delegator", &delegated())),
        ("clusterroles", role(MONITORING, &[json!({"nonResourceURLs": MONITORED, "verbs": ["get"]})])),
        ("clusterrolebindings", to_group(MONITORING, "system:monitoring")),
    ]
}

/// Whoever trusts the cluster's service accounts looks up their keys; they may themselves.
const DISCOVERY: &str = "system:service-account-issuer-discovery";
const OPENID: [&str; 2] = ["/.well-known/openid-configuration", "/openid/v1/jwks"];
const MONITORING: &str = "system:monitoring";
const MONITORED: [&str; 7] =
    ["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/readyz", "/readyz/*"];

/// For servers that ask this one who their callers are and what they may.
fn delegated() -> Vec<Value> {
    let one =
        |group: &str, plural: &str| json!({"apiGroups": [group], "resources": [plural], "verbs": ["create"]});
    vec![one("authentication.k8s.io", "tokenreviews"), one("authorization.k8s.io", "subjectaccessreviews")]
}

/// Binds a role to a group of the same name, or another.
fn to_group(role: &str, group: &str) -> Value {
    json!({"metadata": {"name": role}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": group}]})
}

/// Who may see pods may also see what they use.
fn metrics_reader() -> Value {
    let rule = json!({"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": READ});
    let mut role = role("system:aggregated-metrics-reader", &[rule]);
    let to = |name: &str| (format!("rbac.authorization.k8s.io/aggregate-to-{name}"), json!("true"));
    role["metadata"]["labels"] = Value::Object(["view", "edit", "admin"].map(to).into_iter().collect());
    role
}

fn role(name: &str, rules: &[Value]) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

/// A role that others join by a label.
fn gathering(name: &str, rules: &[Value]) -> Value {
    let mut role = role(name, rules);
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    role
}

/// What everybody in a namespace may see: neither secrets nor who may do what.
fn is_open(kind: &Descriptor) -> bool {
    kind.namespaced && kind.plural != "secrets" && kind.group != GROUP
}

/// What users write: not what limits them, nor what controllers write for themselves.
fn is_users(kind: &Descriptor) -> bool {
    let others =
        ["resourcequotas", "limitranges", "controllerrevisions", "endpointslices", "events", "leases"];
    !others.contains(&kind.plural.as_ref())
}

/// One rule for each group.
fn rules(which: fn(&Descriptor) -> bool, verbs: &[&str]) -> Vec<Value> {
    let mut by_group: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for kind in resources::all().iter().filter(|kind| which(kind)) {
        let resources = by_group.entry(kind.group.as_ref()).or_default();
        resources.push(kind.plural.to_string());
        if kind.has(Subresource::Scale) {
            resources.push(format!("{}/scale", kind.plural));
        }
        if kind.has(Subresource::Status) && verbs == READ {
            resources.push(format!("{}/status", kind.plural));
        }
    }
    let rule = |(group, mut resources): (&str, Vec<String>)| {
        resources.sort();
        resources.dedup();
        json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
    };
    by_group.into_iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Attributes;
    use crate::rbac::allows;

    fn may(role: &str, verb: &str, group: &str, plural: &str, subresource: &str) -> bool {
        let all = defaults();
        let role = &all.iter().find(|(_, object)| object["metadata"]["name"] == role).expect("the role").1;
        let attributes =
            Attributes { verb, group, plural, subresource, namespace: "home", ..Attributes::default() };
        crate::object::list(role, "/rules").iter().any(|rule| allows(rule, &attributes))
    }

    #[test]
    fn each_role_may_more_than_the_one_before() {
        assert!(may("view", "list", "apps", "deployments", "") && may("view", "get", "", "pods", "log"));
        assert!(!may("view", "get", "", "secrets", "") && !may("view", "create", "", "pods", ""));
        assert!(!may("view", "create", "", "pods", "exec") && !may("view", "list", "", "nodes", ""));
        assert!(
            may("edit", "create", "", "pods", "exec") && may("edit", "patch", "apps", "deployments", "scale")
        );
        assert!(may("edit", "update", "", "services", "proxy") && !may("view", "get", "", "pods", "proxy"));
        assert!(may("edit", "get", "", "secrets", "") && !may("edit", "update", "", "pods", "status"));
        assert!(
            !may("edit", "create", GROUP, "roles", "") && !may("edit", "delete", "", "resourcequotas", "")
        );
        assert!(
            may("admin", "create", GROUP, "rolebindings", "")
                && !may("admin", "delete", "", "namespaces", "")
        );
        assert!(may("cluster-admin", "delete", "", "nodes", ""));
        assert!(may("system:aggregated-metrics-reader", "list", "metrics.k8s.io", "pods", ""));
    }
}
