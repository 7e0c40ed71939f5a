//! Roles and who has them.

use super::BASE;
use super::columns::{AGE, CREATED_AT, NAME, string, wide};
use crate::cause::{Causes, invalid, not_supported, required};
use crate::json::{child, children, default, items, text};
use crate::labels::Selector;
use crate::{Builtin, Column, metadata, names};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

const ROLES: Builtin = Builtin { group: GROUP, columns: &[NAME, CREATED_AT], ..BASE };

pub const ROLE: Builtin = Builtin {
    kind: "Role",
    plural: "roles",
    singular: "role",
    validate: |new, old| {
        let mut causes = metadata::validate(new, old, names::path_segment);
        check_rules(new, true, &mut causes);
        causes
    },
    ..ROLES
};

pub const CLUSTER_ROLE: Builtin = Builtin {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    validate: |new, old| {
        let mut causes = metadata::validate(new, old, names::path_segment);
        check_rules(new, false, &mut causes);
        check_aggregation(new, &mut causes);
        causes
    },
    ..ROLES
};

const BINDINGS: Builtin = Builtin {
    group: GROUP,
    columns: &[
        NAME,
        string("Role", |binding, _| {
            format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name")).into()
        }),
        AGE,
        subjects("Users", |binding, _| named(binding, "User")),
        subjects("Groups", |binding, _| named(binding, "Group")),
        subjects("ServiceAccounts", |binding, _| named(binding, "ServiceAccount")),
    ],
    defaults: default_binding,
    ..BASE
};

pub const ROLE_BINDING: Builtin = Builtin {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    validate: |new, old| validate_binding(new, old, &["Role", "ClusterRole"]),
    ..BINDINGS
};

pub const CLUSTER_ROLE_BINDING: Builtin = Builtin {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    validate: |new, old| validate_binding(new, old, &["ClusterRole"]),
    ..BINDINGS
};

const fn subjects(name: &'static str, cell: fn(&Value, &crate::CellContext) -> Value) -> Column {
    wide(name, cell)
}

/// The names of a binding's subjects of one kind.
fn named(binding: &Value, kind: &str) -> Value {
    let subjects = items(binding, "/subjects").iter().filter(|subject| text(subject, "/kind") == kind);
    let name = |subject: &Value| match text(subject, "/namespace") {
        "" => text(subject, "/name").to_owned(),
        namespace => format!("{namespace}/{}", text(subject, "/name")),
    };
    subjects.map(name).collect::<Vec<_>>().join(", ").into()
}

fn default_binding(object: &mut Value) {
    let Some(binding) = object.as_object_mut() else { return };
    if let Some(role) = child(binding, "roleRef") {
        default(role, "apiGroup", GROUP);
    }
    for subject in children(binding, "subjects") {
        if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
            default(subject, "apiGroup", GROUP);
        }
    }
}

fn check_rules(role: &Value, namespaced: bool, causes: &mut Causes) {
    for (i, rule) in items(role, "/rules").iter().enumerate() {
        let field = format!("rules[{i}]");
        let has = |name: &str| !items(rule, &format!("/{name}")).is_empty();
        if !has("verbs") {
            causes.push(required(format!("{field}.verbs"), "verbs must contain at least one value"));
        }
        if has("nonResourceURLs") {
            let urls = rule["nonResourceURLs"].clone();
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                causes.push(invalid(format!("{field}.nonResourceURLs"), urls, detail));
            } else if has("apiGroups") || has("resources") || has("resourceNames") {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                causes.push(invalid(format!("{field}.nonResourceURLs"), urls, detail));
            }
            continue;
        }
        if !has("apiGroups") {
            let detail = "resource rules must supply at least one api group";
            causes.push(required(format!("{field}.apiGroups"), detail));
        }
        if !has("resources") {
            let detail = "resource rules must supply at least one resource";
            causes.push(required(format!("{field}.resources"), detail));
        }
    }
}

fn check_aggregation(role: &Value, causes: &mut Causes) {
    let Some(rule) = role.get("aggregationRule").filter(|rule| rule.is_object()) else { return };
    const FIELD: &str = "aggregationRule.clusterRoleSelectors";
    let selectors = items(rule, "/clusterRoleSelectors");
    if selectors.is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        causes.push(required(FIELD, detail));
    }
    for (i, selector) in selectors.iter().enumerate() {
        if let Err(error) = Selector::from_label_selector(selector) {
            causes.push(invalid(format!("{FIELD}[{i}]"), selector.clone(), &error.to_string()));
        }
    }
}

fn validate_binding(new: &Value, old: Option<&Value>, kinds: &[&str]) -> Causes {
    let mut causes = metadata::validate(new, old, names::path_segment);
    let (group, kind, name) =
        (text(new, "/roleRef/apiGroup"), text(new, "/roleRef/kind"), text(new, "/roleRef/name"));
    if group != GROUP {
        causes.push(not_supported("roleRef.apiGroup", group, &[GROUP]));
    }
    if !kinds.contains(&kind) {
        causes.push(not_supported("roleRef.kind", kind, kinds));
    }
    if name.is_empty() {
        causes.push(required("roleRef.name", ""));
    } else {
        causes.extend(names::path_segment(name).iter().map(|fault| invalid("roleRef.name", name, fault)));
    }
    for (i, subject) in items(new, "/subjects").iter().enumerate() {
        let namespaced = !text(new, "/metadata/namespace").is_empty();
        check_subject(subject, &format!("subjects[{i}]"), namespaced, &mut causes);
    }
    if let Some(old) = old
        && new.get("roleRef") != old.get("roleRef")
    {
        let value = new.get("roleRef").cloned().unwrap_or_default();
        causes.push(invalid("roleRef", value, "cannot change roleRef"));
    }
    causes
}

fn check_subject(subject: &Value, field: &str, namespaced: bool, causes: &mut Causes) {
    let (name, group) = (text(subject, "/name"), text(subject, "/apiGroup"));
    if name.is_empty() {
        causes.push(required(format!("{field}.name"), ""));
    }
    match text(subject, "/kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                let faults = names::dns_subdomain(name);
                causes.extend(faults.iter().map(|fault| invalid(format!("{field}.name"), name, fault)));
            }
            if !group.is_empty() {
                causes.push(not_supported(format!("{field}.apiGroup"), group, &[""]));
            }
            // In a namespace's own binding an account without one would be that namespace's.
            if !namespaced && text(subject, "/namespace").is_empty() {
                causes.push(required(format!("{field}.namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                causes.push(not_supported(format!("{field}.apiGroup"), group, &[GROUP]));
            }
        }
        other => {
            let kinds = ["ServiceAccount", "User", "Group"];
            causes.push(not_supported(format!("{field}.kind"), other, &kinds));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(causes: Causes) -> Vec<String> {
        causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn rules_are_about_resources_or_paths() {
        let rules = json!([{"verbs": ["get"]}, {"verbs": [], "nonResourceURLs": ["/metrics"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let role = json!({"metadata": {"name": "system:reader"}, "rules": rules});
        assert_eq!(
            found((ROLE.validate)(&role, None)),
            [
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].verbs: Required value: verbs must contain at least one value",
                "rules[1].nonResourceURLs: Invalid value: [\"/metrics\"]: namespaced rules cannot apply to non-resource URLs",
            ]
        );
        assert_eq!((CLUSTER_ROLE.validate)(&role, None).len(), 3);
    }

    #[test]
    fn a_binding_keeps_its_role() {
        let mut old = json!({"metadata": {"name": "b", "namespace": "home"}, "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "eve"}, {"kind": "ServiceAccount", "name": "sa", "namespace": "x"}]});
        default_binding(&mut old);
        assert_eq!((ROLE_BINDING.validate)(&old, None), []);
        assert_eq!((named(&old, "User"), named(&old, "ServiceAccount")), (json!("eve"), json!("x/sa")));
        let mut new = old.clone();
        new["roleRef"]["name"] = "admin".into();
        assert!(found((ROLE_BINDING.validate)(&new, Some(&old)))[0].ends_with("cannot change roleRef"));
        assert_eq!(
            found((CLUSTER_ROLE_BINDING.validate)(&old, None)),
            ["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""]
        );
    }
}
