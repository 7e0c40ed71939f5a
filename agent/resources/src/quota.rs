//! What objects take of a namespace's ResourceQuota. Pure: admission and the quota's keeper count alike.

use crate::json::{fields, items, text};
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by the name that a quota gives them: `pods`, `requests.cpu`, `count/deployments.apps`.
pub type Amounts = BTreeMap<String, Quantity>;

/// What an object takes; nothing if it counts no more.
pub fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
    let mut taken = Amounts::new();
    let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    add(&mut taken, &format!("count/{qualified}"), one());
    match (group, plural) {
        ("", "pods") => pod(object, &mut taken),
        ("", "services") => service(object, &mut taken),
        ("", "persistentvolumeclaims") => claim(object, &mut taken),
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            add(&mut taken, plural, one())
        }
        _ => {}
    }
    taken
}

/// Adds amounts up.
pub fn sum(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        add(total, name, *amount);
    }
}

/// A quota's limits.
pub fn hard(quota: &Value) -> Amounts {
    amounts(quota, "/spec/hard")
}

/// Whether a quota counts this object: its scopes are about pods.
pub fn covers(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = items(quota, "/spec/scopes").iter().filter_map(Value::as_str);
    let selected = items(quota, "/spec/scopeSelector/matchExpressions");
    let mut conditions = scopes
        .map(|scope| in_scope(scope, "Exists", &[], object))
        .chain(
            selected
                .iter()
                .map(|e| in_scope(text(e, "/scopeName"), text(e, "/operator"), items(e, "/values"), object)),
        )
        .peekable();
    conditions.peek().is_none() || ((group, plural) == ("", "pods") && conditions.all(|holds| holds))
}

fn in_scope(scope: &str, operator: &str, values: &[Value], pod: &Value) -> bool {
    let has = match scope {
        "Terminating" => pod.pointer("/spec/activeDeadlineSeconds").is_some_and(Value::is_number),
        "NotTerminating" => !pod.pointer("/spec/activeDeadlineSeconds").is_some_and(Value::is_number),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = text(pod, "/spec/priorityClassName");
            return match operator {
                "In" => values.iter().any(|v| v == class),
                "NotIn" => !values.iter().any(|v| v == class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            };
        }
        "CrossNamespacePodAffinity" => false,
        _ => true,
    };
    has != (operator == "DoesNotExist")
}

fn is_best_effort(pod: &Value) -> bool {
    let asks = |c: &Value| {
        ["requests", "limits"].iter().any(|side| !amounts(c, &format!("/resources/{side}")).is_empty())
    };
    !containers(pod).any(asks)
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers"))
}

/// What a pod must say because a quota counts it, and does not: `limits.cpu for: main`.
pub fn unsaid(hard: &Amounts, pod: &Value) -> Vec<String> {
    let said = |container: &Value, name: &str| {
        let (side, resource) = name.split_once('.').unwrap_or(("requests", name));
        container
            .pointer(&format!("/resources/{side}"))
            .is_some_and(|amounts| amounts.get(resource).is_some())
    };
    let counted = hard.keys().filter(|name| {
        let resource = name.split_once('.').map_or(name.as_str(), |(_, resource)| resource);
        ["cpu", "memory", "ephemeral-storage"].contains(&resource)
    });
    counted
        .filter_map(|name| {
            let who: Vec<&str> =
                containers(pod).filter(|c| !said(c, name)).map(|c| text(c, "/name")).collect();
            (!who.is_empty()).then(|| format!("{name} for: {}", who.join(",")))
        })
        .collect()
}

/// What of a quota an object would go beyond: requested, used and limited, as upstream says it.
pub fn exceeded(hard: &Amounts, used: &Amounts, requested: &Amounts) -> Option<String> {
    let none = Quantity::from_value(0);
    let beyond: Vec<(&String, Quantity, Quantity, Quantity)> = hard
        .iter()
        .filter_map(|(name, limit)| {
            let wants = requested.get(name).copied().filter(|amount| !amount.is_zero())?;
            let has = used.get(name).copied().unwrap_or(none);
            (has + wants > *limit).then_some((name, wants, has, *limit))
        })
        .collect();
    if beyond.is_empty() {
        return None;
    }
    let show = |which: fn(&(&String, Quantity, Quantity, Quantity)) -> Quantity| {
        beyond.iter().map(|b| format!("{}={}", b.0, which(b))).collect::<Vec<_>>().join(",")
    };
    Some(format!("requested: {}, used: {}, limited: {}", show(|b| b.1), show(|b| b.2), show(|b| b.3)))
}

fn one() -> Quantity {
    Quantity::from_value(1)
}

fn add(total: &mut Amounts, name: &str, amount: Quantity) {
    let sum = total.get(name).map_or(amount, |old| *old + amount);
    total.insert(name.to_owned(), sum);
}

fn amounts(object: &Value, pointer: &str) -> Amounts {
    let parse = |value: &Value| match value {
        Value::String(text) => Quantity::parse(text).ok(),
        other => Quantity::parse(&other.to_string()).ok(),
    };
    fields(object, pointer)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), parse(value)?)))
        .collect()
}

/// A pod that has ended takes nothing but its own place in the store.
fn pod(pod: &Value, taken: &mut Amounts) {
    if ["Succeeded", "Failed"].contains(&text(pod, "/status/phase")) {
        return;
    }
    add(taken, "pods", one());
    for side in ["requests", "limits"] {
        for (name, amount) in total(pod, side) {
            add(taken, &format!("{side}.{name}"), amount);
            // The plain names mean requests.
            if side == "requests" && ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) {
                add(taken, &name, amount);
            }
        }
    }
}

/// The sum of what runs side by side, or what a step of the start takes if that is more.
fn total(pod: &Value, side: &str) -> Amounts {
    let of = |container: &Value| amounts(container, &format!("/resources/{side}"));
    let mut running = Amounts::new();
    for container in items(pod, "/spec/containers") {
        sum(&mut running, &of(container));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in items(pod, "/spec/initContainers") {
        let mut step = sidecars.clone();
        sum(&mut step, &of(container));
        if text(container, "/restartPolicy") == "Always" {
            sidecars.clone_from(&step);
        }
        raise(&mut most, &step);
    }
    sum(&mut running, &sidecars);
    raise(&mut running, &most);
    running.extend(amounts(pod, &format!("/spec/resources/{side}")));
    sum(&mut running, &amounts(pod, "/spec/overhead"));
    running
}

fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let most = total.get(name).map_or(*amount, |old| (*old).max(*amount));
        total.insert(name.clone(), most);
    }
}

fn service(service: &Value, taken: &mut Amounts) {
    add(taken, "services", one());
    let kind = text(service, "/spec/type");
    let ports = i64::try_from(items(service, "/spec/ports").len()).unwrap_or(i64::MAX);
    let allocates = service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    if kind == "LoadBalancer" {
        add(taken, "services.loadbalancers", one());
    }
    if kind == "NodePort" || (kind == "LoadBalancer" && allocates) {
        add(taken, "services.nodeports", Quantity::from_value(ports));
    }
}

fn claim(claim: &Value, taken: &mut Amounts) {
    let storage = amounts(claim, "/spec/resources/requests").get("storage").copied();
    let storage = storage.unwrap_or(Quantity::from_value(0));
    add(taken, "persistentvolumeclaims", one());
    add(taken, "requests.storage", storage);
    let class = text(claim, "/spec/storageClassName");
    if !class.is_empty() {
        add(taken, &format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
        add(taken, &format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(amounts: &Amounts, name: &str) -> String {
        amounts.get(name).map(Quantity::to_string).unwrap_or_default()
    }

    #[test]
    fn a_pod_takes_what_runs_side_by_side() {
        let cpu = |amount: &str| json!({"resources": {"requests": {"cpu": amount}}});
        let mut sidecar = cpu("100m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = json!({"spec": {"containers": [cpu("200m"), cpu("300m")], "initContainers": [sidecar, cpu("2")]}});
        let taken = usage("", "pods", &pod);
        assert_eq!(shown(&taken, "requests.cpu"), "2100m");
        assert_eq!((shown(&taken, "cpu"), shown(&taken, "pods")), ("2100m".into(), "1".into()));
        let ended = json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}});
        let taken = usage("", "pods", &ended);
        assert_eq!((shown(&taken, "pods"), shown(&taken, "count/pods")), (String::new(), "1".into()));
    }

    #[test]
    fn a_quota_is_kept_and_says_what_it_misses() {
        let quota = json!({"spec": {"hard": {"pods": "2", "limits.cpu": "1"}}});
        let hard = hard(&quota);
        let used = Amounts::from([("pods".to_owned(), Quantity::from_value(2))]);
        let wants = Amounts::from([("pods".to_owned(), Quantity::from_value(1))]);
        assert_eq!(
            exceeded(&hard, &used, &wants).unwrap(),
            "requested: pods=1, used: pods=2, limited: pods=2"
        );
        assert_eq!(exceeded(&hard, &Amounts::new(), &wants), None);
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}]}});
        assert_eq!(unsaid(&hard, &pod), ["limits.cpu for: a"]);
    }

    #[test]
    fn scopes_choose_pods() {
        let plain = json!({"spec": {"containers": [{"name": "a"}], "priorityClassName": "high"}});
        let scoped = |scope: &str| json!({"spec": {"scopes": [scope]}});
        assert!(
            covers(&scoped("BestEffort"), "", "pods", &plain)
                && !covers(&scoped("NotBestEffort"), "", "pods", &plain)
        );
        assert!(
            covers(&scoped("NotTerminating"), "", "pods", &plain)
                && !covers(&scoped("Terminating"), "", "pods", &plain)
        );
        assert!(!covers(&scoped("BestEffort"), "", "services", &json!({})));
        let class = json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(covers(&class, "", "pods", &plain) && !covers(&class, "", "pods", &json!({})));
        assert!(covers(&json!({"spec": {}}), "apps", "deployments", &json!({})));
    }

    #[test]
    fn other_kinds_are_counted() {
        let taken = usage("apps", "deployments", &json!({}));
        assert_eq!(shown(&taken, "count/deployments.apps"), "1");
        let balanced = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        let taken = usage("", "services", &balanced);
        assert_eq!(
            (shown(&taken, "services.nodeports"), shown(&taken, "services.loadbalancers")),
            ("2".into(), "1".into())
        );
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        let taken = usage("", "persistentvolumeclaims", &claim);
        assert_eq!(shown(&taken, "fast.storageclass.storage.k8s.io/requests.storage"), "1Gi");
    }
}
