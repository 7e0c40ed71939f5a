//! What must hold for every kind.

use super::all;
use crate::schema::conform;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A good object of each kind, from `samples.json`; `$TEMPLATE` and the like are filled in.
fn samples() -> Vec<Value> {
    let samples: Vec<Value> = serde_json::from_str(include_str!("samples.json")).expect("JSON");
    samples.into_iter().map(fill).collect()
}

fn fill(mut sample: Value) -> Value {
    let pod = json!({"containers": [{
        "name": "web", "image": "nginx:1", "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "0.5"}},
        "readinessProbe": {"tcpSocket": {"port": 80}},
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "hostPath": {"path": "/data"}}, {"name": "c", "configMap": {"name": "c"}}],
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]});
    let mut once = pod.clone();
    once["restartPolicy"] = "Never".into();
    let labels = json!({"labels": {"app": "web"}});
    let parts = [
        ("$POD", pod.clone()),
        ("$TEMPLATE", json!({"metadata": labels, "spec": pod})),
        ("$ONCE", json!({"spec": once})),
        ("$SELECTOR", json!({"matchLabels": {"app": "web"}})),
    ];
    replace(&mut sample, &parts);
    let descriptor = descriptor(&sample);
    if sample["metadata"].is_null() {
        sample["metadata"] = json!({"name": "web"});
    }
    if descriptor.namespaced {
        sample["metadata"]["namespace"] = "home".into();
    }
    sample
}

fn replace(value: &mut Value, parts: &[(&str, Value)]) {
    if let Some((_, part)) = parts.iter().find(|(name, _)| value.as_str() == Some(name)) {
        *value = part.clone();
    }
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|v| replace(v, parts)),
        Value::Array(items) => items.iter_mut().for_each(|v| replace(v, parts)),
        _ => {}
    }
}

/// The descriptor of an object.
fn descriptor(object: &Value) -> &'static crate::Descriptor {
    let text = |name: &str| object[name].as_str().expect("text");
    crate::find_kind(text("apiVersion"), text("kind")).expect("known kind")
}

#[test]
fn every_kind_has_a_good_sample() {
    let samples = samples();
    assert_eq!(samples.len(), all().len());
    for mut object in samples {
        let d = descriptor(&object);
        d.defaults(&mut object);
        assert_eq!(d.validate(&object, None), [], "{}", d.kind);
        assert_eq!(d.validate(&object, Some(&object)), [], "{} unchanged", d.kind);
        let before = object.clone();
        let found = conform(&mut object).expect("schema");
        assert_eq!((found.unknown, found.mistyped), (vec![], vec![]), "{}", d.kind);
        assert_eq!(object, before, "{}", d.kind);
    }
}

#[test]
fn defaults_are_idempotent() {
    for mut object in samples() {
        let d = descriptor(&object);
        d.defaults(&mut object);
        let once = object.clone();
        d.defaults(&mut object);
        assert_eq!(object, once, "{}", d.kind);
    }
}

#[test]
fn filled_objects_are_what_typed_clients_expect() {
    use k8s_openapi::api::{
        admissionregistration::v1 as admission, apps::v1 as apps, autoscaling, batch::v1 as batch,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
        scheduling::v1 as scheduling, storage::v1 as storage,
    };
    fn same<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).expect("typed");
        assert_eq!(serde_json::to_value(typed).expect("json"), *object);
    }
    for mut object in samples() {
        let d = descriptor(&object);
        d.defaults(&mut object);
        match (d.api_version().as_str(), &*d.kind) {
            ("v1", "Pod") => same::<core::Pod>(&object),
            ("v1", "Service") => same::<core::Service>(&object),
            ("v1", "Endpoints") => same::<core::Endpoints>(&object),
            ("v1", "Node") => same::<core::Node>(&object),
            ("v1", "Namespace") => same::<core::Namespace>(&object),
            ("v1", "ReplicationController") => same::<core::ReplicationController>(&object),
            ("v1", "ConfigMap") => same::<core::ConfigMap>(&object),
            ("v1", "Secret") => same::<core::Secret>(&object),
            ("v1", "ServiceAccount") => same::<core::ServiceAccount>(&object),
            ("v1", "Event") => same::<core::Event>(&object),
            ("events.k8s.io/v1", "Event") => same::<events::Event>(&object),
            ("apps/v1", "Deployment") => same::<apps::Deployment>(&object),
            ("apps/v1", "ReplicaSet") => same::<apps::ReplicaSet>(&object),
            ("discovery.k8s.io/v1", "EndpointSlice") => same::<discovery::EndpointSlice>(&object),
            ("coordination.k8s.io/v1", "Lease") => same::<coordination::Lease>(&object),
            ("v1", "PersistentVolume") => same::<core::PersistentVolume>(&object),
            ("v1", "PersistentVolumeClaim") => same::<core::PersistentVolumeClaim>(&object),
            ("v1", "ResourceQuota") => same::<core::ResourceQuota>(&object),
            ("v1", "LimitRange") => same::<core::LimitRange>(&object),
            ("v1", "PodTemplate") => same::<core::PodTemplate>(&object),
            ("apps/v1", "DaemonSet") => same::<apps::DaemonSet>(&object),
            ("apps/v1", "StatefulSet") => same::<apps::StatefulSet>(&object),
            ("apps/v1", "ControllerRevision") => same::<apps::ControllerRevision>(&object),
            ("batch/v1", "Job") => same::<batch::Job>(&object),
            ("batch/v1", "CronJob") => same::<batch::CronJob>(&object),
            ("storage.k8s.io/v1", "StorageClass") => same::<storage::StorageClass>(&object),
            ("autoscaling/v2", _) => same::<autoscaling::v2::HorizontalPodAutoscaler>(&object),
            ("autoscaling/v1", _) => same::<autoscaling::v1::HorizontalPodAutoscaler>(&object),
            ("policy/v1", "PodDisruptionBudget") => same::<policy::PodDisruptionBudget>(&object),
            ("networking.k8s.io/v1", "NetworkPolicy") => same::<networking::NetworkPolicy>(&object),
            ("networking.k8s.io/v1", "Ingress") => same::<networking::Ingress>(&object),
            ("networking.k8s.io/v1", "IngressClass") => same::<networking::IngressClass>(&object),
            ("rbac.authorization.k8s.io/v1", "Role") => same::<rbac::Role>(&object),
            ("rbac.authorization.k8s.io/v1", "ClusterRole") => same::<rbac::ClusterRole>(&object),
            ("rbac.authorization.k8s.io/v1", "RoleBinding") => same::<rbac::RoleBinding>(&object),
            ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
                same::<rbac::ClusterRoleBinding>(&object)
            }
            ("certificates.k8s.io/v1", "CertificateSigningRequest") => {
                same::<k8s_openapi::api::certificates::v1::CertificateSigningRequest>(&object);
            }
            ("scheduling.k8s.io/v1", "PriorityClass") => same::<scheduling::PriorityClass>(&object),
            ("node.k8s.io/v1", "RuntimeClass") => same::<node::RuntimeClass>(&object),
            ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
                same::<admission::ValidatingAdmissionPolicy>(&object);
            }
            ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
                same::<admission::ValidatingAdmissionPolicyBinding>(&object);
            }
            ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
                same::<admission::MutatingWebhookConfiguration>(&object);
            }
            ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration") => {
                same::<admission::ValidatingWebhookConfiguration>(&object);
            }
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
                use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
                same::<apiextensions::CustomResourceDefinition>(&object);
            }
            (version, kind) => panic!("no typed {version} {kind}"),
        }
    }
}

#[test]
fn what_is_kept_as_another_version_comes_back_the_same() {
    for object in samples() {
        let kind = descriptor(&object);
        let mut same = object.clone();
        kind.store(&mut same);
        kind.load(&mut same);
        assert_eq!(same, object);
        let version = same["apiVersion"].as_str().expect("version").to_owned();
        let kept = crate::find_kind(&version, &kind.kind).expect("the kept kind");
        assert_eq!(kept.volatile, kind.volatile);
    }
}

#[test]
fn names_are_unique_and_found() {
    for d in all() {
        assert_eq!(crate::find(&d.group, &d.version, &d.plural).map(|f| &f.kind), Some(&d.kind));
        assert_eq!(crate::find_kind(&d.api_version(), &d.kind).map(|f| &f.plural), Some(&d.plural));
        assert_eq!(d.columns().iter().filter(|c| c["format"] == "name").count(), 1, "{}", d.kind);
    }
}

/// Any JSON with the field names that defaults and validation look at.
fn any_object() -> impl Strategy<Value = Value> {
    const NAMES: &str = "(metadata|name|labels|spec|status|template|containers|initContainers|volumes|ports|port|env|\
        selector|matchLabels|matchExpressions|resources|limits|cpu|httpGet|livenessProbe|strategy|rollingUpdate|type|\
        subsets|addresses|endpoints|data|stringData|taints|tolerations|clusterIP|clusterIPs|finalizers|replicas)";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-zA-Z0-9.%/-]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((NAMES, inner), 0..6).prop_map(|f| Value::Object(f.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_object_survives(object in any_object(), old in any_object()) {
        for d in all() {
            let mut object = object.clone();
            d.defaults(&mut object);
            let once = object.clone();
            d.defaults(&mut object);
            prop_assert_eq!(&object, &once, "{}", d.kind);
            d.validate(&object, None);
            d.validate(&object, Some(&old));
            d.grace(&object);
            if object.is_object() {
                object["apiVersion"] = d.api_version().into();
                object["kind"] = d.kind.as_ref().into();
            }
            conform(&mut object);
            let again = conform(&mut object);
            prop_assert_eq!(again.map(|f| f.unknown).unwrap_or_default(), Vec::<String>::new());
        }
    }
}
