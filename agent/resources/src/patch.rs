//! The three ways in which a client may change an object in part.
//!
//! A patch that cannot be applied leaves the document in an unspecified state: callers patch a copy.

mod strategic;

use crate::Descriptor;
use serde_json::Value;

/// How deep a patch or a document may nest.
const MAX_DEPTH: usize = 64;
/// Operations in one JSON patch.
const MAX_OPERATIONS: usize = 10_000;
/// Values in a document once patched: `copy` operations could double it each time.
const MAX_VALUES: usize = 1_000_000;
/// Bytes of text in a document once patched.
const MAX_TEXT: usize = 16 * 1024 * 1024;

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// It is not of the right form.
    #[error("invalid patch: {0}")]
    Malformed(String),
    /// A JSON patch's `test` failed or its path leads nowhere.
    #[error("the server rejected our request due to an error in our request: {0}")]
    NotApplicable(String),
    /// Items of a merged list do not tell what they are merged by.
    #[error("map: {0} does not contain declared merge key: {1}")]
    NoMergeKey(String, &'static str),
    /// Nested too deep, too many operations, or too big a result.
    #[error("the patch or its result is too big")]
    TooBig,
}

/// RFC 6902: a list of operations.
pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    check_size(patch, MAX_VALUES)?;
    check_size(doc, MAX_VALUES)?;
    let Some(operations) = patch.as_array() else {
        return Err(PatchError::Malformed("a JSON patch is a list of operations".to_owned()));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooBig);
    }
    let mut budget = MAX_VALUES;
    for operation in operations {
        spend(doc, operation, &mut budget)?;
        let parsed = serde_json::from_value::<json_patch::PatchOperation>(operation.clone())
            .map_err(|error| PatchError::Malformed(error.to_string()))?;
        json_patch::patch(doc, std::slice::from_ref(&parsed))
            .map_err(|error| PatchError::NotApplicable(error.to_string()))?;
    }
    check_size(doc, MAX_VALUES)
}

/// What an operation puts somewhere may not make the document too deep, nor all of them together too big: else a few
/// `copy`, each doubling the last one's work, could fill the memory.
fn spend(doc: &Value, operation: &Value, budget: &mut usize) -> Result<(), PatchError> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let moved = text("from").and_then(|from| doc.pointer(from)).or_else(|| operation.get("value"));
    let Some(moved) = moved else { return Ok(()) };
    let size = measure(moved, *budget)?;
    *budget -= size.values;
    let above = text("path").unwrap_or_default().matches('/').count();
    if above + size.depth > MAX_DEPTH { Err(PatchError::TooBig) } else { Ok(()) }
}

/// RFC 7396: an object laid over the document; null removes.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    check_size(patch, MAX_VALUES)?;
    json_patch::merge(doc, patch);
    Ok(())
}

/// A merge patch that also merges lists whose items have keys, with directives (`$patch`, `$retainKeys`, ...).
pub fn strategic_merge(kind: &Descriptor, doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    check_size(patch, MAX_VALUES)?;
    check_size(doc, MAX_VALUES)?;
    strategic::merge(kind, doc, patch)
}

fn check_size(value: &Value, max: usize) -> Result<(), PatchError> {
    measure(value, max).map(|_| ())
}

/// How much there is of a value.
struct Size {
    values: usize,
    depth: usize,
}

/// Counts values, depth and text, without recursion.
fn measure(value: &Value, max: usize) -> Result<Size, PatchError> {
    let (mut values, mut text, mut deepest) = (0, 0, 0);
    let mut open = vec![(value, 0)];
    while let Some((value, depth)) = open.pop() {
        values += 1;
        deepest = deepest.max(depth);
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => {
                text += fields.keys().map(String::len).sum::<usize>();
                open.extend(fields.values().map(|item| (item, depth + 1)));
            }
            Value::String(string) => text += string.len(),
            _ => {}
        }
        if values > max || text > MAX_TEXT || depth > MAX_DEPTH {
            return Err(PatchError::TooBig);
        }
    }
    Ok(Size { values, depth: deepest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn operations_apply_in_order() {
        let mut doc = json!({"a": [1, 2], "b": {"c": "d"}});
        let patch = json!([
            {"op": "test", "path": "/b/c", "value": "d"},
            {"op": "replace", "path": "/b/c", "value": "e"},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "remove", "path": "/a/0"},
            {"op": "move", "from": "/b", "path": "/x"},
            {"op": "copy", "from": "/a/0", "path": "/y"},
        ]);
        json_patch(&mut doc, &patch).expect("patch");
        assert_eq!(doc, json!({"a": [2, 3], "x": {"c": "e"}, "y": 2}));
    }

    #[test]
    fn bad_operations_are_refused() {
        let mut doc = json!({"a": 1});
        assert!(matches!(json_patch(&mut doc, &json!({})), Err(PatchError::Malformed(_))));
        assert!(matches!(json_patch(&mut doc, &json!([{"op": "x"}])), Err(PatchError::Malformed(_))));
        let missing = json!([{"op": "remove", "path": "/b"}]);
        assert!(matches!(json_patch(&mut doc, &missing), Err(PatchError::NotApplicable(_))));
        let failed = json!([{"op": "test", "path": "/a", "value": 2}]);
        assert!(matches!(json_patch(&mut doc, &failed), Err(PatchError::NotApplicable(_))));
    }

    #[test]
    fn a_document_cannot_be_doubled_without_end() {
        let mut doc = json!({"a": {"x": "y"}});
        let copies: Vec<Value> =
            (0..40).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/c{i}")})).collect();
        assert!(matches!(json_patch(&mut doc, &copies.into()), Err(PatchError::TooBig)));
    }

    #[test]
    fn a_document_cannot_grow_deeper_without_end() {
        let mut doc = json!({});
        let adds: Vec<Value> =
            (1..100).map(|i| json!({"op": "add", "path": "/a".repeat(i), "value": {}})).collect();
        assert!(matches!(json_patch(&mut doc, &adds.into()), Err(PatchError::TooBig)));
        let mut doc = json!({"a": {"b": 1}});
        let moves: Vec<Value> = (0..40)
            .flat_map(|_| {
                [
                    json!({"op": "copy", "from": "", "path": "/x"}),
                    json!({"op": "copy", "from": "/x", "path": "/a"}),
                ]
            })
            .collect();
        assert!(matches!(json_patch(&mut doc, &moves.into()), Err(PatchError::TooBig)));
    }

    #[test]
    fn null_removes_in_a_merge() {
        let mut doc = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        merge_patch(&mut doc, &json!({"a": {"b": null, "d": 3}, "l": [2]})).expect("patch");
        assert_eq!(doc, json!({"a": {"c": 2, "d": 3}, "l": [2]}));
    }

    #[test]
    fn depth_is_bounded() {
        let mut deep = json!(1);
        for _ in 0..80 {
            deep = json!({"a": deep});
        }
        assert!(matches!(merge_patch(&mut json!({}), &deep), Err(PatchError::TooBig)));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(
                    ("(spec|containers|name|metadata|labels|ports|\\$patch|a)", inner),
                    0..4
                )
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(mut doc in any_json(), patch in any_json()) {
            merge_patch(&mut doc, &patch).expect("small");
            let once = doc.clone();
            merge_patch(&mut doc, &patch).expect("small");
            prop_assert_eq!(doc, once);
        }

        #[test]
        fn strategic_merges_never_panic(mut doc in any_json(), patch in any_json()) {
            let kind = crate::find("", "v1", "pods").expect("pods");
            let _ = strategic_merge(kind, &mut doc, &patch);
        }

        #[test]
        fn json_patches_never_panic(mut doc in any_json(), patch in any_json()) {
            let _ = json_patch(&mut doc, &patch);
        }
    }
}
