//! Request bodies: bounded bytes in, one JSON value out.

use crate::object::MAX_DEPTH;
use crate::status::{Result, Status};
use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::{Cell, RefCell};

/// How many times its bytes a document may take in memory.
const GROWTH: usize = 8;

/// The YAML library holds a whole document as events of about 150 bytes before anything of it is seen here.
const MAX_YAML_PARTS: usize = 100_000;

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Reads a body of at most `limit` bytes; what is longer is not read on.
pub(crate) async fn read(body: Body, limit: usize) -> Result<Bytes> {
    use axum::body::HttpBody;
    if body.size_hint().lower() > limit as u64 {
        return Err(Status::too_large(limit));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(limit)),
        Err(error) => Err(Status::bad_request(format!("the request body cannot be read: {error}"))),
    }
}

/// The media type of a body, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The value in a body, and the paths of fields that came twice.
pub(crate) fn decode(media_type: &str, bytes: &[u8], limit: usize) -> Result<(Value, Vec<String>)> {
    let bytes_left = Cell::new(limit.saturating_mul(GROWTH));
    let reader = Reader { bytes_left, path: RefCell::default(), duplicates: RefCell::default() };
    let seed = Seed { reader: &reader, depth: MAX_DEPTH };
    let value = match media_type {
        "" | "application/json" => {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            let value = seed.deserialize(&mut json).and_then(|v| json.end().map(|()| v));
            value.map_err(|e| {
                Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
            })?
        }
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            if yaml_parts(bytes) > MAX_YAML_PARTS {
                return Err(Status::bad_request(format!(
                    "error converting YAML to JSON: the document may have more than {MAX_YAML_PARTS} parts: \
                     send it as JSON"
                )));
            }
            let yaml = serde_yaml_ng::Deserializer::from_slice(bytes);
            seed.deserialize(yaml)
                .map_err(|e| Status::bad_request(format!("error converting YAML to JSON: yaml: {e}")))?
        }
        "application/vnd.kubernetes.protobuf" => resources::protobuf::decode(bytes)
            .map_err(|e| Status::bad_request(format!("the protobuf body cannot be read: {e}")))?,
        other => {
            let message = format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: {ACCEPTED}"
            );
            return Err(Status::unsupported_media_type(message));
        }
    };
    Ok((value, reader.duplicates.into_inner()))
}

/// At least a quarter of the events that a YAML document is read as: nothing begins without one of these.
fn yaml_parts(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{' | b'-' | b'?')).count()
}

/// What one reading may use, as it is held in memory: `[1,1,...]` becomes many times its bytes, and aliases could make
/// a small YAML document huge.
struct Reader {
    bytes_left: Cell<usize>,
    /// Where it is.
    path: RefCell<Vec<Step>>,
    duplicates: RefCell<Vec<String>>,
}

impl Reader {
    fn spend<E: Error>(&self, bytes: usize) -> std::result::Result<(), E> {
        let left =
            self.bytes_left.get().checked_sub(bytes).ok_or_else(|| E::custom("the document is too large"))?;
        self.bytes_left.set(left);
        Ok(())
    }

    fn enter(&self, step: Step) {
        self.path.borrow_mut().push(step);
    }

    fn leave(&self) -> Option<Step> {
        self.path.borrow_mut().pop()
    }

    /// Notes that the field of this name, here, came before.
    fn duplicate(&self, name: &str) {
        let mut duplicates = self.duplicates.borrow_mut();
        // More names than this help nobody.
        if duplicates.len() < 16 {
            let path = self.path.borrow();
            let steps = path.iter().map(|step| match step {
                Step::Field(name) => name.clone(),
                Step::Item(i) => format!("[{i}]"),
            });
            duplicates.push(resources::field_path(steps.chain([name.to_owned()])));
        }
    }
}

/// One step into a document.
enum Step {
    Field(String),
    Item(usize),
}

/// What the allocator adds to a text.
const ALLOCATION: usize = 16;
/// Lists and maps keep up to as much room again for what may come.
const SPARE: usize = 2;

struct Seed<'a> {
    reader: &'a Reader,
    depth: usize,
}

impl Seed<'_> {
    fn inner<E: Error>(&self) -> std::result::Result<Seed<'_>, E> {
        let too_deep = || E::custom(format!("the document nests deeper than {MAX_DEPTH} levels"));
        let depth = self.depth.checked_sub(1).ok_or_else(too_deep)?;
        Ok(Seed { reader: self.reader, depth })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E: Error>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E: Error>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E: Error>(self, v: &str) -> std::result::Result<Value, E> {
        self.reader.spend(ALLOCATION + v.len())?;
        Ok(v.into())
    }

    fn visit_unit<E: Error>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.reader.enter(Step::Item(items.len()));
            let Some(item) = seq.next_element_seed(self.inner()?)? else { break };
            self.reader.leave();
            self.reader.spend(SPARE * size_of::<Value>())?;
            items.push(item);
        }
        self.reader.leave();
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            self.reader
                .spend(SPARE * (size_of::<String>() + size_of::<Value>()) + ALLOCATION + name.len())?;
            self.reader.enter(Step::Field(name));
            let value = map.next_value_seed(self.inner()?)?;
            let Some(Step::Field(name)) = self.reader.leave() else { continue };
            if fields.contains_key(&name) {
                self.reader.duplicate(&name);
            }
            fields.insert(name, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIMIT: usize = 1 << 20;

    fn message(media_type: &str, body: &str) -> String {
        decode(media_type, body.as_bytes(), LIMIT).unwrap_err().message
    }

    #[test]
    fn json_and_yaml_give_the_same_value() {
        let expected = json!({"a": [1, -2, 1.5, true, null, "x"], "b": {"c": "d"}});
        let yaml = "a: [1, -2, 1.5, true, null, x]\nb:\n  c: d\n";
        assert_eq!(decode("application/yaml", yaml.as_bytes(), LIMIT).unwrap().0, expected);
        assert_eq!(decode("", expected.to_string().as_bytes(), LIMIT).unwrap().0, expected);
    }

    #[test]
    fn faults_come_with_their_place() {
        assert!(message("application/json", "{\"a\": tru}").contains("line 1 column"));
        assert!(message("application/yaml", "a: [1,\nb: {").contains("line"));
        assert!(message("application/json", "{} {}").contains("trailing"));
        assert_eq!(decode("text/plain", b"", LIMIT).unwrap_err().code, 415);
    }

    #[test]
    fn depth_and_expansion_are_bounded() {
        let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
        assert!(
            message("application/json", &deep).contains("deeper than 100 levels"),
            "{}",
            message("application/json", &deep)
        );
        let bomb = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a,".repeat(1000));
        assert!(message("application/yaml", &bomb).contains("too large"));
        let flat = format!("[{}1]", "1,".repeat(LIMIT / 2 - 2));
        assert!(message("application/json", &flat).contains("too large"));
        assert!(message("application/yaml", &flat).contains("more than 100000 parts: send it as JSON"));
        let empty = format!("{{{}\"x\":1}}", "\"a\":{},".repeat(LIMIT / 8));
        assert!(message("application/json", &empty).contains("too large"));
        let ordinary: Map<String, Value> =
            (0..30_000).map(|i| (format!("key-{i}"), i.to_string().into())).collect();
        let ordinary = Value::from(ordinary);
        assert_eq!(decode("", ordinary.to_string().as_bytes(), LIMIT).unwrap().0, ordinary);
    }

    #[test]
    fn fields_that_come_twice_are_told() {
        let (value, duplicates) =
            decode("", br#"{"a": 1, "a": 2, "b": [1, {"c": {"d": 1, "d": 2}}]}"#, LIMIT).unwrap();
        assert_eq!(value, json!({"a": 2, "b": [1, {"c": {"d": 2}}]}));
        assert_eq!(duplicates, ["a", "b[1].c.d"]);
        let yaml = decode("application/yaml", b"a:\n  b: 1\n  b: 2\n", LIMIT).unwrap();
        assert_eq!(yaml, (json!({"a": {"b": 2}}), vec!["a.b".to_owned()]));
    }
}
