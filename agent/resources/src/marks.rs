//! The marks of fields: how lists and maps are merged, by a strategic merge patch and by an apply, and which objects are
//! written even when there is nothing in them.
//!
//! One table, `marks.txt`, a line each: a message, one of its fields (`*`: the message itself, wherever it stands), and
//! words. `atomic`: replaced as a whole. `set`: plain values, each once. `map a,b=X`: objects told apart by these
//! fields, of which `b` is X when it is not said. `merge k`: a strategic merge patch merges the list by `k` (without
//! `k`: as a set). `plain`: an object that upstream holds
//! without a pointer, or a list that is always written. What has no mark is atomic if it is a list,
//! and merged field by field if it is not.

use std::collections::HashMap;
use std::sync::LazyLock;

/// One of the fields by which items of a list are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it is when it is not said.
    pub default: Option<&'static str>,
}

/// How an apply merges a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// As what it is merges by itself: lists as a whole, objects and maps by their fields.
    #[default]
    Own,
    /// Replaced as a whole.
    Atomic,
    /// Plain values, each once.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<Key>),
}

/// How a strategic merge patch merges a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Plain values, each once.
    Set,
    /// Objects told apart by this field.
    Keyed(&'static str),
}

/// All that is marked of one field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// For apply.
    pub topology: Topology,
    /// For strategic merge patches.
    pub strategy: Strategy,
    /// `retainKeys`, for clients: they then send which fields shall be left.
    pub retain_keys: bool,
    /// `replace`, where a strategic merge would go into an object.
    pub replace: bool,
    /// Held without a pointer: always there, even with nothing in it.
    pub plain: bool,
}

type Marks = HashMap<&'static str, HashMap<&'static str, Mark>>;

/// The marks of a message's field; nothing special if it has none.
pub fn of(message: &str, field: &str) -> &'static Mark {
    static NONE: Mark = Mark {
        topology: Topology::Own,
        strategy: Strategy::Atomic,
        retain_keys: false,
        replace: false,
        plain: false,
    };
    marks().get(message).and_then(|fields| fields.get(field)).unwrap_or(&NONE)
}

/// Whether a message is replaced as a whole wherever it stands.
pub fn is_atomic(message: &str) -> bool {
    of(message, "*").topology == Topology::Atomic
}

/// The table, read on first use; it never changes.
fn marks() -> &'static Marks {
    static MARKS: LazyLock<Marks> = LazyLock::new(|| {
        let mut marks = Marks::new();
        for line in include_str!("marks.txt").lines() {
            let mut words = line.split(' ');
            if let (Some(message), Some(field)) = (words.next(), words.next()) {
                marks.entry(message).or_default().insert(field, mark(words));
            }
        }
        marks
    });
    &MARKS
}

fn mark(mut words: std::str::Split<'static, char>) -> Mark {
    let mut mark = Mark::default();
    while let Some(word) = words.next() {
        match word {
            "atomic" => mark.topology = Topology::Atomic,
            "set" => mark.topology = Topology::Set,
            "map" => mark.topology = Topology::Map(words.next().map(keys).unwrap_or_default()),
            "plain" => mark.plain = true,
            "replace" => mark.replace = true,
            "retainKeys" => mark.retain_keys = true,
            "merge" | "merge,retainKeys" => {
                mark.retain_keys = word != "merge";
                mark.strategy = match mark.topology {
                    Topology::Set => Strategy::Set,
                    _ => words.next().map_or(Strategy::Set, Strategy::Keyed),
                };
            }
            _ => {}
        }
    }
    mark
}

fn keys(list: &'static str) -> Vec<Key> {
    list.split(',')
        .map(|key| match key.split_once('=') {
            Some((name, default)) => Key { name, default: Some(default) },
            None => Key { name: key, default: None },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::schema::{Kind, Shape, table};

    #[test]
    fn marks_are_read() {
        let ports = of("core.v1.Container", "ports");
        let key = |name, default| Key { name, default };
        assert_eq!(
            ports.topology,
            Topology::Map(vec![key("containerPort", None), key("protocol", Some("TCP"))])
        );
        assert_eq!(ports.strategy, Strategy::Keyed("containerPort"));
        assert_eq!(of("meta.v1.ObjectMeta", "finalizers").strategy, Strategy::Set);
        assert_eq!(of("core.v1.NamespaceSpec", "finalizers"), &Mark::default());
        assert_eq!(of("batch.v1.JobStatus", "conditions").topology, Topology::Own);
        assert_eq!(of("batch.v1.JobStatus", "conditions").strategy, Strategy::Keyed("type"));
        assert!(
            of("core.v1.PodSpec", "volumes").retain_keys && of("apps.v1.DeploymentSpec", "strategy").plain
        );
        assert!(is_atomic("meta.v1.LabelSelector") && !is_atomic("core.v1.PodSpec"));
    }

    /// A mark on a field that is not there would be a slip of the pen.
    #[test]
    fn every_mark_is_on_something() {
        let table = table();
        let mut found = 0;
        for (message, fields) in marks() {
            let Some(index) = table.message(message) else { continue };
            for (field, mark) in fields.iter().filter(|(field, _)| **field != "*") {
                found += 1;
                let known = table.find(index, field).unwrap_or_else(|| panic!("{message} {field}"));
                let list = mark.strategy != Strategy::Atomic
                    || matches!(mark.topology, Topology::Set | Topology::Map(_));
                assert!(
                    !list || known.shape == Shape::List || known.kind == Kind::Texts,
                    "{message} {field}"
                );
            }
        }
        assert!(found > 50, "{found}");
    }
}
