//! The table of messages, read once from `messages.txt`, which `hack/gen-protobuf-table` makes.
//!
//! `! v1 Pod core.v1.Pod` names the message of a kind (`*`: of any version). `.core.v1.Pod` begins a message; each line
//! after it is a field: tag, type, JSON name, and `z` if nought, false or "" means that it is not said. A type is a
//! letter, or `m:` and a message; `*` before it makes it a list, `%` a map from texts, `=` puts its fields into the
//! object around it. The tag 0 marks fields that are known by name only.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `s`
    Text,
    /// `b`
    Flag,
    /// `i`
    Int32,
    /// `j`
    Int64,
    /// `d`
    Double,
    /// `y`: base64 in JSON.
    Bytes,
    /// `t`: RFC 3339 to the second.
    Time,
    /// `u`: RFC 3339 to the microsecond.
    MicroTime,
    /// `r`: bytes that hold JSON.
    Raw,
    /// `q`
    Quantity,
    /// `x`
    IntOrString,
    /// `l`: a message around a list of texts.
    Texts,
    /// `m:`, by index.
    Message(usize),
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Once.
    One,
    /// A list.
    List,
    /// A map from texts.
    Map,
    /// A message whose fields stand in the object around it. The tag 0 marks fields that are known by name only.
    Inline,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The tag on the wire.
    pub tag: u64,
    /// What it holds.
    pub kind: Kind,
    /// How often.
    pub shape: Shape,
    /// The name in JSON.
    pub name: &'static str,
    /// Nought, false or "" means that it is not said.
    pub plain: bool,
}

/// All messages.
pub struct Table {
    roots: HashMap<(&'static str, &'static str), usize>,
    messages: Vec<Vec<Field>>,
    names: Vec<&'static str>,
}

impl Table {
    /// The message of a kind.
    pub fn root(&self, api_version: &str, kind: &str) -> Option<usize> {
        self.roots.get(&(api_version, kind)).or_else(|| self.roots.get(&("*", kind))).copied()
    }

    /// A message's name: `core.v1.Pod`.
    pub fn name(&self, message: usize) -> &'static str {
        self.names.get(message).copied().unwrap_or_default()
    }

    /// Whether the message is a kind's.
    pub fn is_root(&self, message: usize) -> bool {
        self.roots.values().any(|root| *root == message)
    }

    /// A message's fields.
    pub fn fields(&self, message: usize) -> &[Field] {
        self.messages.get(message).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The message of this name.
    pub fn message(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| *known == name)
    }

    /// A field by its name in JSON; those of inlined messages are the message's own.
    pub fn find(&self, message: usize, name: &str) -> Option<&Field> {
        self.fields(message).iter().find_map(|field| match (field.shape, field.kind) {
            (Shape::Inline, Kind::Message(inner)) => self.find(inner, name),
            _ => Some(field).filter(|f| f.name == name),
        })
    }

    fn read(text: &'static str) -> Self {
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix('.')).collect();
        let indices: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        let mut table = Self { roots: HashMap::new(), messages: Vec::new(), names };
        for line in text.lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("!"), Some(api), Some(kind), Some(message)) => {
                    table.roots.extend(indices.get(message).map(|i| ((api, kind), *i)));
                }
                (Some(tag), Some(code), Some(name), flag) => {
                    let field = field(tag, code, name, flag.is_some(), &indices);
                    if let (Some(message), Some(field)) = (table.messages.last_mut(), field) {
                        message.push(field);
                    }
                }
                _ => table.messages.push(Vec::new()),
            }
        }
        table
    }
}

fn field(
    tag: &str,
    code: &str,
    name: &'static str,
    plain: bool,
    indices: &HashMap<&'static str, usize>,
) -> Option<Field> {
    let (shape, code) = match code.split_at_checked(1)? {
        ("*", rest) => (Shape::List, rest),
        ("%", rest) => (Shape::Map, rest),
        ("=", rest) => (Shape::Inline, rest),
        _ => (Shape::One, code),
    };
    let kind = match code {
        "s" => Kind::Text,
        "b" => Kind::Flag,
        "i" => Kind::Int32,
        "j" => Kind::Int64,
        "d" => Kind::Double,
        "y" => Kind::Bytes,
        "t" => Kind::Time,
        "u" => Kind::MicroTime,
        "r" => Kind::Raw,
        "q" => Kind::Quantity,
        "x" => Kind::IntOrString,
        "l" => Kind::Texts,
        message => Kind::Message(*indices.get(message.strip_prefix("m:")?)?),
    };
    Some(Field { tag: tag.parse().ok()?, kind, shape, name, plain })
}

/// The table, read on first use; it never changes.
pub fn table() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(include_str!("messages.txt")));
    &TABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let text = include_str!("messages.txt");
        let lines = |first: &[char]| text.lines().filter(|l| l.starts_with(first)).count();
        let table = table();
        assert_eq!(table.messages.len(), lines(&['.']));
        assert_eq!(table.roots.len(), lines(&['!']));
        let fields: usize = table.messages.iter().map(Vec::len).sum();
        assert_eq!(fields, text.lines().count() - lines(&['.', '!']));
    }

    #[test]
    fn every_kind_has_a_message() {
        for d in crate::all() {
            assert!(table().root(&d.api_version(), &d.kind).is_some(), "{}", d.kind);
        }
        assert!(table().root("policy/v1", "DeleteOptions").is_some());
    }
}
