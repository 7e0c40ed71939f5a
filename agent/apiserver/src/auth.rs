//! Who may do what. Pure: the answer follows from the user, the request's attributes and what the store holds.
//!
//! [`authorize`] is the one question the rest asks. Nodes may what their parts need; others what their roles allow
//! (`rbac`).

use crate::object::{name, text};
use crate::rbac;
use crate::status::{Result, Status};
use resources::Descriptor;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Whoever sent a request, as the listener read it from the client certificate (CN is the name, O are the groups).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `system:node:pi-1`, `kubernetes-admin`.
    pub name: String,
    /// `system:masters`, `system:nodes`.
    pub groups: Vec<String>,
    /// A stable id, if there is one.
    pub uid: Option<String>,
    /// What else was said of him when he was let in: which pod he is, by which token he came.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user that may do everything.
    pub fn admin() -> Self {
        Self { name: "system:admin".to_owned(), groups: vec![MASTERS.to_owned()], ..Self::default() }
    }

    /// As somebody who was let in.
    pub(crate) fn authenticated(mut self) -> Self {
        if !self.is_in(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node this user is, if it is one.
    pub(crate) fn node(&self) -> Option<&str> {
        if self.is_in(NODES) { self.name.strip_prefix("system:node:") } else { None }
    }
}

const MASTERS: &str = "system:masters";
/// Whom every user that was let in belongs to.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
const NODES: &str = "system:nodes";

/// What a request wants to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub plural: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// For requests that are not about a resource.
    pub path: &'a str,
}

impl Attributes<'_> {
    /// `pods/log`.
    pub fn resource(&self) -> String {
        if self.subresource.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}/{}", self.plural, self.subresource)
        }
    }

    /// The refusal as upstream words it.
    fn denial(&self, user: &User) -> String {
        let (who, verb) = (&user.name, self.verb);
        if self.plural.is_empty() {
            return format!("User {who:?} cannot {verb} path {:?}", self.path);
        }
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!(
            "User {who:?} cannot {verb} resource {:?} in API group {:?} {scope}",
            self.resource(),
            self.group
        )
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// And what allowed it, if upstream says so.
    Allow(String),
    Deny(String),
}

/// What [`authorize`] may look at.
pub(crate) trait Facts {
    /// A pod.
    fn pod(&self, namespace: &str, name: &str) -> Option<Value>;
    /// Whether a pod of this node refers to this Secret or ConfigMap.
    fn needs(&self, node: &str, namespace: &str, plural: &str, name: &str) -> bool;
    /// The RoleBindings of a namespace; "": the ClusterRoleBindings.
    fn bindings(&self, namespace: &str) -> Vec<Value>;
    /// A Role; in the namespace "": a ClusterRole.
    fn role(&self, namespace: &str, name: &str) -> Option<Value>;
    /// All ClusterRoles.
    fn cluster_roles(&self) -> Vec<Value>;
}

/// Decides.
pub(crate) fn authorize(user: &User, attributes: &Attributes<'_>, facts: &dyn Facts) -> Decision {
    let open = user.is_in(MASTERS)
        || (attributes.plural.is_empty() && attributes.verb == "get" && open_path(attributes.path))
        || (attributes.subresource.is_empty() && is_own_question(attributes));
    if open {
        return Decision::Allow(String::new());
    }
    if let Some(why) = rbac::allowed_by(user, attributes, facts) {
        return Decision::Allow(why);
    }
    let denial = attributes.denial(user);
    match user.node().map(|node| node_may(node, attributes, facts)) {
        Some(Node::May) => Decision::Allow(String::new()),
        Some(Node::MayNot(Some(why))) => Decision::Deny(why),
        Some(Node::Unrelated(why)) => Decision::Deny(format!("{denial}: {why}")),
        Some(Node::MayNot(None)) | None => Decision::Deny(denial),
    }
}

/// [`authorize`], as an error.
pub(crate) fn check(user: &User, attributes: &Attributes<'_>, facts: &dyn Facts) -> Result<()> {
    match authorize(user, attributes, facts) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(why) => {
            Err(Status::forbidden(attributes.group, attributes.plural, attributes.name, &why))
        }
    }
}

/// What every authenticated user may read.
const OPEN: [&str; 7] = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];

fn open_path(path: &str) -> bool {
    OPEN.iter()
        .any(|open| path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        || path == "/"
}

/// Everybody may ask what he himself may do, and who he is.
fn is_own_question(a: &Attributes<'_>) -> bool {
    a.verb == "create" && QUESTIONS.contains(&a.plural)
}

const QUESTIONS: [&str; 3] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

/// What needs no role, written as rules.
pub(crate) fn built_in_rules(user: &User) -> Vec<Value> {
    if user.is_in(MASTERS) {
        return vec![
            json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}),
            json!({"nonResourceURLs": ["*"], "verbs": ["*"]}),
        ];
    }
    let below = OPEN.iter().map(|path| format!("{path}/*"));
    let paths: Vec<String> = OPEN.iter().map(|path| (*path).to_owned()).chain(below).collect();
    vec![
        json!({"apiGroups": ["authorization.k8s.io"], "resources": QUESTIONS[..2], "verbs": ["create"]}),
        json!({"apiGroups": ["authentication.k8s.io"], "resources": QUESTIONS[2..], "verbs": ["create"]}),
        json!({"nonResourceURLs": paths, "verbs": ["get"]}),
    ]
}

/// Whether a user may write this role or binding: nobody hands on more than he has. `old`: as it was.
pub(crate) fn check_grant(
    user: &User,
    kind: &Descriptor,
    object: &Value,
    old: Option<&Value>,
    facts: &dyn Facts,
) -> Result<()> {
    let same = |field: &str| old.is_some_and(|old| old.get(field) == object.get(field));
    if kind.group != rbac::GROUP || ["rules", "aggregationRule", "roleRef", "subjects"].into_iter().all(same)
    {
        return Ok(());
    }
    let may = |attributes: &Attributes<'_>| matches!(authorize(user, attributes, facts), Decision::Allow(_));
    match rbac::escalation(user, &kind.plural, object, facts, &may) {
        Some(why) => Err(Status::forbidden(&kind.group, &kind.plural, name(object), &why)),
        None => Ok(()),
    }
}

/// What is said of a node.
enum Node {
    May,
    /// With the words of upstream's node restriction, if it has any for this.
    MayNot(Option<String>),
    /// No pod gives it a reason: words of upstream's node authorizer.
    Unrelated(String),
}

/// What all of a node's parts need: kubelet, service forwarder, DNS, status page.
fn node_may(node: &str, a: &Attributes<'_>, facts: &dyn Facts) -> Node {
    let reads = ["get", "list", "watch"].contains(&a.verb);
    let changes = ["update", "patch"].contains(&a.verb);
    let own_pod = || facts.pod(a.namespace, a.name).is_some_and(|pod| text(&pod, "/spec/nodeName") == node);
    let may = |allowed: bool| if allowed { Node::May } else { Node::MayNot(None) };
    let restricted = |allowed: bool, why: &str| {
        if allowed { Node::May } else { Node::MayNot(Some(format!("node {node:?} {why}"))) }
    };
    match (a.group, a.plural, a.subresource) {
        ("", "pods", "") if a.verb == "create" => Node::May, // mirror pods: admit() looks at the object
        ("", "pods", "") if a.verb == "delete" => {
            restricted(own_pod(), "can only delete pods with spec.nodeName set to itself")
        }
        ("", "pods", "status") if changes => {
            restricted(own_pod(), "can only update pod status for pods with spec.nodeName set to itself")
        }
        ("", "configmaps" | "secrets", "") if reads => related(node, a, facts),
        ("", "serviceaccounts", "token") if a.verb == "create" => related(node, a, facts),
        ("", "pods" | "services" | "endpoints" | "namespaces", "") => may(reads),
        ("discovery.k8s.io", "endpointslices", "") => may(reads),
        ("apps", "replicasets" | "deployments", "") => may(reads),
        ("", "nodes", "") if a.verb == "create" => Node::May, // admit() looks at the object
        ("", "nodes", "" | "status") if changes => {
            restricted(a.name == node, &format!("is not allowed to modify node {:?}", a.name))
        }
        ("", "nodes", "" | "status") => may(reads),
        ("" | "events.k8s.io", "events", "") => may(reads || changes || a.verb == "create"),
        ("coordination.k8s.io", "leases", "") if a.namespace == NODE_LEASES => match a.verb {
            "create" => Node::May, // admit() looks at the object
            "get" => may(a.name == node),
            _ if changes => restricted(
                a.name == node,
                "can only access node lease with the same name as the requesting node",
            ),
            _ => may(false),
        },
        _ => may(false),
    }
}

/// A node reads what its pods refer to, one by one and by name.
fn related(node: &str, a: &Attributes<'_>, facts: &dyn Facts) -> Node {
    if a.name.is_empty() {
        Node::Unrelated("No Object name found".to_owned())
    } else if facts.needs(node, a.namespace, a.plural, a.name) {
        Node::May
    } else {
        Node::Unrelated(format!("no relationship found between node '{node}' and this object"))
    }
}

const SECRET: &[&str] = &["secret", "secretRef", "secretKeyRef", "nodePublishSecretRef", "imagePullSecrets"];
const CONFIG_MAP: &[&str] = &["configMap", "configMapRef", "configMapKeyRef"];

/// Whether a pod's `spec` refers to any Secret, ConfigMap or claim.
fn mentions(spec: &Value) -> bool {
    any_field(spec, &|key, _| {
        SECRET.contains(&key) || CONFIG_MAP.contains(&key) || key == "persistentVolumeClaim"
    })
}

/// Whether a pod's `spec` refers to this Secret, ConfigMap or service account, wherever that may be said.
pub(crate) fn refers(spec: &Value, plural: &str, name: &str) -> bool {
    if plural == "serviceaccounts" {
        return text(spec, "/serviceAccountName") == name;
    }
    let fields = if plural == "secrets" { SECRET } else { CONFIG_MAP };
    let is_it = |v: &Value| v["name"] == name || v["secretName"] == name;
    any_field(spec, &|key, value| {
        fields.contains(&key) && (is_it(value) || value.as_array().is_some_and(|all| all.iter().any(is_it)))
    })
}

/// Whether any field at any depth is so. Objects in the store nest no deeper than they may in a body.
fn any_field(value: &Value, is_so: &dyn Fn(&str, &Value) -> bool) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| is_so(key, value) || any_field(value, is_so)),
        Value::Array(items) => items.iter().any(|item| any_field(item, is_so)),
        _ => false,
    }
}

const NODE_LEASES: &str = "kube-node-lease";

/// What a node may put into a new object: itself, its own lease, and pods on itself that it runs without the API.
pub(crate) fn admit(user: &User, plural: &str, object: &Value) -> std::result::Result<(), String> {
    let Some(node) = user.node() else { return Ok(()) };
    match plural {
        "nodes" | "leases" if name(object) != node => {
            Err(format!("node {node:?} is not allowed to create {plural} {:?}", name(object)))
        }
        "pods" => {
            let mirror = !text(object, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty();
            if !mirror {
                Err(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                ))
            } else if text(object, "/spec/nodeName") != node {
                Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"))
            } else if ["serviceAccountName", "serviceAccount"]
                .iter()
                .any(|f| !text(&object["spec"], &format!("/{f}")).is_empty())
            {
                // Else it would get that account's tokens.
                Err(format!("node {node:?} can not create pods that reference a service account"))
            } else if mentions(&object["spec"]) {
                // Else it would give itself the reason to read whatever it names.
                Err(format!("node {node:?} can not create pods that reference secrets, configmaps or claims"))
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mirror_pod_gives_no_reason_to_read_secrets() {
        let pod = |more: Value| {
            let mut pod = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}},
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
            pod["spec"]["volumes"] = more;
            admit(&node(), "pods", &pod)
        };
        assert_eq!(pod(json!([{"name": "v", "emptyDir": {}}])), Ok(()));
        let borrowed = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "default"}});
        assert!(admit(&node(), "pods", &borrowed).is_err());
        for volume in [
            json!({"secret": {"secretName": "s"}}),
            json!({"projected": {"sources": [{"configMap": {"name": "s"}}]}}),
            json!({"persistentVolumeClaim": {"claimName": "s"}}),
        ] {
            assert!(pod(json!([volume])).is_err(), "{volume}");
        }
    }

    fn node() -> User {
        User { name: "system:node:n1".into(), groups: vec![NODES.into()], ..User::default() }
    }

    fn may(user: &User, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let (group, resource) = words[1].split_once('/').unwrap_or(("", words[1]));
        let (plural, subresource) = resource.split_once('+').unwrap_or((resource, ""));
        let (namespace, name) = words.get(2).and_then(|w| w.split_once('/')).unwrap_or(("", ""));
        let attributes = Attributes { verb: words[0], group, plural, subresource, namespace, name, path: "" };
        matches!(authorize(user, &attributes, &Played), Decision::Allow(_))
    }

    /// Pods `on-n1` are on n1, and refer to Secrets and ConfigMaps `for-n1`.
    struct Played;

    impl Facts for Played {
        fn pod(&self, _: &str, name: &str) -> Option<Value> {
            Some(json!({"spec": {"nodeName": name.trim_start_matches("on-")}}))
        }

        fn needs(&self, node: &str, _: &str, _: &str, name: &str) -> bool {
            name.strip_prefix("for-") == Some(node)
        }

        fn bindings(&self, _: &str) -> Vec<Value> {
            Vec::new()
        }

        fn role(&self, _: &str, _: &str) -> Option<Value> {
            None
        }

        fn cluster_roles(&self) -> Vec<Value> {
            Vec::new()
        }
    }

    #[test]
    fn nodes_may_do_what_their_parts_need_and_no_more() {
        for line in [
            "list pods",
            "watch services",
            "get configmaps default/for-n1",
            "watch secrets default/for-n1",
            "list discovery.k8s.io/endpointslices",
            "create nodes",
            "patch nodes /n1",
            "update nodes+status /n1",
            "patch pods+status default/on-n1",
            "delete pods default/on-n1",
            "create events default/x",
            "patch events default/x",
            "update coordination.k8s.io/leases kube-node-lease/n1",
            "list apps/deployments",
            "list namespaces",
        ] {
            assert!(may(&node(), line), "{line}");
        }
        for line in [
            "create apps/deployments default/x",
            "get configmaps default/x",
            "get secrets default/for-n2",
            "list secrets default/",
            "list configmaps",
            "create configmaps default/for-n1",
            "patch nodes /n2",
            "update nodes+status /n2",
            "delete nodes /n1",
            "patch pods+status default/on-n2",
            "delete pods default/on-n2",
            "patch pods default/on-n1",
            "create secrets default/x",
            "delete events default/x",
            "create pods+exec default/on-n1",
            "update coordination.k8s.io/leases kube-node-lease/n2",
            "get coordination.k8s.io/leases default/n1",
            "delete namespaces /default",
            "create pods+binding default/x",
            "deletecollection pods default/",
        ] {
            assert!(!may(&node(), line), "{line}");
        }
    }

    #[test]
    fn masters_may_do_all_and_strangers_nothing_but_ask() {
        let stranger = User { name: "eve".into(), ..User::default() };
        assert!(may(&User::admin(), "delete nodes /n1"));
        assert!(!may(&stranger, "list pods"));
        assert!(may(&stranger, "create authorization.k8s.io/selfsubjectaccessreviews"));
        // The name alone does not make a node.
        let liar = User { name: "system:node:n1".into(), ..User::default() };
        assert!(!may(&liar, "list pods"));
    }

    #[test]
    fn a_refusal_is_worded_as_upstream_words_it() {
        let stranger = User { name: "eve".into(), ..User::default() };
        let attributes =
            Attributes { verb: "list", plural: "pods", namespace: "default", ..Attributes::default() };
        let status = check(&stranger, &attributes, &Played).unwrap_err();
        assert_eq!(
            status.message,
            r#"pods is forbidden: User "eve" cannot list resource "pods" in API group "" in the namespace "default""#
        );
    }

    #[test]
    fn a_pod_refers_to_what_it_names_anywhere() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "a", "secret": {"secretName": "vol"}}, {"name": "b", "configMap": {"name": "map"}},
                {"name": "c", "projected": {"sources": [{"secret": {"name": "pro"}}, {"configMap": {"name": "promap"}}]}}],
            "containers": [{"name": "x", "envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "frommap"}}],
                "env": [{"name": "y", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "keymap", "key": "k"}}}]}],
        });
        for name in ["pull", "vol", "pro", "from", "key"] {
            assert!(refers(&spec, "secrets", name) && !refers(&spec, "configmaps", name), "{name}");
        }
        for name in ["map", "promap", "frommap", "keymap"] {
            assert!(refers(&spec, "configmaps", name) && !refers(&spec, "secrets", name), "{name}");
        }
        for name in ["x", "a", "k", ""] {
            assert!(!refers(&spec, "secrets", name) && !refers(&spec, "configmaps", name), "{name}");
        }
    }

    #[test]
    fn nodes_make_only_their_own_things() {
        assert!(admit(&node(), "nodes", &json!({"metadata": {"name": "n1"}})).is_ok());
        assert!(admit(&node(), "nodes", &json!({"metadata": {"name": "n2"}})).is_err());
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "n1"}});
        assert!(admit(&node(), "pods", &mirror).is_ok());
        assert!(admit(&node(), "pods", &json!({"spec": {"nodeName": "n1"}})).is_err());
    }
}
