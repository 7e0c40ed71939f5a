//! What is served, told to clients: discovery in both its forms, and the version.

use crate::engine::Config;
use crate::proxy;
use crate::review::REVIEWS;
use resources::{Descriptor, Subresource};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::sync::Arc;

/// `APIGroupDiscoveryList` in its final version.
pub(crate) const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// And as clients before 1.30 ask for it.
pub(crate) const AGGREGATED_V2BETA1: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// All kinds that are served.
pub(crate) type Kinds<'a> = &'a [Arc<Descriptor>];

/// Group and version of all that is served, the core first.
pub(crate) fn versions(kinds: Kinds<'_>) -> Vec<(&str, &str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    let kinds = kinds.iter().map(|k| (k.group.as_ref(), k.version.as_ref()));
    for version in kinds.chain(REVIEWS.iter().map(|r| (r.group, r.version))) {
        if !all.contains(&version) {
            all.push(version);
        }
    }
    // As upstream orders versions: stable ones first, newer ones first.
    all.sort_by_key(|(group, version)| (*group, Reverse(maturity(version))));
    all
}

/// How a version ranks: final, beta, alpha; then by its numbers.
fn maturity(version: &str) -> (u8, u32, u32) {
    let number = |text: &str| text.parse().unwrap_or(0);
    let text = version.trim_start_matches('v');
    for (word, rank) in [("alpha", 1), ("beta", 2)] {
        if let Some((major, minor)) = text.split_once(word) {
            return (rank, number(major), number(minor));
        }
    }
    (3, number(text), 0)
}

pub(crate) fn of<'a>(kinds: Kinds<'a>, group: &str, version: &str) -> impl Iterator<Item = &'a Descriptor> {
    kinds.iter().map(Arc::as_ref).filter(move |k| k.group == group && k.version == version)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The aggregated form that an Accept header asks for first: its media type.
pub(crate) fn aggregated(accept: &str) -> Option<&'static str> {
    accept.split(',').find_map(|clause| {
        let clause = clause.trim();
        let has = |part: &str| clause.split(';').any(|p| p.trim() == part);
        if !has("as=APIGroupDiscoveryList") || !has("g=apidiscovery.k8s.io") {
            return None;
        }
        if has("v=v2") {
            Some(AGGREGATED_V2)
        } else if has("v=v2beta1") {
            Some(AGGREGATED_V2BETA1)
        } else {
            None
        }
    })
}

/// `/api` in its old form.
pub(crate) fn core_versions(config: &Config) -> Value {
    let address = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": format!("kubernetes.default.svc:{}", config.port)}]);
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": address})
}

/// One group.
pub(crate) fn group(kinds: Kinds<'_>, name: &str) -> Option<Value> {
    let versions: Vec<Value> = versions(kinds)
        .into_iter()
        .filter(|(group, _)| *group == name && !name.is_empty())
        .map(|(group, version)| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": preferred}),
    )
}

/// `/apis` in its old form.
pub(crate) fn groups(kinds: Kinds<'_>) -> Value {
    let mut names: Vec<&str> =
        versions(kinds).into_iter().map(|(group, _)| group).filter(|g| !g.is_empty()).collect();
    names.dedup();
    let bare = |mut group: Value| {
        if let Some(group) = group.as_object_mut() {
            group.remove("kind");
            group.remove("apiVersion");
        }
        group
    };
    let groups: Vec<Value> = names.into_iter().filter_map(|name| group(kinds, name)).map(bare).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/api/v1`, `/apis/<group>/<version>`.
pub(crate) fn resource_list(all: Kinds<'_>, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in of(all, group, version) {
        list.push(json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs(), "shortNames": kind.short_names, "categories": kind.categories}));
        for sub in &kind.subresources {
            let (group, version, name, verbs) = response(kind, *sub);
            let mut entry = json!({"name": format!("{}/{}", kind.plural, sub.name()), "singularName": "",
                "namespaced": kind.namespaced, "kind": name, "verbs": verbs});
            if (group, version) != (kind.group.as_ref(), kind.version.as_ref()) {
                (entry["group"], entry["version"]) = (group.into(), version.into());
            }
            list.push(entry);
        }
    }
    for review in REVIEWS.iter().filter(|r| r.group == group && r.version == version) {
        list.push(
            json!({"name": review.plural, "singularName": "", "namespaced": false, "kind": review.kind,
            "verbs": ["create"]}),
        );
    }
    if list.is_empty() {
        return None;
    }
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version), "resources": list}),
    )
}

/// What a subresource speaks: group, version, kind, verbs.
fn response(kind: &Descriptor, sub: Subresource) -> (&str, &str, &str, &'static [&'static str]) {
    match sub {
        Subresource::Status => (&kind.group, &kind.version, &kind.kind, &["get", "patch", "update"]),
        Subresource::Finalize => (&kind.group, &kind.version, &kind.kind, &["update"]),
        Subresource::Approval => (&kind.group, &kind.version, &kind.kind, &["get", "patch", "update"]),
        Subresource::Scale => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        Subresource::Binding => ("", "v1", "Binding", &["create"]),
        Subresource::Eviction => ("policy", "v1", "Eviction", &["create"]),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        Subresource::EphemeralContainers => ("", "v1", "Pod", &["get", "patch", "update"]),
        Subresource::Log => ("", "v1", "Pod", &["get"]),
        Subresource::Exec => ("", "v1", "PodExecOptions", &["create", "get"]),
        Subresource::Attach => ("", "v1", "PodAttachOptions", &["create", "get"]),
        Subresource::PortForward => ("", "v1", "PodPortForwardOptions", &["create", "get"]),
        Subresource::Proxy => {
            ("", "v1", proxy::options(kind), &["create", "delete", "get", "patch", "update"])
        }
    }
}

/// `/api` or `/apis` in the aggregated form.
pub(crate) fn discovery_list(kinds: Kinds<'_>, core: bool, media_type: &str) -> Value {
    let mut names: Vec<&str> =
        versions(kinds).into_iter().map(|(g, _)| g).filter(|g| g.is_empty() == core).collect();
    names.dedup();
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = versions(kinds)
                .into_iter()
                .filter(|(group, _)| *group == name)
                .map(|(group, version)| json!({"version": version, "resources": aggregated_resources(kinds, group, version), "freshness": "Current"}))
                .collect();
            json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let version =
        if media_type == AGGREGATED_V2 { "apidiscovery.k8s.io/v2" } else { "apidiscovery.k8s.io/v2beta1" };
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": version, "metadata": {}, "items": items})
}

fn aggregated_resources(all: Kinds<'_>, group: &str, version: &str) -> Vec<Value> {
    let speaks = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut list: Vec<Value> = of(all, group, version)
        .map(|kind| {
            let subs: Vec<Value> = kind
                .subresources
                .iter()
                .map(|sub| {
                    let (group, version, name, verbs) = response(kind, *sub);
                    json!({"subresource": sub.name(), "responseKind": speaks((group, version, name)), "verbs": verbs})
                })
                .collect();
            json!({"resource": kind.plural, "responseKind": speaks((&kind.group, &kind.version, &kind.kind)),
                "scope": scope(kind.namespaced), "singularResource": kind.singular, "verbs": kind.verbs(),
                "shortNames": kind.short_names, "categories": kind.categories, "subresources": subs})
        })
        .collect();
    let reviews = REVIEWS.iter().filter(|r| r.group == group && r.version == version);
    list.extend(reviews.map(|r| {
        json!({"resource": r.plural, "responseKind": speaks((r.group, r.version, r.kind)), "scope": "Cluster",
            "singularResource": "", "verbs": ["create"]})
    }));
    list
}

/// `/version`.
pub(crate) fn version(config: &Config) -> Value {
    let numbers = config.git_version.trim_start_matches('v');
    let mut parts = numbers.split('.');
    let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
    json!({"major": major, "minor": minor, "gitVersion": config.git_version, "gitCommit": config.git_commit,
        "gitTreeState": "clean", "buildDate": config.build_date, "goVersion": "none",
        "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_a_client_asks_for() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let old =
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated(new), Some(AGGREGATED_V2));
        assert_eq!(aggregated(old), Some(AGGREGATED_V2BETA1));
        assert_eq!(aggregated("application/json, */*"), None);
    }

    #[test]
    fn newer_and_stable_versions_come_first() {
        let mut versions = ["v1beta1", "v1", "v2alpha1", "v2", "v1beta2"];
        versions.sort_by_key(|version| Reverse(maturity(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v2alpha1"]);
    }

    #[test]
    fn both_forms_tell_the_same() {
        let all = resources::all();
        for (group, version) in versions(all) {
            let old = resource_list(all, group, version).unwrap();
            let names: Vec<&str> = old["resources"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| r["name"].as_str().unwrap())
                .filter(|n| !n.contains('/'))
                .collect();
            let new = aggregated_resources(all, group, version);
            let resources: Vec<&str> = new.iter().map(|r| r["resource"].as_str().unwrap()).collect();
            assert_eq!(names, resources);
        }
        assert!(group(all, "apps").is_some() && group(all, "nope").is_none() && group(all, "").is_none());
    }
}
