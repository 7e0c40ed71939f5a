//! What roles and bindings let a user do, and what he may hand on. Pure: what is looked up comes from [`Facts`].

use crate::auth::{AUTHENTICATED, Attributes, Facts, User};
use crate::object::{list, name, text};
use resources::labels::Selector;
use serde_json::{Value, json};

/// The group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// The rules that hold for a user: in the whole cluster, and in one namespace if one is given.
pub(crate) fn rules(user: &User, namespace: &str, facts: &dyn Facts) -> Vec<Value> {
    let bindings = bindings(user, namespace, facts);
    bindings.into_iter().flat_map(|(namespace, binding, _)| role_rules(&binding, namespace, facts)).collect()
}

/// Which binding allows a user what he asks for, as upstream says it.
pub(crate) fn allowed_by(user: &User, asked: &Attributes<'_>, facts: &dyn Facts) -> Option<String> {
    let bindings = bindings(user, asked.namespace, facts);
    let allows = |(namespace, binding, _): &&(&str, Value, usize)| {
        role_rules(binding, namespace, facts).iter().any(|rule| allows(rule, asked))
    };
    let (namespace, binding, subject) = bindings.iter().find(allows)?;
    let subject = &list(binding, "/subjects")[*subject];
    let (kind, role) = (text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
    let own = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
    let home = if namespace.is_empty() { String::new() } else { format!("/{namespace}") };
    let account_in = match (text(subject, "/kind"), text(subject, "/namespace")) {
        ("ServiceAccount", "") => format!("/{namespace}"),
        ("ServiceAccount", namespace) => format!("/{namespace}"),
        _ => String::new(),
    };
    let who = format!("{} \"{}{account_in}\"", text(subject, "/kind"), text(subject, "/name"));
    Some(format!("RBAC: allowed by {own} \"{}{home}\" of {kind} {role:?} to {who}", name(binding)))
}

/// The bindings of a user, with the namespace where they are ("": the whole cluster), and which subject he is.
fn bindings<'a>(user: &User, namespace: &'a str, facts: &dyn Facts) -> Vec<(&'a str, Value, usize)> {
    let everywhere = facts.bindings("").into_iter().map(|binding| ("", binding));
    let here = if namespace.is_empty() { Vec::new() } else { facts.bindings(namespace) };
    let all = everywhere.chain(here.into_iter().map(|binding| (namespace, binding)));
    let mine = all.filter_map(|(namespace, binding)| {
        let mut subjects = list(&binding, "/subjects").iter();
        let at = subjects.position(|subject| is_meant(subject, namespace, user))?;
        Some((namespace, binding, at))
    });
    mine.collect()
}

/// Whether a binding's subject is this user or a group of his.
fn is_meant(subject: &Value, namespace: &str, user: &User) -> bool {
    let name = text(subject, "/name");
    match text(subject, "/kind") {
        "User" => name == user.name,
        "Group" => name == AUTHENTICATED || user.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let home = match text(subject, "/namespace") {
                "" => namespace,
                home => home,
            };
            user.name == format!("system:serviceaccount:{home}:{name}")
        }
        _ => false,
    }
}

/// The rules of the role that a binding names, with those that are gathered from others.
fn role_rules(binding: &Value, namespace: &str, facts: &dyn Facts) -> Vec<Value> {
    let home = if text(binding, "/roleRef/kind") == "Role" { namespace } else { "" };
    let Some(role) = facts.role(home, text(binding, "/roleRef/name")) else { return Vec::new() };
    let mut rules = list(&role, "/rules").to_vec();
    let selectors = list(&role, "/aggregationRule/clusterRoleSelectors");
    let selectors: Vec<Selector> =
        selectors.iter().filter_map(|s| Selector::from_label_selector(s).ok()).collect();
    if !selectors.is_empty() {
        for other in facts.cluster_roles() {
            if selectors.iter().any(|s| s.matches(other.pointer("/metadata/labels"))) {
                rules.extend_from_slice(list(&other, "/rules"));
            }
        }
    }
    rules
}

/// Whether a rule allows what is asked for.
pub(crate) fn allows(rule: &Value, a: &Attributes<'_>) -> bool {
    if !has(rule, "/verbs", a.verb) {
        return false;
    }
    if a.plural.is_empty() {
        return list(rule, "/nonResourceURLs").iter().filter_map(Value::as_str).any(|url| leads(url, a.path));
    }
    let names = list(rule, "/resourceNames");
    has(rule, "/apiGroups", a.group)
        && list(rule, "/resources").iter().filter_map(Value::as_str).any(|r| is_of(r, &a.resource()))
        && (names.is_empty() || names.iter().any(|name| name == a.name))
}

/// Whether a list holds this word or stands for every word.
fn has(rule: &Value, pointer: &str, word: &str) -> bool {
    list(rule, pointer).iter().any(|item| item == "*" || item == word)
}

/// Whether a rule's `nonResourceURLs` entry leads to a path.
fn leads(url: &str, path: &str) -> bool {
    url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

/// Whether a rule's `resources` entry means this resource: `*`, `pods`, `pods/log`, `*/scale`.
fn is_of(entry: &str, resource: &str) -> bool {
    let below = |entry: &str| Some(resource.split_once('/')?.1 == entry.strip_prefix("*/")?);
    entry == "*" || entry == resource || below(entry) == Some(true)
}

/// What of these rules nobody who has only `own` could do, cut into single permissions.
fn not_held(own: &[Value], wanted: &[Value]) -> Vec<Value> {
    wanted.iter().flat_map(single).filter(|one| !own.iter().any(|rule| covers(rule, one))).collect()
}

/// A rule as rules with one word for each part.
fn single(rule: &Value) -> Vec<Value> {
    let words = |pointer: &str| list(rule, pointer).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let mut all = Vec::new();
    for verb in words("/verbs") {
        for url in words("/nonResourceURLs") {
            all.push(json!({"nonResourceURLs": [url], "verbs": [verb]}));
        }
        for group in words("/apiGroups") {
            for resource in words("/resources") {
                let one = json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]});
                let names = words("/resourceNames");
                if names.is_empty() {
                    all.push(one);
                    continue;
                }
                all.extend(names.into_iter().map(|name| {
                    let mut named = one.clone();
                    named["resourceNames"] = json!([name]);
                    named
                }));
            }
        }
    }
    all
}

/// Whether a rule allows all that a single permission does.
fn covers(rule: &Value, one: &Value) -> bool {
    let first = |pointer: &str| list(one, pointer).first().and_then(Value::as_str);
    if !has(rule, "/verbs", first("/verbs").unwrap_or_default()) {
        return false;
    }
    if let Some(url) = first("/nonResourceURLs") {
        return list(rule, "/nonResourceURLs").iter().filter_map(Value::as_str).any(|own| leads(own, url));
    }
    let names = list(rule, "/resourceNames");
    has(rule, "/apiGroups", first("/apiGroups").unwrap_or_default())
        && list(rule, "/resources")
            .iter()
            .filter_map(Value::as_str)
            .any(|own| is_of(own, first("/resources").unwrap_or_default()))
        && (names.is_empty()
            || first("/resourceNames").is_some_and(|name| names.iter().any(|own| own == name)))
}

/// Why a user may not write this role or binding: nobody hands on more than he has. `may` says whether he may use
/// these attributes all the same (`escalate`, `bind`).
pub(crate) fn escalation(
    user: &User,
    plural: &str,
    object: &Value,
    facts: &dyn Facts,
    may: &dyn Fn(&Attributes<'_>) -> bool,
) -> Option<String> {
    let namespace = text(object, "/metadata/namespace");
    let (verb, role_plural, role_name) = if plural.ends_with("bindings") {
        let cluster = text(object, "/roleRef/kind") == "ClusterRole";
        ("bind", if cluster { "clusterroles" } else { "roles" }, text(object, "/roleRef/name"))
    } else {
        ("escalate", plural, name(object))
    };
    let exempt = Attributes {
        verb,
        group: GROUP,
        plural: role_plural,
        namespace,
        name: role_name,
        ..Attributes::default()
    };
    if may(&exempt) {
        return None;
    }
    let mut wanted =
        if verb == "bind" { role_rules(object, namespace, facts) } else { list(object, "/rules").to_vec() };
    if object.get("aggregationRule").is_some_and(Value::is_object) {
        // Whoever labels a role could make this one anything.
        wanted.push(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}));
        wanted.push(json!({"nonResourceURLs": ["*"], "verbs": ["*"]}));
    }
    let missing = not_held(&rules(user, namespace, facts), &wanted);
    if missing.is_empty() {
        return None;
    }
    let shown: Vec<String> = missing.iter().take(20).map(show).collect();
    Some(format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        shown.join("\n")
    ))
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
fn show(rule: &Value) -> String {
    let parts = [
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("ResourceNames", "resourceNames"),
        ("NonResourceURLs", "nonResourceURLs"),
        ("Verbs", "verbs"),
    ];
    let parts = parts.iter().filter_map(|(shown, field)| Some(format!("{shown}:{}", rule.get(*field)?)));
    format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests;
