//! What a reconcile wants done.

use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::{
    event::Event,
    kind::{KindId, Object, Typed},
    meta::Entry,
};

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: KindId,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Target {
    /// A typed object.
    pub(crate) fn of<K: Typed>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            kind: K::KIND,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }

    /// Any object.
    pub(crate) fn entry(entry: &Entry) -> Self {
        Self {
            kind: entry.kind,
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            uid: entry.uid.clone(),
        }
    }
}

/// One step. Steps are done in order and the first failure ends them; neighbouring creates and deletes go together.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Makes an object.
    Create { object: Object, done: Option<Event>, failed: Option<Event> },
    /// Makes an object of a kind that is known by its metadata alone, unless it is there.
    Make { kind: KindId, namespace: String, object: Value },
    /// Replaces an object, if it has not changed meanwhile.
    Update { object: Object, done: Option<Event> },
    /// Replaces an object's status, if it has not changed meanwhile.
    UpdateStatus { object: Object },
    /// JSON merge patch. It should carry the resource version it was computed from.
    Patch { target: Target, patch: Value, done: Option<Event> },
    /// Deletes exactly this object (by uid).
    Delete {
        target: Target,
        grace: Option<u32>,
        propagation: Propagation,
        done: Option<Event>,
        failed: Option<Event>,
    },
    /// Goes on only if the API itself says that this object (by uid) does not exist.
    RequireAbsent { target: Target },
    /// Goes on only if the API itself says that a namespace is empty.
    RequireEmpty { namespace: String },
    /// Removes the namespace's finalizer.
    Finalize { object: Object },
    /// Tells.
    Tell(Event),
}

impl Write {
    pub(crate) fn create(object: impl Typed) -> Self {
        Self::Create { object: object.wrap(), done: None, failed: None }
    }

    pub(crate) fn update(object: impl Typed) -> Self {
        Self::Update { object: object.wrap(), done: None }
    }

    pub(crate) fn update_status(object: impl Typed) -> Self {
        Self::UpdateStatus { object: object.wrap() }
    }

    pub(crate) fn delete(target: Target) -> Self {
        Self::Delete { target, grace: None, propagation: Propagation::Background, done: None, failed: None }
    }

    /// Deletes without waiting for a kubelet that may never answer.
    pub(crate) fn force_delete(target: Target) -> Self {
        Self::Delete {
            target,
            grace: Some(0),
            propagation: Propagation::Background,
            done: None,
            failed: None,
        }
    }

    /// Patches metadata, guarded by the resource version.
    pub(crate) fn patch_meta(target: Target, resource_version: Option<&str>, mut metadata: Value) -> Self {
        if let (Some(map), Some(version)) = (metadata.as_object_mut(), resource_version) {
            map.insert("resourceVersion".to_owned(), json!(version));
            map.insert("uid".to_owned(), json!(target.uid));
        }
        Self::Patch { target, patch: json!({ "metadata": metadata }), done: None }
    }
}

/// What a reconcile decided.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) writes: Vec<Write>,
    /// Look again after this long, whatever happens.
    pub(crate) again: Option<Duration>,
    /// Pod CIDRs these writes ask for, to be remembered before they are sent.
    pub(crate) claims: Vec<(String, Ipv4Net)>,
}

impl Outcome {
    pub(crate) fn new(writes: Vec<Write>) -> Self {
        Self { writes, ..Self::default() }
    }

    /// Takes the sooner of two deadlines.
    pub(crate) fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |before| before.min(after)));
    }
}
