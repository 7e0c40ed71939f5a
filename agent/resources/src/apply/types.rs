//! What values are made of, as far as merging goes. A type is a value, whether it is built in or came as data.

use crate::marks::{self, Topology};
use crate::protobuf::schema::{Kind, Shape, table};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// How deep a schema that came as data is followed; what is deeper is taken as it comes.
const MAX_DEPTH: usize = 64;

/// A type's place among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeId(usize);

/// One of the fields that tell the items of a list apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its name.
    pub name: Cow<'static, str>,
    /// What it is when it is not said.
    pub default: Option<Value>,
}

/// What a value is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A plain value, or anything else that is only replaced as a whole.
    Atomic,
    /// Not told: objects are merged by their fields, whatever these are, and all else is atomic.
    Untyped,
    /// An object with these fields; `open`: and any others, which are untyped.
    Struct {
        /// By name.
        fields: HashMap<Cow<'static, str>, TypeId>,
        /// Whether other fields may be there.
        open: bool,
    },
    /// An object with whatever keys, all of whose values are of one type.
    Map(TypeId),
    /// A list of plain values, each once.
    Set,
    /// A list of objects that are told apart by some of their fields.
    ListMap {
        /// Those fields.
        keys: Vec<Key>,
        /// What the items are.
        item: TypeId,
    },
}

/// Types that lead to one another, the root among them.
#[derive(Clone, Debug)]
pub struct Types {
    all: Vec<Type>,
    root: TypeId,
}

/// A type, with those that it leads to.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    types: &'a Types,
    id: TypeId,
}

static UNTYPED: Types = Types { all: Vec::new(), root: TypeId(0) };

impl Schema<'static> {
    /// The type of a kind in this crate's table, `None` if it is not there.
    pub fn built_in(api_version: &str, kind: &str) -> Option<Self> {
        let (types, messages) = &*BUILT_IN;
        let id = messages.get(&table().root(api_version, kind)?)?;
        Some(Self { types, id: *id })
    }

    /// Of what nothing is told.
    pub fn untyped() -> Self {
        UNTYPED.schema()
    }
}

impl<'a> Schema<'a> {
    /// What it is.
    pub fn get(self) -> &'a Type {
        self.types.all.get(self.id.0).unwrap_or(&Type::Untyped)
    }

    /// A type that this one leads to.
    pub fn of(self, id: TypeId) -> Self {
        Self { id, ..self }
    }

    /// The type of an object's field; `None` if there can be no such field.
    pub fn field(self, name: &str) -> Option<Self> {
        match self.get() {
            Type::Struct { fields, open } => match fields.get(name) {
                Some(id) => Some(self.of(*id)),
                None => open.then(|| Schema { types: &UNTYPED, id: TypeId(0) }),
            },
            Type::Map(item) => Some(self.of(*item)),
            Type::Untyped => Some(self),
            _ => None,
        }
    }

    /// Whether a field of this name is one of those that are told, rather than a key of a map.
    pub fn names(self, name: &str) -> bool {
        matches!(self.get(), Type::Struct { fields, .. } if fields.contains_key(name))
    }
}

impl Types {
    /// Where to begin.
    pub fn schema(&self) -> Schema<'_> {
        Schema { types: self, id: self.root }
    }

    /// From the structural schema (`openAPIV3Schema`) of a CustomResourceDefinition's version.
    pub fn from_structural(schema: &Value) -> Self {
        let mut maker = Maker::default();
        let root = maker.structural(schema, true, MAX_DEPTH);
        Self { all: maker.all, root }
    }
}

/// The types of all messages, made on first use; they never change.
static BUILT_IN: LazyLock<(Types, HashMap<usize, TypeId>)> = LazyLock::new(|| {
    let mut maker = Maker::default();
    for message in 0..table().len() {
        maker.message(message);
    }
    (Types { all: maker.all, root: TypeId(0) }, maker.messages)
});

#[derive(Default)]
struct Maker {
    all: Vec<Type>,
    messages: HashMap<usize, TypeId>,
}

impl Maker {
    fn put(&mut self, made: Type) -> TypeId {
        self.all.push(made);
        TypeId(self.all.len() - 1)
    }

    /// A message's type. It is known before its fields are: messages may lead to themselves.
    fn message(&mut self, message: usize) -> TypeId {
        if let Some(id) = self.messages.get(&message) {
            return *id;
        }
        let id = self.put(Type::Atomic);
        self.messages.insert(message, id);
        if marks::is_atomic(table().name(message)) {
            return id;
        }
        let mut fields = HashMap::new();
        self.fields(message, table().name(message), &mut fields);
        if table().is_root(message) {
            let text = self.put(Type::Atomic);
            fields.extend(["apiVersion", "kind"].map(|name| (Cow::Borrowed(name), text)));
        }
        self.all[id.0] = Type::Struct { fields, open: false };
        id
    }

    fn fields(&mut self, message: usize, outer: &str, fields: &mut HashMap<Cow<'static, str>, TypeId>) {
        for field in table().fields(message) {
            let item = |maker: &mut Self| match field.kind {
                Kind::Message(inner) => maker.message(inner),
                _ => maker.put(Type::Atomic),
            };
            let topology = &marks::of(outer, field.name).topology;
            let id = match (field.shape, field.kind, topology) {
                (Shape::Inline, Kind::Message(inner), _) => {
                    self.fields(inner, outer, fields);
                    continue;
                }
                (_, _, Topology::Atomic) => self.put(Type::Atomic),
                (Shape::List, _, Topology::Set) => self.put(Type::Set),
                (Shape::List, _, Topology::Map(keys)) => {
                    let key = |key: &marks::Key| Key {
                        name: key.name.into(),
                        default: key.default.map(Value::from),
                    };
                    let (keys, item) = (keys.iter().map(key).collect(), item(self));
                    self.put(Type::ListMap { keys, item })
                }
                (Shape::List, ..) => self.put(Type::Atomic),
                (Shape::Map, ..) => {
                    let item = item(self);
                    self.put(Type::Map(item))
                }
                (Shape::One | Shape::Inline, ..) => item(self),
            };
            fields.insert(field.name.into(), id);
        }
    }

    /// `resource`: a whole object stands here, with the metadata that every one has.
    fn structural(&mut self, schema: &Value, resource: bool, depth: usize) -> TypeId {
        let on = |mark: &str| schema.get(mark).and_then(Value::as_bool).unwrap_or(false);
        let said = |mark: &str| schema.get(mark).and_then(Value::as_str).unwrap_or_default();
        let resource = resource || on("x-kubernetes-embedded-resource");
        let open = on("x-kubernetes-preserve-unknown-fields");
        let made = match said("type") {
            _ if depth == 0 => Type::Untyped,
            "object" if said("x-kubernetes-map-type") == "atomic" => Type::Atomic,
            "object" => self.structural_object(schema, resource, open, depth - 1),
            "array" => self.structural_list(schema, said("x-kubernetes-list-type"), depth - 1),
            "" if open => Type::Untyped,
            _ => Type::Atomic,
        };
        self.put(made)
    }

    fn structural_object(&mut self, schema: &Value, resource: bool, open: bool, depth: usize) -> Type {
        let properties = schema.get("properties").and_then(Value::as_object);
        let rest = schema.get("additionalProperties").filter(|rest| rest.is_object());
        if let (None, Some(rest), false) = (properties, rest, resource) {
            return Type::Map(self.structural(rest, false, depth));
        }
        let mut fields = HashMap::new();
        for (name, schema) in properties.into_iter().flatten() {
            fields.insert(name.clone().into(), self.structural(schema, false, depth));
        }
        if resource {
            let text = self.put(Type::Atomic);
            fields.extend(["apiVersion", "kind"].map(|name| (Cow::Borrowed(name), text)));
            if let Some(message) = table().message("meta.v1.ObjectMeta") {
                let meta = self.message(message);
                fields.insert("metadata".into(), meta);
            }
        }
        Type::Struct { fields, open: open || schema.get("additionalProperties") == Some(&Value::Bool(true)) }
    }

    fn structural_list(&mut self, schema: &Value, list_type: &str, depth: usize) -> Type {
        let items = schema.get("items").unwrap_or(&Value::Null);
        match list_type {
            "set" => Type::Set,
            "map" => {
                let names = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                let key = |name: &Value| {
                    let name = name.as_str()?.to_owned();
                    let default = items.pointer(&format!("/properties/{name}/default")).cloned();
                    Some(Key { name: name.into(), default })
                };
                let keys = names.into_iter().flatten().filter_map(key).collect();
                let item = self.structural(items, false, depth);
                Type::ListMap { keys, item }
            }
            _ => Type::Atomic,
        }
    }
}
