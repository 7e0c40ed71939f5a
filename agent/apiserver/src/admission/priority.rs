//! A pod's priority, by the name of its class. Pure.

use crate::object::{as_map, field, text};
use serde_json::Value;

/// Sets `spec.priority` and `spec.preemptionPolicy`, or says why not.
pub(super) fn resolve(classes: &[Value], pod: &mut Value) -> Result<(), String> {
    let asked = text(pod, "/spec/priorityClassName").to_owned();
    let class = if asked.is_empty() {
        // Of several default classes the least important one counts.
        let defaults = classes.iter().filter(|class| class["globalDefault"] == true);
        defaults.min_by_key(|class| class["value"].as_i64().unwrap_or(0))
    } else {
        let found = classes.iter().find(|class| text(class, "/metadata/name") == asked);
        Some(found.ok_or_else(|| format!("no PriorityClass with name {asked} was found"))?)
    };
    let value = class.and_then(|class| class["value"].as_i64()).unwrap_or(0);
    let policy = class.map_or("", |class| text(class, "/preemptionPolicy"));
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let spec = field(as_map(pod), "spec");
    if let Some(own) = spec.get("priority").and_then(Value::as_i64).filter(|own| *own != value) {
        return Err(format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        ));
    }
    if spec.get("preemptionPolicy").and_then(Value::as_str).is_some_and(|own| own != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy must not be provided in pod spec; priority admission controller \
             computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec.insert("priorityClassName".to_owned(), class["metadata"]["name"].clone());
    }
    spec.insert("priority".to_owned(), value.into());
    spec.insert("preemptionPolicy".to_owned(), policy.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_has_the_priority_of_its_class() {
        let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"});
        let classes = [class("high", 1000, false), class("usual", 5, true), class("other", 9, true)];
        let resolved =
            |classes: &[Value], mut pod: Value| resolve(classes, &mut pod).map(|()| pod["spec"].clone());
        assert_eq!(
            resolved(&classes, json!({"spec": {"priorityClassName": "high"}})),
            Ok(json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"}))
        );
        assert_eq!(
            resolved(&classes, json!({})).map(|spec| spec["priorityClassName"].clone()),
            Ok(json!("usual"))
        );
        assert_eq!(
            resolved(&[], json!({})),
            Ok(json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}))
        );
        assert_eq!(
            resolved(&classes, json!({"spec": {"priorityClassName": "none"}})),
            Err("no PriorityClass with name none was found".to_owned())
        );
        assert!(resolved(&[], json!({"spec": {"priority": 7}})).is_err());
    }
}
