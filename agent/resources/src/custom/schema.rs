//! A structural schema, as it is held in memory. Reading one never fails: what is wrong with it was told when the
//! definition was written ([`super::structural`]).

use super::rules::Rule;
use crate::json::{flag, items, text};
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// What a compiled pattern may take.
const MAX_PATTERN: usize = 256 * 1024;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    pub(crate) const NAMES: [&'static str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

    pub(crate) fn read(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    /// Whether a value is of this type.
    pub(crate) fn holds(self, value: &Value) -> bool {
        match self {
            Self::Object => value.is_object(),
            Self::Array => value.is_array(),
            Self::String => value.is_string(),
            Self::Integer => is_whole(value),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
        }
    }
}

/// `3` and `3.0`.
pub(crate) fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() < 9e15)
}

/// What other properties than the named ones may be.
#[derive(Clone, Debug)]
pub(crate) enum Additional {
    /// Anything, and nothing of it is taken out.
    Any,
    /// Values of this schema.
    Of(Box<Schema>),
}

/// How the items of a list are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// One node of a schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    pub(crate) kind: Option<Type>,
    pub(crate) nullable: bool,
    pub(crate) int_or_string: bool,
    pub(crate) embedded: bool,
    pub(crate) preserve: bool,
    pub(crate) list: ListType,
    pub(crate) default: Option<Box<Value>>,
    pub(crate) properties: BTreeMap<String, Schema>,
    pub(crate) additional: Option<Additional>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) limits: Option<Box<Limits>>,
    pub(crate) logic: Option<Box<Logic>>,
    pub(crate) rules: Vec<Rule>,
    /// Whether there are rules here or further in.
    pub(crate) has_rules: bool,
}

/// What values may be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) format: String,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) minimum: Option<Bound>,
    pub(crate) maximum: Option<Bound>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) length: (Option<u64>, Option<u64>),
    pub(crate) count: (Option<u64>, Option<u64>),
    pub(crate) fields: (Option<u64>, Option<u64>),
    pub(crate) required: Vec<String>,
    pub(crate) one_of: Vec<Value>,
}

/// An end of a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) at: f64,
    pub(crate) exclusive: bool,
}

/// Schemas of which some must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logic {
    pub(crate) all: Vec<Schema>,
    pub(crate) any: Vec<Schema>,
    pub(crate) one: Vec<Schema>,
    pub(crate) not: Option<Schema>,
}

/// A regular expression that is compiled when it is first asked for.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: OnceLock::new() }
    }

    /// Compiles an expression, within bounds.
    pub(crate) fn compile(text: &str) -> Result<Regex, regex::Error> {
        RegexBuilder::new(text).size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN).build()
    }

    /// Whether a text matches. An expression that does not compile matches everything: it was refused when it came.
    pub(crate) fn matches(&self, value: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| Self::compile(&self.text).ok());
        compiled.as_ref().is_none_or(|regex| regex.is_match(value))
    }
}

impl Schema {
    /// Reads a JSONSchemaProps.
    pub(crate) fn read(value: &Value) -> Self {
        let properties = value.get("properties").and_then(Value::as_object);
        let read = |schema: &Value| Box::new(Self::read(schema));
        let mut schema = Self {
            kind: Type::read(text(value, "/type")),
            nullable: flag(value, "/nullable"),
            int_or_string: flag(value, "/x-kubernetes-int-or-string"),
            embedded: flag(value, "/x-kubernetes-embedded-resource"),
            preserve: flag(value, "/x-kubernetes-preserve-unknown-fields"),
            list: match text(value, "/x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map(texts(value, "/x-kubernetes-list-map-keys")),
                _ => ListType::Atomic,
            },
            default: value.get("default").filter(|d| !d.is_null()).cloned().map(Box::new),
            properties: properties.into_iter().flatten().map(|(k, v)| (k.clone(), Self::read(v))).collect(),
            additional: match value.get("additionalProperties") {
                Some(Value::Bool(true)) => Some(Additional::Any),
                Some(schema @ Value::Object(_)) => Some(Additional::Of(read(schema))),
                _ => None,
            },
            items: value.get("items").filter(|v| v.is_object()).map(read),
            limits: Limits::read(value).map(Box::new),
            logic: Logic::read(value).map(Box::new),
            rules: Vec::new(),
            has_rules: false,
        };
        schema.rules = Rule::all(&schema, value);
        let inner = match &schema.additional {
            Some(Additional::Of(of)) => Some(of),
            _ => schema.items.as_ref(),
        };
        schema.has_rules = !schema.rules.is_empty()
            || inner.is_some_and(|inner| inner.has_rules)
            || schema.properties.values().any(|own| own.has_rules);
        schema
    }

    /// The schema of a field, if it has one.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        match (self.properties.get(name), &self.additional) {
            (Some(own), _) => Some(own),
            (None, Some(Additional::Of(schema))) => Some(schema),
            _ => None,
        }
    }

    /// Fills in defaults, and takes out nulls where there may be none.
    pub(crate) fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, value| !value.is_null() || self.field(name).is_none_or(|s| s.nullable));
                for (name, schema) in &self.properties {
                    if let Some(default) = schema.default.as_ref().filter(|_| !fields.contains_key(name)) {
                        fields.insert(name.clone(), (**default).clone());
                    }
                }
                for (name, value) in fields.iter_mut() {
                    if let Some(schema) = self.field(name) {
                        schema.fill(value);
                    }
                }
            }
            Value::Array(values) => {
                if let Some(schema) = &self.items {
                    values.iter_mut().for_each(|value| schema.fill(value));
                }
            }
            _ => {}
        }
    }
}

impl Limits {
    fn read(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        let count = |name: &str| value.get(name).and_then(Value::as_u64);
        let bound = |name: &str, exclusive: &str| {
            number(name).map(|at| Bound { at, exclusive: value.get(exclusive) == Some(&Value::Bool(true)) })
        };
        let limits = Self {
            format: text(value, "/format").to_owned(),
            pattern: Some(text(value, "/pattern")).filter(|p| !p.is_empty()).map(Pattern::new),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            length: (count("minLength"), count("maxLength")),
            count: (count("minItems"), count("maxItems")),
            fields: (count("minProperties"), count("maxProperties")),
            required: texts(value, "/required"),
            one_of: items(value, "/enum").to_vec(),
        };
        let none = limits.format.is_empty()
            && limits.pattern.is_none()
            && limits.minimum.is_none()
            && limits.maximum.is_none()
            && limits.multiple_of.is_none()
            && [limits.length, limits.count, limits.fields].iter().all(|range| *range == (None, None))
            && limits.required.is_empty()
            && limits.one_of.is_empty();
        (!none).then_some(limits)
    }
}

impl Logic {
    fn read(value: &Value) -> Option<Self> {
        let schemas = |pointer: &str| items(value, pointer).iter().map(Schema::read).collect::<Vec<_>>();
        let not = value.get("not").filter(|v| v.is_object()).map(Schema::read);
        let logic = Self { all: schemas("/allOf"), any: schemas("/anyOf"), one: schemas("/oneOf"), not };
        let none =
            logic.all.is_empty() && logic.any.is_empty() && logic.one.is_empty() && logic.not.is_none();
        (!none).then_some(logic)
    }
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
