//! PersistentVolume: storage that is there for a pod to claim.

use super::BASE;
use super::columns::{AGE, NAME, access_modes, string, text_at, wide};
use super::persistent_volume_claim::{VOLUME_MODES, amount, check_access_modes};
use super::workload::one_of;
use crate::cause::{Causes, forbidden, invalid, not_supported, required};
use crate::json::{child, default, fields, spec, text};
use crate::{Builtin, Subresource, metadata, names};
use serde_json::Value;

pub const PERSISTENT_VOLUME: Builtin = Builtin {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        string("Capacity", |volume, _| text_at(volume, "/spec/capacity/storage")),
        string("Access Modes", |volume, _| access_modes(volume, "/spec/accessModes")),
        string("Reclaim Policy", |volume, _| text_at(volume, "/spec/persistentVolumeReclaimPolicy")),
        string("Status", |volume, _| {
            let leaving = !text(volume, "/metadata/deletionTimestamp").is_empty();
            if leaving { "Terminating".into() } else { text_at(volume, "/status/phase") }
        }),
        string("Claim", |volume, _| claim(volume).into()),
        string("StorageClass", |volume, _| text_at(volume, "/spec/storageClassName")),
        string("VolumeAttributesClass", |volume, _| match text(volume, "/spec/volumeAttributesClassName") {
            "" => "<unset>".into(),
            name => name.into(),
        }),
        string("Reason", |volume, _| text_at(volume, "/status/reason")),
        AGE,
        wide("VolumeMode", |volume, _| text_at(volume, "/spec/volumeMode")),
    ],
    defaults: |object| {
        if let Some(spec) = spec(object) {
            default(spec, "persistentVolumeReclaimPolicy", "Retain");
            default(spec, "volumeMode", "Filesystem");
        }
        if let Some(status) = object.as_object_mut().and_then(|o| child(o, "status")) {
            default(status, "phase", "Pending");
        }
    },
    validate,
    idle: true,
    ..BASE
};

/// The kinds of storage there are.
const SOURCES: [&str; 22] = [
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "hostPath",
    "glusterfs",
    "nfs",
    "rbd",
    "iscsi",
    "cinder",
    "cephfs",
    "fc",
    "flocker",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn claim(volume: &Value) -> String {
    match text(volume, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", text(volume, "/spec/claimRef/namespace")),
    }
}

fn sources(volume: &Value) -> Vec<(&str, &Value)> {
    let spec = fields(volume, "/spec").into_iter().flatten();
    spec.filter(|(name, value)| SOURCES.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.as_str(), value))
        .collect()
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    check_access_modes(new, "spec.accessModes", &mut causes);
    check_capacity(new, &mut causes);
    let found = sources(new);
    if found.is_empty() {
        causes.push(required("spec", "must specify a volume type"));
    }
    for (name, _) in found.iter().skip(1) {
        causes.push(forbidden(format!("spec.{name}"), "may not specify more than 1 volume type"));
    }
    for (pointer, field) in [("/spec/hostPath", "spec.hostPath"), ("/spec/local", "spec.local")] {
        let Some(source) = new.pointer(pointer).filter(|s| s.is_object()) else { continue };
        let path = text(source, "/path");
        if path.is_empty() {
            causes.push(required(format!("{field}.path"), ""));
        } else if path.split('/').any(|part| part == "..") {
            causes.push(invalid(format!("{field}.path"), path, "must not contain '..'"));
        }
    }
    if new.pointer("/spec/local").is_some_and(Value::is_object)
        && new.pointer("/spec/nodeAffinity/required").is_none_or(Value::is_null)
    {
        causes.push(required("spec.nodeAffinity", "Local volume requires node affinity"));
    }
    one_of(new, "spec.persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], &mut causes);
    let mode = text(new, "/spec/volumeMode");
    if !mode.is_empty() && !VOLUME_MODES.contains(&mode) {
        causes.push(not_supported("spec.volumeMode", mode, &VOLUME_MODES));
    }
    if let Some(old) = old {
        if sources(old) != found {
            let detail = "spec.persistentvolumesource is immutable after creation";
            causes.push(forbidden("spec.persistentvolumesource", detail));
        }
        metadata::immutable(new, Some(old), "/spec/volumeMode", "spec.volumeMode", &mut causes);
    }
    causes
}

fn check_capacity(volume: &Value, causes: &mut Causes) {
    let capacity = fields(volume, "/spec/capacity").filter(|capacity| !capacity.is_empty());
    let Some(capacity) = capacity else {
        causes.push(required("spec.capacity", ""));
        return;
    };
    let others = capacity.keys().any(|name| name != "storage");
    if others || !capacity.contains_key("storage") {
        let shown = Value::Object(capacity.clone());
        causes.push(not_supported("spec.capacity", shown, &["storage"]));
    }
    for (name, value) in capacity {
        if amount(value).is_none_or(|q| q.is_zero() || q.is_negative()) {
            let field = format!("spec.capacity[{name}]");
            causes.push(invalid(field, value.clone(), "must be greater than zero"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_is_one_kind_of_storage_for_good() {
        let mut old = json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"},
            "claimRef": {"namespace": "home", "name": "data"}}});
        (PERSISTENT_VOLUME.defaults)(&mut old);
        assert_eq!(validate(&old, None), []);
        assert_eq!(claim(&old), "home/data");
        let mut new = old.clone();
        new["spec"]["nfs"] = json!({"server": "a", "path": "/"});
        let fields = |causes: Causes| causes.into_iter().map(|c| c.field).collect::<Vec<_>>();
        assert_eq!(fields(validate(&new, Some(&old))), ["spec.nfs", "spec.persistentvolumesource"]);
        let bare = json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"], "local": {"path": "a/../b"}}});
        assert_eq!(
            fields(validate(&bare, None)),
            ["spec.capacity", "spec.local.path", "spec.nodeAffinity", "spec.persistentVolumeReclaimPolicy"]
        );
    }
}
