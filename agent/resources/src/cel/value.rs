//! Values of expressions. JSON arrays and objects stay where they are, with the schema they have.

use super::Error;
use crate::custom::{Additional, Schema, Type};
use crate::quantity::Quantity;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::rc::Rc;

/// A value.
#[derive(Clone, Debug)]
pub enum Cel<'v> {
    /// `null`
    Null,
    /// A truth.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number that is never negative.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// A text.
    Text(Cow<'v, str>),
    /// Bytes.
    Bytes(Rc<Vec<u8>>),
    /// An array or object of JSON, and what it may hold.
    Json(&'v Value, Option<&'v Schema>),
    /// A list that an expression made.
    List(Rc<Vec<Cel<'v>>>),
    /// A map that an expression made.
    Map(Rc<Vec<(Cel<'v>, Cel<'v>)>>),
    /// A moment.
    Time(Timestamp),
    /// A span of time, in nanoseconds.
    Span(i128),
    /// Something, or nothing.
    Maybe(Option<Rc<Cel<'v>>>),
    /// A type's name.
    Type(&'static str),
    /// A quantity of Kubernetes.
    Amount(Quantity),
    /// A URL, in its parts.
    Url(Rc<super::net::Url>),
    /// An IP address.
    Ip(IpAddr),
    /// A range of addresses.
    Cidr(ipnet::IpNet),
}

/// A fault as an error.
pub(super) fn fault<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Fault(why.into()))
}

impl<'v> Cel<'v> {
    /// A JSON value with what its schema says of it.
    pub fn of(value: &'v Value, schema: Option<&'v Schema>) -> Self {
        let limits = schema.and_then(|schema| schema.limits.as_ref());
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => match schema.and_then(|schema| schema.kind) {
                Some(Type::Number) => Self::Double(n.as_f64().unwrap_or(0.0)),
                _ => n.as_i64().map_or_else(|| Self::Double(n.as_f64().unwrap_or(0.0)), Self::Int),
            },
            Value::String(text) => match limits.map(|limits| limits.format.as_str()) {
                Some("date-time" | "datetime" | "date") => {
                    super::time::timestamp(text).map_or_else(|_| Self::Text(Cow::Borrowed(text)), Self::Time)
                }
                Some("duration") => {
                    super::time::span(text).map_or_else(|_| Self::Text(Cow::Borrowed(text)), Self::Span)
                }
                Some("byte") => BASE64_STANDARD
                    .decode(text)
                    .map_or_else(|_| Self::Text(Cow::Borrowed(text)), |bytes| Self::Bytes(Rc::new(bytes))),
                _ => Self::Text(Cow::Borrowed(text)),
            },
            Value::Array(_) | Value::Object(_) => Self::Json(value, schema),
        }
    }

    /// A text.
    pub fn text(text: impl Into<Cow<'v, str>>) -> Self {
        Self::Text(text.into())
    }

    /// Something that may be missing.
    pub fn maybe(value: Option<Self>) -> Self {
        Self::Maybe(value.map(Rc::new))
    }

    /// A map with these names.
    pub fn map(entries: Vec<(&'v str, Self)>) -> Self {
        Self::Map(Rc::new(entries.into_iter().map(|(name, value)| (Self::text(name), value)).collect()))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Json(Value::Array(_), _) | Self::List(_) => "list",
            Self::Json(..) | Self::Map(_) => "map",
            Self::Time(_) => "google.protobuf.Timestamp",
            Self::Span(_) => "google.protobuf.Duration",
            Self::Maybe(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Amount(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
        }
    }

    /// The items of a list, or the keys of a map.
    pub(super) fn items(&self) -> Result<Vec<Self>, Error> {
        match self {
            Self::List(items) => Ok(items.to_vec()),
            Self::Map(entries) => Ok(entries.iter().map(|(key, _)| key.clone()).collect()),
            Self::Json(Value::Array(items), schema) => {
                let of = schema.and_then(|schema| schema.items.as_deref());
                Ok(items.iter().map(|item| Self::of(item, of)).collect())
            }
            Self::Json(Value::Object(fields), _) => {
                Ok(fields.keys().map(|name| Self::text(name.as_str())).collect())
            }
            _ => fault("no such overload"),
        }
    }

    /// How many there are, if they can be counted.
    pub(super) fn count(&self) -> Option<usize> {
        Some(match self {
            Self::List(items) => items.len(),
            Self::Map(entries) => entries.len(),
            Self::Json(Value::Array(items), _) => items.len(),
            Self::Json(Value::Object(fields), _) => fields.len(),
            _ => return None,
        })
    }

    /// A field of an object, `None` if it is not there.
    pub(super) fn field(&self, name: &str) -> Result<Option<Self>, Error> {
        match self {
            Self::Json(Value::Object(fields), schema) => {
                let found = fields.get_key_value(name).or_else(|| fields.get_key_value(&unescaped(name)));
                Ok(found.map(|(name, value)| Self::of(value, schema.and_then(|schema| inner(schema, name)))))
            }
            Self::Map(entries) => {
                let key = |key: &Self| matches!(key, Self::Text(text) if text == name);
                Ok(entries.iter().find(|(k, _)| key(k)).map(|(_, value)| value.clone()))
            }
            Self::Maybe(None) => Ok(None),
            Self::Maybe(Some(value)) => value.field(name),
            _ => fault("no such overload"),
        }
    }

    /// What stands at an index or a key.
    pub(super) fn at(&self, by: &Self) -> Result<Option<Self>, Error> {
        let index = |length: usize| {
            let at = match by {
                Self::Int(n) => usize::try_from(*n).ok(),
                Self::Uint(n) => usize::try_from(*n).ok(),
                Self::Double(n) if n.fract() == 0.0 && *n >= 0.0 && *n < 1e9 =>
                {
                    #[allow(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "checked above"
                    )]
                    Some(*n as usize)
                }
                _ => None,
            };
            at.filter(|at| *at < length)
        };
        match (self, by) {
            (Self::List(items), _) => Ok(index(items.len()).map(|at| items[at].clone())),
            (Self::Json(Value::Array(items), schema), _) => {
                let of = schema.and_then(|schema| schema.items.as_deref());
                Ok(index(items.len()).map(|at| Self::of(&items[at], of)))
            }
            (Self::Json(Value::Object(_), _) | Self::Map(_), Self::Text(name)) => self.key(name),
            (Self::Map(entries), by) => {
                Ok(entries.iter().find(|(key, _)| key.same(by)).map(|(_, value)| value.clone()))
            }
            (Self::Maybe(None), _) => Ok(None),
            (Self::Maybe(Some(value)), by) => value.at(by),
            _ => fault("no such overload"),
        }
    }

    /// A key as it is written: names in brackets are not escaped.
    fn key(&self, name: &str) -> Result<Option<Self>, Error> {
        match self {
            Self::Json(Value::Object(fields), schema) => {
                let of = schema.and_then(|schema| inner(schema, name));
                Ok(fields.get(name).map(|value| Self::of(value, of)))
            }
            other => other.field(name),
        }
    }

    /// Whether two values are equal; values of different kinds are not.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Maybe(a), Self::Maybe(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.same(b),
                _ => false,
            },
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Json(a, None), Self::Json(b, None)) => a == b,
            _ if self.is_list() && other.is_list() => {
                let (a, b) = (self.items().unwrap_or_default(), other.items().unwrap_or_default());
                a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.same(b))
            }
            _ if self.is_map() && other.is_map() => {
                let keys = self.items().unwrap_or_default();
                let equal = |key: &Self| match (self.at(key), other.at(key)) {
                    (Ok(Some(a)), Ok(Some(b))) => a.same(&b),
                    _ => false,
                };
                self.count() == other.count() && keys.iter().all(equal)
            }
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Json(Value::Array(_), _))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self, Self::Map(_) | Self::Json(Value::Object(_), _))
    }

    /// Which is the greater, of values that can be compared.
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(b)),
            (Self::Span(a), Self::Span(b)) => Some(a.cmp(b)),
            (Self::Amount(a), Self::Amount(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            _ => self.float()?.partial_cmp(&other.float()?),
        }
    }

    /// A number as a fraction.
    #[allow(clippy::cast_precision_loss, reason = "as CEL compares numbers of different kinds")]
    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Uint(n) => Some(*n as f64),
            Self::Double(n) => Some(*n),
            _ => None,
        }
    }

    /// What looking at all of it costs.
    pub(super) fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            _ => return self.count().unwrap_or(1) as u64,
        };
        bytes as u64 / 10 + 1
    }
}

/// The schema of a field.
fn inner<'s>(schema: &'s Schema, name: &str) -> Option<&'s Schema> {
    match (schema.properties.get(name), &schema.additional) {
        (Some(own), _) => Some(own),
        (None, Some(Additional::Of(of))) => Some(of),
        _ => None,
    }
}

/// A field's name without the words that stand for what cannot be in a name.
pub(super) fn unescaped(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && !word.contains("__")
        && !["dot", "dash", "slash", "underscores"].contains(&word)
    {
        return word.to_owned();
    }
    name.replace("__underscores__", "\u{1}")
        .replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace('\u{1}', "__")
}
