//! Who else has a say in writes, over HTTPS: webhook configurations.

use super::BASE;
use super::admission::{conditions, scopes};
use super::columns::{AGE, NAME, integer};
use crate::cause::{Causes, duplicate, invalid, not_supported, required};
use crate::json::{Fields, child_if, children, default, int, items, text};
use crate::labels::Selector;
use crate::{Builtin, metadata, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GROUP: &str = "admissionregistration.k8s.io";
/// Versions of AdmissionReview.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
/// Names that a match condition may use.
const VARIABLES: [&str; 4] = ["object", "oldObject", "request", "authorizer"];
const URL_FORM: &str = "; desired format: https://host[/path]";

pub const MUTATING_WEBHOOK_CONFIGURATION: Builtin = Builtin {
    group: GROUP,
    kind: "MutatingWebhookConfiguration",
    plural: "mutatingwebhookconfigurations",
    singular: "mutatingwebhookconfiguration",
    categories: &["api-extensions"],
    namespaced: false,
    columns: COLUMNS,
    defaults: |object| webhook_defaults(object, true),
    validate: |new, old| validate(new, old, true),
    generation: "webhooks",
    ..BASE
};

pub const VALIDATING_WEBHOOK_CONFIGURATION: Builtin = Builtin {
    group: GROUP,
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    singular: "validatingwebhookconfiguration",
    categories: &["api-extensions"],
    namespaced: false,
    columns: COLUMNS,
    defaults: |object| webhook_defaults(object, false),
    validate: |new, old| validate(new, old, false),
    generation: "webhooks",
    ..BASE
};

const COLUMNS: &[crate::Column] =
    &[NAME, integer("Webhooks", |object, _| items(object, "/webhooks").len().into()), AGE];

fn webhook_defaults(object: &mut Value, mutating: bool) {
    let Some(fields) = object.as_object_mut() else { return };
    for webhook in children(fields, "webhooks") {
        default(webhook, "failurePolicy", "Fail");
        default(webhook, "matchPolicy", "Equivalent");
        default(webhook, "timeoutSeconds", 10);
        for selector in ["namespaceSelector", "objectSelector"] {
            default(webhook, selector, json!({}));
        }
        if mutating {
            default(webhook, "reinvocationPolicy", "Never");
        }
        scopes(webhook, "rules");
        if let Some(client) = child_if(webhook, "clientConfig") {
            service_defaults(client);
        }
    }
}

/// The port of the service that a client configuration names.
pub(super) fn service_defaults(client: &mut Fields) {
    if let Some(service) = child_if(client, "service") {
        default(service, "port", 443);
    }
}

fn validate(new: &Value, old: Option<&Value>, mutating: bool) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let mut seen = BTreeSet::new();
    for (i, webhook) in items(new, "/webhooks").iter().enumerate() {
        let at = |field: &str| format!("webhooks[{i}].{field}");
        let name = text(webhook, "/name");
        if !seen.insert(name) {
            causes.push(duplicate(at("name"), name));
        }
        names_of(webhook, &at, &mut causes);
        words(webhook, &at, mutating, &mut causes);
        for (j, rule) in items(webhook, "/rules").iter().enumerate() {
            check_rule(rule, &at(&format!("rules[{j}]")), &mut causes);
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            if let Err(why) = Selector::from_label_selector(&webhook[selector]) {
                causes.push(invalid(at(selector), webhook[selector].clone(), &why.to_string()));
            }
        }
        check_client(&webhook["clientConfig"], &at("clientConfig"), &mut causes);
        conditions(webhook, "/matchConditions", &at("matchConditions"), &VARIABLES, &mut causes);
    }
    causes
}

fn names_of(webhook: &Value, at: &dyn Fn(&str) -> String, causes: &mut Causes) {
    let name = text(webhook, "/name");
    if name.is_empty() {
        causes.push(required(at("name"), ""));
    } else if let faults = names::dns_subdomain(name)
        && !faults.is_empty()
    {
        causes.extend(faults.iter().map(|fault| invalid(at("name"), name, fault)));
    } else if name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        causes.push(invalid(at("name"), name, why));
    }
    let versions: Vec<&str> =
        items(webhook, "/admissionReviewVersions").iter().filter_map(Value::as_str).collect();
    let field = at("admissionReviewVersions");
    if versions.is_empty() {
        causes.push(required(field, &format!("must specify one of {}", REVIEWS.join(", "))));
    } else if !versions.iter().any(|version| REVIEWS.contains(version)) {
        let why = format!("must include at least one of {}", REVIEWS.join(", "));
        causes.push(invalid(field, webhook["admissionReviewVersions"].clone(), &why));
    }
}

/// Fields that hold one word of a few.
fn words(webhook: &Value, at: &dyn Fn(&str) -> String, mutating: bool, causes: &mut Causes) {
    const EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
    let mut one_of = |field: &str, words: &[&str]| {
        let word = text(webhook, &format!("/{field}"));
        if !words.contains(&word) {
            causes.push(not_supported(at(field), word, words));
        }
    };
    one_of("failurePolicy", &["Fail", "Ignore"]);
    one_of("matchPolicy", &["Equivalent", "Exact"]);
    if mutating {
        one_of("reinvocationPolicy", &["IfNeeded", "Never"]);
    }
    if text(webhook, "/sideEffects").is_empty() {
        let why = format!("must specify one of {}", EFFECTS.join(", "));
        causes.push(required(at("sideEffects"), &why));
    } else {
        one_of("sideEffects", &EFFECTS);
    }
    let seconds = int(webhook, "/timeoutSeconds").unwrap_or(0);
    if !(1..=30).contains(&seconds) {
        let why = "the timeout value must be between 1 and 30 seconds";
        causes.push(invalid(at("timeoutSeconds"), seconds, why));
    }
}

fn check_rule(rule: &Value, field: &str, causes: &mut Causes) {
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
    for (list, noun) in [
        ("operations", "operations"),
        ("apiGroups", "API groups"),
        ("apiVersions", "versions"),
        ("resources", "resources"),
    ] {
        let all = items(rule, &format!("/{list}"));
        let at = format!("{field}.{list}");
        let stars = all.iter().filter(|item| *item == "*").count();
        if all.is_empty() {
            causes.push(required(&at, ""));
        } else if stars > 0 && all.len() > 1 && list != "resources" {
            let why = format!("if '*' is present, must not specify other {noun}");
            causes.push(invalid(&at, rule[list].clone(), &why));
        }
        for (i, item) in all.iter().enumerate() {
            let item = item.as_str().unwrap_or_default();
            if list == "operations" && !OPERATIONS.contains(&item) {
                causes.push(not_supported(format!("{at}[{i}]"), item, &OPERATIONS));
            } else if item.is_empty() && list != "apiGroups" {
                causes.push(required(format!("{at}[{i}]"), ""));
            }
        }
    }
    let scope = text(rule, "/scope");
    if !SCOPES.contains(&scope) {
        causes.push(not_supported(format!("{field}.scope"), scope, &SCOPES));
    }
}

/// Where a webhook is.
pub(super) fn check_client(client: &Value, field: &str, causes: &mut Causes) {
    let (url, service) = (&client["url"], &client["service"]);
    match (url.as_str(), service.is_object()) {
        (Some(url), false) => check_url(url, &format!("{field}.url"), causes),
        (None, true) => check_service(service, &format!("{field}.service"), causes),
        _ => causes.push(required(field, "exactly one of url or service is required")),
    }
}

fn check_url(url: &str, field: &str, causes: &mut Causes) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        let why = format!("'https' is the only allowed URL scheme{URL_FORM}");
        causes.push(invalid(field, scheme, &why));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, below) = rest.split_at(end);
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        causes.push(invalid(field, host, &format!("host must be specified{URL_FORM}")));
    }
    if !user.is_empty() {
        causes.push(invalid(field, user, "user information is not permitted in the URL"));
    }
    let (below, fragment) = below.split_once('#').unwrap_or((below, ""));
    if !fragment.is_empty() {
        causes.push(invalid(field, fragment, "fragments are not permitted in the URL"));
    }
    if let Some((_, query)) = below.split_once('?') {
        causes.push(invalid(field, query, "query parameters are not permitted in the URL"));
    }
}

fn check_service(service: &Value, field: &str, causes: &mut Causes) {
    for (name, what) in [("name", "service name"), ("namespace", "service namespace")] {
        if text(service, &format!("/{name}")).is_empty() {
            causes.push(required(format!("{field}.{name}"), &format!("{what} is required")));
        }
    }
    let port = int(service, "/port").unwrap_or(0);
    for fault in names::port_number(port) {
        causes.push(invalid(format!("{field}.port"), port, &format!("port is not valid: {fault}")));
    }
    let path = text(service, "/path");
    if !path.is_empty() && !path.starts_with('/') {
        causes.push(invalid(format!("{field}.path"), path, "must start with a '/'"));
    }
    if let Some(odd) = path.chars().find(|c| c.is_control() || c.is_whitespace() || "?#".contains(*c)) {
        let why = format!("must be a path of segments, without {odd:?}");
        causes.push(invalid(format!("{field}.path"), path, &why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "w"}, "webhooks": [{"name": "a.example.com",
            "clientConfig": {"service": {"name": "s", "namespace": "n", "path": "/ask"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods", "*/scale"]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"]}]});
        change(&mut object["webhooks"][0]);
        webhook_defaults(&mut object, true);
        validate(&object, None, true)
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn what_is_wrong_is_told_in_upstreams_words() {
        assert_eq!(webhook(|_| ()), [""; 0]);
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 9] = [
            (
                |w| w["name"] = "a.b".into(),
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ),
            (
                |w| w["sideEffects"] = "Some".into(),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                |w| w["timeoutSeconds"] = 31.into(),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                |w| w["admissionReviewVersions"] = json!(["v2"]),
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
            ),
            (
                |w| w["clientConfig"]["url"] = "https://x".into(),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                |w| w["clientConfig"] = json!({"url": "http://x/"}),
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
            (
                |w| w["clientConfig"] = json!({"url": "https://x/?a=b"}),
                "webhooks[0].clientConfig.url: Invalid value: \"a=b\": query parameters are not permitted in the URL",
            ),
            (
                |w| w["rules"][0]["operations"] = json!(["READ"]),
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            ),
            (
                |w| w["rules"][0]["apiVersions"] = json!(["*", "v1"]),
                "webhooks[0].rules[0].apiVersions: Invalid value: [\"*\",\"v1\"]: if '*' is present, must not specify other versions",
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(webhook(change), [expected]);
        }
        let told = webhook(|w| w["matchConditions"] = json!([{"name": "a", "expression": "params.x"}]));
        assert!(told.len() == 1 && told[0].contains("compilation failed"), "{told:?}");
    }
}
