//! Namespaces that end: everything in them is deleted, then they may go.

use k8s_openapi::api::core::v1::Namespace;

use crate::{
    kind::Typed,
    reconcile::Context,
    write::{Outcome, Target, Write},
};

const FINALIZER: &str = "kubernetes";

/// Reconciles one namespace.
pub(crate) fn reconcile(name: &str, cx: &mut Context<'_>) -> Outcome {
    let Some(namespace) = cx.world.namespaces.get("", name) else { return Outcome::default() };
    let held = namespace
        .spec
        .as_ref()
        .and_then(|s| s.finalizers.as_ref())
        .is_some_and(|f| f.iter().any(|f| f == FINALIZER));
    if namespace.metadata.deletion_timestamp.is_none() || !held {
        return Outcome::default();
    }
    let mut contents = cx.world.meta.in_namespace(name).peekable();
    if contents.peek().is_none() {
        return Outcome::new(vec![Write::RequireEmpty { namespace: name.to_owned() }, finalize(namespace)]);
    }
    // What is already being deleted is waited for: its end brings us back.
    Outcome::new(contents.filter(|e| !e.deleting).map(|e| Write::delete(Target::entry(e))).collect())
}

fn finalize(namespace: &Namespace) -> Write {
    let mut namespace = namespace.clone();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    Write::Finalize { object: namespace.wrap() }
}
