//! What must hold for any schema and any object.

use super::schema::Schema;
use super::{prune, structural, validate};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Schemas of which some are structural.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string", "default": "x", "maxLength": 3})),
        Just(json!({"type": "integer", "minimum": 2, "default": 5})),
        Just(json!({"type": "boolean", "nullable": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "string", "enum": ["a", "b"], "pattern": "^a"})),
        Just(json!({"$ref": "#"})),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::btree_map("[a-d]", inner.clone(), 0..4)
                .prop_map(|p| json!({"type": "object", "properties": p, "default": {}})),
            inner.clone().prop_map(|s| json!({"type": "array", "items": s, "x-kubernetes-list-type": "set"})),
            inner.clone().prop_map(|s| json!({"type": "object", "additionalProperties": s})),
            (inner.clone(), inner).prop_map(
                |(a, b)| json!({"type": "object", "anyOf": [a.clone()], "oneOf": [b, a.clone()], "not": a})
            ),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5_i64..10).prop_map(Value::from),
        "[a-d]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-e]", inner, 0..4)
                .prop_map(|f| Value::Object(f.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn pruning_and_defaulting_are_idempotent(schema in any_schema(), mut object in any_object()) {
        structural::check(&schema, "schema");
        let read = Schema::read(&schema);
        prune::prune(&read, &mut object, &mut Vec::new());
        let pruned = object.clone();
        let mut told = Vec::new();
        prune::prune(&read, &mut object, &mut told);
        prop_assert_eq!(&object, &pruned);
        prop_assert_eq!(told, Vec::<String>::new());
        read.fill(&mut object);
        let filled = object.clone();
        read.fill(&mut object);
        prop_assert_eq!(&object, &filled);
        validate::validate(&read, &object);
    }

    #[test]
    fn defaults_of_a_good_schema_are_good(schema in any_schema()) {
        let schema = json!({"type": "object", "properties": {"a": schema}});
        if structural::check(&schema, "s").is_empty() {
            let read = Schema::read(&schema);
            let mut object = json!({});
            read.fill(&mut object);
            let mut told = Vec::new();
            prune::prune(&read, &mut object, &mut told);
            prop_assert_eq!(told, Vec::<String>::new());
        }
    }
}

#[test]
fn hostile_schemas_are_refused_within_bounds() {
    let mut deep = json!({"type": "string"});
    for _ in 0..90 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    let causes = structural::check(&deep, "s");
    assert!(causes.iter().any(|c| c.message == "Forbidden: the schema nests too deep"), "{causes:?}");
    let many: serde_json::Map<String, Value> =
        (0..60_000).map(|i| (format!("f{i}"), json!({"type": "string"}))).collect();
    let causes = structural::check(&json!({"type": "object", "properties": many}), "s");
    assert!(causes.iter().any(|c| c.message == "Forbidden: the schema is too big"));
    // An expression that would take much memory, and one that would take for ever elsewhere.
    let pattern = |p: &str| json!({"type": "object", "properties": {"a": {"type": "string", "pattern": p}}});
    assert_eq!(structural::check(&pattern("(a{1000}){1000}"), "s").len(), 1);
    assert_eq!(structural::check(&pattern("("), "s").len(), 1);
    assert!(structural::check(&pattern("^(a+)+$"), "s").is_empty());
    let read = Schema::read(&pattern("^(a+)+$"));
    let object = json!({"a": format!("{}!", "a".repeat(100_000))});
    assert_eq!(validate::validate(&read, &object).len(), 1);
}

#[test]
fn junctors_in_junctors_are_bounded() {
    let mut schema = json!({"minProperties": 1});
    for _ in 0..40 {
        schema = json!({"anyOf": [schema.clone(), schema.clone()]});
        if schema.to_string().len() > 100_000 {
            break;
        }
    }
    schema["type"] = "object".into();
    let read = Schema::read(&schema);
    assert!(!validate::validate(&read, &json!({})).is_empty());
}

#[test]
fn junctors_are_told_as_upstream_tells_them() {
    let read = Schema::read(&json!({"type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}));
    let told = |object: Value| {
        let causes = validate::validate(&read, &object);
        causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>()
    };
    assert_eq!(told(json!({"a": "x"})), Vec::<String>::new());
    assert_eq!(
        told(json!({"a": "x", "b": "y"})),
        [
            r#"<nil>: Invalid value: "": "" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
        ]
    );
    assert_eq!(
        told(json!({})),
        [
            r#"<nil>: Invalid value: "": "" must validate one and only one schema (oneOf). Found none valid"#,
            "a: Required value",
        ]
    );
}
