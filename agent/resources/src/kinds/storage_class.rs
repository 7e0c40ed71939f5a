//! StorageClass: how storage is made for who claims it.

use super::BASE;
use super::columns::{AGE, boolean, string, text_at};
use super::workload::one_of;
use crate::cause::{Causes, forbidden, invalid, required};
use crate::json::{default, flag, text};
use crate::{Builtin, Column, metadata, names};
use serde_json::Value;

const DEFAULT: &str = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";

pub const STORAGE_CLASS: Builtin = Builtin {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    columns: &[
        Column {
            cell: |class, _| {
                let name = text(class, "/metadata/name");
                if text(class, DEFAULT) == "true" { format!("{name} (default)").into() } else { name.into() }
            },
            ..super::columns::NAME
        },
        string("Provisioner", |class, _| text_at(class, "/provisioner")),
        string("ReclaimPolicy", |class, _| text_at(class, "/reclaimPolicy")),
        string("VolumeBindingMode", |class, _| text_at(class, "/volumeBindingMode")),
        boolean("AllowVolumeExpansion", |class, _| flag(class, "/allowVolumeExpansion").into()),
        AGE,
    ],
    defaults: |object| {
        if let Some(class) = object.as_object_mut() {
            default(class, "reclaimPolicy", "Delete");
            default(class, "volumeBindingMode", "Immediate");
        }
    },
    validate,
    idle: true,
    ..BASE
};

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let provisioner = text(new, "/provisioner");
    if provisioner.is_empty() {
        causes.push(required("provisioner", ""));
    } else {
        let faults = names::qualified_name(&provisioner.to_lowercase());
        causes.extend(faults.iter().map(|fault| invalid("provisioner", provisioner, fault)));
    }
    one_of(new, "reclaimPolicy", &["Delete", "Retain"], &mut causes);
    one_of(new, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &mut causes);
    if let Some(old) = old {
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if new.get(field) != old.get(field) {
                causes.push(forbidden(field, &format!("updates to {field} are forbidden.")));
            }
        }
        metadata::immutable(new, Some(old), "/volumeBindingMode", "volumeBindingMode", &mut causes);
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_stays_what_it_is() {
        let mut old = json!({"metadata": {"name": "fast"}, "provisioner": "example.com/disk"});
        (STORAGE_CLASS.defaults)(&mut old);
        assert_eq!(validate(&old, None), []);
        let mut new = old.clone();
        new["allowVolumeExpansion"] = true.into();
        assert_eq!(validate(&new, Some(&old)), []);
        new["reclaimPolicy"] = "Retain".into();
        assert_eq!(
            validate(&new, Some(&old))[0].message,
            "Forbidden: updates to reclaimPolicy are forbidden."
        );
    }
}
