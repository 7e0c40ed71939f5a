//! ConfigMap and Secret: keys and values for pods.

use super::BASE;
use super::columns::{AGE, NAME, integer, string};
use crate::cause::{Causes, forbidden, invalid, required, too_long};
use crate::json::{Fields, default, fields, flag, text};
use crate::{Builtin, metadata, names};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// All data of one object together.
const MAX_DATA: usize = 1024 * 1024;

pub const CONFIG_MAP: Builtin = Builtin {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    columns: &[NAME, integer("Data", |object, _| entries(object).into()), AGE],
    validate: validate_config_map,
    ..BASE
};

pub const SECRET: Builtin = Builtin {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    columns: &[
        NAME,
        string("Type", |object, _| text(object, "/type").into()),
        integer("Data", |object, _| entries(object).into()),
        AGE,
    ],
    selectable: &[("type", "/type")],
    defaults: secret_defaults,
    validate: validate_secret,
    ..BASE
};

fn entries(object: &Value) -> usize {
    ["/data", "/binaryData"].iter().filter_map(|p| fields(object, p)).map(Fields::len).sum()
}

/// `stringData` is for writing only: it ends up in `data`.
fn secret_defaults(object: &mut Value) {
    let Some(secret) = object.as_object_mut() else { return };
    default(secret, "type", "Opaque");
    if let Some(Value::Object(plain)) = secret.remove("stringData") {
        let Some(data) = crate::json::child(secret, "data") else { return };
        for (key, value) in plain {
            if let Value::String(text) = value {
                data.insert(key, STANDARD.encode(text).into());
            }
        }
    }
}

fn validate_config_map(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let mut size = 0;
    for (key, value) in fields(new, "/data").into_iter().flatten() {
        let field = format!("data[{key}]");
        causes.extend(names::config_key(key).iter().map(|f| invalid(field.as_str(), key.as_str(), f)));
        if fields(new, "/binaryData").is_some_and(|b| b.contains_key(key)) {
            causes.push(invalid(field.as_str(), key.as_str(), "duplicate of key present in binaryData"));
        }
        match value.as_str() {
            Some(text) => size += text.len(),
            None => causes.push(invalid(field, value.clone(), "must be a string")),
        }
    }
    size += binary(new, "/binaryData", "binaryData", &mut causes);
    if size > MAX_DATA {
        causes.push(too_long("", MAX_DATA));
    }
    frozen(new, old, &["data", "binaryData"], &mut causes);
    causes
}

fn validate_secret(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    if binary(new, "/data", "data", &mut causes) > MAX_DATA {
        causes.push(too_long("data", MAX_DATA));
    }
    metadata::immutable(new, old, "/type", "type", &mut causes);
    for key in needed(text(new, "/type")) {
        if fields(new, "/data").is_none_or(|data| !data.contains_key(*key)) {
            causes.push(required(format!("data[{key}]"), ""));
        }
    }
    frozen(new, old, &["data"], &mut causes);
    causes
}

/// The keys that a type of Secret must have.
fn needed(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}

/// Checks base64 values; gives the decoded size.
fn binary(object: &Value, pointer: &str, name: &str, causes: &mut Causes) -> usize {
    let mut size = 0;
    for (key, value) in fields(object, pointer).into_iter().flatten() {
        let field = format!("{name}[{key}]");
        causes.extend(names::config_key(key).iter().map(|f| invalid(field.as_str(), key.as_str(), f)));
        match value.as_str().map(|text| STANDARD.decode(text)) {
            Some(Ok(bytes)) => size += bytes.len(),
            // The value may be a secret: it is not repeated in the message.
            _ if !value.is_null() => causes.push(invalid(field, "", "must be base64")),
            _ => {}
        }
    }
    size
}

/// What is marked immutable stays so, with all it holds.
fn frozen(new: &Value, old: Option<&Value>, fields: &[&str], causes: &mut Causes) {
    let Some(old) = old.filter(|old| flag(old, "/immutable")) else { return };
    if !flag(new, "/immutable") {
        causes.push(forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        let pointer = format!("/{field}");
        if new.pointer(&pointer) != old.pointer(&pointer) {
            causes.push(forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_text_becomes_data() {
        let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "hi"}, "data": {"b": "aGk="}});
        secret_defaults(&mut secret);
        assert_eq!(secret["data"], json!({"a": "aGk=", "b": "aGk="}));
        assert_eq!(secret["type"], "Opaque");
        assert!(secret.get("stringData").is_none());
        assert_eq!(validate_secret(&secret, None), []);
    }

    #[test]
    fn immutable_data_stays() {
        let old = json!({"metadata": {"name": "c"}, "immutable": true, "data": {"a": "1"}});
        let mut new = old.clone();
        assert_eq!(validate_config_map(&new, Some(&old)), []);
        new["data"]["a"] = "2".into();
        new["immutable"] = false.into();
        let causes = validate_config_map(&new, Some(&old));
        let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["immutable", "data"]);
        assert_eq!(causes[0].message, "Forbidden: field is immutable when `immutable` is set");
    }

    #[test]
    fn a_secret_keeps_its_type_and_has_its_keys() {
        let old = json!({"metadata": {"name": "s"}, "type": "Opaque"});
        let new = json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": "?"}});
        let causes = validate_secret(&new, Some(&old));
        let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["data[tls.crt]", "type", "data[tls.key]"]);
    }
}
