//! delete and deletecollection: preconditions, grace, finalizers.

use crate::auth::User;
use crate::custom;
use crate::engine::Engine;
use crate::object::{self, deleting, load, meta, text};
use crate::path::Target;
use crate::policy::Request;
use crate::query::Query;
use crate::read::Selection;
use crate::respond::Format;
use crate::status::{self, Result, Status};
use crate::webhook::{Deadline, Rounds};
use crate::write::{Told, is_gone};
use resources::{Descriptor, Subresource};
use serde_json::{Value, json};
use store::{CommitError, Expect, Txn, Write};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// How often a delete is tried again when somebody else writes the object meanwhile.
const ATTEMPTS: usize = 64;

/// What becomes of what the object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    revision: Option<String>,
    pub dry_run: bool,
    /// Who deletes; nobody: the server itself.
    pub by: User,
    /// What policies warn of.
    pub told: Told,
    /// When all who have a say must have said it.
    pub until: Deadline,
}

impl Options {
    pub fn read(user: &User, body: &Value, query: &Query) -> Result<Self> {
        let kind = text(body, "/kind");
        if !body.is_null() && !kind.is_empty() && kind != "DeleteOptions" {
            return Err(Status::bad_request(format!("{kind} cannot be handled as a DeleteOptions")));
        }
        let grace = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        };
        let own = text(body, "/propagationPolicy");
        let policy = if own.is_empty() { query.get("propagationPolicy").unwrap_or_default() } else { own };
        let orphans = body["orphanDependents"].as_bool().unwrap_or(query.flag("orphanDependents"));
        let propagation = match policy {
            "" if orphans => Some(Propagation::Orphan),
            "" => None,
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            "Orphan" => Some(Propagation::Orphan),
            other => {
                return Err(Status::unprocessable(format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
                     supported values: \"Background\", \"Foreground\", \"Orphan\""
                )));
            }
        };
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        let dry_run = query.dry_run()? || object::list(body, "/dryRun").iter().any(|v| v == "All");
        let (uid, revision) = (precondition("uid"), precondition("resourceVersion"));
        Ok(Self {
            grace: grace.map(|g| g.max(0)),
            propagation,
            uid,
            revision,
            dry_run,
            by: user.clone(),
            told: Told::default(),
            until: Deadline::default(),
        })
    }

    fn check(&self, kind: &Descriptor, object: &Value) -> Result<()> {
        let name = object::name(object);
        for (what, wanted, pointer) in [
            ("UID", &self.uid, "/metadata/uid"),
            ("ResourceVersion", &self.revision, "/metadata/resourceVersion"),
        ] {
            let found = text(object, pointer);
            if let Some(wanted) = wanted.as_deref().filter(|w| *w != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(Status::conflict(kind, name, &why));
            }
        }
        Ok(())
    }
}

/// The object as it is while it is being deleted; `None`: nothing holds it.
fn marked(kind: &Descriptor, object: &Value, options: &Options) -> Option<Value> {
    let mut next = object.clone();
    let mut finalizers: Vec<&str> = object::finalizers(object);
    if let Some(propagation) = options.propagation {
        finalizers.retain(|f| *f != FOREGROUND && *f != ORPHAN);
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND),
            Propagation::Orphan => finalizers.push(ORPHAN),
        }
    }
    let default = kind.grace(object);
    let grace = default.map_or(0, |seconds| options.grace.unwrap_or(seconds));
    let before = deleting(object)
        .then(|| object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0));
    let meta = meta(&mut next);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), json!(finalizers));
    }
    // A second delete may shorten the time, never lengthen it.
    if before.is_none_or(|before| grace < before) {
        meta.insert("deletionTimestamp".into(), object::timestamp(grace).into());
        meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if before.is_none() && kind.counts() {
        let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or(0);
        meta.insert("generation".into(), generation.saturating_add(1).into());
    }
    if kind.has(Subresource::Finalize) {
        object::field(object::as_map(&mut next), "status").insert("phase".into(), "Terminating".into());
    }
    (!is_gone(kind, &next)).then_some(next)
}

impl Engine {
    /// Deletes an object, or marks it as being deleted.
    pub async fn delete(&self, target: &Target, name: &str, options: &Options) -> Result<Value> {
        let kind = &target.kind;
        for _ in 0..ATTEMPTS {
            let record = self.record(kind, target.namespace.as_deref(), name)?;
            let object = load(kind, &record)?;
            options.check(kind, &object)?;
            let request = Request {
                operation: "DELETE",
                kind,
                subresource: "",
                namespace: target.namespace.as_deref(),
                name,
                object: None,
                old: Some(&object),
                by: &options.by,
                manager: "",
                dry_run: options.dry_run,
                shown: None,
                until: options.until,
            };
            self.mutate(&request, &mut Rounds::default(), &options.told).await?;
            options.told.add(self.ask_policies(&request)?);
            self.ask_webhooks(&request, &options.told).await?;
            if kind.plural == "namespaces" && ["default", "kube-system", "kube-public"].contains(&name) {
                return Err(Status::forbidden("", &kind.plural, name, "this namespace may not be deleted"));
            }
            let mut next = if custom::is_definition(kind) && !deleting(&object) {
                marked(kind, &resources::custom::held(&object), options)
            } else {
                marked(kind, &object, options)
            };
            if let Some(next) = &mut next {
                self.settle_definition(kind, next);
            }
            if options.dry_run || next.as_ref() == Some(&object) {
                return Ok(next.unwrap_or_else(|| gone(kind, &object)));
            }
            let done: std::result::Result<_, CommitError> = match &next {
                Some(next) => {
                    let value = Some(object::bytes(kind, next)?);
                    let write = Write {
                        key: record.key.to_string(),
                        expect: Expect::Modified(record.modified),
                        value,
                    };
                    self.kv(kind).commit(Txn { writes: vec![write] }).await
                }
                None => self.remove(kind, &record.key, &object, record.modified).await,
            };
            match (done, next) {
                (Ok(revision), Some(mut next)) => {
                    if custom::is_definition(kind) {
                        self.kinds.end();
                    }
                    object::set_revision(&mut next, revision);
                    return Ok(next);
                }
                (Ok(_), None) => {
                    self.kinds.gone(kind);
                    return Ok(gone(kind, &object));
                }
                (Err(CommitError::Conflict { .. }), _) => {}
                (Err(error), _) => return Err(error.into()),
            }
        }
        Err(Status::modified(kind, name))
    }

    /// Deletes all objects a list would show, and shows them.
    pub async fn delete_collection(
        &self,
        target: &Target,
        query: &Query,
        options: &Options,
        format: &Format,
    ) -> Result<Value> {
        let selection = Selection::read(&target.kind, query)?;
        let listed = self.select(target, query, &selection)?;
        for object in &listed.items {
            let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
            let one = Target { namespace, ..target.clone() };
            match self.delete(&one, object::name(object), options).await {
                Ok(_) => {}
                Err(status) if status.reason == "NotFound" => {}
                Err(status) => return Err(status),
            }
        }
        let meta = json!({"resourceVersion": self.kv(&target.kind).revision().to_string()});
        Ok(format.list(&target.kind, listed.items, meta))
    }
}

/// What is answered when the object is no more: pods are shown, of others it is said.
fn gone(kind: &Descriptor, object: &Value) -> Value {
    match kind.kind.as_ref() {
        "Pod" | "Service" | "ServiceAccount" => object.clone(),
        _ => status::success(kind, object::name(object), text(object, "/metadata/uid")),
    }
}
