//! The quality of service that a pod's requests and limits amount to.

use crate::json::{fields, items, text};
use crate::quantity::Quantity;
use serde_json::Value;

const COUNTED: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(pod: &Value) -> &'static str {
    let containers = || items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers"));
    let asks = |c: &Value| {
        let lists = ["/resources/limits", "/resources/requests"];
        lists.iter().any(|list| COUNTED.iter().any(|name| amount(c, list, name).is_some()))
    };
    if !containers().any(asks) {
        return "BestEffort";
    }
    let bound = |c: &Value, name: &str| {
        let limit = amount(c, "/resources/limits", name);
        let request = amount(c, "/resources/requests", name);
        limit.is_some_and(|limit| request.is_none_or(|request| request == limit))
    };
    if containers().all(|c| COUNTED.iter().all(|name| bound(c, name))) { "Guaranteed" } else { "Burstable" }
}

fn amount(container: &Value, list: &str, name: &str) -> Option<Quantity> {
    fields(container, list)?.get(name)?;
    Quantity::parse(text(container, &format!("{list}/{name}"))).ok().filter(|q| !q.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        assert_eq!(class(&pod(json!({}))), "BestEffort");
        assert_eq!(class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(class(&pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
        let uneven =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}});
        assert_eq!(class(&pod(uneven)), "Burstable");
    }
}
