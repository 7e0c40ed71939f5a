//! What a LimitRange says of a pod or a claim. Pure.

use crate::object::{as_map, field, list, meta, text};
use resources::quantity::Quantity;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What was asked for or allowed, by the resource's name.
type Amounts = BTreeMap<String, Quantity>;

const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Gives containers the requests and limits that the range has for those that have none, and notes it on the pod.
pub(super) fn fill(range: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    for item in list(range, "/spec/limits").iter().filter(|item| text(item, "/type") == "Container") {
        for kind in CONTAINERS {
            let containers = pod.pointer_mut(&format!("/spec/{kind}")).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                let word = if kind == "containers" { "container" } else { "init container" };
                let name = format!("{word} {}", text(container, "/name"));
                for (from, to, what) in
                    [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
                {
                    let set = merge(&item[from], container, to);
                    if !set.is_empty() {
                        notes.push(format!("{} {what} for {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        field(meta(pod), "annotations").insert("kubernetes.io/limit-ranger".to_owned(), note.into());
    }
}

/// Puts in what is not there; gives the names of it.
fn merge(from: &Value, container: &mut Value, to: &str) -> Vec<String> {
    let Some(from) = from.as_object() else { return Vec::new() };
    let missing = |own: &Map<String, Value>| {
        let names = from.keys().filter(|name| !own.contains_key(*name));
        names.cloned().collect::<Vec<_>>()
    };
    let own = container.pointer(&format!("/resources/{to}")).and_then(Value::as_object).cloned();
    let names = missing(&own.unwrap_or_default());
    if names.is_empty() {
        return names;
    }
    let own = field(field(as_map(container), "resources"), to);
    for name in &names {
        own.insert(name.clone(), from[name].clone());
    }
    names
}

/// In what an object goes beyond the range, as upstream says it.
pub(super) fn faults(range: &Value, object: &Value, is_pod: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for item in list(range, "/spec/limits") {
        match text(item, "/type") {
            "Container" if is_pod => {
                for container in containers(object) {
                    let (requests, limits) = (amounts(container, "requests"), amounts(container, "limits"));
                    check(item, "Container", &requests, &limits, &mut faults);
                }
            }
            "Pod" if is_pod => {
                let (requests, limits) = (whole(object, "requests"), whole(object, "limits"));
                check(item, "Pod", &requests, &limits, &mut faults);
            }
            kind @ "PersistentVolumeClaim" if !is_pod => {
                let asked = read(object.pointer("/spec/resources/requests"));
                // A claim has no limit: what it asks for is what it gets.
                check(item, kind, &asked, &asked, &mut faults);
            }
            _ => {}
        }
    }
    faults
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    CONTAINERS.iter().flat_map(|kind| list(pod, &format!("/spec/{kind}")))
}

fn amounts(container: &Value, kind: &str) -> Amounts {
    read(container.pointer(&format!("/resources/{kind}")))
}

fn read(value: Option<&Value>) -> Amounts {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), quantity(value)?))).collect()
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        other => Quantity::parse(&other.to_string()).ok(),
    }
}

/// What a pod takes: its containers together, or the init container that takes most, as they run one after another.
fn whole(pod: &Value, kind: &str) -> Amounts {
    let mut sum = Amounts::new();
    for container in list(pod, "/spec/containers") {
        for (name, amount) in amounts(container, kind) {
            let before = sum.get(&name).copied().unwrap_or(Quantity::from_value(0));
            sum.insert(name, before + amount);
        }
    }
    for container in list(pod, "/spec/initContainers") {
        for (name, amount) in amounts(container, kind) {
            let most = sum.entry(name).or_insert(amount);
            *most = (*most).max(amount);
        }
    }
    sum
}

fn check(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    for (name, least) in read(item.get("min")) {
        let bound = format!("minimum {name} usage per {kind} is {least}");
        match requests.get(&name) {
            None => faults.push(format!("{bound}. No request is specified")),
            Some(asked) if *asked < least => faults.push(format!("{bound}, but request is {asked}")),
            _ => {}
        }
        if let Some(limit) =
            limits.get(&name).filter(|limit| kind != "PersistentVolumeClaim" && **limit < least)
        {
            faults.push(format!("{bound}, but limit is {limit}"));
        }
    }
    for (name, most) in read(item.get("max")) {
        let bound = format!("maximum {name} usage per {kind} is {most}");
        match limits.get(&name) {
            None => faults.push(format!("{bound}. No limit is specified")),
            Some(limit) if *limit > most => {
                let what = if kind == "PersistentVolumeClaim" { "request" } else { "limit" };
                faults.push(format!("{bound}, but {what} is {limit}"));
            }
            _ => {}
        }
    }
    for (name, ratio) in read(item.get("maxLimitRequestRatio")) {
        let (Some(request), Some(limit)) = (requests.get(&name), limits.get(&name)) else { continue };
        let (request, limit) = (request.milli_value() as f64, limit.milli_value() as f64);
        if request > 0.0 && limit / request > ratio.milli_value() as f64 / 1000.0 {
            faults.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {:.6}",
                limit / request
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(resources: &[Value]) -> Value {
        let containers =
            resources.iter().enumerate().map(|(i, r)| json!({"name": format!("c{i}"), "resources": r}));
        json!({"metadata": {"name": "p"}, "spec": {"containers": containers.collect::<Vec<_>>()}})
    }

    #[test]
    fn what_is_not_said_is_filled_in_and_noted() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut two = pod(&[json!({"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}), json!({})]);
        fill(&range, &mut two);
        let containers = &two["spec"]["containers"];
        assert_eq!(
            containers[0]["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2"}})
        );
        assert_eq!(
            containers[1]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            two["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: memory limit for container c0; cpu request for container c1; \
             cpu, memory limit for container c1"
        );
        let before = two.clone();
        fill(&range, &mut two);
        assert_eq!(two, before);
    }

    #[test]
    fn too_much_and_too_little_are_told() {
        let bounds = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}});
        let one = |resources: Value| faults(&range(bounds.clone()), &pod(&[resources]), true);
        assert!(one(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}})).is_empty());
        assert_eq!(
            one(json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "2"}})),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum cpu usage per Container is 1, but limit is 2",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 40.000000",
            ]
        );
        assert_eq!(
            one(json!({})),
            [
                "minimum cpu usage per Container is 100m. No request is specified",
                "maximum cpu usage per Container is 1. No limit is specified",
            ]
        );
        let whole = range(json!({"type": "Pod", "max": {"memory": "1Gi"}}));
        let half = json!({"limits": {"memory": "600Mi"}});
        assert!(faults(&whole, &pod(std::slice::from_ref(&half)), true).is_empty());
        assert_eq!(
            faults(&whole, &pod(&[half.clone(), half]), true),
            ["maximum memory usage per Pod is 1Gi, but limit is 1200Mi"]
        );
        let claim = json!({"spec": {"resources": {"requests": {"storage": "10Gi"}}}});
        let storage = range(json!({"type": "PersistentVolumeClaim", "max": {"storage": "5Gi"}}));
        assert_eq!(
            faults(&storage, &claim, false),
            ["maximum storage usage per PersistentVolumeClaim is 5Gi, but request is 10Gi"]
        );
    }
}
