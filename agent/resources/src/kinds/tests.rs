//! What must hold for every kind.

use super::all;
use crate::schema::conform;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A good object of each kind.
fn samples() -> Vec<Value> {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{
        "name": "web", "image": "nginx:1", "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "0.5"}},
        "readinessProbe": {"tcpSocket": {"port": 80}},
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "hostPath": {"path": "/data"}}, {"name": "c", "configMap": {"name": "c"}}],
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]}});
    let selector = json!({"matchLabels": {"app": "web"}});
    let bodies = [
        ("Pod", json!({"spec": template["spec"]})),
        (
            "Service",
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"app": "web"}}}),
        ),
        ("Endpoints", json!({"subsets": [{"addresses": [{"ip": "10.1.0.2"}], "ports": [{"port": 80}]}]})),
        (
            "Node",
            json!({"spec": {"podCIDR": "10.1.0.0/24", "taints": [{"key": "a", "effect": "NoExecute"}]}}),
        ),
        ("Namespace", json!({})),
        ("ReplicationController", json!({"spec": {"template": template}})),
        ("ConfigMap", json!({"data": {"a": "b"}, "binaryData": {"c": "aGk="}})),
        ("Secret", json!({"stringData": {"a": "b"}})),
        ("ServiceAccount", json!({})),
        (
            "Event",
            json!({"involvedObject": {"kind": "Pod", "name": "web", "namespace": "home"}, "reason": "Started"}),
        ),
        ("Deployment", json!({"spec": {"selector": selector, "template": template}})),
        ("ReplicaSet", json!({"spec": {"selector": selector, "template": template}})),
        ("EndpointSlice", json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.2"]}]})),
        ("Lease", json!({"spec": {"holderIdentity": "pi-1", "leaseDurationSeconds": 40}})),
    ];
    let known = |kind: &str| all().iter().find(|d| d.kind == kind).expect("kind");
    let named = |(kind, mut body): (&str, Value)| {
        body["apiVersion"] = known(kind).api_version().into();
        body["kind"] = kind.into();
        body["metadata"] = json!({"name": "web"});
        if known(kind).namespaced {
            body["metadata"]["namespace"] = "home".into();
        }
        body
    };
    bodies.into_iter().map(named).collect()
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
        (d.defaults)(&mut object);
        assert_eq!((d.validate)(&object, None), [], "{}", d.kind);
        assert_eq!((d.validate)(&object, Some(&object)), [], "{} unchanged", d.kind);
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
        (d.defaults)(&mut object);
        let once = object.clone();
        (d.defaults)(&mut object);
        assert_eq!(object, once, "{}", d.kind);
    }
}

#[test]
fn filled_objects_are_what_typed_clients_expect() {
    use k8s_openapi::api::{
        apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    };
    fn same<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).expect("typed");
        assert_eq!(serde_json::to_value(typed).expect("json"), *object);
    }
    for mut object in samples() {
        let d = descriptor(&object);
        (d.defaults)(&mut object);
        match d.kind {
            "Pod" => same::<core::Pod>(&object),
            "Service" => same::<core::Service>(&object),
            "Endpoints" => same::<core::Endpoints>(&object),
            "Node" => same::<core::Node>(&object),
            "Namespace" => same::<core::Namespace>(&object),
            "ReplicationController" => same::<core::ReplicationController>(&object),
            "ConfigMap" => same::<core::ConfigMap>(&object),
            "Secret" => same::<core::Secret>(&object),
            "ServiceAccount" => same::<core::ServiceAccount>(&object),
            "Event" => same::<core::Event>(&object),
            "Deployment" => same::<apps::Deployment>(&object),
            "ReplicaSet" => same::<apps::ReplicaSet>(&object),
            "EndpointSlice" => same::<discovery::EndpointSlice>(&object),
            "Lease" => same::<coordination::Lease>(&object),
            other => panic!("no typed {other}"),
        }
    }
}

#[test]
fn names_are_unique_and_found() {
    for d in all() {
        assert_eq!(crate::find(d.group, d.version, d.plural).map(|f| f.kind), Some(d.kind));
        assert_eq!(crate::find_kind(&d.api_version(), d.kind).map(|f| f.plural), Some(d.plural));
        assert_eq!(d.columns.iter().filter(|c| c.format == "name").count(), 1, "{}", d.kind);
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
            (d.defaults)(&mut object);
            let once = object.clone();
            (d.defaults)(&mut object);
            prop_assert_eq!(&object, &once, "{}", d.kind);
            (d.validate)(&object, None);
            (d.validate)(&object, Some(&old));
            (d.grace)(&object);
            if object.is_object() {
                object["apiVersion"] = d.api_version().into();
                object["kind"] = d.kind.into();
            }
            conform(&mut object);
            let again = conform(&mut object);
            prop_assert_eq!(again.map(|f| f.unknown).unwrap_or_default(), Vec::<String>::new());
        }
    }
}
