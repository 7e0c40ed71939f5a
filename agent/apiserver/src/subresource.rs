//! scale, binding, eviction, finalize: other ways to look at an object, or to change it.

use crate::auth::User;
use crate::engine::Engine;
use crate::object::{self, load, text};
use crate::path::Target;
use crate::policy::Request;
use crate::status::{Result, Status};
use crate::webhook::{Deadline, Rounds};
use crate::write::{Options, Part, Told};
use resources::Descriptor;
use resources::labels::Selector;
use serde_json::{Value, json};
use store::{CommitError, Expect, Txn, Write};

/// How often a binding is tried again when somebody else writes the pod meanwhile.
const ATTEMPTS: usize = 64;

/// What somebody sends to a subresource, or asks of it.
pub(crate) struct Sent<'a> {
    pub by: &'a User,
    pub target: &'a Target,
    pub name: &'a str,
    pub subresource: &'a str,
    /// `CREATE`, `CONNECT`.
    pub operation: &'static str,
    /// Its group, version and kind.
    pub kind: [&'static str; 3],
    pub dry_run: bool,
}

impl Engine {
    /// Asks those who have a say in it about what is sent to a subresource. Gives what they made of it.
    pub async fn admit_sent(&self, sent: &Sent<'_>, object: Value, told: &Told) -> Result<Value> {
        let request = Request {
            operation: sent.operation,
            kind: &sent.target.kind,
            subresource: sent.subresource,
            namespace: sent.target.namespace.as_deref(),
            name: sent.name,
            object: Some(&object),
            old: None,
            by: sent.by,
            manager: "",
            dry_run: sent.dry_run,
            shown: Some(sent.kind),
            until: Deadline::default(),
        };
        let changed = self.mutate(&request, &mut Rounds::default(), told).await?;
        let request = Request { object: changed.as_ref().or(Some(&object)), ..request };
        told.add(self.ask_policies(&request)?);
        self.ask_webhooks(&request, told).await?;
        Ok(changed.unwrap_or(object))
    }

    /// An object as autoscaling/v1 Scale.
    pub fn scale(&self, target: &Target, name: &str) -> Result<Value> {
        Ok(as_scale(&target.kind, &self.get(target, name)?))
    }

    /// Sets the replicas that a changed Scale asks for.
    pub async fn rescale(
        &self,
        target: &Target,
        name: &str,
        options: &Options,
        mut change: impl FnMut(&Value) -> Result<Value> + Send,
    ) -> Result<Value> {
        let make = |old: &Value| {
            let scale = change(&as_scale(&target.kind, old))?;
            let mut new = old.clone();
            let replicas = scale["spec"]["replicas"].clone();
            let replicas = if replicas.is_null() { json!(0) } else { replicas };
            if !replicas.is_i64() && !replicas.is_u64() {
                return Err(Status::bad_request("spec.replicas is not a number"));
            }
            put(&mut new, &target.kind.scale().wanted, replicas);
            let asked = text(&scale, "/metadata/resourceVersion").to_owned();
            if !asked.is_empty() {
                object::meta(&mut new).insert("resourceVersion".into(), asked.into());
            }
            Ok(new)
        };
        Ok(as_scale(&target.kind, &self.change(target, name, Part::Main, options, make).await?))
    }

    /// Gives a pod its node.
    pub async fn bind(&self, target: &Target, name: &str, binding: &Value, dry_run: bool) -> Result<()> {
        let kind = &target.kind;
        let node = text(binding, "/target/name");
        if node.is_empty() {
            return Err(Status::bad_request("Binding: target.name: Required value"));
        }
        for _ in 0..ATTEMPTS {
            let record = self.record(kind, target.namespace.as_deref(), name)?;
            let mut pod = load(kind, &record)?;
            let wanted = text(binding, "/metadata/uid");
            if !wanted.is_empty() && wanted != text(&pod, "/metadata/uid") {
                return Err(Status::conflict(kind, name, "the pod was replaced by another of its name"));
            }
            if object::deleting(&pod) {
                return Err(Status::conflict(
                    kind,
                    name,
                    &format!("pod {name} is being deleted, cannot be assigned to a host"),
                ));
            }
            let bound = text(&pod, "/spec/nodeName");
            if !bound.is_empty() {
                return Err(Status::conflict(
                    kind,
                    name,
                    &format!("pod {name} is already assigned to node {bound:?}"),
                ));
            }
            if dry_run {
                return Ok(());
            }
            pod["spec"]["nodeName"] = node.into();
            scheduled(&mut pod);
            let value = Some(object::bytes(kind, &pod)?);
            let write =
                Write { key: record.key.to_string(), expect: Expect::Modified(record.modified), value };
            match self.kv(kind).commit(Txn { writes: vec![write] }).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Status::modified(kind, name))
    }

    /// Takes finalizers of a namespace's content away; the last one ends it.
    pub async fn finalize(
        &self,
        target: &Target,
        name: &str,
        sent: &Value,
        options: &Options,
    ) -> Result<Value> {
        let finalizers = sent["spec"]["finalizers"].clone();
        let make = |old: &Value| {
            let mut new = old.clone();
            new["spec"]["finalizers"] = if finalizers.is_array() { finalizers.clone() } else { json!([]) };
            Ok(new)
        };
        self.change(target, name, Part::Whole, options, make).await
    }
}

/// Marks a pod as scheduled.
fn scheduled(pod: &mut Value) {
    let status = object::field(object::as_map(pod), "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|c| c["type"] != "PodScheduled");
        let now = object::timestamp(0);
        conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
    }
}

/// Puts a value where a pointer leads, through objects that are made if they are not there.
pub(crate) fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for name in pointer.split('/').skip(1) {
        let name = name.replace("~1", "/").replace("~0", "~");
        at = object::as_map(at).entry(name).or_insert(Value::Null);
    }
    *at = value;
}

/// An object as autoscaling/v1 Scale.
pub(crate) fn as_scale(kind: &Descriptor, object: &Value) -> Value {
    let meta = &object["metadata"];
    let paths = kind.scale();
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let selector = &object["spec"]["selector"];
    // ReplicationControllers select by a plain map.
    let plain = selector.as_object().is_some_and(|map| map.values().all(Value::is_string));
    let selector = match (kind.custom(), &paths.selector) {
        (_, Some(pointer)) => text(object, pointer).to_owned(),
        (Some(_), None) => String::new(),
        (None, _) if plain => Selector::from_map(selector).to_string(),
        (None, _) => Selector::from_label_selector(selector).map(|s| s.to_string()).unwrap_or_default(),
    };
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"]},
        "spec": {"replicas": number(&paths.wanted)},
        "status": {"replicas": number(&paths.current), "selector": selector},
    })
}
