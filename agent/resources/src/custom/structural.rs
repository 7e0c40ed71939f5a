//! What is wrong with a schema when a definition is written: it must be structural, so that it says of every field
//! what it is, outside of junctors.

use super::schema::{Pattern, Schema, Type};
use super::validate::validate_value;
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::json::{flag, items, text};
use serde_json::{Map, Value};

/// Nodes of one schema.
const MAX_NODES: usize = 50_000;
/// How deep a schema may nest.
const MAX_DEPTH: usize = 64;

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Checks the schema at this path.
pub fn check(schema: &Value, path: &str) -> Causes {
    let mut check = Check { causes: Vec::new(), nodes: 0, depth: 0 };
    check.node(schema, path, Level::Root);
    check.causes.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    check.causes.truncate(100);
    check.causes
}

struct Check {
    causes: Causes,
    nodes: usize,
    depth: usize,
}

impl Check {
    /// Whether one more node is looked at.
    fn enter(&mut self, schema: &Value, path: &str) -> bool {
        self.nodes += 1;
        if self.nodes == MAX_NODES || self.depth == MAX_DEPTH {
            let why =
                if self.depth == MAX_DEPTH { "the schema nests too deep" } else { "the schema is too big" };
            self.causes.push(forbidden(path, why));
        }
        if !schema.is_object() {
            self.causes.push(invalid(path, schema.clone(), "must be an object"));
        }
        schema.is_object() && self.nodes < MAX_NODES && self.depth < MAX_DEPTH
    }

    fn node(&mut self, schema: &Value, path: &str, level: Level) {
        if !self.enter(schema, path) {
            return;
        }
        self.depth += 1;
        self.kind(schema, path, level);
        self.unsupported(schema, path);
        self.extensions(schema, path);
        self.inner(schema, path, level);
        self.values(schema, path);
        let loose = flag(schema, "/x-kubernetes-int-or-string");
        self.junctors(schema, path, loose);
        self.complete(schema, schema, path);
        if level == Level::Root || flag(schema, "/x-kubernetes-embedded-resource") {
            self.common_fields(schema, path);
        }
        self.default(schema, path);
        self.causes.extend(super::rules::check(schema, path));
        self.depth -= 1;
    }

    fn kind(&mut self, schema: &Value, path: &str, level: Level) {
        let (kind, at) = (text(schema, "/type"), format!("{path}.type"));
        let embedded = flag(schema, "/x-kubernetes-embedded-resource");
        let loose = flag(schema, "/x-kubernetes-int-or-string");
        let preserve = flag(schema, "/x-kubernetes-preserve-unknown-fields");
        const EMBEDDED: &str = "must be object if x-kubernetes-embedded-resource is true";
        if !kind.is_empty() && Type::read(kind).is_none() {
            self.causes.push(not_supported(&at, kind, &Type::NAMES));
        } else if loose && !kind.is_empty() {
            self.causes.push(invalid(&at, kind, "must be empty if x-kubernetes-int-or-string is true"));
        } else if embedded && kind != "object" {
            self.causes.push(if kind.is_empty() {
                required(&at, EMBEDDED)
            } else {
                invalid(&at, kind, EMBEDDED)
            });
        } else if kind.is_empty() && !loose && !preserve {
            self.causes.push(required(
                &at,
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Item => "must not be empty for specified array items",
                    Level::Field => "must not be empty for specified object fields",
                },
            ));
        }
        if level == Level::Root && !kind.is_empty() && kind != "object" {
            self.causes.push(invalid(&at, kind, "must be object at the root"));
        }
        if kind == "array" && !schema.get("items").is_some_and(Value::is_object) {
            self.causes.push(required(format!("{path}.items"), "must be specified"));
        }
    }

    /// What JSON schema has and Kubernetes does not.
    fn unsupported(&mut self, schema: &Value, path: &str) {
        let has = |name: &str| schema.get(name).is_some_and(|v| !v.is_null());
        if has("$ref") {
            let found = text(schema, "/$ref");
            if !found.is_empty() {
                self.causes.push(forbidden(format!("{path}.$ref"), "$ref is not supported"));
            }
        }
        for name in ["id", "patternProperties", "definitions", "dependencies", "additionalItems"] {
            if has(name) {
                self.causes.push(forbidden(format!("{path}.{name}"), &format!("{name} is not supported")));
            }
        }
        if flag(schema, "/uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.causes.push(forbidden(format!("{path}.uniqueItems"), why));
        }
        if schema.get("items").is_some_and(Value::is_array) {
            let why = "items must be a schema object and not an array";
            self.causes.push(forbidden(format!("{path}.items"), why));
        }
        if has("properties")
            && schema.get("additionalProperties").is_some_and(|v| v != &Value::Bool(false) && !v.is_null())
        {
            let why = "additionalProperties and properties are mutual exclusive";
            self.causes.push(forbidden(format!("{path}.additionalProperties"), why));
        }
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            let why = "additionalProperties cannot be set to false";
            self.causes.push(forbidden(format!("{path}.additionalProperties"), why));
        }
    }

    fn extensions(&mut self, schema: &Value, path: &str) {
        let loose = flag(schema, "/x-kubernetes-int-or-string");
        for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
            if loose && schema.get(name) == Some(&Value::Bool(true)) {
                let why = "must be false if x-kubernetes-int-or-string is true";
                self.causes.push(invalid(format!("{path}.{name}"), true, why));
            }
        }
        if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
            self.causes.push(invalid(at, false, "must be true or undefined"));
        }
        let embedded = flag(schema, "/x-kubernetes-embedded-resource");
        if embedded
            && schema.get("properties").is_none()
            && !flag(schema, "/x-kubernetes-preserve-unknown-fields")
        {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.causes.push(required(format!("{path}.properties"), why));
        }
        self.list_type(schema, path);
        let map_type = text(schema, "/x-kubernetes-map-type");
        if !map_type.is_empty() {
            let at = format!("{path}.x-kubernetes-map-type");
            if !["atomic", "granular"].contains(&map_type) {
                self.causes.push(not_supported(&at, map_type, &["atomic", "granular"]));
            }
            if text(schema, "/type") != "object" {
                let why = "must be object if x-kubernetes-map-type is specified";
                self.causes.push(invalid(format!("{path}.type"), text(schema, "/type"), why));
            }
        }
    }

    fn list_type(&mut self, schema: &Value, path: &str) {
        let list = text(schema, "/x-kubernetes-list-type");
        let keys = items(schema, "/x-kubernetes-list-map-keys");
        let at = format!("{path}.x-kubernetes-list-type");
        if !list.is_empty() && !["atomic", "set", "map"].contains(&list) {
            self.causes.push(not_supported(&at, list, &["atomic", "map", "set"]));
        }
        if !list.is_empty() && text(schema, "/type") != "array" {
            let kind = text(schema, "/type");
            let (at, why) = (format!("{path}.type"), "must be array if x-kubernetes-list-type is specified");
            self.causes.push(if kind.is_empty() { required(at, why) } else { invalid(at, kind, why) });
        }
        let at = format!("{path}.x-kubernetes-list-map-keys");
        if list == "map" && keys.is_empty() {
            self.causes.push(required(&at, "must not be empty if x-kubernetes-list-type is map"));
        }
        if list != "map" && !keys.is_empty() {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            let at = format!("{path}.x-kubernetes-list-type");
            self.causes.push(if list.is_empty() { required(at, why) } else { invalid(at, list, why) });
        }
        if list != "map" {
            return;
        }
        let item = schema.get("items").cloned().unwrap_or_default();
        if text(&item, "/type") != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            self.causes.push(invalid(format!("{path}.items.type"), text(&item, "/type"), why));
        }
        let wanted = items(&item, "/required");
        for (i, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            let Some(own) = item.get("properties").and_then(|p| p.get(key)) else {
                self.causes.push(invalid(
                    format!("{at}[{i}]"),
                    key,
                    "must exist in the list items properties",
                ));
                continue;
            };
            let own_path = format!("{path}.items.properties[{key}]");
            if ["array", "object"].contains(&text(own, "/type")) {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.causes.push(invalid(format!("{own_path}.type"), text(own, "/type"), why));
            }
            if own.get("default").is_none() && !wanted.iter().any(|w| w == key) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.causes.push(required(format!("{own_path}.default"), why));
            }
        }
    }

    fn inner(&mut self, schema: &Value, path: &str, level: Level) {
        if let Some(items) = schema.get("items").filter(|v| v.is_object()) {
            self.node(items, &format!("{path}.items"), Level::Item);
        }
        if let Some(of) = schema.get("additionalProperties") {
            let at = format!("{path}.additionalProperties");
            if level == Level::Root && of != &Value::Bool(false) && !of.is_null() {
                self.causes.push(forbidden(&at, "must not be used at the root"));
            }
            if of.is_object() {
                self.node(of, &at, Level::Field);
            }
        }
        for (name, own) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.node(own, &format!("{path}.properties[{name}]"), Level::Field);
        }
    }

    /// Limits of values.
    fn values(&mut self, schema: &Value, path: &str) {
        let pattern = text(schema, "/pattern");
        if !pattern.is_empty()
            && let Err(error) = Pattern::compile(pattern)
        {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let why =
                format!("must be a valid regular expression, but isn't: error parsing regexp: {reason}");
            self.causes.push(invalid(format!("{path}.pattern"), pattern, &why));
        }
        for name in ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"] {
            if let Some(count) = schema.get(name).and_then(Value::as_i64).filter(|n| *n < 0) {
                self.causes.push(invalid(
                    format!("{path}.{name}"),
                    count,
                    "must be greater than or equal to 0",
                ));
            }
        }
        if let Some(factor) = schema.get("multipleOf").and_then(Value::as_f64).filter(|f| *f <= 0.0) {
            self.causes.push(invalid(format!("{path}.multipleOf"), factor, "must be greater than 0"));
        }
    }

    /// `loose`: the schema says int-or-string, which a junctor may repeat.
    fn junctors(&mut self, schema: &Value, path: &str, loose: bool) {
        for name in ["allOf", "anyOf", "oneOf"] {
            let all = items(schema, &format!("/{name}"));
            if loose && name == "anyOf" && int_or_string(all) {
                continue;
            }
            for (i, inner) in all.iter().enumerate() {
                let first = name == "allOf" && i == 0;
                self.nested(inner, &format!("{path}.{name}[{i}]"), loose && first);
            }
        }
        if let Some(inner) = schema.get("not").filter(|v| !v.is_null()) {
            self.nested(inner, &format!("{path}.not"), false);
        }
    }

    /// A schema in a junctor: it may limit values, and nothing else.
    fn nested(&mut self, schema: &Value, path: &str, loose: bool) {
        if !self.enter(schema, path) {
            return;
        }
        self.depth += 1;
        const EMPTY: &str = "must be empty to be structural";
        const UNDEFINED: &str = "must be undefined to be structural";
        const FALSE: &str = "must be false to be structural";
        for (name, why) in [
            ("type", EMPTY),
            ("title", EMPTY),
            ("description", EMPTY),
            ("additionalProperties", UNDEFINED),
            ("default", UNDEFINED),
            ("nullable", FALSE),
            ("x-kubernetes-preserve-unknown-fields", FALSE),
            ("x-kubernetes-embedded-resource", FALSE),
            ("x-kubernetes-int-or-string", FALSE),
            ("x-kubernetes-list-type", UNDEFINED),
            ("x-kubernetes-list-map-keys", EMPTY),
            ("x-kubernetes-map-type", UNDEFINED),
            ("x-kubernetes-validations", EMPTY),
        ] {
            let said = match schema.get(name) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Array(items)) => !items.is_empty(),
                Some(_) => true,
            };
            if said {
                self.causes.push(forbidden(format!("{path}.{name}"), why));
            }
        }
        self.unsupported(schema, path);
        self.values(schema, path);
        self.junctors(schema, path, loose);
        if let Some(items) = schema.get("items").filter(|v| v.is_object()) {
            self.nested(items, &format!("{path}.items"), false);
        }
        for (name, own) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let at = format!("{path}.properties[{name}]");
            if name == "metadata" {
                self.causes.push(forbidden(&at, "must not be specified in a nested context"));
            }
            self.nested(own, &at, false);
        }
        self.depth -= 1;
    }

    /// Fields that junctors speak of must be there outside of them.
    fn complete(&mut self, schema: &Value, outer: &Value, path: &str) {
        let junctors =
            ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| items(schema, &format!("/{name}")));
        for inner in junctors.chain(schema.get("not")) {
            self.covered(inner, outer, path, 0);
        }
    }

    fn covered(&mut self, inner: &Value, outer: &Value, path: &str, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        let own = |name: &str| outer.get("properties").and_then(|p| p.get(name));
        let of = outer.get("additionalProperties").filter(|v| v.is_object());
        for (name, schema) in inner.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let at = format!("{path}.properties[{name}]");
            match own(name).or(of) {
                Some(outer) => self.covered(schema, outer, &at, depth + 1),
                None if self.causes.len() < MAX_NODES => {
                    let why = format!("because it is defined in {path}");
                    self.causes.push(required(at, &why));
                }
                None => {}
            }
        }
        if let Some(schema) = inner.get("items").filter(|v| v.is_object()) {
            match outer.get("items") {
                Some(outer) => self.covered(schema, outer, &format!("{path}.items"), depth + 1),
                None => self
                    .causes
                    .push(required(format!("{path}.items"), &format!("because it is defined in {path}"))),
            }
        }
        let junctors =
            ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| items(inner, &format!("/{name}")));
        for inner in junctors.chain(inner.get("not")) {
            self.covered(inner, outer, path, depth + 1);
        }
    }

    /// apiVersion, kind and metadata are every object's.
    fn common_fields(&mut self, schema: &Value, path: &str) {
        let property = |name: &str| schema.get("properties").and_then(|p| p.get(name));
        for name in ["kind", "apiVersion"] {
            if let Some(own) = property(name).filter(|own| text(own, "/type") != "string") {
                let at = format!("{path}.properties[{name}].type");
                self.causes.push(invalid(at, text(own, "/type"), "must be string"));
            }
        }
        let Some(meta) = property("metadata").and_then(Value::as_object) else { return };
        let known = |fields: &Map<String, Value>| fields.keys().all(|k| k == "name" || k == "generateName");
        let names_only = meta.get("properties").and_then(Value::as_object).is_none_or(known);
        if !names_only || meta.keys().any(|k| k != "type" && k != "properties") {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.causes.push(forbidden(format!("{path}.properties[metadata]"), why));
        }
    }

    /// A default must itself be good.
    fn default(&mut self, schema: &Value, path: &str) {
        let Some(default) = schema.get("default").filter(|d| !d.is_null()) else { return };
        let at = format!("{path}.default");
        let read = Schema::read(schema);
        let mut pruned = default.clone();
        let mut told = Vec::new();
        super::prune::prune_value(&read, &mut pruned, &mut told);
        if let Some(unknown) = told.first() {
            self.causes.push(invalid(
                &at,
                default.clone(),
                &format!("must not have unknown fields: {unknown}"),
            ));
        }
        for cause in validate_value(&read, default, &at) {
            self.causes.push(cause);
        }
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, which may stand beside x-kubernetes-int-or-string.
fn int_or_string(all: &[Value]) -> bool {
    let only = |value: &Value, kind: &str| {
        value.as_object().is_some_and(|fields| fields.len() == 1) && text(value, "/type") == kind
    };
    matches!(all, [first, second] if only(first, "integer") && only(second, "string"))
}
