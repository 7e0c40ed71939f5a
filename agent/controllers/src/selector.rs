//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

type Labels = BTreeMap<String, String>;

/// Whether labels match; a selector that says nothing matches nothing, so that no controller adopts everything.
pub(crate) fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let empty = Labels::new();
    let labels = labels.unwrap_or(&empty);
    let exact = selector.match_labels.as_ref().filter(|map| !map.is_empty());
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if exact.is_none() && expressions.is_empty() {
        return false;
    }
    exact.is_none_or(|exact| contains(labels, exact))
        && expressions.iter().all(|e| {
            let value = labels.get(&e.key);
            let listed = |v: &String| e.values.as_ref().is_some_and(|values| values.contains(v));
            match e.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether labels have all these pairs; no pairs match nothing.
pub(crate) fn matches_map(selector: Option<&Labels>, labels: Option<&Labels>) -> bool {
    let (Some(selector), Some(labels)) = (selector.filter(|s| !s.is_empty()), labels) else { return false };
    contains(labels, selector)
}

/// Whether a node, by its name and labels, is one a term asks for; a term that says nothing asks for none.
pub(crate) fn matches_term(term: &NodeSelectorTerm, name: &str, labels: &Labels) -> bool {
    let labelled = term.match_expressions.as_deref().unwrap_or_default();
    let named = term.match_fields.as_deref().unwrap_or_default();
    let fields = Labels::from([("metadata.name".to_owned(), name.to_owned())]);
    !(labelled.is_empty() && named.is_empty())
        && labelled.iter().all(|r| holds(r, labels))
        && named.iter().all(|r| holds(r, &fields))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compared = match values {
        [bound] => value.and_then(number).zip(number(bound)).map(|(value, bound)| value.cmp(&bound)),
        _ => None,
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => !value.is_some_and(|v| values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared.is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared.is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}

fn contains(labels: &Labels, pairs: &Labels) -> bool {
    pairs.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors() {
        let labels: Labels = serde_json::from_value(json!({"app": "web", "tier": "front"})).unwrap();
        for (selector, expect) in [
            (json!({}), false),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["web"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), false),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Gt", "values": ["1"]}]}), false),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(matches(&parsed, Some(&labels)), expect, "{selector}");
        }
    }

    #[test]
    fn terms_ask_for_nodes() {
        let labels: Labels = serde_json::from_value(json!({"disk": "ssd", "cores": "4"})).unwrap();
        for (term, expect) in [
            (json!({}), false),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}), false),
            (json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}), true),
            (json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}), false),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["3"]}]}), true),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]}), false),
            (json!({"matchExpressions": [{"key": "disk", "operator": "Gt", "values": ["3"]}]}), false),
            (json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}), true),
        ] {
            let parsed: NodeSelectorTerm = serde_json::from_value(term.clone()).unwrap();
            assert_eq!(matches_term(&parsed, "n1", &labels), expect, "{term}");
        }
    }
}
