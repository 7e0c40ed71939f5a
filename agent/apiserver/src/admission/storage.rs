//! The storage class of a claim that names none. Pure.

use crate::object::{as_map, field, name, text};
use serde_json::Value;

const DEFAULT: &str = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";

/// Sets `spec.storageClassName` to the default class, if there is one. An empty name asks for none and stays.
pub(super) fn choose(classes: &[Value], claim: &mut Value) {
    if claim.pointer("/spec/storageClassName").is_some_and(Value::is_string) {
        return;
    }
    let defaults = classes.iter().filter(|class| text(class, DEFAULT) == "true");
    // Of several the newest counts, so that a new default can be set before the old one is taken back.
    let newest = defaults.max_by_key(|class| (text(class, "/metadata/creationTimestamp"), name(class)));
    if let Some(class) = newest {
        field(as_map(claim), "spec").insert("storageClassName".to_owned(), name(class).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_class_is_chosen() {
        let class = |name: &str, default: &str, day: u8| {
            json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-0{day}T00:00:00Z"),
                "annotations": {"storageclass.kubernetes.io/is-default-class": default}}})
        };
        let classes = [class("a", "true", 1), class("b", "true", 2), class("c", "false", 3)];
        let chosen = |classes: &[Value], mut claim: Value| {
            choose(classes, &mut claim);
            claim["spec"]["storageClassName"].clone()
        };
        assert_eq!(chosen(&classes, json!({"spec": {}})), "b");
        assert_eq!(chosen(&classes, json!({"spec": {"storageClassName": ""}})), "");
        assert_eq!(chosen(&classes, json!({"spec": {"storageClassName": "c"}})), "c");
        assert_eq!(chosen(&classes[2..], json!({"spec": {}})), Value::Null);
    }
}
