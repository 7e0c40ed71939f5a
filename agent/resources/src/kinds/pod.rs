//! Pod: containers that live and die together.

use super::BASE;
use super::pod_columns::COLUMNS;
use super::pod_spec::{self, Place};
use crate::cause::{Causes, forbidden};
use crate::json::{child, default, int, items, spec, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

/// How long a deleted pod has to end if it does not say itself.
const GRACE: i64 = 30;

pub const POD: Builtin = Builtin {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Eviction,
        Subresource::EphemeralContainers,
        Subresource::Log,
        Subresource::Exec,
        Subresource::Attach,
        Subresource::PortForward,
        Subresource::Proxy,
    ],
    columns: COLUMNS,
    selectable: &[
        ("spec.nodeName", "/spec/nodeName"),
        ("spec.restartPolicy", "/spec/restartPolicy"),
        ("spec.schedulerName", "/spec/schedulerName"),
        ("spec.serviceAccountName", "/spec/serviceAccountName"),
        ("spec.hostNetwork", "/spec/hostNetwork"),
        ("status.phase", "/status/phase"),
        ("status.podIP", "/status/podIP"),
        ("status.nominatedNodeName", "/status/nominatedNodeName"),
    ],
    defaults,
    validate,
    generation: "spec",
    grace,
    ..BASE
};

fn defaults(pod: &mut Value) {
    if let Some(spec) = spec(pod) {
        pod_spec::fill(spec);
        pod_spec::pod_only(spec);
    }
    let class = pod_spec::qos::class(pod);
    if let Some(status) = pod.as_object_mut().and_then(|p| child(p, "status")) {
        default(status, "phase", "Pending");
        default(status, "qosClass", class);
    }
}

/// A pod that no node runs, that has ended, or that asks for none, gets no time to end.
fn grace(pod: &Value) -> Option<i64> {
    let ended = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    if text(pod, "/spec/nodeName").is_empty() || ended {
        return None;
    }
    Some(int(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(GRACE)).filter(|seconds| *seconds > 0)
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let empty = Value::Null;
    let spec = new.get("spec").unwrap_or(&empty);
    pod_spec::check(spec, "spec", Place::Pod, &mut causes);
    match old {
        Some(old) => check_update(spec, old.get("spec").unwrap_or(&empty), &mut causes),
        None if !items(spec, "/ephemeralContainers").is_empty() => {
            causes.push(forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
        None => {}
    }
    causes
}

/// All that is wrong with a pod that comes to another through its `ephemeralcontainers`.
pub fn validate_ephemeral(new: &Value, old: &Value) -> Causes {
    // But for those containers it is an ordinary update.
    let mut before = old.clone();
    if let (Some(before), Some(after)) = (before.get_mut("spec"), new.get("spec")) {
        keep(before, after, "ephemeralContainers");
    }
    let mut causes = validate(new, Some(&before));
    pod_spec::ephemeral::check_update(new, old, &mut causes);
    causes
}

/// A running pod is not rebuilt: only its images, its deadline and more tolerations may come.
fn check_update(new: &Value, old: &Value, causes: &mut Causes) {
    let mut allowed = new.clone();
    for list in ["containers", "initContainers"] {
        let (new, old) =
            (allowed.get_mut(list).and_then(Value::as_array_mut), items(old, &format!("/{list}")));
        for (container, old) in new.into_iter().flatten().zip(old) {
            keep(container, old, "image");
        }
    }
    if int(old, "/activeDeadlineSeconds")
        .is_none_or(|o| int(new, "/activeDeadlineSeconds").is_some_and(|n| n <= o))
    {
        keep(&mut allowed, old, "activeDeadlineSeconds");
    }
    let tolerations = items(new, "/tolerations");
    if items(old, "/tolerations").iter().all(|t| tolerations.contains(t)) {
        keep(&mut allowed, old, "tolerations");
    }
    let negative = int(old, "/terminationGracePeriodSeconds").is_some_and(|s| s < 0);
    if negative && int(new, "/terminationGracePeriodSeconds") == Some(1) {
        keep(&mut allowed, old, "terminationGracePeriodSeconds");
    }
    if allowed != *old {
        let changed = changed(&allowed, old).join(", ");
        causes.push(forbidden(
            "spec",
            &format!(
                "pod updates may not change fields other than `spec.containers[*].image`,\
                 `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                 existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                 previously negative)\nchanged: {changed}"
            ),
        ));
    }
}

/// Puts the old value of a field back, so that a difference in it does not count.
fn keep(new: &mut Value, old: &Value, field: &str) {
    let Some(fields) = new.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

/// The names of the fields that differ.
fn changed(new: &Value, old: &Value) -> Vec<String> {
    let fields = |v: &Value| v.as_object().map(|f| f.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut names = fields(new);
    names.extend(fields(old));
    names.sort();
    names.dedup();
    names.retain(|name| new.get(name) != old.get(name));
    names.iter().map(|name| format!("spec.{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"containers": [{"name": "web", "image": "nginx"}]}});
        defaults(&mut pod);
        pod
    }

    #[test]
    fn a_small_pod_is_good_and_pending() {
        let pod = pod();
        assert_eq!(validate(&pod, None), []);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(pod["spec"]["enableServiceLinks"], true);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [
            {"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"name": "a"}], "restartPolicy": "Sometimes"}});
        defaults(&mut pod);
        let causes = validate(&pod, None);
        let found: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            found,
            [
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
                "spec.containers[1].name: Duplicate value: \"a\"",
                "spec.containers[1].image: Required value",
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                 \"OnFailure\", \"Never\"",
            ]
        );
    }

    #[test]
    fn only_a_few_fields_may_change() {
        let old = pod();
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "nginx:2".into();
        new["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
        new["spec"]["activeDeadlineSeconds"] = 10.into();
        assert_eq!(validate(&new, Some(&old)), []);
        new["spec"]["nodeName"] = "pi".into();
        let causes = validate(&new, Some(&old));
        assert_eq!(causes.len(), 1);
        assert!(causes[0].message.starts_with("Forbidden: pod updates may not change fields other than"));
        assert!(causes[0].message.ends_with("changed: spec.nodeName"));
    }

    fn told(causes: &[crate::Cause]) -> Vec<String> {
        causes.iter().map(|c| format!("{}: {}", c.field, c.message.trim_end())).collect()
    }

    fn debugged(container: Value) -> Value {
        let mut pod = pod();
        pod["spec"]["ephemeralContainers"] = json!([container]);
        defaults(&mut pod);
        pod
    }

    #[test]
    fn ephemeral_containers_come_through_their_subresource_alone() {
        let old = pod();
        let new = debugged(json!({"name": "debug", "image": "busybox", "targetContainerName": "web"}));
        assert_eq!(validate_ephemeral(&new, &old), []);
        assert_eq!(
            told(&validate(&new, None)),
            ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
        );
        let told = told(&validate(&new, Some(&old)));
        assert!(told[0].ends_with("changed: spec.ephemeralContainers"), "{told:?}");
        // They are there, and the rest may change as ever.
        let mut labelled = new.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(validate(&labelled, Some(&new)), []);
    }

    #[test]
    fn ephemeral_containers_stay_as_they_came() {
        let old = debugged(json!({"name": "debug", "image": "busybox"}));
        let other = debugged(json!({"name": "other", "image": "busybox"}));
        let changed = debugged(json!({"name": "debug", "image": "busybox:2"}));
        let field = "spec.ephemeralContainers: Forbidden: existing ephemeral containers";
        assert_eq!(
            told(&validate_ephemeral(&other, &old)),
            [format!("{field} \"debug\" may not be removed")]
        );
        assert_eq!(
            told(&validate_ephemeral(&changed, &old)),
            [format!("{field} \"debug\" may not be changed")]
        );
    }

    #[test]
    fn an_ephemeral_container_says_less() {
        let new = debugged(json!({"name": "web", "image": "busybox", "targetContainerName": "nobody",
            "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}, "env": []}));
        let own = "spec.ephemeralContainers[0]";
        assert_eq!(
            told(&validate_ephemeral(&new, &pod())),
            [
                format!("{own}.name: Duplicate value: \"web\""),
                format!("{own}.targetContainerName: Not found: \"nobody\""),
                format!("{own}.ports: Forbidden: cannot be set for an Ephemeral Container"),
                format!("{own}.resources: Forbidden: cannot be set for an Ephemeral Container"),
            ]
        );
    }

    #[test]
    fn only_a_pod_on_a_node_gets_time_to_end() {
        let mut pod = pod();
        assert_eq!(grace(&pod), None);
        pod["spec"]["nodeName"] = "pi".into();
        assert_eq!(grace(&pod), Some(30));
        pod["spec"]["terminationGracePeriodSeconds"] = 5.into();
        assert_eq!(grace(&pod), Some(5));
        pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
        assert_eq!(grace(&pod), None);
    }
}
