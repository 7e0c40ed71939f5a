//! OpenAPI: what the paths take, and what the kinds look like. What is built in is packed, and kept so; what custom
//! kinds add is made when it is asked for.

use crate::discovery::{Kinds, of, versions};
use crate::respond;
use crate::status::{Result, Status};
use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderValue, Request, Response, StatusCode, header};
use resources::Descriptor;
use resources::openapi::{document_v2_protobuf, name, schema_v2, schemas};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

/// OpenAPI v2 in protobuf, as kubectl before 1.27 insists on.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents on built-in kinds, each made when it is first asked for, and kept as gzip.
pub(crate) struct Documents {
    v2: OnceLock<Bytes>,
    v2_protobuf: OnceLock<Bytes>,
    v3: BTreeMap<String, OnceLock<Bytes>>,
}

impl Default for Documents {
    fn default() -> Self {
        let v3 = versions(resources::all()).into_iter().map(|(g, v)| (base(g, v), OnceLock::new())).collect();
        Self { v2: OnceLock::new(), v2_protobuf: OnceLock::new(), v3 }
    }
}

impl Documents {
    /// `/openapi/v2`, in the form that the client takes.
    pub fn v2(&self, request: &Request<Body>, version: &str, kinds: Kinds<'_>) -> Result<Response<Body>> {
        let protobuf = respond::text(request.headers(), header::ACCEPT).contains("proto-openapi.spec.v2");
        let custom: Vec<Arc<Descriptor>> = kinds.iter().filter(|k| k.custom().is_some()).cloned().collect();
        // A document goes on where the built-in part ends: gzip and protobuf take parts one after the other, and the
        // built-in JSON is without its last two brackets.
        let (media_type, first, rest) = if protobuf {
            let first = self
                .v2_protobuf
                .get_or_init(|| gzip(&document_v2_protobuf(&v2_part(resources::all(), Some(version)))));
            let rest = (!custom.is_empty()).then(|| document_v2_protobuf(&v2_part(&custom, None)));
            (V2_PROTOBUF, first, rest)
        } else {
            let first = self.v2.get_or_init(|| gzip(v2_open(version).as_bytes()));
            let definitions = v2_part(&custom, None)["definitions"].to_string();
            let rest = if custom.is_empty() { "}}".to_owned() } else { format!(",{}}}", &definitions[1..]) };
            ("application/json", first, Some(rest.into_bytes()))
        };
        let mut packed = first.to_vec();
        packed.extend(rest.iter().flat_map(|rest| gzip(rest)));
        answer(request, media_type, packed.into())
    }

    /// `/openapi/v3`: where each version's document is, with a hash that changes when it does.
    pub fn v3(&self, version: &str, kinds: Kinds<'_>) -> Value {
        let entry = |(group, of_group): (&str, &str)| {
            let mut hasher = DefaultHasher::new();
            (version, group, of_group).hash(&mut hasher);
            for custom in of(kinds, group, of_group).filter_map(Descriptor::custom) {
                custom.document().to_string().hash(&mut hasher);
            }
            let path = base(group, of_group);
            let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
            (path, json!({"serverRelativeURL": url}))
        };
        json!({"paths": versions(kinds).into_iter().map(entry).collect::<Map<_, _>>()})
    }

    /// The document of one version of a group.
    pub fn v3_group(
        &self,
        request: &Request<Body>,
        group: &str,
        version: &str,
        kinds: Kinds<'_>,
    ) -> Result<Response<Body>> {
        let make = || gzip(document(group, version, kinds).to_string().as_bytes());
        let custom = of(kinds, group, version).any(|kind| kind.custom().is_some());
        let packed = match self.v3.get(&base(group, version)) {
            Some(kept) if !custom => kept.get_or_init(make).clone(),
            _ if of(kinds, group, version).next().is_some() => make(),
            _ => return Err(Status::no_resource()),
        };
        answer(request, "application/json", packed)
    }
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::default());
    // A vector takes whatever is written.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

/// Answers with a packed document, unpacked for who cannot do that; 304 to whom has it already.
fn answer(request: &Request<Body>, media_type: &'static str, packed: Bytes) -> Result<Response<Body>> {
    let mut hasher = DefaultHasher::new();
    packed.hash(&mut hasher);
    let tag = format!("\"{:016X}\"", hasher.finish());
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(&tag).map_err(Status::internal)?);
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if respond::text(request.headers(), header::IF_NONE_MATCH) == tag {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if respond::text(request.headers(), header::ACCEPT_ENCODING).contains("gzip") {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *response.body_mut() = Body::from(packed);
        return Ok(response);
    }
    let mut plain = Vec::new();
    MultiGzDecoder::new(packed.as_ref()).read_to_end(&mut plain).map_err(Status::internal)?;
    *response.body_mut() = Body::from(plain);
    Ok(response)
}

/// The v3 document of one version of a group.
fn document(group: &str, version: &str, kinds: Kinds<'_>) -> Value {
    let schema = |kind: &Descriptor| {
        let reference = name(kind).map(|name| json!({"$ref": format!("#/components/schemas/{name}")}));
        json!({"content": {"application/json": {"schema": reference}}})
    };
    let mut all = Map::new();
    for kind in of(kinds, group, version) {
        all.extend(paths(kind, |action| {
            let mut operation = operation(kind, action, |name| {
                json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}})
            });
            match action {
                "post" | "put" => operation["requestBody"] = schema(kind),
                "get" => operation["responses"]["200"]["content"] = schema(kind)["content"].clone(),
                _ => {}
            }
            operation
        }));
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36"}, "paths": all,
        "components": {"schemas": schemas(of(kinds, group, version))}})
}

/// The v2 document on built-in kinds, but for its last two brackets.
fn v2_open(version: &str) -> String {
    let part = v2_part(resources::all(), Some(version));
    let open = format!(
        "{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{},\"definitions\":{}",
        part["info"], part["paths"], part["definitions"]
    );
    open.strip_suffix('}').map(str::to_owned).unwrap_or(open)
}

/// What a v2 document says on these kinds. `version`: it begins there. What custom kinds share with others is left out.
fn v2_part(kinds: &[Arc<Descriptor>], version: Option<&str>) -> Value {
    let each = || kinds.iter().map(Arc::as_ref);
    let own: Vec<String> = each().filter_map(name).collect();
    let definitions: Map<String, Value> = schemas(each())
        .iter()
        .filter(|(name, _)| version.is_some() || own.contains(name))
        .map(|(name, schema)| (name.clone(), schema_v2(schema)))
        .collect();
    let mut all = Map::new();
    for kind in each() {
        all.extend(paths(kind, |action| {
            operation(
                kind,
                action,
                |name| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true}),
            )
        }));
    }
    let mut part = json!({"paths": all, "definitions": definitions});
    if let Some(version) = version {
        part["swagger"] = "2.0".into();
        part["info"] = json!({"title": "Kubernetes", "version": version});
    }
    part
}

/// A kind's two paths, with the verbs on them.
fn paths(kind: &Descriptor, operation: impl Fn(&str) -> Value) -> [(String, Value); 2] {
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let path = format!("/{}{scope}/{}", base(&kind.group, &kind.version), kind.plural);
    let collection = json!({"get": operation("list"), "post": operation("post")});
    let object = json!({"get": operation("get"), "put": operation("put"),
        "patch": operation("patch"), "delete": operation("delete")});
    [(format!("{path}/{{name}}"), object), (path, collection)]
}

/// One verb on one path. kubectl asks whether writes take `dryRun` and `fieldValidation`.
fn operation(kind: &Descriptor, action: &str, parameter: impl Fn(&str) -> Value) -> Value {
    let taken: &[&str] = match action {
        "post" | "put" => &["dryRun", "fieldManager", "fieldValidation"],
        "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
        "delete" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
        _ => &[],
    };
    let parameters: Vec<Value> = taken.iter().map(|name| parameter(name)).collect();
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
        "parameters": parameters, "responses": {"200": {"description": "OK"}}})
}
