//! Deployment: pods that change from one version to the next while they serve.

use super::BASE;
use super::columns::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, integer, number, string};
use super::workload::{
    Place, check_selector, check_share, check_template, fill_template, not_negative, share,
};
use crate::cause::{Causes, forbidden, invalid, not_supported};
use crate::json::{child, default, int, spec, text};
use crate::{Builtin, Column, Subresource, metadata, names};
use serde_json::Value;

pub const DEPLOYMENT: Builtin = Builtin {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: COLUMNS,
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

const COLUMNS: &[Column] = &[
    NAME,
    string("Ready", |object, _| {
        let count = |pointer| int(object, pointer).unwrap_or(0);
        format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas")).into()
    }),
    integer("Up-to-date", |object, _| number(object, "/status/updatedReplicas")),
    integer("Available", |object, _| number(object, "/status/availableReplicas")),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn defaults(object: &mut Value) {
    if let Some(deployment) = object.as_object_mut() {
        child(deployment, "status");
    }
    let Some(spec) = spec(object) else { return };
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child(spec, "strategy") {
        default(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate")
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxSurge", "25%");
            default(rolling, "maxUnavailable", "25%");
        }
    }
    fill_template(spec);
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    for field in
        ["spec.replicas", "spec.minReadySeconds", "spec.revisionHistoryLimit", "spec.progressDeadlineSeconds"]
    {
        not_negative(new, field, &mut causes);
    }
    if let (Some(deadline), Some(ready)) =
        (int(new, "/spec/progressDeadlineSeconds"), int(new, "/spec/minReadySeconds"))
        && deadline <= ready
    {
        let detail = "must be greater than minReadySeconds";
        causes.push(invalid("spec.progressDeadlineSeconds", deadline, detail));
    }
    let selector = check_selector(new, old, "deployment", &mut causes);
    check_strategy(new, &mut causes);
    check_template(new, Place::Template("ReplicaSet"), selector.as_ref(), &mut causes);
    causes
}

fn check_strategy(object: &Value, causes: &mut Causes) {
    let rolling = object.pointer("/spec/strategy/rollingUpdate").filter(|r| !r.is_null());
    match text(object, "/spec/strategy/type") {
        "Recreate" => {
            if rolling.is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                causes.push(forbidden("spec.strategy.rollingUpdate", detail));
            }
        }
        "RollingUpdate" => {
            let Some(rolling) = rolling else { return };
            let mut both_nought = true;
            for name in ["maxUnavailable", "maxSurge"] {
                let field = format!("spec.strategy.rollingUpdate.{name}");
                let value = rolling.get(name).cloned().unwrap_or_default();
                both_nought &= share(&value) == Some(0);
                check_share(&value, &field, name == "maxUnavailable", causes);
            }
            if both_nought {
                let detail = "may not be 0 when `maxSurge` is 0";
                causes.push(invalid("spec.strategy.rollingUpdate.maxUnavailable", 0, detail));
            }
        }
        other => causes.push(not_supported("spec.strategy.type", other, &["Recreate", "RollingUpdate"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> Value {
        let mut deployment = json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "a", "image": "a"}]}}}});
        defaults(&mut deployment);
        deployment
    }

    #[test]
    fn a_small_deployment_is_filled_and_good() {
        let deployment = deployment();
        assert_eq!(validate(&deployment, None), []);
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
        assert_eq!(deployment["spec"]["strategy"], strategy);
        assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 600);
        assert_eq!(deployment["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert!(deployment["spec"]["template"]["spec"].get("enableServiceLinks").is_none());
    }

    #[test]
    fn the_selector_matches_and_stays() {
        let old = deployment();
        let mut new = old.clone();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "x"}});
        let causes = validate(&new, Some(&old));
        let found: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            found,
            [
                "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template \
                 `labels`",
            ]
        );
    }

    #[test]
    fn strategies_are_checked() {
        let mut bad = deployment();
        bad["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": 0, "maxUnavailable": "0%"});
        assert_eq!(validate(&bad, None)[0].field, "spec.strategy.rollingUpdate.maxUnavailable");
        bad["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}});
        assert_eq!(validate(&bad, None)[0].reason, "FieldValueForbidden");
        bad["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        assert!(validate(&bad, None).iter().any(|c| c.field == "spec.template.spec.restartPolicy"));
    }
}
