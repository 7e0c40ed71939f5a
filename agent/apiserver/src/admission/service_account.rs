//! Which service account a pod runs as, and how it comes by that account's token. Pure.

use crate::object::{as_map, field, list, text};
use serde_json::{Value, json};

/// Where programs look for it.
const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// As long as upstream's: programs look at the file again long before.
const SECONDS: i64 = 3607;

/// Fills in the account's name; it is `default` unless said otherwise.
pub(super) fn name(pod: &mut Value) -> String {
    let spec = field(as_map(pod), "spec");
    let said = |key: &str| spec.get(key).and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = said("serviceAccountName").or(said("serviceAccount")).unwrap_or("default").to_owned();
    spec.insert("serviceAccountName".into(), name.as_str().into());
    spec.insert("serviceAccount".into(), name.as_str().into());
    name
}

/// What a pod gets from its account: secrets to pull with, and a token.
pub(super) fn fill(account: &Value, pod: &mut Value, suffix: &str) {
    if list(pod, "/spec/imagePullSecrets").is_empty() && !list(account, "/imagePullSecrets").is_empty() {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wanted = pod["spec"]["automountServiceAccountToken"].as_bool();
    if wanted.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount(pod, suffix);
    }
}

fn mount(pod: &mut Value, suffix: &str) {
    let volumes = list(pod, "/spec/volumes");
    let there = volumes.iter().map(|v| text(v, "/name")).find(|name| name.starts_with("kube-api-access-"));
    let name = there.map_or_else(|| format!("kube-api-access-{suffix}"), str::to_owned);
    let there = there.is_some();
    let mut used = false;
    for containers in ["initContainers", "containers"] {
        let containers = pod["spec"].get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter(|c| c.is_object()) {
            if list(container, "/volumeMounts").iter().any(|mount| text(mount, "/mountPath") == PLACE) {
                continue;
            }
            used = true;
            let mounts = as_map(container).entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": PLACE}));
            }
        }
    }
    if used && !there {
        let volumes = field(as_map(pod), "spec").entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(volume(&name));
        }
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_gets_the_token_unless_it_has_its_own() {
        let own = json!([{"name": "mine", "mountPath": PLACE}]);
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": own}],
            "initContainers": [{"name": "i"}]}});
        assert_eq!(name(&mut pod), "default");
        fill(&json!({"imagePullSecrets": [{"name": "pull"}]}), &mut pod, "abcde");
        let spec = &pod["spec"];
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], PLACE);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["initContainers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["imagePullSecrets"][0]["name"], "pull");
        // Once is enough.
        let before = pod.clone();
        fill(&json!({}), &mut pod, "other");
        assert_eq!(pod, before);
    }

    #[test]
    fn pod_and_account_may_do_without() {
        let bare = json!({"spec": {"containers": [{"name": "a"}]}});
        let mut pod = bare.clone();
        fill(&json!({"automountServiceAccountToken": false}), &mut pod, "x");
        assert_eq!(pod, bare);
        pod["spec"]["automountServiceAccountToken"] = true.into();
        fill(&json!({"automountServiceAccountToken": false}), &mut pod, "x");
        assert_eq!(pod["spec"]["volumes"][0]["name"], "kube-api-access-x");
    }
}
