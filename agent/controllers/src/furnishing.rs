//! What every namespace has from the start: the service account `default`, and the CA by which pods know the API.

use serde_json::{Value, json};

use crate::{
    reconcile::Context,
    write::{Outcome, Write},
};

const ACCOUNT: &str = "default";
const CA: &str = "kube-root-ca.crt";

/// Whether an object of a kind that is known by its metadata may be one of these.
pub(crate) fn is_furniture(name: &str) -> bool {
    name == ACCOUNT || name == CA
}

/// Reconciles one namespace.
pub(crate) fn reconcile(namespace: &str, cx: &mut Context<'_>) -> Outcome {
    let ending = cx.world.namespaces.get("", namespace).map(|ns| ns.metadata.deletion_timestamp.is_some());
    let Some(kinds) = cx.world.kinds.as_ref().filter(|_| ending == Some(false)) else {
        return Outcome::default();
    };
    let account = ("ServiceAccount", ACCOUNT, json!({}));
    let text = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as \
        the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
        Kubernetes clusters.";
    let annotations = json!({"kubernetes.io/description": text});
    let ca = (
        "ConfigMap",
        CA,
        json!({"data": {"ca.crt": cx.config.ca}, "metadata": {"annotations": annotations}}),
    );
    let wanted = [Some(account), Some(ca).filter(|_| !cx.config.ca.is_empty())];
    let make = |(kind, name, mut object): (&str, &str, Value)| {
        let id = kinds.find("v1", kind)?;
        (object["apiVersion"], object["kind"]) = ("v1".into(), kind.into());
        (object["metadata"]["name"], object["metadata"]["namespace"]) = (name.into(), namespace.into());
        let missing = !cx.world.meta.is_there(id, namespace, name);
        missing.then(|| Write::Make { kind: id, namespace: namespace.to_owned(), object })
    };
    Outcome::new(wanted.into_iter().flatten().filter_map(make).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{KindInfo, Kinds};
    use crate::reconcile::{Controller, Key};
    use crate::testing::{Sim, config, run};
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
    use kube::core::ApiResource;
    use tokio::time::Instant;

    fn names(sim: &Sim) -> Vec<String> {
        let config = crate::Config { ca: "PEM".into(), ..config() };
        let (key, now) = (Key::new(Controller::Furnishing, "", "home"), Instant::now());
        let outcome = run(&sim.world(now), &key, &config, now, 1);
        let name = |write: &Write| match write {
            Write::Make { object, .. } => object["metadata"]["name"].as_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        outcome.writes.iter().map(name).collect()
    }

    #[test]
    fn a_namespace_is_furnished_until_it_ends() {
        let mut sim = Sim::new();
        let info = |resource| KindInfo { resource, namespaced: true };
        sim.kinds.push(info(ApiResource::erase::<ServiceAccount>(&())));
        sim.kinds.push(info(ApiResource::erase::<ConfigMap>(&())));
        assert!(names(&sim).is_empty());
        sim.add::<Namespace>(json!({"metadata": {"name": "home"}}));
        assert_eq!(names(&sim), ["default", "kube-root-ca.crt"]);
        let kind = Kinds::find(&sim.kinds, "v1", "ServiceAccount").unwrap();
        sim.create(kind, json!({"metadata": {"name": "default", "namespace": "home"}})).unwrap();
        assert_eq!(names(&sim), ["kube-root-ca.crt"]);
        sim.edit::<Namespace>("", "home", |ns| {
            ns["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
        });
        assert!(names(&sim).is_empty());
    }
}
