//! Resource quotas: what is used of them, for people to see. Admission counts for itself.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceQuota, ResourceQuotaStatus},
    apimachinery::pkg::api::resource::Quantity,
};
use resources::quota::{self, Amounts};
use serde::Serialize;
use serde_json::Value;

use crate::{
    kind::{Kinds, Object},
    meta::Entry,
    reconcile::Context,
    world::World,
    write::{Outcome, Write},
};

/// Whether a change of an object may change what is used: of pods, only their beginning and end do.
pub(crate) fn concerns(old: Option<&Object>, new: Option<&Object>) -> bool {
    match (old, new) {
        (Some(Object::Pod(old)), Some(Object::Pod(new))) => {
            crate::pod::is_finished(old) != crate::pod::is_finished(new) || old.spec != new.spec
        }
        (Some(Object::Service(old)), Some(Object::Service(new))) => old.spec != new.spec,
        (Some(Object::ResourceQuota(old)), Some(Object::ResourceQuota(new))) => {
            old.spec != new.spec || old.status != new.status
        }
        (Some(_), Some(_)) => false,
        _ => true,
    }
}

/// Reconciles one quota.
pub(crate) fn reconcile(namespace: &str, name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(found) = cx.world.quotas.get(namespace, name) else { return Outcome::default() };
    let as_json = json(found);
    let mut used = used(&as_json, namespace, cx.world);
    let hard = quota::hard(&as_json);
    used.retain(|name, _| hard.contains_key(name));
    for name in hard.keys() {
        used.entry(name.clone()).or_insert_with(|| resources::quantity::Quantity::from_value(0));
    }
    let show = |amounts: &Amounts| -> BTreeMap<String, Quantity> {
        amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))).collect()
    };
    let hard = found.spec.as_ref().and_then(|spec| spec.hard.clone());
    let wanted = ResourceQuotaStatus { hard, used: Some(show(&used)) };
    if found.status.as_ref() == Some(&wanted) {
        return Outcome::default();
    }
    Outcome::new(vec![Write::update_status(ResourceQuota { status: Some(wanted), ..found.clone() })])
}

fn used(quota: &Value, namespace: &str, world: &World) -> Amounts {
    let mut used = Amounts::new();
    let mut take = |group: &str, plural: &str, object: &Value| {
        if quota::covers(quota, group, plural, object) {
            quota::sum(&mut used, &quota::usage(group, plural, object));
        }
    };
    for pod in world.pods.in_namespace(namespace) {
        take("", "pods", &json(pod));
    }
    for service in world.services.in_namespace(namespace) {
        take("", "services", &json(service));
    }
    for claim in world.claims.in_namespace(namespace) {
        take("", "persistentvolumeclaims", &json(claim));
    }
    let kinds = world.kinds.as_ref();
    for entry in world.meta.in_namespace(namespace) {
        let Some((group, plural)) = kinds.and_then(|kinds| counted(kinds, entry)) else { continue };
        // The others were taken as a whole.
        if !group.is_empty() || !["pods", "services", "persistentvolumeclaims"].contains(&plural) {
            take(group, plural, &Value::Null);
        }
    }
    used
}

fn counted<'a>(kinds: &'a Kinds, entry: &Entry) -> Option<(&'a str, &'a str)> {
    let info = kinds.get(entry.kind)?;
    Some((info.resource.group.as_str(), info.resource.plural.as_str()))
}

fn json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::{Controller, Key};
    use crate::testing::{Sim, config, run};
    use k8s_openapi::api::core::v1::{Pod, Service};
    use serde_json::json;
    use tokio::time::Instant;

    fn settled(sim: &Sim) -> Option<Value> {
        let (key, now) = (Key::new(Controller::Quota, "d", "q"), Instant::now());
        let outcome = run(&sim.world(now), &key, &config(), now, 1);
        outcome.writes.first().map(|write| match write {
            Write::UpdateStatus { object } => object.to_json().unwrap()["status"]["used"].clone(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_is_used_is_shown() {
        let mut sim = Sim::new();
        sim.add::<ResourceQuota>(json!({"metadata": {"name": "q", "namespace": "d"},
            "spec": {"hard": {"pods": "3", "requests.cpu": "2", "count/services": "1", "secrets": "4"}}}));
        for (name, phase) in [("a", "Running"), ("b", "Succeeded")] {
            sim.add::<Pod>(json!({"metadata": {"name": name, "namespace": "d"}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}]}}));
        }
        sim.add::<Service>(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {}}));
        sim.add::<Service>(json!({"metadata": {"name": "s", "namespace": "other"}, "spec": {}}));
        let used = settled(&sim).unwrap();
        assert_eq!(used, json!({"pods": "1", "requests.cpu": "300m", "count/services": "1", "secrets": "0"}));
    }
}
