//! Answers: which form the client asked for, and the bytes.

use crate::object::{self, now};
use crate::query::Query;
use crate::read::Unread;
use crate::status::{Result, Status};
use axum::body::Body;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use resources::Descriptor;
use resources::table::{IncludeObject, META, partial, table};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Answers larger than this are compressed for whom it helps.
const GZIP_FROM: usize = 128 * 1024;

/// What is shown of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Object,
    Table,
    Metadata,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub view: View,
    include: IncludeObject,
    yaml: bool,
    pretty: bool,
    gzip: bool,
}

impl Format {
    /// The plainest.
    pub fn plain() -> Self {
        Self { view: View::Object, include: IncludeObject::Metadata, yaml: false, pretty: false, gzip: false }
    }

    /// What the client asked for.
    pub fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Self> {
        let (view, yaml) = accepted(text(headers, header::ACCEPT))?;
        let agent = text(headers, header::USER_AGENT);
        let by_hand = ["curl/", "Wget/", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name));
        Ok(Self {
            view,
            yaml,
            include: IncludeObject::parse(query.get("includeObject").unwrap_or_default()),
            pretty: if query.get("pretty").is_some() { query.flag("pretty") } else { by_hand },
            gzip: text(headers, header::ACCEPT_ENCODING).contains("gzip"),
        })
    }

    /// One object in this form. `columns`: a Table's headings are told.
    pub fn object(&self, kind: &Descriptor, object: Value, columns: bool) -> Value {
        match self.view {
            View::Object => object,
            View::Metadata => partial(object),
            View::Table => {
                let meta = json!({"resourceVersion": object::text(&object, "/metadata/resourceVersion")});
                self.table(kind, vec![object], meta, columns)
            }
        }
    }

    /// A list in this form.
    pub fn list(&self, kind: &Descriptor, items: Vec<Value>, meta: Value) -> Value {
        match self.view {
            View::Table => self.table(kind, items, meta, true),
            View::Object => json!({
                "kind": kind.list_kind, "apiVersion": kind.api_version(), "metadata": meta, "items": items,
            }),
            View::Metadata => {
                let items: Vec<Value> = items.into_iter().map(partial).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": META, "metadata": meta, "items": items})
            }
        }
    }

    fn table(&self, kind: &Descriptor, items: Vec<Value>, meta: Value, columns: bool) -> Value {
        table(kind, items, meta, self.include, now(), columns)
    }

    /// Whether objects are shown as they are, as JSON without space.
    pub fn is_plain_json(&self) -> bool {
        self.view == View::Object && !self.yaml && !self.pretty
    }

    /// The answer with this list, as the client takes it.
    pub fn unread(&self, list: Unread) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if list.size <= Unread::PIECE {
            match list.collect::<io::Result<Vec<_>>>() {
                Ok(pieces) => *response.body_mut() = Body::from(pieces.concat()),
                Err(error) => return failure(&Status::internal(error)),
            }
        } else if self.gzip && list.size > GZIP_FROM {
            mark_gzip(&mut response);
            *response.body_mut() = Body::from_stream(futures::stream::iter(Gzip::new(list)));
        } else {
            *response.body_mut() = Body::from_stream(futures::stream::iter(list));
        }
        response
    }

    /// The answer with this value.
    pub fn answer(&self, code: StatusCode, value: &Value) -> Response<Body> {
        match self.encode(value) {
            Ok((media_type, bytes)) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = code;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
                self.fill(&mut response, bytes);
                response
            }
            Err(status) => failure(&status),
        }
    }

    fn encode(&self, value: &Value) -> Result<(&'static str, Vec<u8>)> {
        if self.yaml {
            let text = serde_yaml_ng::to_string(value).map_err(Status::internal)?;
            return Ok(("application/yaml", text.into_bytes()));
        }
        let bytes = if self.pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
        let mut bytes = bytes.map_err(Status::internal)?;
        bytes.push(b'\n');
        Ok(("application/json", bytes))
    }

    /// Puts the bytes in, compressed if that helps.
    pub fn fill(&self, response: &mut Response<Body>, bytes: Vec<u8>) {
        let compressed = if self.gzip && bytes.len() > GZIP_FROM { gzip(&bytes) } else { None };
        let bytes = match compressed {
            Some(small) => {
                mark_gzip(response);
                small
            }
            None => bytes,
        };
        *response.body_mut() = Body::from(Bytes::from(bytes));
    }
}

fn mark_gzip(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// Compresses pieces one by one.
struct Gzip<P> {
    pieces: P,
    /// None: all was given.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<P> Gzip<P> {
    fn new(pieces: P) -> Self {
        Self { pieces, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl<P: Iterator<Item = io::Result<Vec<u8>>>> Iterator for Gzip<P> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(piece) = self.pieces.next() else { return self.encoder.take().map(GzEncoder::finish) };
            if let Err(error) = piece.and_then(|piece| encoder.write_all(&piece)) {
                self.encoder = None;
                return Some(Err(error));
            }
            if !encoder.get_ref().is_empty() {
                return Some(Ok(std::mem::take(encoder.get_mut())));
            }
        }
    }
}

fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

/// The answer to a request that failed.
pub(crate) fn failure(status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{}\n", status.to_value())));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = status.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer of plain text.
pub(crate) fn plain_text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    let value = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// A header as text.
pub(crate) fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// The first media type in an Accept header that is served: the view, and whether as YAML.
fn accepted(accept: &str) -> Result<(View, bool)> {
    if accept.trim().is_empty() {
        return Ok((View::Object, false));
    }
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        let yaml = match parts.next().unwrap_or_default() {
            "application/json" | "application/*" | "*/*" => false,
            "application/yaml" => true,
            _ => continue,
        };
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let get = |name: &str| parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
        let view = match (get("as"), get("g"), get("v")) {
            ("", _, _) => View::Object,
            ("Table", "meta.k8s.io", "v1") => View::Table,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => View::Metadata,
            _ => continue,
        };
        return Ok((view, yaml));
    }
    Err(Status::not_acceptable("application/json, application/yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_served_form_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let old_table = "application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json";
        for (accept, expected) in [
            (table, (View::Table, false)),
            (old_table, (View::Object, false)),
            ("application/vnd.kubernetes.protobuf,application/json", (View::Object, false)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", (View::Metadata, false)),
            ("application/yaml", (View::Object, true)),
            ("*/*", (View::Object, false)),
            ("", (View::Object, false)),
        ] {
            assert_eq!(accepted(accept).unwrap(), expected, "{accept}");
        }
        assert_eq!(accepted("text/html").unwrap_err().code, 406);
    }
}
