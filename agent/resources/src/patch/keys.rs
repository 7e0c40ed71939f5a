//! Which lists are merged, and by what: upstream's `patchStrategy` and `patchMergeKey` marks.

/// How a list is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Replaced as a whole.
    Atomic,
    /// Plain values, each once.
    Set,
    /// Objects told apart by this field.
    Keyed(&'static str),
}

/// Lists by field name, where the parent's name does not matter. What is not here is atomic.
const BY_NAME: &[(&str, Strategy)] = &[
    ("containers", Strategy::Keyed("name")),
    ("initContainers", Strategy::Keyed("name")),
    ("ephemeralContainers", Strategy::Keyed("name")),
    ("volumes", Strategy::Keyed("name")),
    ("env", Strategy::Keyed("name")),
    ("volumeMounts", Strategy::Keyed("mountPath")),
    ("volumeDevices", Strategy::Keyed("devicePath")),
    ("imagePullSecrets", Strategy::Keyed("name")),
    ("secrets", Strategy::Keyed("name")),
    ("ownerReferences", Strategy::Keyed("uid")),
    ("addresses", Strategy::Keyed("type")),
    ("hostAliases", Strategy::Keyed("ip")),
    ("topologySpreadConstraints", Strategy::Keyed("topologyKey")),
    ("schedulingGates", Strategy::Keyed("name")),
    ("resourceClaims", Strategy::Keyed("name")),
    ("podIPs", Strategy::Keyed("ip")),
    ("hostIPs", Strategy::Keyed("ip")),
    ("finalizers", Strategy::Set),
    ("podCIDRs", Strategy::Set),
];

/// How the list in `field` is patched, in an object of this kind; `path` holds the names of the fields above it.
pub fn strategy(kind: &str, path: &[&str], field: &str) -> Strategy {
    match field {
        "conditions" => return Strategy::Keyed("type"),
        "ports" => return ports(kind, path),
        "addresses" if kind != "Node" => return Strategy::Atomic,
        "secrets" if kind != "ServiceAccount" => return Strategy::Atomic,
        // The one on metadata merges; a namespace's own list is replaced.
        "finalizers" if path.last() != Some(&"metadata") => return Strategy::Atomic,
        "taints" => return Strategy::Atomic,
        _ => {}
    }
    let found = BY_NAME.iter().find(|(name, _)| *name == field);
    found.map_or(Strategy::Atomic, |(_, strategy)| *strategy)
}

fn ports(kind: &str, path: &[&str]) -> Strategy {
    match (kind, path.last()) {
        ("Service", Some(&"spec")) => Strategy::Keyed("port"),
        (_, Some(&("containers" | "initContainers" | "ephemeralContainers"))) => {
            Strategy::Keyed("containerPort")
        }
        _ => Strategy::Atomic,
    }
}

/// Whether a field of a patch tells how to patch, rather than what is wanted.
pub fn is_directive(name: &str) -> bool {
    name == "$patch"
        || name == "$retainKeys"
        || name.starts_with("$setElementOrder/")
        || name.starts_with("$deleteFromPrimitiveList/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_decides() {
        assert_eq!(strategy("Service", &["spec"], "ports"), Strategy::Keyed("port"));
        assert_eq!(strategy("Pod", &["spec", "containers"], "ports"), Strategy::Keyed("containerPort"));
        assert_eq!(strategy("Endpoints", &["subsets"], "ports"), Strategy::Atomic);
        assert_eq!(strategy("Endpoints", &["subsets"], "addresses"), Strategy::Atomic);
        assert_eq!(strategy("Node", &["status"], "addresses"), Strategy::Keyed("type"));
        assert_eq!(strategy("Namespace", &["spec"], "finalizers"), Strategy::Atomic);
        assert_eq!(strategy("Pod", &["metadata"], "finalizers"), Strategy::Set);
        assert_eq!(strategy("Pod", &["spec"], "tolerations"), Strategy::Atomic);
    }
}
