//! Sets of fields, as `fieldsV1` has them.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How deep a set may nest.
const MAX_DEPTH: usize = 64;

/// A set of fields: a tree whose steps are written as upstream writes them: `f:<name>`, `k:<keys of an item as JSON>`,
/// `v:<plain value as JSON>`, `i:<place>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeMap<String, Node>);

/// What is at the end of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// The field itself is in the set.
    member: bool,
    /// What is below it.
    below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

/// The step to a field of an object.
pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

impl FieldSet {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `fieldsV1`; `None` if it is not of that form.
    pub fn decode(fields: &Value) -> Option<Self> {
        Self::read(fields.as_object()?, MAX_DEPTH)
    }

    fn read(fields: &Map<String, Value>, depth: usize) -> Option<Self> {
        let mut set = Self::default();
        for (step, below) in fields.iter().filter(|(step, _)| *step != ".") {
            let below = below.as_object()?;
            let inner = Self::read(below, depth.checked_sub(1)?)?;
            let member = below.is_empty() || below.contains_key(".");
            set.0.insert(canonical(step)?, Node { member, below: inner });
        }
        Some(set)
    }

    /// As `fieldsV1`.
    pub fn encode(&self) -> Value {
        let mut fields = Map::new();
        for (step, node) in &self.0 {
            let mut below = node.below.encode();
            if let (true, Some(map)) = (node.member && !node.below.is_empty(), below.as_object_mut()) {
                map.insert(".".to_owned(), Value::Object(Map::new()));
            }
            fields.insert(step.clone(), below);
        }
        Value::Object(fields)
    }

    /// Puts the field at the end of these steps in.
    pub fn insert(&mut self, path: &[String]) {
        let Some((last, above)) = path.split_last() else { return };
        let mut set = self;
        for step in above {
            set = &mut set.0.entry(step.clone()).or_default().below;
        }
        set.0.entry(last.clone()).or_default().member = true;
    }

    /// Puts a step in, and all that is below it.
    pub(super) fn put(&mut self, step: String, member: bool, below: FieldSet) {
        let node = Node { member, below };
        if !node.is_empty() {
            self.0.insert(step, node);
        }
    }

    /// What is in one of them, or in both.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (step, node) in &other.0 {
            let mine = all.0.entry(step.clone()).or_default();
            mine.member |= node.member;
            mine.below = mine.below.union(&node.below);
        }
        all
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && theirs, false)
    }

    /// What is in this and not in the other.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && !theirs, true)
    }

    fn combine(&self, other: &Self, member: fn(bool, bool) -> bool, alone: bool) -> Self {
        let mut out = Self::default();
        for (step, node) in &self.0 {
            match other.0.get(step) {
                Some(theirs) => {
                    let below = node.below.combine(&theirs.below, member, alone);
                    out.put(step.clone(), member(node.member, theirs.member), below);
                }
                None if alone => {
                    out.0.insert(step.clone(), node.clone());
                }
                None => {}
            }
        }
        out
    }

    /// Whether the field at the end of this step is in it, and what is below.
    pub(super) fn step(&self, step: &str) -> Option<(bool, &FieldSet)> {
        self.0.get(step).map(|node| (node.member, &node.below))
    }

    /// Takes one field out, and leaves what is below it.
    pub(super) fn take(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let Some(node) = self.0.get_mut(*first) else { return };
        if rest.is_empty() {
            node.member = false;
        } else {
            node.below.take(rest);
        }
        if node.is_empty() {
            self.0.remove(*first);
        }
    }

    /// The same set, with the named fields on the way to what is in it. `named` tells which steps are such, given the
    /// type that they start from, and leads on to the next one.
    pub(super) fn with_named<T: Copy>(&self, at: T, named: &impl Fn(T, &str) -> (bool, T)) -> Self {
        let mut out = Self::default();
        for (step, node) in &self.0 {
            let (is_named, next) = named(at, step);
            let member = node.member || is_named && !node.below.is_empty();
            out.put(step.clone(), member, node.below.with_named(next, named));
        }
        out
    }

    /// All fields in it, each as its steps.
    pub fn paths(&self) -> Vec<Vec<&str>> {
        let mut paths = Vec::new();
        self.walk(&mut Vec::new(), &mut paths);
        paths
    }

    fn walk<'a>(&'a self, path: &mut Vec<&'a str>, paths: &mut Vec<Vec<&'a str>>) {
        for (step, node) in &self.0 {
            path.push(step);
            if node.member {
                paths.push(path.clone());
            }
            node.below.walk(path, paths);
            path.pop();
        }
    }
}

/// A step in the one way in which it is compared: keys in order, no space.
fn canonical(step: &str) -> Option<String> {
    let (kind, rest) = step.split_at_checked(2)?;
    match kind {
        "f:" => Some(step.to_owned()),
        "k:" | "v:" => {
            let value: Value = serde_json::from_str(rest).ok()?;
            (kind == "v:" || value.is_object()).then(|| format!("{kind}{value}"))
        }
        "i:" => rest.parse::<i64>().ok().map(|_| step.to_owned()),
        _ => None,
    }
}

/// A field as messages name it: `.spec.containers[name="a"].image`.
pub fn show(path: &[impl AsRef<str>]) -> String {
    let mut shown = String::new();
    for step in path {
        let step = step.as_ref();
        let (kind, rest) = step.split_at_checked(2).unwrap_or((step, ""));
        match kind {
            "k:" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                shown += &format!("[{}]", keys.join(","));
            }
            "v:" => shown += &format!("[={rest}]"),
            "i:" => shown += &format!("[{rest}]"),
            _ => shown += &format!(".{rest}"),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn step() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-c.]{1,2}".prop_map(|name| field(&name)),
            ("[ab]", any::<bool>()).prop_map(|(k, v)| format!("k:{}", json!({k: v}))),
            "[ab]".prop_map(|value| format!("v:{}", json!(value))),
            (0..3).prop_map(|i| format!("i:{i}")),
        ]
    }

    pub(crate) fn any_set() -> impl Strategy<Value = FieldSet> {
        prop::collection::vec(prop::collection::vec(step(), 1..5), 0..12).prop_map(|paths| {
            let mut set = FieldSet::default();
            paths.iter().for_each(|path| set.insert(path));
            set
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(set in any_set()) {
            prop_assert_eq!(FieldSet::decode(&set.encode()), Some(set));
        }

        #[test]
        fn sets_are_sets(a in any_set(), b in any_set()) {
            let both = a.union(&b);
            prop_assert_eq!(&both, &b.union(&a));
            prop_assert_eq!(both.intersection(&a), a.clone());
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert!(a.difference(&a).is_empty());
            prop_assert!(a.paths().iter().all(|path| both.paths().contains(path)));
        }
    }

    #[test]
    fn upstream_writes_it_so() {
        let mut set = FieldSet::default();
        for path in [
            vec!["f:metadata", "f:labels", "f:app"],
            vec!["f:metadata", "f:labels"],
            vec!["f:spec", "f:ports", "k:{\"containerPort\":80,\"protocol\":\"TCP\"}"],
        ] {
            set.insert(&path.into_iter().map(str::to_owned).collect::<Vec<_>>());
        }
        let encoded = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {}}}});
        assert_eq!(set.encode(), encoded);
        let shown: Vec<String> = set.paths().iter().map(|path| show(path)).collect();
        assert_eq!(
            shown,
            [".metadata.labels", ".metadata.labels.app", ".spec.ports[containerPort=80,protocol=\"TCP\"]"]
        );
    }

    #[test]
    fn other_forms_are_refused() {
        let spaced = json!({"k:{\"b\": 1, \"a\": 2}": {}});
        assert_eq!(FieldSet::decode(&spaced).expect("read").encode(), json!({"k:{\"a\":2,\"b\":1}": {}}));
        let mut deep = json!({});
        (0..70).for_each(|_| deep = json!({"f:a": deep}));
        for wrong in
            [json!([]), json!({"x:a": {}}), json!({"f:a": 1}), json!({"k:1": {}}), json!({"é": {}}), deep]
        {
            assert_eq!(FieldSet::decode(&wrong), None, "{wrong}");
        }
    }
}
