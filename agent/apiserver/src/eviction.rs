//! Eviction: a delete that asks first whether a disruption budget allows it.

use crate::delete;
use crate::engine::Engine;
use crate::object::{self, field, list, text};
use crate::path::Target;
use crate::status::{Result, Status};
use crate::write::{Options, Part};
use resources::labels::Selector;
use serde_json::{Value, json};

/// Evictions that the budget's keeper has not seen yet; more must wait for it.
const MAX_DISRUPTED: usize = 2000;
const REFUSAL: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

impl Engine {
    /// Deletes a pod, if the budgets of its namespace allow it.
    pub async fn evict(&self, target: &Target, name: &str, options: &delete::Options) -> Result<()> {
        let pod = self.get(target, name)?;
        let namespace = text(&pod, "/metadata/namespace").to_owned();
        let budgets: Vec<Value> = self
            .all("policy", "poddisruptionbudgets", &namespace)
            .into_iter()
            .filter(|b| is_for(b, &pod))
            .collect();
        match budgets.as_slice() {
            _ if is_free(&pod) => {}
            [] => {}
            [budget] if disregards(budget, &pod) => {}
            [budget] => self.charge(&namespace, budget, name, options.dry_run).await?,
            _ => {
                let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Status::internal(why));
            }
        }
        self.delete(target, name, options).await.map(drop)
    }

    /// Takes one disruption from a budget.
    async fn charge(&self, namespace: &str, budget: &Value, pod: &str, dry_run: bool) -> Result<()> {
        let kind = resources::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_resource)?;
        let target = Target {
            kind: kind.clone(),
            namespace: Some(namespace.to_owned()),
            name: None,
            subresource: None,
        };
        let make = |old: &Value| charged(old, pod);
        let options = Options { dry_run, ..Options::own().on("status") };
        self.change(&target, object::name(budget), Part::Status, &options, make).await.map(drop)
    }
}

/// Whether a budget is for a pod; an empty selector is for all.
fn is_for(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object()
        && Selector::from_label_selector(selector).is_ok_and(|s| s.matches(pod.pointer("/metadata/labels")))
}

/// Whether a pod serves nobody any more, or not yet.
fn is_free(pod: &Value) -> bool {
    object::deleting(pod) || ["Succeeded", "Failed", "Pending"].contains(&text(pod, "/status/phase"))
}

/// Whether a budget lets this pod go because it is not ready: it does not count as healthy.
fn disregards(budget: &Value, pod: &Value) -> bool {
    let ready = list(pod, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let status = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let enough = status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0;
    !ready && (text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || enough)
}

/// A budget with one disruption less; or why there is none.
fn charged(budget: &Value, pod: &str) -> Result<Value> {
    let name = object::name(budget);
    let status = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let generation = budget.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    if status("observedGeneration") < generation {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(Status::too_many(REFUSAL, &cause, Some(10)));
    }
    if status("disruptionsAllowed") < 1 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status("desiredHealthy"),
            status("currentHealthy")
        );
        return Err(Status::too_many(REFUSAL, &cause, None));
    }
    let mut next = budget.clone();
    let changed = field(object::as_map(&mut next), "status");
    let disrupted = field(changed, "disruptedPods");
    if disrupted.len() >= MAX_DISRUPTED {
        return Err(Status::forbidden(
            "policy",
            "poddisruptionbudgets",
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    disrupted.insert(pod.to_owned(), object::timestamp(0).into());
    changed.insert("disruptionsAllowed".into(), json!(status("disruptionsAllowed") - 1));
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64, observed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"disruptionsAllowed": allowed, "observedGeneration": observed, "desiredHealthy": 2, "currentHealthy": 2}})
    }

    #[test]
    fn a_budget_is_spent_once_and_says_when_it_is() {
        let next = charged(&budget(1, 2), "p").unwrap();
        assert_eq!(next["status"]["disruptionsAllowed"], 0);
        assert!(next["status"]["disruptedPods"]["p"].is_string());
        let refused = charged(&next, "q").unwrap_err();
        assert_eq!((refused.code.as_u16(), refused.message.as_str()), (429, REFUSAL));
        let cause = "The disruption budget b needs 2 healthy pods and has 2 currently";
        assert_eq!(refused.to_value()["details"]["causes"][0]["message"], cause);
        let early = charged(&budget(1, 1), "p").unwrap_err();
        assert!(
            early.to_value()["details"]["causes"][0]["message"]
                .as_str()
                .unwrap()
                .contains("still being processed")
        );
    }

    #[test]
    fn which_pods_a_budget_is_about() {
        let pod = |ready: &str| {
            json!({"metadata": {"labels": {"app": "web"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
        };
        assert!(is_for(&budget(0, 2), &pod("True")));
        assert!(
            is_for(&json!({"spec": {"selector": {}}}), &pod("True"))
                && !is_for(&json!({"spec": {}}), &pod("True"))
        );
        assert!(disregards(&budget(0, 2), &pod("False")) && !disregards(&budget(0, 2), &pod("True")));
        assert!(is_free(&json!({"status": {"phase": "Pending"}})) && !is_free(&pod("True")));
    }
}
