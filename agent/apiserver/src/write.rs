//! create and update, and the one way in which an object changes.

use crate::admission;
use crate::allocate;
use crate::auth::{self, User};
use crate::certificates;
use crate::engine::Engine;
use crate::managed;
use crate::object::{self, deleting, finalizers, load, meta, text};
use crate::path::Target;
use crate::policy::Request;
use crate::query::Query;
use crate::status::{Result, Status};
use crate::subresource;
use crate::webhook::{Deadline, Rounds};
use http::HeaderMap;
use resources::{Cause, Descriptor, Subresource};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::{CommitError, Expect, Revision, Txn, Write};

/// How often a write is tried again when somebody else was faster.
const ATTEMPTS: usize = 64;
/// What is shown of an object whose scale is written.
const SCALE: [&str; 3] = ["autoscaling", "v1", "Scale"];
/// How often another generated name is tried.
const NAMES: usize = 8;

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status.
    Main,
    /// The status, labels and annotations.
    Status,
    /// The verdict on a request.
    Approval,
    /// A pod's ephemeral containers.
    Ephemeral,
    /// Everything: what the server itself does (bind, finalize, delete).
    Whole,
}

/// What else came with a write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Who writes.
    pub by: User,
    /// By which name the fields that are written are managed.
    pub manager: String,
    /// `status`, `scale`: what is written to, if it is not the object itself.
    pub subresource: &'static str,
    /// The object tells already who manages what: it comes from an apply.
    pub applies: bool,
    pub dry_run: bool,
    pub strict: Strictness,
    /// What the client is told in `Warning` headers.
    pub warnings: Vec<String>,
    /// What policies warn of, told as well.
    pub told: Told,
    /// When all who have a say must have said it.
    pub until: Deadline,
    /// The server itself writes: nobody else has a say, or a webhook that is down could keep it from starting.
    pub own: bool,
}

/// Whose writes nobody has a say in.
static NOBODY: User = User { name: String::new(), groups: Vec::new(), uid: None, extra: BTreeMap::new() };

/// Warnings that turn up on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    pub fn add(&self, warnings: Vec<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A write that is tried again is asked about again.
        let new: Vec<String> = warnings.into_iter().filter(|warning| !all.contains(warning)).collect();
        all.extend(new);
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What becomes of fields a kind does not have, and of those that come twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strictness {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl Options {
    pub fn read(user: &User, query: &Query, headers: &HeaderMap) -> Result<Self> {
        let strict = match query.get("fieldValidation") {
            None | Some("Warn") => Strictness::Warn,
            Some("Ignore") => Strictness::Ignore,
            Some("Strict") => Strictness::Strict,
            Some(other) => {
                return Err(Status::unprocessable(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        let manager = managed::manager(user, query, headers)?;
        let dry_run = query.dry_run()?;
        Ok(Self { by: user.clone(), manager, dry_run, strict, ..Self::default() })
    }

    /// Of what the server does by itself.
    pub fn own() -> Self {
        Self { by: User::admin(), manager: "kube-apiserver".to_owned(), own: true, ..Self::default() }
    }

    /// The same, on a subresource.
    pub fn on(self, subresource: &'static str) -> Self {
        Self { subresource, ..self }
    }

    /// The write as those are asked who have a say in it.
    fn request<'a>(&'a self, target: &'a Target, name: &'a str) -> Request<'a> {
        Request {
            operation: "",
            kind: &target.kind,
            subresource: self.subresource,
            namespace: target.namespace.as_deref(),
            name,
            object: None,
            old: None,
            by: if self.own { &NOBODY } else { &self.by },
            manager: &self.manager,
            dry_run: self.dry_run,
            shown: (self.subresource == "scale").then_some(SCALE),
            until: self.until,
        }
    }

    /// An object as those see it who are asked: of a write to its scale, the Scale.
    fn seen<'v>(&self, kind: &Descriptor, object: &'v Value) -> Cow<'v, Value> {
        if self.subresource == "scale" {
            Cow::Owned(subresource::as_scale(kind, object))
        } else {
            Cow::Borrowed(object)
        }
    }

    /// Takes out what the kind does not have, and complains as wanted.
    pub fn conform(&mut self, kind: &Descriptor, object: &mut Value, duplicates: Vec<String>) -> Result<()> {
        let found = kind.conform(object);
        if let Some(fault) = found.mistyped.first() {
            let message = format!(
                "{} in version {:?} cannot be handled as a {}: {fault}",
                kind.kind, kind.version, kind.kind
            );
            return Err(Status::bad_request(message));
        }
        let unknown = found.unknown.iter().map(|f| format!("unknown field {f:?}"));
        let twice = duplicates.iter().map(|f| format!("duplicate field {f:?}"));
        self.complain(unknown.chain(twice).collect())
    }

    pub fn complain(&mut self, complaints: Vec<String>) -> Result<()> {
        match self.strict {
            Strictness::Strict if !complaints.is_empty() => {
                Err(Status::bad_request(format!("strict decoding error: {}", complaints.join(", "))))
            }
            Strictness::Warn => {
                self.warnings.extend(complaints);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// That a body is what its URL says: kind, version, namespace, name. Fills in what was left out.
pub(crate) fn check_identity(target: &Target, object: &mut Value) -> Result<()> {
    let kind = &target.kind;
    if !object.is_object() {
        return Err(Status::bad_request("the body is not an object"));
    }
    let (version, found) = (text(object, "/apiVersion").to_owned(), text(object, "/kind").to_owned());
    if (!version.is_empty() && version != kind.api_version()) || (!found.is_empty() && found != kind.kind) {
        let message = format!(
            "{found} in version {version:?} cannot be handled as a {}: the object provided is unrecognized \
             (must be of type {} in {:?})",
            kind.kind,
            kind.kind,
            kind.api_version()
        );
        return Err(Status::bad_request(message));
    }
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.as_ref().into();
    if let Some(meta) = object.get("metadata").filter(|m| !m.is_null() && !m.is_object()) {
        return Err(Status::bad_request(format!("metadata is not an object: {meta}")));
    }
    let meta = meta(object);
    let inside = meta.get("namespace").and_then(Value::as_str).unwrap_or_default();
    match &target.namespace {
        Some(namespace) if inside.is_empty() => {
            meta.insert("namespace".into(), namespace.as_str().into());
        }
        Some(namespace) if inside != namespace => {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        None if !kind.namespaced => {
            meta.remove("namespace");
        }
        _ => {}
    }
    let inside = meta.get("name").and_then(Value::as_str).unwrap_or_default();
    match &target.name {
        Some(name) if inside.is_empty() => {
            meta.insert("name".into(), name.as_str().into());
        }
        Some(name) if inside != name => Err(Status::bad_request(format!(
            "the name of the object ({inside}) does not match the name on the URL ({name})"
        )))?,
        _ => {}
    }
    Ok(())
}

impl Engine {
    /// Makes an object.
    pub async fn create(&self, target: &Target, mut object: Value, options: &Options) -> Result<Value> {
        let kind = &target.kind;
        check_identity(target, &mut object)?;
        let applied = meta(&mut object).remove("managedFields").filter(|_| options.applies);
        prepare_new(kind, &mut object)?;
        let (given, base) = {
            let meta = meta(&mut object);
            let of = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            (of("name"), of("generateName"))
        };
        for attempt in 1.. {
            let own = self.admit_kind(kind)?;
            let home =
                target.namespace.as_deref().map(|n| self.admit_namespace(kind, n, &given)).transpose()?;
            if given.is_empty() && !base.is_empty() {
                meta(&mut object).insert("name".into(), object::generate_name(&base).into());
            }
            if self.admits("NodeRestriction") {
                auth::admit(&options.by, &kind.plural, &object).map_err(|why| {
                    Status::forbidden(&kind.group, &kind.plural, object::name(&object), &why)
                })?;
            }
            auth::check_grant(&options.by, kind, &object, None, self)?;
            let mut new = object.clone();
            kind.defaults(&mut new);
            match &applied {
                Some(fields) => managed::keep(&mut new, fields.clone()),
                None => managed::track_new(kind, &mut new, options),
            }
            let mut beside = admission::fill(self, &options.by, kind, &mut new)?;
            let mut rounds = Rounds::default();
            loop {
                let name = object::name(&new);
                let request =
                    Request { operation: "CREATE", object: Some(&new), ..options.request(target, name) };
                let Some(next) = self.mutate(&request, &mut rounds, &options.told).await? else { break };
                new = renewed(target, &new, next)?;
                beside = admission::fill(self, &options.by, kind, &mut new)?;
            }
            self.settle_definition(kind, &mut new);
            let mut writes = allocate::plan(self, kind, None, &mut new)?;
            writes.extend(beside);
            let name = object::name(&new).to_owned();
            let causes = kind.validate(&new, None);
            if !causes.is_empty() {
                return Err(Status::invalid(kind, &name, &causes));
            }
            admission::check(self, kind, &new)?;
            let request =
                Request { operation: "CREATE", object: Some(&new), ..options.request(target, &name) };
            options.told.add(self.ask_policies(&request)?);
            self.ask_webhooks(&request, &options.told).await?;
            options.told.add(admission::warnings(self, kind, &new));
            writes.extend(admission::charge(self, kind, &new)?);
            let key = object::key(kind, target.namespace.as_deref(), &name);
            if options.dry_run {
                return match self.kv(kind).get(&key) {
                    Some(_) => Err(Status::already_exists(kind, &name)),
                    None => Ok(new),
                };
            }
            writes.insert(
                0,
                Write { key: key.clone(), expect: Expect::Absent, value: Some(object::bytes(kind, &new)?) },
            );
            // Namespaces are not kept where volatile kinds are.
            writes.extend(home.filter(|_| !kind.volatile));
            writes.extend(own);
            match self.kv(kind).commit(Txn { writes }).await {
                Ok(revision) => {
                    object::set_revision(&mut new, revision);
                    return Ok(new);
                }
                Err(CommitError::Conflict { key: at, .. }) if at == key => {
                    if !given.is_empty() || attempt >= NAMES {
                        return Err(Status::already_exists(kind, &name));
                    }
                }
                // Somebody else took the address, or changed the namespace: it is looked at again.
                Err(CommitError::Conflict { .. }) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Status::internal("no free name was found"))
    }

    /// Replaces an object, or its status.
    pub async fn update(
        &self,
        target: &Target,
        name: &str,
        object: Value,
        part: Part,
        options: &Options,
    ) -> Result<Value> {
        let mut object = object;
        check_identity(target, &mut object)?;
        let make = |old: &Value| {
            auth::check_grant(&options.by, &target.kind, &object, Some(old), self)?;
            Ok(object.clone())
        };
        self.change(target, name, part, options, make).await
    }

    /// Changes an object: reads it, lets `make` build its next state, and writes that unless somebody else wrote
    /// meanwhile; then it begins again. A next state that carries another `resourceVersion` than the one read, is a
    /// conflict for whoever sent it.
    pub async fn change(
        &self,
        target: &Target,
        name: &str,
        part: Part,
        options: &Options,
        mut make: impl FnMut(&Value) -> Result<Value> + Send,
    ) -> Result<Value> {
        let kind = &target.kind;
        for _ in 0..ATTEMPTS {
            let record = self.record(kind, target.namespace.as_deref(), name)?;
            let old = load(kind, &record)?;
            let mut new = make(&old)?;
            let given = meta(&mut new).remove("managedFields");
            settle(kind, part, &old, &mut new)?;
            given.into_iter().for_each(|fields| managed::keep(&mut new, fields));
            if !options.applies {
                managed::track(kind, &old, &mut new, options);
            }
            if part != Part::Whole {
                self.change_on(target, name, part, options, &old, &mut new).await?;
            }
            self.settle_definition(kind, &mut new);
            let mut writes = allocate::plan(self, kind, Some(&old), &mut new)?;
            let causes = match part {
                Part::Ephemeral => resources::validate_ephemeral(&new, &old),
                _ => kind.validate(&new, Some(&old)),
            };
            if !causes.is_empty() {
                return Err(Status::invalid(kind, name, &causes));
            }
            if part == Part::Ephemeral {
                // What may not be in a new pod may not come to it later either.
                admission::check(self, kind, &new)?;
            }
            if part != Part::Whole {
                let (old, new) = (options.seen(kind, &old), options.seen(kind, &new));
                let request = options.request(target, name);
                let request = Request { operation: "UPDATE", object: Some(&new), old: Some(&old), ..request };
                options.told.add(self.ask_policies(&request)?);
                self.ask_webhooks(&request, &options.told).await?;
            }
            if new == old && !is_gone(kind, &new) {
                return Ok(new);
            }
            if options.dry_run {
                return Ok(new);
            }
            let value = if is_gone(kind, &new) {
                writes = allocate::release(kind, &old);
                None
            } else {
                Some(object::bytes(kind, &new)?)
            };
            let key = record.key.to_string();
            writes.insert(0, Write { key, expect: Expect::Modified(record.modified), value });
            match self.kv(kind).commit(Txn { writes }).await {
                Ok(revision) => {
                    object::set_revision(&mut new, revision);
                    if is_gone(kind, &new) {
                        self.kinds.gone(kind);
                    }
                    return Ok(new);
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Status::modified(kind, name))
    }

    /// Has the mutating webhooks change the next state of an object.
    async fn change_on(
        &self,
        target: &Target,
        name: &str,
        part: Part,
        options: &Options,
        old: &Value,
        new: &mut Value,
    ) -> Result<()> {
        let kind = &target.kind;
        let shown = options.seen(kind, old);
        let mut rounds = Rounds::default();
        loop {
            let request = options.request(target, name);
            let seen = options.seen(kind, new);
            let request = Request { operation: "UPDATE", object: Some(&seen), old: Some(&shown), ..request };
            let Some(mut next) = self.mutate(&request, &mut rounds, &options.told).await? else {
                return Ok(());
            };
            if request.shown.is_some() {
                let replicas = next["spec"]["replicas"].take();
                subresource::put(new, &kind.scale().wanted, replicas);
                continue;
            }
            check_identity(target, &mut next)?;
            object::meta(&mut next).remove("managedFields");
            let managed = object::meta(new).remove("managedFields");
            settle(kind, part, old, &mut next)?;
            managed.into_iter().for_each(|fields| managed::keep(&mut next, fields));
            *new = next;
        }
    }

    /// Removes an object that was read at this revision.
    pub async fn remove(
        &self,
        kind: &Descriptor,
        key: &str,
        object: &Value,
        at: Revision,
    ) -> std::result::Result<Revision, CommitError> {
        let mut writes = allocate::release(kind, object);
        writes.insert(0, Write { key: key.to_owned(), expect: Expect::Modified(at), value: None });
        self.kv(kind).commit(Txn { writes }).await
    }
}

/// What the server says of a new object, whatever the client said.
fn prepare_new(kind: &Descriptor, object: &mut Value) -> Result<()> {
    // A node registers with what it found; every other status is for the one who watches over the object.
    if kind.has(Subresource::Status) && kind.kind != "Node" {
        object::as_map(object).remove("status");
    }
    let meta = meta(object);
    if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty() && v != "0") {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for owned in
        ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
    {
        meta.remove(owned);
    }
    meta.insert("uid".into(), object::new_uid().into());
    meta.insert("creationTimestamp".into(), object::timestamp(0).into());
    if kind.counts() {
        meta.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// A new object as others changed it: what the server says of it stays as it was.
fn renewed(target: &Target, before: &Value, mut next: Value) -> Result<Value> {
    let kind = &target.kind;
    check_identity(target, &mut next)?;
    if kind.has(Subresource::Status) && kind.kind != "Node" {
        object::as_map(&mut next).remove("status");
    }
    let (from, to) = (&before["metadata"], meta(&mut next));
    to.remove("deletionTimestamp");
    to.remove("resourceVersion");
    for field in ["uid", "creationTimestamp", "generation", "managedFields"] {
        copy(from.get(field), to, field);
    }
    kind.defaults(&mut next);
    Ok(next)
}

/// Makes a next state out of what was sent and what there is: only `part` changes, and the server's own fields stay.
fn settle(kind: &Descriptor, part: Part, old: &Value, new: &mut Value) -> Result<()> {
    let name = object::name(old);
    let version = text(new, "/metadata/resourceVersion");
    if !version.is_empty() && version != "0" && version != text(old, "/metadata/resourceVersion") {
        return Err(Status::modified(kind, name));
    }
    let (sent, uid) = (text(new, "/metadata/uid"), text(old, "/metadata/uid"));
    if !sent.is_empty() && sent != uid {
        let why = format!("Precondition failed: UID in precondition: {sent}, UID in object meta: {uid}");
        return Err(Status::conflict(kind, name, &why));
    }
    match part {
        Part::Main if kind.has(Subresource::Status) => keep(old, new, &["status"]),
        Part::Status | Part::Approval => {
            match part {
                Part::Approval => certificates::approve(old, new),
                _ if kind.has(Subresource::Approval) => certificates::sign(old, new),
                _ => {}
            }
            let mut base = old.clone();
            keep(new, &mut base, &["status"]);
            let sent = meta(new).clone();
            let base_meta = meta(&mut base);
            for field in ["labels", "annotations", "finalizers"] {
                copy(sent.get(field), base_meta, field);
            }
            *new = base;
        }
        Part::Ephemeral => {
            let mut base = old.clone();
            let containers = new.pointer("/spec/ephemeralContainers");
            copy(containers, object::field(object::as_map(&mut base), "spec"), "ephemeralContainers");
            *new = base;
        }
        _ => {}
    }
    let owned: &[&str] =
        &["name", "namespace", "uid", "creationTimestamp", "resourceVersion", "generation", "generateName"];
    let times: &[&str] = &["deletionTimestamp", "deletionGracePeriodSeconds"];
    let old_meta = old.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let new_meta = meta(new);
    new_meta.remove("selfLink");
    let kept = if part == Part::Whole { [owned, &[]] } else { [owned, times] };
    for field in kept.concat() {
        copy(old_meta.get(field), new_meta, field);
    }
    check_finalizers(kind, old, new)?;
    kind.defaults(new);
    count_generation(kind, old, new);
    Ok(())
}

fn count_generation(kind: &Descriptor, old: &Value, new: &mut Value) {
    if !kind.counts() {
        return;
    }
    let changed = kind.differs(old, new) || deleting(old) != deleting(new);
    if changed {
        let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        meta(new).insert("generation".into(), generation.saturating_add(1).into());
    }
}

/// What is being deleted takes no new finalizers.
fn check_finalizers(kind: &Descriptor, old: &Value, new: &Value) -> Result<()> {
    if !deleting(old) {
        return Ok(());
    }
    let before = finalizers(old);
    let added: Vec<String> =
        finalizers(new).into_iter().filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
    if added.is_empty() {
        return Ok(());
    }
    let message = format!(
        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.join(", ")
    );
    let cause = Cause { reason: "FieldValueForbidden", message, field: "metadata.finalizers".into() };
    Err(Status::invalid(kind, object::name(old), &[cause]))
}

/// Whether nothing holds an object that is being deleted any more.
pub(crate) fn is_gone(kind: &Descriptor, object: &Value) -> bool {
    let grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let content = kind.has(Subresource::Finalize) && !object::list(object, "/spec/finalizers").is_empty();
    deleting(object) && grace == 0 && finalizers(object).is_empty() && !content
}

fn keep(from: &Value, to: &mut Value, fields: &[&str]) {
    for field in fields {
        copy(from.get(field), object::as_map(to), field);
    }
}

fn copy(value: Option<&Value>, to: &mut serde_json::Map<String, Value>, field: &str) {
    match value {
        Some(value) => {
            to.insert(field.to_owned(), value.clone());
        }
        None => {
            to.remove(field);
        }
    }
}
