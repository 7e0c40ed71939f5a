//! What apply and its bookkeeping promise, by example and for whatever is applied.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const T1: &str = "2026-11-24T15:00:00Z";
const T2: &str = "2026-11-24T16:00:00Z";

fn writer<'a>(manager: &'a str, api_version: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, subresource: "", api_version, now }
}

fn deployment(replicas: Value, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "a", "namespace": "default", "uid": "1", "labels": {"app": "a"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "a", "image": image, "resources": {}}]}}}})
}

fn apps() -> Schema<'static> {
    Schema::built_in("apps/v1", "Deployment").expect("a schema")
}

fn fields_of(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.iter().find(|e| e["manager"] == manager).map_or(Value::Null, |e| e["fieldsV1"].clone())
}

#[test]
fn a_new_object_is_its_makers() {
    let mut new = deployment(json!(1), "x");
    track_new(apps(), &mut new, &writer("kubectl-create", "apps/v1", T1));
    let entry = json!({"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": T1,
        "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"a\"}":
                        {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}}}}}}});
    assert_eq!(new["metadata"]["managedFields"], json!([entry]));
}

#[test]
fn an_update_takes_what_it_changes() {
    let mut live = deployment(json!(1), "x");
    track_new(apps(), &mut live, &writer("one", "apps/v1", T1));
    let mut new = live.clone();
    new["spec"]["replicas"] = 2.into();
    new["metadata"]["labels"] = json!({"tier": "b"});
    track(apps(), &live, &mut new, &writer("two", "apps/v1", T2));
    assert_eq!(
        fields_of(&new, "two"),
        json!({"f:metadata": {"f:labels": {"f:tier": {}}}, "f:spec": {"f:replicas": {}}})
    );
    let first = fields_of(&new, "one");
    assert_eq!(first["f:metadata"], json!({"f:labels": {}}));
    assert!(first["f:spec"].get("f:replicas").is_none() && first["f:spec"].get("f:selector").is_some());
    let mut same = new.clone();
    track(apps(), &new, &mut same, &writer("three", "apps/v1", "2026-11-24T17:00:00Z"));
    assert_eq!(same, new);
}

#[test]
fn whose_field_it_is_decides() {
    let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"replicas": 3}});
    let mut live = deployment(json!(1), "x");
    track_new(apps(), &mut live, &writer("kubectl-create", "apps/v1", T1));
    let by = writer("me", "apps/v1", T2);
    let refused = apply(apps(), Some(&live), &wanted, &by, false).expect_err("another's field");
    let conflict = Conflict {
        with: format!("\"kubectl-create\" using apps/v1 at {T1}"),
        field: ".spec.replicas".to_owned(),
    };
    assert_eq!(refused, ApplyError::Conflicts(vec![conflict]));
    let forced = apply(apps(), Some(&live), &wanted, &by, true).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 3);
    assert!(fields_of(&forced, "kubectl-create")["f:spec"].get("f:replicas").is_none());
    assert_eq!(fields_of(&forced, "me"), json!({"f:spec": {"f:replicas": {}}}));
    let again = apply(apps(), Some(&forced), &wanted, &writer("me", "apps/v1", "2027"), false);
    assert_eq!(again, Ok(forced.clone()));
    // What is wanted no more goes; nobody else has it.
    let less = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"b": "c"}}});
    let left = apply(apps(), Some(&forced), &less, &by, false).expect("applied");
    assert!(left["spec"].get("replicas").is_none() && left["spec"].get("template").is_some());
    assert_eq!(left["metadata"]["labels"], json!({"app": "a", "b": "c"}));
    assert_eq!(left["metadata"]["uid"], "1");
}

#[test]
fn items_are_told_apart_by_all_their_keys() {
    let schema = Schema::built_in("v1", "Service").expect("a schema");
    let service = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": ports}});
    let by = |manager| writer(manager, "v1", T1);
    let tcp = service(json!([{"port": 53, "name": "tcp"}]));
    let live = apply(schema, None, &tcp, &by("one"), false).expect("made");
    let udp = service(json!([{"port": 53, "protocol": "UDP", "name": "udp"}]));
    let both = apply(schema, Some(&live), &udp, &by("two"), false).expect("no conflict");
    assert_eq!(
        both["spec"]["ports"],
        json!([{"port": 53, "name": "tcp"}, {"port": 53, "protocol": "UDP", "name": "udp"}])
    );
    let none = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}});
    let left = apply(schema, Some(&both), &none, &by("one"), false).expect("applied");
    assert_eq!(left["spec"]["ports"], json!([{"port": 53, "protocol": "UDP", "name": "udp"}]));
}

#[test]
fn kubectl_takes_over_from_its_older_self() {
    let mut live = deployment(json!(2), "x");
    let last = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"replicas": 2}});
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()});
    track_new(apps(), &mut live, &writer("kubectl-client-side-apply", "apps/v1", T1));
    let mut wanted = last.clone();
    wanted["spec"]["replicas"] = 5.into();
    let applied =
        apply(apps(), Some(&live), &wanted, &writer("kubectl", "apps/v1", T2), false).expect("taken over");
    assert_eq!(applied["spec"]["replicas"], 5);
    let noted =
        applied["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
    assert_eq!(noted.and_then(|text| serde_json::from_str(text).ok()), Some(wanted.clone()));
    let stranger = apply(apps(), Some(&live), &wanted, &writer("helm", "apps/v1", T2), false);
    assert!(matches!(stranger, Err(ApplyError::Conflicts(_))));
    live["spec"]["replicas"] = 3.into();
    let changed = apply(apps(), Some(&live), &wanted, &writer("kubectl", "apps/v1", T2), false);
    assert!(matches!(changed, Err(ApplyError::Conflicts(_))), "somebody changed it since");
}

#[test]
fn who_manages_what_may_be_forgotten() {
    let mut live = deployment(json!(1), "x");
    track_new(apps(), &mut live, &writer("one", "apps/v1", T1));
    for nothing in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = nothing;
        track(apps(), &live, &mut new, &writer("two", "apps/v1", T2));
        assert!(new["metadata"].get("managedFields").is_none());
        let mut later = new.clone();
        later["spec"]["replicas"] = 9.into();
        track(apps(), &new, &mut later, &writer("two", "apps/v1", T2));
        assert!(later["metadata"].get("managedFields").is_none());
        let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 9}});
        let applied =
            apply(apps(), Some(&later), &wanted, &writer("me", "apps/v1", T2), false).expect("no change");
        assert!(fields_of(&applied, "before-first-apply")["f:spec"].get("f:replicas").is_some());
    }
    // Nonsense does not replace what is known.
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{"operation": "Guess"}]);
    track(apps(), &live, &mut new, &writer("two", "apps/v1", T2));
    assert_eq!(new, live);
}

#[test]
fn the_oldest_of_many_are_put_together() {
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {}});
    let schema = Schema::built_in("v1", "ConfigMap").expect("a schema");
    for i in 0..20 {
        let mut new = live.clone();
        new["data"][format!("key{i}")] = "v".into();
        let (name, time) = (format!("m{i}"), format!("2026-11-24T15:00:{i:02}Z"));
        match i {
            0 => track_new(schema, &mut new, &writer(&name, "v1", &time)),
            _ => track(schema, &live, &mut new, &writer(&name, "v1", &time)),
        }
        live = new;
    }
    let entries = live["metadata"]["managedFields"].as_array().expect("entries");
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(fields_of(&live, "ancient-changes")["f:data"].as_object().map(|f| f.len()), Some(12));
}

#[test]
fn what_is_no_field_is_told_by_its_place() {
    let mut wanted = deployment(json!(1), "x");
    wanted["spec"]["template"]["spec"]["containers"][0]["imagee"] = "y".into();
    wanted["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A"}, {"name": "A"}, {}]);
    let refused = apply(apps(), None, &wanted, &writer("me", "apps/v1", T1), false);
    let Err(ApplyError::Invalid(told)) = refused else { panic!("{refused:?}") };
    let at = ".spec.template.spec.containers[name=\"a\"]";
    assert_eq!(told[0], format!("{at}.env: duplicate entries for key [name=\"A\"]"));
    assert!(told[1].starts_with(&format!("{at}.env: element 2: associative list with keys has an element")));
    assert_eq!(told[2], format!("{at}.imagee: field not declared in schema"));
}

/// A kind of whatever shapes there are.
fn custom() -> &'static Types {
    static TYPES: std::sync::LazyLock<Types> = std::sync::LazyLock::new(|| {
        let item = json!({"type": "object", "properties": {"n": {"type": "string", "default": "x"},
            "a": {"type": "integer"}, "m": {"type": "object", "additionalProperties": {"type": "integer"}}}});
        Types::from_structural(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "a": {"type": "integer"}, "b": {"type": "integer"},
                "m": {"type": "object", "additionalProperties": {"type": "integer"}},
                "list": {"type": "array", "items": {"type": "integer"}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": item},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "integer"}}},
            }}}}),
        )
    });
    &TYPES
}

fn wanted() -> impl Strategy<Value = Value> {
    let small = || 0..3_i64;
    let map = || prop::collection::btree_map("[ab]", small(), 1..3).prop_map(|map| json!(map));
    let item = ("[xyz]", prop::option::of(small()), prop::option::of(map())).prop_map(|(n, a, m)| {
        let mut item = json!({"n": n});
        a.into_iter().for_each(|a| item["a"] = a.into());
        m.into_iter().for_each(|m| item["m"] = m);
        (item["n"].to_string(), item)
    });
    let items = prop::collection::btree_map("[xyz]", item, 1..4).prop_map(|map| {
        let unique: std::collections::BTreeMap<String, Value> = map.into_values().collect();
        json!(unique.into_values().collect::<Vec<_>>())
    });
    let set = prop::collection::btree_set("[pqr]", 1..3).prop_map(|set| json!(set));
    let list = prop::collection::vec(small(), 1..3).prop_map(|list| json!(list));
    let field = prop_oneof![
        ("(a|b)", small()).prop_map(|(n, v)| (n, json!(v))),
        map().prop_map(|v| ("m".to_owned(), v)),
        map().prop_map(|v| ("any".to_owned(), v)),
        list.prop_map(|v| ("list".to_owned(), v)),
        set.prop_map(|v| ("set".to_owned(), v)),
        items.prop_map(|v| ("map".to_owned(), v)),
        small().prop_map(|v| ("whole".to_owned(), json!({"a": v}))),
    ];
    prop::collection::btree_map("[0-9]", field, 0..6).prop_map(|fields| {
        let spec: serde_json::Map<String, Value> = fields.into_values().collect();
        let mut object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}});
        if !spec.is_empty() {
            object["spec"] = spec.into();
        }
        object
    })
}

fn put(live: Option<&Value>, wanted: &Value, manager: &str, force: bool) -> Result<Value, ApplyError> {
    apply(custom().schema(), live, wanted, &writer(manager, "x/v1", T1), force)
}

/// An object without the order of lists that are sets, and without who manages it.
fn content(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("managedFields");
    }
    for list in ["set", "map"] {
        if let Some(list) = object["spec"].get_mut(list).and_then(Value::as_array_mut) {
            list.sort_by_key(|item| item.get("n").unwrap_or(item).to_string());
        }
    }
    if object.get("spec").is_some_and(|spec| spec.as_object().is_none_or(|spec| spec.is_empty())) {
        object.as_object_mut().expect("an object").remove("spec");
    }
    object
}

/// All that is managed is there.
fn managed_is_there(object: &Value) -> bool {
    let there = walk::fields(custom().schema(), object);
    let mut bare = walk::compare(custom().schema(), &json!({}), object).added.union(&there);
    bare = bare.union(&there);
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .all(|entry| FieldSet::decode(&entry["fieldsV1"]).is_some_and(|set| set.difference(&bare).is_empty()))
}

/// All that is wanted is so.
fn has(object: &Value, wanted: &Value) -> bool {
    let found = walk::compare(custom().schema(), object, wanted);
    found.added.is_empty() && found.modified.is_empty()
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(a in wanted(), b in wanted()) {
        let one = put(None, &a, "one", false).expect("made");
        let two = put(Some(&one), &b, "two", true).expect("forced");
        let same = apply(custom().schema(), Some(&two), &b, &writer("two", "x/v1", T2), false);
        prop_assert_eq!(same, Ok(two));
    }

    #[test]
    fn what_is_wanted_is_there_and_nothing_else_is_lost(a in wanted(), b in wanted()) {
        let one = put(None, &a, "one", false).expect("made");
        let two = put(Some(&one), &b, "two", true).expect("forced");
        prop_assert!(has(&two, &b), "{two}");
        prop_assert!(managed_is_there(&two), "{two}");
        let kept = FieldSet::decode(&fields_of(&two, "one")).unwrap_or_default();
        let before = walk::fields(custom().schema(), &a);
        let found = walk::compare(custom().schema(), &one, &two);
        prop_assert!(found.removed.is_empty(), "{two}");
        let unmanaged = json!({"apiVersion": "", "kind": "", "metadata": {"name": ""}});
        let lost = before.difference(&kept).difference(&found.modified);
        let lost = lost.difference(&walk::fields(custom().schema(), &unmanaged));
        prop_assert!(lost.is_empty(), "{lost:?}");
        prop_assert!(has(&one, &a) && managed_is_there(&one));
    }

    #[test]
    fn whoever_agrees_may_come_in_any_order(a in wanted(), b in wanted()) {
        let first = put(None, &a, "one", false).expect("made");
        let other = put(None, &b, "two", false).expect("made");
        let (ab, ba) = (put(Some(&first), &b, "two", false), put(Some(&other), &a, "one", false));
        prop_assert_eq!(ab.is_ok(), ba.is_ok());
        if let (Ok(ab), Ok(ba)) = (ab, ba) {
            prop_assert_eq!(content(&ab), content(&ba));
            prop_assert_eq!(fields_of(&ab, "one"), fields_of(&ba, "one"));
            prop_assert_eq!(fields_of(&ab, "two"), fields_of(&ba, "two"));
        }
    }

    #[test]
    fn what_one_wants_no_more_goes(a in wanted(), b in wanted()) {
        let one = put(None, &a, "one", false).expect("made");
        let then = put(Some(&one), &b, "one", false).expect("no conflict with oneself");
        prop_assert_eq!(content(&then), content(&put(None, &b, "one", false).expect("made")));
    }

    #[test]
    fn updates_keep_the_books(a in wanted(), b in wanted(), c in wanted()) {
        let schema = custom().schema();
        let mut one = a.clone();
        track_new(schema, &mut one, &writer("one", "x/v1", T1));
        let mut two = b.clone();
        track(schema, &one, &mut two, &writer("two", "x/v1", T1));
        prop_assert!(managed_is_there(&two), "{two}");
        prop_assert_eq!(content(&two), content(&b));
        let three = put(Some(&two), &c, "three", true).expect("forced");
        prop_assert!(has(&three, &c) && managed_is_there(&three), "{three}");
        prop_assert!(walk::compare(schema, &two, &three).removed.is_empty());
    }
}
