//! StatefulSet: pods with names and disks of their own, in order.

use super::BASE;
use super::columns::{AGE, CONTAINERS, IMAGES, NAME, string};
use super::workload::{Place, check_selector, check_template, fill_template, not_negative};
use super::{persistent_volume_claim, workload};
use crate::cause::{Causes, forbidden, invalid, required};
use crate::json::{Fields, child, children, counters, default, int, items, spec, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::{Value, json};

pub const STATEFUL_SET: Builtin = Builtin {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: &[
        NAME,
        string("Ready", |object, _| {
            let count = |pointer| int(object, pointer).unwrap_or(0);
            format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas")).into()
        }),
        AGE,
        CONTAINERS,
        IMAGES,
    ],
    defaults,
    validate,
    generation: "spec",
    ..BASE
};

/// What of the specification may change.
const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn defaults(object: &mut Value) {
    if let Some(spec) = spec(object) {
        default(spec, "podManagementPolicy", "OrderedReady");
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = child(spec, "updateStrategy") {
            default(strategy, "type", "RollingUpdate");
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate")
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                default(rolling, "partition", 0);
            }
        }
        if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
            default(policy, "whenDeleted", "Retain");
            default(policy, "whenScaled", "Retain");
        }
        for claim in children(spec, "volumeClaimTemplates") {
            default(claim, "apiVersion", "v1");
            default(claim, "kind", "PersistentVolumeClaim");
            child(claim, "metadata");
            persistent_volume_claim::fill(claim);
        }
        fill_template(spec);
    }
    counters(object, &["replicas", "availableReplicas"]);
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let management = text(new, "/spec/podManagementPolicy");
    if management.is_empty() {
        causes.push(required("spec.podManagementPolicy", ""));
    } else if !["OrderedReady", "Parallel"].contains(&management) {
        let detail = "must be 'OrderedReady' or 'Parallel'";
        causes.push(invalid("spec.podManagementPolicy", management, detail));
    }
    check_strategy(new, &mut causes);
    for (i, claim) in items(new, "/spec/volumeClaimTemplates").iter().enumerate() {
        let field = format!("spec.volumeClaimTemplates[{i}]");
        persistent_volume_claim::check_spec(claim, &field, &mut causes);
    }
    for field in ["spec.replicas", "spec.minReadySeconds", "spec.revisionHistoryLimit", "spec.ordinals.start"]
    {
        not_negative(new, field, &mut causes);
    }
    for field in ["whenDeleted", "whenScaled"] {
        let field = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
        workload::one_of(new, &field, &["Retain", "Delete"], &mut causes);
    }
    let selector = check_selector(new, None, "statefulset", &mut causes);
    check_template(&with_claims(new), Place::Template("StatefulSet"), selector.as_ref(), &mut causes);
    if let Some(old) = old
        && fixed(new) != fixed(old)
    {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                      'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                      'minReadySeconds' are forbidden";
        causes.push(forbidden("spec", detail));
    }
    causes
}

/// The object with its claims among the template's volumes, as its pods will have them.
fn with_claims(object: &Value) -> Value {
    let claims = items(object, "/spec/volumeClaimTemplates").iter().map(|c| text(c, "/metadata/name"));
    let claims: Vec<&str> = claims.filter(|name| !name.is_empty()).collect();
    let mut whole = object.clone();
    let pod = whole.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut);
    let volumes = pod.map(|pod| pod.entry("volumes").or_insert_with(|| json!([])));
    if let Some(volumes) = volumes.and_then(Value::as_array_mut) {
        volumes.retain(|volume| !claims.contains(&text(volume, "/name")));
        volumes.extend(claims.iter().map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}})));
    }
    whole
}

/// The specification without what may change.
fn fixed(object: &Value) -> Fields {
    let mut spec = object.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    spec.retain(|name, _| !CHANGEABLE.contains(&name.as_str()));
    spec
}

fn check_strategy(object: &Value, causes: &mut Causes) {
    let rolling = object.pointer("/spec/updateStrategy/rollingUpdate");
    match text(object, "/spec/updateStrategy/type") {
        "" => causes.push(required("spec.updateStrategy", "")),
        "OnDelete" => {
            if let Some(rolling) = rolling.filter(|r| !r.is_null()) {
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                causes.push(invalid("spec.updateStrategy.rollingUpdate", rolling.clone(), detail));
            }
        }
        "RollingUpdate" => not_negative(object, "spec.updateStrategy.rollingUpdate.partition", causes),
        other => {
            causes.push(invalid("spec.updateStrategy", other, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_of_it_may_change() {
        let mut old = json!({"metadata": {"name": "db"}, "spec": {"serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}}, "template": {"metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "a", "image": "a",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}});
        defaults(&mut old);
        assert_eq!(validate(&old, None), []);
        assert_eq!(old["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
        let mut new = old.clone();
        new["spec"]["replicas"] = 3.into();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "b".into();
        assert_eq!(validate(&new, Some(&old)), []);
        new["spec"]["serviceName"] = "other".into();
        let causes = validate(&new, Some(&old));
        assert_eq!(
            (causes.len(), causes[0].field.as_str(), causes[0].reason),
            (1, "spec", "FieldValueForbidden")
        );
        new["spec"]["updateStrategy"] = json!({"type": "OnDelete", "rollingUpdate": {}});
        assert_eq!(validate(&new, None)[0].field, "spec.updateStrategy.rollingUpdate");
    }
}
