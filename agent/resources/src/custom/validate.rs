//! Holding an object against its schema, with upstream's words for what is wrong.

use super::formats;
use super::schema::{Bound, Limits, ListType, Logic, Schema, Type, is_whole};
use crate::cause::{Causes, duplicate, invalid, not_supported, required};
use crate::{Cause, names};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// No more causes than this are told.
const MAX_CAUSES: usize = 100;
/// Schemas that are looked at for one object: junctors in junctors could make it any number.
const MAX_STEPS: usize = 2_000_000;

/// All that is wrong with an object of this schema.
pub fn validate(schema: &Schema, object: &Value) -> Causes {
    let mut check = Check { causes: Vec::new(), steps: 0 };
    check.value(schema, object, "", Place::Root);
    check.causes.truncate(MAX_CAUSES);
    check.causes
}

/// All that is wrong with a value that stands at this path.
pub fn validate_value(schema: &Schema, value: &Value, path: &str) -> Causes {
    let mut check = Check { causes: Vec::new(), steps: 0 };
    check.value(schema, value, path, Place::Inside);
    check.causes
}

/// Where a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The object itself: its metadata is looked at elsewhere.
    Root,
    /// In it.
    Inside,
    /// Looked at again by a junctor's schema.
    Nested,
}

struct Check {
    causes: Causes,
    steps: usize,
}

impl Check {
    fn value(&mut self, schema: &Schema, value: &Value, path: &str, place: Place) {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            if self.steps == MAX_STEPS + 1 {
                self.causes.push(invalid(path, "", "the object is too big for its schema to be checked"));
            }
            return;
        }
        if self.causes.len() > MAX_CAUSES || (value.is_null() && schema.nullable) {
            return;
        }
        if !self.type_fits(schema, value, path) {
            return;
        }
        if let Some(logic) = &schema.logic {
            self.logic(logic, value, path);
        }
        if let Some(limits) = &schema.limits {
            self.limits(limits, value, path);
        }
        match value {
            Value::Object(fields) => self.fields(schema, fields, path, place),
            Value::Array(items) => self.items(schema, items, path),
            _ => {}
        }
    }

    fn type_fits(&mut self, schema: &Schema, value: &Value, path: &str) -> bool {
        let (fits, wanted) = match schema.kind {
            _ if schema.int_or_string => (value.is_string() || is_whole(value), "integer,string"),
            Some(kind) => (kind.holds(value), kind.name()),
            None => (true, ""),
        };
        if !fits {
            let found = type_name(value);
            let why = format!("{} must be of type {wanted}: {found:?}", in_body(path));
            let mut cause = invalid(path, found, &why);
            cause.reason = "FieldValueTypeInvalid";
            self.causes.push(cause);
        }
        fits
    }

    fn fields(&mut self, schema: &Schema, fields: &Map<String, Value>, path: &str, place: Place) {
        for (name, value) in fields {
            let common = (place == Place::Root || schema.embedded)
                && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            let inner = if place == Place::Nested { Place::Nested } else { Place::Inside };
            match schema.field(name) {
                Some(_) if common && name == "metadata" && inner != Place::Nested => {
                    self.metadata(schema, value, path)
                }
                Some(own) => self.value(own, value, &join(path, name), inner),
                None => {}
            }
        }
        if schema.embedded && place != Place::Nested {
            self.embedded(fields, path);
        }
    }

    /// The part of `metadata` that a schema may restrict: names.
    fn metadata(&mut self, schema: &Schema, value: &Value, path: &str) {
        let Some(own) = schema.properties.get("metadata") else { return };
        for (name, schema) in &own.properties {
            if let Some(value) = value.get(name) {
                let path = join(&join(path, "metadata"), name);
                self.value(schema, value, &path, Place::Inside);
            }
        }
    }

    /// An object within an object says what it is.
    fn embedded(&mut self, fields: &Map<String, Value>, path: &str) {
        for name in ["apiVersion", "kind"] {
            if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                self.causes.push(required(join(path, name), "must not be empty"));
            }
        }
        let meta = join(path, "metadata");
        let name = fields.get("metadata").and_then(|m| m["name"].as_str()).unwrap_or_default();
        if !name.is_empty() {
            let faults = names::dns_subdomain(name);
            self.causes.extend(faults.iter().map(|fault| invalid(join(&meta, "name"), name, fault)));
        }
    }

    fn items(&mut self, schema: &Schema, items: &[Value], path: &str) {
        if let Some(schema) = &schema.items {
            for (i, item) in items.iter().enumerate() {
                self.value(schema, item, &format!("{path}[{i}]"), Place::Inside);
            }
        }
        let keys = match &schema.list {
            ListType::Atomic => return,
            ListType::Set => None,
            ListType::Map(keys) => Some(keys),
        };
        let mut seen = BTreeSet::new();
        for (i, item) in items.iter().enumerate() {
            let key = match keys {
                None => item.clone(),
                Some(keys) => key_of(schema, keys, item),
            };
            if !seen.insert(key.to_string()) {
                self.causes.push(duplicate(format!("{path}[{i}]"), key));
            }
        }
    }

    fn limits(&mut self, limits: &Limits, value: &Value, path: &str) {
        if !limits.one_of.is_empty() && !limits.one_of.iter().any(|one| same(one, value)) {
            let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            let all: Vec<String> = limits.one_of.iter().map(shown).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            self.causes.push(not_supported(path, value.clone(), &all));
        }
        match value {
            Value::String(held) => self.text(limits, held, path),
            Value::Number(number) => self.number(limits, number.as_f64().unwrap_or(0.0), value, path),
            Value::Array(items) => {
                self.count(limits.count, items.len(), value, path, "items");
            }
            Value::Object(fields) => {
                self.count(limits.fields, fields.len(), value, path, "properties");
                for name in limits.required.iter().filter(|name| !fields.contains_key(*name)) {
                    self.causes.push(required(join(path, name), ""));
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, limits: &Limits, held: &str, path: &str) {
        let length = held.chars().count() as u64;
        if let Some(min) = limits.length.0.filter(|min| length < *min) {
            self.bad(path, held, &format!("should be at least {min} chars long"));
        }
        if let Some(max) = limits.length.1.filter(|max| length > *max) {
            self.causes.push(Cause {
                reason: "FieldValueTooLong",
                message: format!("Too long: may not be more than {max} bytes"),
                field: path.to_owned(),
            });
        }
        if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.matches(held)) {
            self.bad(path, held, &format!("should match '{}'", pattern.text));
        }
        if !formats::fits(&limits.format, held) {
            self.bad(path, held, &format!("must be of type {}: {held:?}", limits.format));
        }
    }

    fn number(&mut self, limits: &Limits, number: f64, value: &Value, path: &str) {
        let than = |bound: &Bound, way: &str| {
            let or = if bound.exclusive { "" } else { " or equal to" };
            format!("should be {way} than{or} {}", plain(bound.at))
        };
        if let Some(bound) = &limits.maximum
            && (number > bound.at || bound.exclusive && number == bound.at)
        {
            self.bad(path, value.clone(), &than(bound, "less"));
        }
        if let Some(bound) = &limits.minimum
            && (number < bound.at || bound.exclusive && number == bound.at)
        {
            self.bad(path, value.clone(), &than(bound, "greater"));
        }
        if let Some(factor) = limits.multiple_of.filter(|f| *f > 0.0) {
            let times = number / factor;
            if (times - times.round()).abs() > 1e-9 {
                self.bad(path, value.clone(), &format!("should be a multiple of {}", plain(factor)));
            }
        }
        if !formats::number_fits(&limits.format, value) {
            let why = format!("must be of type {}: {value}", limits.format);
            self.bad(path, value.clone(), &why);
        }
    }

    fn count(
        &mut self,
        range: (Option<u64>, Option<u64>),
        count: usize,
        value: &Value,
        path: &str,
        of: &str,
    ) {
        let count = count as u64;
        if let Some(min) = range.0.filter(|min| count < *min) {
            self.bad(path, value.clone(), &format!("should have at least {min} {of}"));
        }
        if let Some(max) = range.1.filter(|max| count > *max) {
            let message = format!("Too many: {count}: must have at most {max} items");
            self.causes.push(Cause { reason: "FieldValueTooMany", message, field: path.to_owned() });
        }
    }

    fn bad(&mut self, path: &str, value: impl Into<Value>, why: &str) {
        self.causes.push(invalid(path, value, &format!("{} {why}", in_body(path))));
    }

    fn logic(&mut self, logic: &Logic, value: &Value, path: &str) {
        for schema in &logic.all {
            let found = self.nested(schema, value, path);
            if !found.is_empty() {
                self.junction(path, "must validate all the schemas (allOf)");
                self.causes.extend(found);
            }
        }
        self.alternatives(&logic.any, value, path, |good| {
            (good == 0).then(|| "must validate at least one schema (anyOf)".to_owned())
        });
        self.alternatives(&logic.one, value, path, |good| match good {
            0 => Some("must validate one and only one schema (oneOf). Found none valid".to_owned()),
            1 => None,
            n => Some(format!("must validate one and only one schema (oneOf). Found {n} valid alternatives")),
        });
        if let Some(schema) = &logic.not
            && self.nested(schema, value, path).is_empty()
        {
            self.junction(path, "must not validate the schema (not)");
        }
    }

    /// Counts which of these hold; of those that do not, the faults of the one that is nearest are told.
    fn alternatives(
        &mut self,
        schemas: &[Schema],
        value: &Value,
        path: &str,
        judge: impl Fn(usize) -> Option<String>,
    ) {
        if schemas.is_empty() {
            return;
        }
        let found: Vec<Causes> = schemas.iter().map(|schema| self.nested(schema, value, path)).collect();
        let good = found.iter().filter(|causes| causes.is_empty()).count();
        if let Some(why) = judge(good) {
            self.junction(path, &why);
            if good == 0 {
                self.causes.extend(found.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
    }

    fn nested(&mut self, schema: &Schema, value: &Value, path: &str) -> Causes {
        let mut inner = Self { causes: Vec::new(), steps: self.steps };
        inner.value(schema, value, path, Place::Nested);
        self.steps = inner.steps;
        inner.causes
    }

    /// Upstream has no path for these.
    fn junction(&mut self, path: &str, why: &str) {
        self.causes.push(invalid("<nil>", "", &format!("{path:?} {why}")));
    }
}

/// The values by which an item of a list map is known.
pub fn key_of(schema: &Schema, keys: &[String], item: &Value) -> Value {
    let default = |key: &String| {
        let own = schema.items.as_ref()?.properties.get(key)?;
        own.default.as_deref().cloned()
    };
    let pairs = keys.iter().filter_map(|key| {
        let value = item.get(key).cloned().or_else(|| default(key))?;
        Some((key.clone(), value))
    });
    Value::Object(pairs.collect())
}

/// Equal, whatever the form of the number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => Type::Boolean.name(),
        Value::Number(n) if n.is_i64() || n.is_u64() => Type::Integer.name(),
        Value::Number(_) => Type::Number.name(),
        Value::String(_) => Type::String.name(),
        Value::Array(_) => Type::Array.name(),
        Value::Object(_) => Type::Object.name(),
    }
}

fn in_body(path: &str) -> String {
    if path.is_empty() { "in body".to_owned() } else { format!("{path} in body") }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A bound as Go's `%v` prints it for numbers of ordinary size.
fn plain(number: f64) -> String {
    number.to_string()
}
