//! What else there is in a cluster fills new objects in, or refuses them: service accounts, priority classes, storage
//! classes, limit ranges, pod security levels, quotas.

mod limits;
mod pod_security;
mod priority;
mod quota;
mod service_account;
mod storage;

use crate::auth::User;
use crate::certificates;
use crate::engine::Engine;
use crate::object::{self, as_map, name, text};
use crate::status::{Result, Status};
use pod_security::Mode;
use resources::Descriptor;
use serde_json::{Value, json};
use store::{Expect, Write};

/// Admission plugins by upstream's names: those that can be switched off. One that nothing here is like is accepted
/// and means nothing, so that command lines written for upstream work.
pub const ADMISSION: &[&str] = &[
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "LimitRanger",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "NamespaceLifecycle",
    "NodeRestriction",
    "PersistentVolumeClaimResize",
    "PodSecurity",
    "PodTopologyLabels",
    "Priority",
    "ResourceQuota",
    "RuntimeClass",
    "ServiceAccount",
    "StorageObjectInUseProtection",
    "TaintNodesByCondition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
];

/// Fills in a new object that has its defaults and is not checked yet. What is to be written beside it.
pub(crate) fn fill(engine: &Engine, by: &User, kind: &Descriptor, new: &mut Value) -> Result<Vec<Write>> {
    if certificates::is_request(&kind.group, &kind.plural) {
        certificates::stamp(by, new);
    }
    match (kind.group.as_ref(), kind.plural.as_ref()) {
        ("", "pods") => fill_pod(engine, kind, new),
        ("", "persistentvolumeclaims") => {
            if engine.admits("DefaultStorageClass") {
                storage::choose(&engine.all("storage.k8s.io", "storageclasses", ""), new);
            }
            Ok(Vec::new())
        }
        ("", "secrets") if text(new, "/type") == "kubernetes.io/service-account-token" => {
            engine.fill_token_secret(new).map_err(Status::unavailable).map(|()| Vec::new())
        }
        _ => Ok(Vec::new()),
    }
}

fn fill_pod(engine: &Engine, kind: &Descriptor, pod: &mut Value) -> Result<Vec<Write>> {
    if engine.admits("Priority") {
        let classes = engine.all("scheduling.k8s.io", "priorityclasses", "");
        priority::resolve(&classes, pod).map_err(|why| refused(kind, pod, &why))?;
    }
    let beside = if engine.admits("ServiceAccount") { account(engine, kind, pod)? } else { Vec::new() };
    ranges(engine, pod).iter().for_each(|range| limits::fill(range, pod));
    // A pod's quality of service follows from what it was given here.
    as_map(pod).remove("status");
    kind.defaults(pod);
    Ok(beside)
}

/// Looks at a new object that is well-formed: limit ranges, pod security levels.
pub(crate) fn check(engine: &Engine, kind: &Descriptor, new: &Value) -> Result<()> {
    let is_pod = kind.plural == "pods";
    if !kind.group.is_empty() || !(is_pod || kind.plural == "persistentvolumeclaims") {
        return Ok(());
    }
    let ranges = ranges(engine, new);
    let faults: Vec<String> = ranges.iter().flat_map(|range| limits::faults(range, new, is_pod)).collect();
    match faults.as_slice() {
        [] => {}
        [one] => return Err(refused(kind, new, one)),
        many => return Err(refused(kind, new, &format!("[{}]", many.join(", ")))),
    }
    if is_pod
        && engine.admits("PodSecurity")
        && let Some(namespace) = engine.one("", "namespaces", "", text(new, "/metadata/namespace"))
        && let Some(why) = pod_security::violation(&namespace, Mode::Enforce, &new["spec"])
    {
        return Err(refused(kind, new, &format!("violates PodSecurity {why}")));
    }
    Ok(())
}

/// Asks the quotas, when all others have said yes: what is to be written beside the object.
pub(crate) fn charge(engine: &Engine, kind: &Descriptor, new: &Value) -> Result<Option<Write>> {
    if engine.admits("ResourceQuota") { quota::admit(engine, kind, new) } else { Ok(None) }
}

fn ranges(engine: &Engine, object: &Value) -> Vec<Value> {
    if !engine.admits("LimitRanger") {
        return Vec::new();
    }
    engine.all("", "limitranges", text(object, "/metadata/namespace"))
}

/// What whoever makes an object is to know of it, though it is admitted.
pub(crate) fn warnings(engine: &Engine, kind: &Descriptor, object: &Value) -> Vec<String> {
    let spec =
        pod_security::pod_spec(&kind.group, &kind.plural, object).filter(|_| engine.admits("PodSecurity"));
    let Some(spec) = spec else { return Vec::new() };
    let namespace = engine.one("", "namespaces", "", text(object, "/metadata/namespace"));
    let told = namespace.and_then(|namespace| pod_security::violation(&namespace, Mode::Warn, spec));
    told.map(|why| format!("would violate PodSecurity {why}")).into_iter().collect()
}

fn refused(kind: &Descriptor, object: &Value, why: &str) -> Status {
    Status::forbidden(&kind.group, &kind.plural, name(object), why)
}

/// Gives a pod its service account. The account `default` is made with the first pod that runs as it, if nobody was
/// faster: no client has to wait for a controller.
fn account(engine: &Engine, kind: &Descriptor, pod: &mut Value) -> Result<Vec<Write>> {
    // A node's own pod is nobody in the cluster.
    if !text(pod, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty() {
        return Ok(Vec::new());
    }
    let account = service_account::name(pod);
    let namespace = text(pod, "/metadata/namespace").to_owned();
    let (found, beside) = match engine.one("", "serviceaccounts", &namespace, &account) {
        Some(found) => (found, None),
        None if account == "default" => {
            let (made, write) = default_account(&namespace)?;
            (made, Some(write))
        }
        None => {
            let why = format!(
                "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
            );
            return Err(refused(kind, pod, &why));
        }
    };
    service_account::fill(&found, pod, &object::generate_name(""));
    Ok(beside.into_iter().collect())
}

fn default_account(namespace: &str) -> Result<(Value, Write)> {
    let kind = resources::find("", "v1", "serviceaccounts").ok_or_else(Status::no_resource)?;
    let made = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace,
        "uid": object::new_uid(), "creationTimestamp": object::timestamp(0)}});
    let key = object::key(kind, Some(namespace), "default");
    let write = Write { key, expect: Expect::Absent, value: Some(object::bytes(kind, &made)?) };
    Ok((made, write))
}
