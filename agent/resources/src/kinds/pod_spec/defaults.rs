//! What a pod's specification says when it does not say it.

use crate::json::{Fields, child, child_if, children, default};
use crate::quantity::Quantity;
use serde_json::{Value, json};

/// The fields that hold containers.
pub const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Octal 644.
const MODE: i64 = 0o644;

/// Defaults of pods and templates of pods alike.
pub fn pod_spec(spec: &mut Fields) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    child(spec, "securityContext");
    account(spec);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for volume in children(spec, "volumes") {
        fill_volume(volume);
    }
    for list in CONTAINERS {
        for container in children(spec, list) {
            fill_container(container, host_network && list != "ephemeralContainers");
        }
    }
}

/// Defaults that only a pod has, not its template.
pub fn pod_only(spec: &mut Fields) {
    default(spec, "enableServiceLinks", true);
    account(spec);
    for list in ["initContainers", "containers"] {
        for container in children(spec, list) {
            request_limits(container);
        }
    }
}

/// The old name of the service account's field follows the new one.
fn account(spec: &mut Fields) {
    let of = |spec: &Fields, name: &str| spec.get(name).filter(|v| *v != "" && !v.is_null()).cloned();
    if let Some(name) = of(spec, "serviceAccountName").or_else(|| of(spec, "serviceAccount")) {
        spec.insert("serviceAccountName".to_owned(), name.clone());
        spec.insert("serviceAccount".to_owned(), name);
    }
}

fn fill_container(container: &mut Fields, host_network: bool) {
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    let policy = container.get("image").and_then(Value::as_str).map_or("IfNotPresent", pull_policy);
    default(container, "imagePullPolicy", policy);
    for port in children(container, "ports") {
        default(port, "protocol", "TCP");
        let own = port.get("containerPort").cloned().unwrap_or_default();
        if host_network && !own.is_null() {
            default(port, "hostPort", own);
        }
    }
    for variable in children(container, "env") {
        let reference = child_if(variable, "valueFrom").and_then(|f| child_if(f, "fieldRef"));
        if let Some(reference) = reference {
            default(reference, "apiVersion", "v1");
        }
    }
    if let Some(resources) = child(container, "resources") {
        canonical(resources);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child_if(container, probe) {
            fill_probe(probe);
        }
    }
    if let Some(lifecycle) = child_if(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(get) = child_if(lifecycle, hook).and_then(|h| child_if(h, "httpGet")) {
                fill_get(get);
            }
        }
    }
}

fn fill_probe(probe: &mut Fields) {
    default(probe, "timeoutSeconds", 1);
    default(probe, "periodSeconds", 10);
    default(probe, "successThreshold", 1);
    default(probe, "failureThreshold", 3);
    if let Some(get) = child_if(probe, "httpGet") {
        fill_get(get);
    }
    if let Some(grpc) = child_if(probe, "grpc") {
        default(grpc, "service", "");
    }
}

fn fill_get(get: &mut Fields) {
    default(get, "path", "/");
    default(get, "scheme", "HTTP");
}

/// An image without a tag, or with the moving tag, is asked for each time.
pub fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or_default();
    match name.split_once('@').unwrap_or((name, "")) {
        (name, digest) if name.contains(':') || digest.is_empty() => {
            match name.split_once(':').map_or("latest", |(_, tag)| tag) {
                "latest" => "Always",
                _ => "IfNotPresent",
            }
        }
        _ => "IfNotPresent",
    }
}

/// Amounts are kept in canonical form, numbers too.
fn canonical(resources: &mut Fields) {
    for list in ["limits", "requests"] {
        for amount in child_if(resources, list).into_iter().flat_map(|l| l.values_mut()) {
            let text = match &*amount {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => continue,
            };
            if let Ok(quantity) = Quantity::parse(&text) {
                *amount = quantity.to_string().into();
            }
        }
    }
}

/// What is limited but not requested is requested.
fn request_limits(container: &mut Fields) {
    let Some(resources) = child_if(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).filter(|l| !l.is_empty()).cloned()
    else {
        return;
    };
    if let Some(requests) = child(resources, "requests") {
        for (name, amount) in limits {
            default(requests, &name, amount);
        }
    }
}

fn fill_volume(volume: &mut Fields) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child_if(volume, source) {
            default(source, "defaultMode", MODE);
        }
    }
    if let Some(path) = child_if(volume, "hostPath") {
        path.entry("type").or_insert_with(|| "".into());
    }
    if let Some(downward) = child_if(volume, "downwardAPI") {
        fill_downward(downward);
    }
    let Some(projected) = child_if(volume, "projected") else { return };
    for source in children(projected, "sources") {
        if let Some(token) = child_if(source, "serviceAccountToken") {
            default(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = child_if(source, "downwardAPI") {
            fill_downward(downward);
        }
    }
}

fn fill_downward(downward: &mut Fields) {
    for item in children(downward, "items") {
        if let Some(reference) = child_if(item, "fieldRef") {
            default(reference, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_goes_by_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("10.0.0.20:5000/nginx", "Always"),
            ("10.0.0.20:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
            ("nginx:latest@sha256:abc", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_spec_is_filled() {
        let mut spec = json!({
            "serviceAccount": "builder",
            "containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}, "requests": {"memory": "1Ki"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
        });
        let fields = spec.as_object_mut().expect("object");
        pod_spec(fields);
        pod_only(fields);
        assert_eq!(spec["serviceAccountName"], "builder");
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["resources"]["requests"], json!({"memory": "1Ki", "cpu": "500m"}));
        assert_eq!(container["resources"]["limits"]["memory"], "1Mi");
        assert_eq!(container["livenessProbe"]["httpGet"], json!({"port": 80, "path": "/", "scheme": "HTTP"}));
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
    }
}
