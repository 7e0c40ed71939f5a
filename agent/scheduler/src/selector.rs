//! Label selectors and node selectors.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Whether labels match. A selector that is there but says nothing matches everything, none at all matches nothing.
pub(crate) fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    let exact = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    exact
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|e| holds(&e.operator, labels.get(&e.key), e.values.as_deref().unwrap_or_default()))
}

/// Whether labels have all of these pairs, and there are some.
pub(crate) fn matches_map(wanted: Option<&Labels>, labels: &Labels) -> bool {
    wanted.is_some_and(|map| !map.is_empty() && map.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// Whether a node matches a term; an empty term matches nothing.
pub(crate) fn matches_term(term: &NodeSelectorTerm, name: &str, labels: &Labels) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let by_name = name.to_owned();
    let requirement = |r: &NodeSelectorRequirement, value: Option<&String>| {
        holds(&r.operator, value, r.values.as_deref().unwrap_or_default())
    };
    expressions.iter().all(|r| requirement(r, labels.get(&r.key)))
        && fields.iter().all(|r| requirement(r, (r.key == "metadata.name").then_some(&by_name)))
}

fn holds(operator: &str, value: Option<&String>, values: &[String]) -> bool {
    let compared = |greater: bool| {
        let (Some(value), [bound]) = (value, values) else { return false };
        match (value.parse::<i64>(), bound.parse::<i64>()) {
            (Ok(value), Ok(bound)) => {
                if greater {
                    value > bound
                } else {
                    value < bound
                }
            }
            _ => false,
        }
    };
    match operator {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => !value.is_some_and(|v| values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(true),
        "Lt" => compared(false),
        _ => false,
    }
}
