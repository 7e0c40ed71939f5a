//! What else there is in a cluster fills new objects in, or refuses them: priority classes, storage classes, limit
//! ranges.

mod limits;
mod priority;
mod storage;

use crate::engine::Engine;
use crate::object::{as_map, name, text};
use crate::status::{Result, Status};
use resources::Descriptor;
use serde_json::Value;

/// Admits a new object that has its defaults and is not checked yet.
pub(crate) fn admit(engine: &Engine, kind: &Descriptor, new: &mut Value) -> Result<()> {
    let is_pod = kind.group.is_empty() && kind.plural == "pods";
    let is_claim = kind.group.is_empty() && kind.plural == "persistentvolumeclaims";
    if !is_pod && !is_claim {
        return Ok(());
    }
    let refused = |why: &str, new: &Value| Status::forbidden(&kind.group, &kind.plural, name(new), why);
    if is_pod {
        let classes = engine.all("scheduling.k8s.io", "priorityclasses", "");
        priority::resolve(&classes, new).map_err(|why| refused(&why, new))?;
    }
    if is_claim {
        storage::choose(&engine.all("storage.k8s.io", "storageclasses", ""), new);
    }
    let namespace = text(new, "/metadata/namespace").to_owned();
    let mut faults = Vec::new();
    for range in engine.all("", "limitranges", &namespace) {
        if is_pod {
            limits::fill(&range, new);
        }
        faults.extend(limits::faults(&range, new, is_pod));
    }
    // A pod's quality of service follows from what it was given here.
    as_map(new).remove("status");
    kind.defaults(new);
    match faults.as_slice() {
        [] => Ok(()),
        [one] => Err(refused(one, new)),
        many => Err(refused(&format!("[{}]", many.join(", ")), new)),
    }
}
