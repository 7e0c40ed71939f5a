//! Any message by its table.

use super::DecodeError;
use super::schema::{Field, Kind, Shape, Table, table};
use super::wire::{Reader, Wire};
use crate::json::Fields;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Messages within messages. A pod's deepest field is ten down.
const MAX_DEPTH: usize = 32;
/// Values in one body, so that many tiny ones cannot fill the memory.
const MAX_VALUES: usize = 200_000;

/// Decodes one body.
pub struct Decoder {
    table: &'static Table,
    values: usize,
}

impl Decoder {
    /// For one body.
    pub fn new() -> Self {
        Self { table: table(), values: 0 }
    }

    /// Reads a message's fields into an object. What the table does not know is skipped.
    pub fn message(
        &mut self,
        message: usize,
        bytes: &[u8],
        object: &mut Fields,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::TooBig);
        }
        let known = self.table.fields(message);
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            let Some(field) = known.iter().find(|f| f.tag == tag) else { continue };
            self.count()?;
            self.field(field, wire, object, depth)?;
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), DecodeError> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(DecodeError::TooBig) } else { Ok(()) }
    }

    fn field(
        &mut self,
        field: &Field,
        wire: Wire<'_>,
        object: &mut Fields,
        depth: usize,
    ) -> Result<(), DecodeError> {
        match (field.shape, field.kind) {
            (Shape::Inline, Kind::Message(message)) => {
                self.message(message, wire.bytes()?, object, depth + 1)?;
            }
            // A message that comes in two parts is one.
            (Shape::One, Kind::Message(message)) => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Object(Fields::new()));
                if let Some(inner) = slot.as_object_mut() {
                    self.message(message, wire.bytes()?, inner, depth + 1)?;
                }
            }
            (Shape::One | Shape::Inline, kind) => {
                if let Some(value) = self.value(kind, wire, depth)?
                    && !(field.plain && zero(&value))
                {
                    object.insert(field.name.to_owned(), value);
                }
            }
            (Shape::List, kind) => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Some(list) = slot.as_array_mut() else { return Ok(()) };
                match (kind, wire) {
                    (Kind::Int32 | Kind::Int64, Wire::Bytes(packed)) => {
                        let mut reader = Reader::new(packed);
                        while let Some(number) = reader.packed()? {
                            self.count()?;
                            list.push(integer(kind, number));
                        }
                    }
                    _ => list.extend(self.value(kind, wire, depth)?),
                }
            }
            (Shape::Map, kind) => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Object(Fields::new()));
                let (key, value) = self.entry(kind, wire.bytes()?, depth)?;
                if let Some(map) = slot.as_object_mut() {
                    map.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// A map's entry: key 1, value 2.
    fn entry(&mut self, kind: Kind, bytes: &[u8], depth: usize) -> Result<(String, Value), DecodeError> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            match tag {
                1 => key = wire.text()?.to_owned(),
                2 => value = self.value(kind, wire, depth)?,
                _ => {}
            }
        }
        let absent = match kind {
            Kind::Text | Kind::Bytes => Value::from(""),
            Kind::Quantity => Value::from("0"),
            _ => Value::Null,
        };
        Ok((key, value.unwrap_or(absent)))
    }

    /// One value; `None` for a time that is not set.
    fn value(&mut self, kind: Kind, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, DecodeError> {
        Ok(Some(match kind {
            Kind::Text => wire.text()?.into(),
            Kind::Flag => (wire.varint()? != 0).into(),
            Kind::Int32 | Kind::Int64 => integer(kind, wire.varint()?),
            Kind::Double => double(wire)?,
            Kind::Bytes => STANDARD.encode(wire.bytes()?).into(),
            Kind::Time => return time(wire.bytes()?, false),
            Kind::MicroTime => return time(wire.bytes()?, true),
            Kind::Raw => raw(wire.bytes()?)?,
            Kind::Quantity => quantity(wire.bytes()?)?,
            Kind::IntOrString => int_or_string(wire.bytes()?)?,
            Kind::Texts => self.texts(wire.bytes()?)?,
            Kind::Message(message) => {
                let mut object = Fields::new();
                self.message(message, wire.bytes()?, &mut object, depth + 1)?;
                Value::Object(object)
            }
        }))
    }

    fn texts(&mut self, bytes: &[u8]) -> Result<Value, DecodeError> {
        let mut texts = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            if tag == 1 {
                self.count()?;
                texts.push(Value::from(wire.text()?));
            }
        }
        Ok(Value::Array(texts))
    }
}

fn zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(flag) => !flag,
        _ => false,
    }
}

/// The wire's number in two's complement; one that is too wide is cut as upstream cuts it.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
fn integer(kind: Kind, number: u64) -> Value {
    match kind {
        Kind::Int32 => (number as i32).into(),
        _ => (number as i64).into(),
    }
}

fn double(wire: Wire<'_>) -> Result<Value, DecodeError> {
    let Wire::Fixed64(bytes) = wire else {
        return Err(DecodeError::Malformed("a field has another wire type than its message says"));
    };
    let number = serde_json::Number::from_f64(f64::from_le_bytes(bytes));
    number.map(Value::Number).ok_or(DecodeError::Malformed("a number is not finite"))
}

/// Seconds 1, nanoseconds 2; both nought: not set.
fn time(bytes: &[u8], micro: bool) -> Result<Option<Value>, DecodeError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => seconds = wire.varint()?.cast_signed(),
            2 => nanos = wire.varint()?.cast_signed(),
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(None);
    }
    let bad = DecodeError::Malformed("a time is out of range");
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(bad);
    }
    let text = jiff::Timestamp::from_second(seconds).map_err(|_| bad)?.to_string();
    if !micro {
        return Ok(Some(text.into()));
    }
    Ok(Some(format!("{}.{:06}Z", text.trim_end_matches('Z'), nanos / 1000).into()))
}

/// Bytes 1 that hold JSON.
fn raw(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut held: &[u8] = b"null";
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next()? {
        if tag == 1 {
            held = wire.bytes()?;
        }
    }
    serde_json::from_slice(held).map_err(|_| DecodeError::Malformed("an embedded object is not JSON"))
}

/// Text 1.
fn quantity(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut text = "0";
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next()? {
        if tag == 1 {
            text = wire.text()?;
        }
    }
    Ok(text.into())
}

/// Type 1 (0: number, 1: text), number 2, text 3.
fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut kind, mut number, mut text) = (0, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => kind = wire.varint()?,
            2 => number = wire.varint()?,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    match kind {
        0 => Ok(integer(Kind::Int32, number)),
        1 => Ok(text.into()),
        _ => Err(DecodeError::Malformed("neither a number nor a text")),
    }
}
