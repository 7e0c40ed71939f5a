//! Server-side apply, and `metadata.managedFields` of every write.

use crate::auth::{self, Attributes, User};
use crate::engine::Engine;
use crate::object::{self, meta, text};
use crate::patch::Form;
use crate::path::Target;
use crate::query::Query;
use crate::respond;
use crate::status::{Result, Status};
use crate::write::{Options, Part, Strictness, check_identity};
use http::{HeaderMap, header};
use resources::apply::{self, ApplyError, Writer};
use resources::{Descriptor, Subresource};
use serde_json::Value;

/// How often an apply is tried again when the object comes or goes meanwhile.
const ATTEMPTS: usize = 8;
/// The longest name of a manager.
const MAX_NAME: usize = 128;

/// By which name the fields of a write are managed: the one it says, the client's, or the user's.
pub(crate) fn manager(user: &User, query: &Query, headers: &HeaderMap) -> Result<String> {
    if let Some(name) = query.get("fieldManager") {
        let fault = if name.len() > MAX_NAME {
            Some(format!("Too long: may not be more than {MAX_NAME} bytes"))
        } else {
            let odd = name.chars().any(char::is_control);
            odd.then(|| format!("Invalid value: {name:?}: should only contain printable characters"))
        };
        return fault.map_or(Ok(name.to_owned()), |fault| Err(options_invalid("fieldManager", &fault)));
    }
    let agent = respond::text(headers, header::USER_AGENT).split('/').next().unwrap_or_default();
    if !agent.is_empty() {
        return Ok(agent.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect());
    }
    // Who is in this process sends no such header.
    Ok(match user.name.strip_prefix("system:") {
        Some(name) if name.starts_with("node:") => "kubelet".to_owned(),
        Some(name) => name.rsplit(':').next().unwrap_or_default().to_owned(),
        None => "unknown".to_owned(),
    })
}

/// Whether an apply takes fields from others. Only an apply may ask for it, and it must say who applies.
pub(crate) fn force(form: Form, query: &Query) -> Result<bool> {
    let asked = query.get("force").is_some();
    match form {
        Form::Apply if query.get("fieldManager").is_none() => {
            Err(options_invalid("fieldManager", "Required value: is required for apply patch"))
        }
        Form::Apply => Ok(asked && query.flag("force")),
        _ if asked => Err(options_invalid("force", "Forbidden: may not be specified for non-apply patch")),
        _ => Ok(false),
    }
}

fn options_invalid(field: &str, fault: &str) -> Status {
    Status::unprocessable(format!("PatchOptions.meta.k8s.io \"\" is invalid: {field}: {fault}"))
}

/// Calls with who writes, and when.
fn writing<T>(kind: &Descriptor, options: &Options, call: impl FnOnce(&Writer<'_>) -> T) -> T {
    let (api_version, now) = (kind.api_version(), object::timestamp(0));
    let (manager, subresource) = (options.manager.as_str(), options.subresource);
    call(&Writer { manager, subresource, api_version: &api_version, now: &now })
}

/// Notes who manages what in a new object.
pub(crate) fn track_new(kind: &Descriptor, new: &mut Value, options: &Options) {
    writing(kind, options, |writer| apply::track_new(kind.types(), new, writer));
}

/// Notes who manages what after a change.
pub(crate) fn track(kind: &Descriptor, old: &Value, new: &mut Value, options: &Options) {
    writing(kind, options, |writer| apply::track(kind.types(), old, new, writer));
}

/// Puts entries where they belong.
pub(crate) fn keep(object: &mut Value, fields: Value) {
    meta(object).insert("managedFields".into(), fields);
}

impl Engine {
    /// Makes an object as somebody wants it: changes it, or creates it. Tells whether it was made.
    pub async fn apply(
        &self,
        target: &Target,
        name: &str,
        mut wanted: Value,
        part: Part,
        force: bool,
        options: &Options,
    ) -> Result<(bool, Value)> {
        let kind = &target.kind;
        read_wanted(target, &mut wanted, part)?;
        let options = Options { applies: true, ..options.clone() };
        for _ in 0..ATTEMPTS {
            let make = |old: &Value| {
                let new = writing(kind, &options, |writer| {
                    apply::apply(kind.types(), Some(old), &wanted, writer, force)
                });
                let new = new.map_err(|error| refusal(kind, &wanted, error))?;
                auth::check_grant(&options.by, kind, &new, Some(old), self)?;
                Ok(new)
            };
            match self.change(target, name, part, &options, make).await {
                Err(status) if status.reason == "NotFound" && part == Part::Main => {}
                done => return done.map(|object| (false, object)),
            }
            match self.create_wanted(target, &wanted, &options).await {
                Err(status) if status.reason == "AlreadyExists" => {}
                done => return done.map(|object| (true, object)),
            }
        }
        Err(Status::modified(kind, name))
    }

    /// Creates what is wanted: whoever may change an object may not for that make one.
    async fn create_wanted(&self, target: &Target, wanted: &Value, options: &Options) -> Result<Value> {
        let kind = &target.kind;
        let name = object::name(wanted);
        let attributes = Attributes {
            verb: "create",
            group: &kind.group,
            plural: &kind.plural,
            namespace: target.namespace.as_deref().unwrap_or_default(),
            name,
            ..Attributes::default()
        };
        auth::check(&options.by, &attributes, self)?;
        let uid = text(wanted, "/metadata/uid");
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Status::conflict(kind, name, &why));
        }
        let new = writing(kind, options, |writer| apply::apply(kind.types(), None, wanted, writer, false));
        let new = new.map_err(|error| refusal(kind, wanted, error))?;
        self.create(&Target { name: None, ..target.clone() }, new, options).await
    }
}

/// Checks what is wanted, and takes out what is not to be had here.
fn read_wanted(target: &Target, wanted: &mut Value, part: Part) -> Result<()> {
    let kind = &target.kind;
    check_identity(target, wanted)?;
    apply::check(kind.types(), wanted).map_err(|error| refusal(kind, wanted, error))?;
    if meta(wanted).contains_key("managedFields") {
        return Err(refusal(kind, wanted, ApplyError::ManagedFields));
    }
    // What the schema calls atomic is looked at here.
    let mut strict = Options { strict: Strictness::Warn, ..Options::default() };
    strict.conform(kind, wanted, Vec::new())?;
    if !strict.warnings.is_empty() {
        return Err(refusal(kind, wanted, ApplyError::Invalid(strict.warnings)));
    }
    let fields = object::as_map(wanted);
    match part {
        Part::Main if kind.has(Subresource::Status) => {
            fields.remove("status");
        }
        Part::Status | Part::Approval => {
            fields.retain(|name, _| ["apiVersion", "kind", "metadata", "status"].contains(&name.as_str()));
        }
        _ => {}
    }
    let meta = meta(wanted);
    for owned in ["creationTimestamp", "generation", "selfLink"] {
        meta.remove(owned);
    }
    Ok(())
}

/// As upstream words it.
fn refusal(kind: &Descriptor, wanted: &Value, error: ApplyError) -> Status {
    match error {
        ApplyError::Conflicts(conflicts) => Status::apply_conflict(&conflicts),
        ApplyError::ManagedFields => Status::bad_request("metadata.managedFields must be nil"),
        ApplyError::Invalid(told) => {
            let (namespace, name) = (text(wanted, "/metadata/namespace"), object::name(wanted));
            let of = format!("{namespace}/{name}; {}, Kind={}", kind.api_version(), kind.kind);
            let all = match told.as_slice() {
                [one] => one.clone(),
                many => format!("errors:\n  {}", many.join("\n  ")),
            };
            Status::unexplained(format!("failed to create typed patch object ({of}): {all}"))
        }
    }
}
