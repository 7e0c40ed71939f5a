//! Bodies in Kubernetes' protobuf envelope, read into the same JSON objects as all others.
//!
//! kubectl sends what it creates this way and understands JSON in return, so nothing is ever encoded. One generic
//! decoder walks the wire by a table of messages (`messages.txt`).

mod message;
pub(crate) mod schema;
mod wire;

use crate::json::Fields;
use message::Decoder;
use serde_json::Value;
use wire::{Reader, Wire};

/// What a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It does not begin as it must.
    #[error("provided data does not appear to be a protobuf message, expected prefix k8s\\0")]
    NotProtobuf,
    /// It ends in the middle of something.
    #[error("unexpected end of the protobuf message")]
    Truncated,
    /// Something stands where it cannot.
    #[error("invalid protobuf message: {0}")]
    Malformed(&'static str),
    /// There is no such kind here.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// The `apiVersion`.
        api_version: String,
        /// The `kind`.
        kind: String,
    },
    /// Nested too deep or too many values.
    #[error("the protobuf message is too big")]
    TooBig,
}

/// Whether a body is in the envelope.
pub fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// The object in a body: with `apiVersion` and `kind`, without defaults, not validated.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    let envelope = Envelope::read(body.strip_prefix(MAGIC).ok_or(DecodeError::NotProtobuf)?)?;
    if !envelope.encoding.is_empty() {
        return Err(DecodeError::Malformed("the content is encoded"));
    }
    if envelope.content_type == "application/json" {
        return serde_json::from_slice(envelope.raw)
            .map_err(|_| DecodeError::Malformed("the content is not JSON"));
    }
    let unknown = || DecodeError::UnknownKind {
        api_version: envelope.api_version.to_owned(),
        kind: envelope.kind.to_owned(),
    };
    let root = schema::table().root(envelope.api_version, envelope.kind).ok_or_else(unknown)?;
    let mut object = Fields::new();
    object.insert("apiVersion".to_owned(), envelope.api_version.into());
    object.insert("kind".to_owned(), envelope.kind.into());
    Decoder::new().message(root, envelope.raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Envelope<'b> {
    api_version: &'b str,
    kind: &'b str,
    raw: &'b [u8],
    encoding: &'b str,
    content_type: &'b str,
}

impl<'b> Envelope<'b> {
    fn read(body: &'b [u8]) -> Result<Self, DecodeError> {
        let mut envelope = Self::default();
        let mut reader = Reader::new(body);
        while let Some((tag, wire)) = reader.next()? {
            match (tag, wire) {
                (1, Wire::Bytes(bytes)) => envelope.read_type(bytes)?,
                (2, Wire::Bytes(bytes)) => envelope.raw = bytes,
                (3, wire) => envelope.encoding = wire.text()?,
                (4, wire) => envelope.content_type = wire.text()?,
                _ => {}
            }
        }
        Ok(envelope)
    }

    fn read_type(&mut self, bytes: &'b [u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            match tag {
                1 => self.api_version = wire.text()?,
                2 => self.kind = wire.text()?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
