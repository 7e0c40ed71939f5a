use super::*;

/// Roles and bindings by namespace, "" for those of the cluster.
#[derive(Default)]
struct Played {
    bindings: Vec<(&'static str, Value)>,
    roles: Vec<(&'static str, Value)>,
}

impl Facts for Played {
    fn pod(&self, _: &str, _: &str) -> Option<Value> {
        None
    }

    fn needs(&self, _: &str, _: &str, _: &str, _: &str) -> bool {
        false
    }

    fn bindings(&self, namespace: &str) -> Vec<Value> {
        self.bindings
            .iter()
            .filter(|(home, _)| *home == namespace)
            .map(|(_, binding)| binding.clone())
            .collect()
    }

    fn role(&self, namespace: &str, wanted: &str) -> Option<Value> {
        let found = self.roles.iter().find(|(home, role)| *home == namespace && name(role) == wanted);
        found.map(|(_, role)| role.clone())
    }

    fn cluster_roles(&self) -> Vec<Value> {
        self.roles.iter().filter(|(home, _)| home.is_empty()).map(|(_, role)| role.clone()).collect()
    }
}

fn eve() -> User {
    User { name: "eve".into(), groups: vec!["people".into()], ..User::default() }
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn role(name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

fn binding(kind: &str, role: &str, subject: Value) -> Value {
    json!({"roleRef": {"kind": kind, "name": role}, "subjects": [subject]})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "name": name})
}

fn may(facts: &Played, user: &User, namespace: &str, verb: &str, plural: &str) -> bool {
    let attributes = Attributes { verb, plural, namespace, ..Attributes::default() };
    rules(user, namespace, facts).iter().any(|rule| allows(rule, &attributes))
}

#[test]
fn bindings_hold_where_they_are() {
    let facts = Played {
        bindings: vec![
            ("home", binding("ClusterRole", "view", json!({"kind": "User", "name": "eve"}))),
            ("work", binding("Role", "edit", json!({"kind": "ServiceAccount", "name": "robot"}))),
            ("", binding("ClusterRole", "nodes", group(AUTHENTICATED))),
        ],
        roles: vec![
            ("", role("view", json!([rule(&[""], &["pods"], &["get", "list"])]))),
            ("work", role("edit", json!([rule(&["*"], &["*"], &["*"])]))),
            ("", role("nodes", json!([rule(&[""], &["nodes"], &["get"])]))),
        ],
    };
    let robot = User { name: "system:serviceaccount:work:robot".into(), ..User::default() };
    assert!(may(&facts, &eve(), "home", "get", "pods") && !may(&facts, &eve(), "home", "delete", "pods"));
    assert!(!may(&facts, &eve(), "work", "get", "pods") && !may(&facts, &eve(), "", "list", "pods"));
    assert!(may(&facts, &robot, "work", "delete", "pods") && !may(&facts, &robot, "home", "get", "pods"));
    assert!(may(&facts, &robot, "", "get", "nodes") && may(&facts, &eve(), "", "get", "nodes"));
}

#[test]
fn a_role_gathers_others_by_their_labels() {
    let mut part = role("part", json!([rule(&["batch"], &["jobs"], &["get"])]));
    part["metadata"]["labels"] = json!({"to": "all"});
    let mut all = role("all", json!([]));
    all["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]});
    let facts = Played {
        bindings: vec![("", binding("ClusterRole", "all", group("people")))],
        roles: vec![("", part), ("", all)],
    };
    assert_eq!(rules(&eve(), "", &facts), [rule(&["batch"], &["jobs"], &["get"])]);
}

#[test]
fn a_rule_allows_what_it_names() {
    let asks = |rule: &Value, verb: &str, plural: &str, subresource: &str, name: &str| {
        allows(rule, &Attributes { verb, plural, subresource, name, ..Attributes::default() })
    };
    let logs = rule(&[""], &["pods/log", "*/scale"], &["get"]);
    assert!(asks(&logs, "get", "pods", "log", "a") && asks(&logs, "get", "things", "scale", "a"));
    assert!(!asks(&logs, "get", "pods", "", "a") && !asks(&logs, "get", "pods", "exec", "a"));
    let mut one = rule(&[""], &["secrets"], &["get"]);
    one["resourceNames"] = json!(["mine"]);
    assert!(asks(&one, "get", "secrets", "", "mine"));
    assert!(!asks(&one, "get", "secrets", "", "other") && !asks(&one, "get", "secrets", "", ""));
    let paths = json!({"nonResourceURLs": ["/metrics", "/debug/*"], "verbs": ["get"]});
    let path = |path: &str| allows(&paths, &Attributes { verb: "get", path, ..Attributes::default() });
    assert!(path("/metrics") && path("/debug/x") && !path("/metrics/x") && !path("/"));
    assert!(!asks(&paths, "get", "pods", "", "a"));
}

fn refused(facts: &Played, plural: &str, object: &Value, exempt: bool) -> Option<String> {
    escalation(&eve(), plural, object, facts, &|_| exempt)
}

#[test]
fn nobody_hands_on_more_than_he_has() {
    let facts = Played {
        bindings: vec![("", binding("ClusterRole", "some", group("people")))],
        roles: vec![
            (
                "",
                role(
                    "some",
                    json!([rule(&[""], &["pods"], &["get", "list"]), {"nonResourceURLs": ["/a/*"], "verbs": ["get"]}]),
                ),
            ),
            ("", role("everything", json!([rule(&["*"], &["*"], &["*"])]))),
        ],
    };
    let less = role(
        "less",
        json!([rule(&[""], &["pods"], &["get"]), {"nonResourceURLs": ["/a/b"], "verbs": ["get"]}]),
    );
    assert_eq!(refused(&facts, "clusterroles", &less, false), None);
    let more = role("more", json!([rule(&["", "apps"], &["pods"], &["get"])]));
    let why = refused(&facts, "clusterroles", &more, false).expect("a refusal");
    assert_eq!(
        why,
        "user \"eve\" (groups=[\"people\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"apps\"], Resources:[\"pods\"], Verbs:[\"get\"]}"
    );
    assert_eq!(refused(&facts, "clusterroles", &more, true), None);
    let bind = |role: &str| binding("ClusterRole", role, group("others"));
    assert_eq!(refused(&facts, "clusterrolebindings", &bind("some"), false), None);
    assert!(refused(&facts, "clusterrolebindings", &bind("everything"), false).is_some());
    let mut gathers = role("gathers", json!([]));
    gathers["aggregationRule"] = json!({"clusterRoleSelectors": [{}]});
    assert!(refused(&facts, "clusterroles", &gathers, false).is_some());
}
