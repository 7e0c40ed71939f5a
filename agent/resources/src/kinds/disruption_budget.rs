//! PodDisruptionBudget: how many pods may be taken away at once.

use super::BASE;
use super::columns::{AGE, NAME, integer, number, string};
use super::workload::{check_share, one_of};
use crate::cause::{Causes, invalid};
use crate::json::{child, counters, text};
use crate::labels::Selector;
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const POD_DISRUPTION_BUDGET: Builtin = Builtin {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Min Available", |budget, _| share_or_none(budget, "/spec/minAvailable")),
        string("Max Unavailable", |budget, _| share_or_none(budget, "/spec/maxUnavailable")),
        integer("Allowed Disruptions", |budget, _| number(budget, "/status/disruptionsAllowed")),
        AGE,
    ],
    defaults: |object| {
        if let Some(budget) = object.as_object_mut() {
            child(budget, "spec");
        }
        counters(object, &["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"]);
    },
    validate,
    generation: "spec",
    ..BASE
};

fn share_or_none(budget: &Value, pointer: &str) -> Value {
    match budget.pointer(pointer) {
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Number(number)) => number.to_string().into(),
        _ => "N/A".into(),
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let of = |name: &str| new.pointer(&format!("/spec/{name}")).filter(|v| !v.is_null());
    if of("minAvailable").is_some() && of("maxUnavailable").is_some() {
        let spec = new.get("spec").cloned().unwrap_or_default();
        causes.push(invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"));
    }
    for name in ["minAvailable", "maxUnavailable"] {
        if let Some(value) = of(name) {
            check_share(value, &format!("spec.{name}"), true, &mut causes);
        }
    }
    if let Some(selector) = of("selector")
        && let Err(error) = Selector::from_label_selector(selector)
    {
        causes.push(invalid("spec.selector", selector.clone(), &error.to_string()));
    }
    if !text(new, "/spec/unhealthyPodEvictionPolicy").is_empty() {
        let words = ["AlwaysAllow", "IfHealthyBudget"];
        one_of(new, "spec.unhealthyPodEvictionPolicy", &words, &mut causes);
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_side_is_given() {
        let budget = |spec: Value| json!({"metadata": {"name": "b"}, "spec": spec});
        assert_eq!(validate(&budget(json!({"minAvailable": "50%"})), None), []);
        let both = budget(json!({"minAvailable": 1, "maxUnavailable": "x"}));
        let fields: Vec<String> = validate(&both, None).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["spec", "spec.maxUnavailable"]);
        assert_eq!(share_or_none(&both, "/spec/minAvailable"), "1");
        assert_eq!(share_or_none(&both, "/spec/other"), "N/A");
    }
}
