//! OpenAPI: what the paths take, and what the kinds look like.

use crate::discovery::{Kinds, of, versions};
use crate::engine::Config;
use bytes::Bytes;
use resources::Descriptor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

/// OpenAPI v2 in protobuf, as old kubectl insists on.
pub(crate) const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The smallest document: swagger "2.0", info with title and version, no paths. Old kubectl only needs it to parse.
pub(crate) const V2_BYTES: &[u8] = b"\x0a\x032.0\x12\x06\x0a\x01k\x12\x011\x42\x00";

/// `/openapi/v2` for who takes JSON.
pub(crate) fn v2(config: &Config) -> Value {
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": config.git_version}, "paths": {}})
}

/// `/openapi/v3`: where each version's document is, with a hash that changes when it does.
pub(crate) fn v3(kinds: Kinds<'_>) -> Value {
    let entry = |(group, version)| {
        let mut hasher = DefaultHasher::new();
        v3_group(kinds, group, version).hash(&mut hasher);
        let path = base(group, version);
        let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
        (path, json!({"serverRelativeURL": url}))
    };
    json!({"paths": versions(kinds).into_iter().map(entry).collect::<Map<_, _>>()})
}

/// The document of one version of a group.
pub(crate) fn v3_group(kinds: Kinds<'_>, group: &str, version: &str) -> Option<Bytes> {
    if of(kinds, group, version).any(|kind| kind.custom().is_some()) {
        return Some(document(kinds, group, version).to_string().into());
    }
    DOCUMENTS.get(&base(group, version)).cloned()
}

/// The documents of built-in kinds by path, made on first use: they never change.
static DOCUMENTS: LazyLock<BTreeMap<String, Bytes>> = LazyLock::new(|| {
    let all = resources::all();
    let document =
        |(group, version)| (base(group, version), document(all, group, version).to_string().into());
    versions(all).into_iter().map(document).collect()
});

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn document(kinds: Kinds<'_>, group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    for kind in of(kinds, group, version) {
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let path = format!("/{}{scope}/{}", base(group, version), kind.plural);
        let collection = json!({"get": operation(kind, "list"), "post": operation(kind, "post")});
        let object = json!({"get": operation(kind, "get"), "put": operation(kind, "put"),
            "patch": operation(kind, "patch"), "delete": operation(kind, "delete")});
        paths.insert(format!("{path}/{{name}}"), object);
        paths.insert(path, collection);
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36"}, "paths": paths,
        "components": {"schemas": resources::openapi::schemas(of(kinds, group, version))}})
}

/// One verb on one path. kubectl asks whether writes take `fieldValidation`.
fn operation(kind: &Descriptor, action: &str) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let writes = ["post", "put", "patch"].contains(&action);
    let parameters: Vec<Value> =
        ["dryRun", "fieldManager", "fieldValidation"].map(parameter).into_iter().filter(|_| writes).collect();
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let schema =
        resources::openapi::name(kind).map(|name| json!({"$ref": format!("#/components/schemas/{name}")}));
    let content = json!({"application/json": {"schema": schema}});
    let mut operation = json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
        "parameters": parameters, "responses": {"200": {"description": "OK"}}});
    match action {
        "post" | "put" => operation["requestBody"] = json!({"content": content}),
        "get" => operation["responses"]["200"]["content"] = content,
        _ => {}
    }
    operation
}
