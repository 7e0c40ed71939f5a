//! Who manages which fields, as `metadata.managedFields` has it.

use super::merge::{merge, remove};
use super::set::FieldSet;
use super::skeleton;
use super::types::{Schema, Type};
use super::walk::{compare, faults, fields};
use serde_json::{Value, json};

pub use super::set::show;

/// Entries of updates that are kept; the oldest of more are put together.
const MAX_UPDATERS: usize = 10;
/// Who the oldest of too many updates were.
const ANCIENT: &str = "ancient-changes";
/// Who wrote an object before anybody applied to it.
const BEFORE: &str = "before-first-apply";
/// What client-side apply wrote last, as JSON in an annotation.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What the server itself sets: nobody manages it.
const UNMANAGED: [&[&str]; 11] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

/// How somebody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By apply: the fields are those that were wanted.
    Apply,
    /// In any other way: the fields are those that were changed.
    Update,
}

/// Who writes what.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `fieldManager`, or the client's name.
    pub manager: &'a str,
    /// `status`, `scale`; empty for the object itself.
    pub subresource: &'a str,
    /// The version in which the object is written.
    pub api_version: &'a str,
    /// Now, as RFC 3339.
    pub now: &'a str,
}

/// One manager's fields.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    time: String,
    subresource: String,
    fields: FieldSet,
}

/// A field that somebody else manages and that would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who, and how: `"kubectl" using v1 at 2026-11-24T15:00:00Z`.
    pub with: String,
    /// `.spec.replicas`
    pub field: String,
}

/// Why an apply was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// Others manage fields that would change.
    Conflicts(Vec<Conflict>),
    /// The wanted object cannot be read by its schema.
    Invalid(Vec<String>),
    /// `metadata.managedFields` may not be applied.
    ManagedFields,
}

impl Entry {
    fn decode(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            time: text("time"),
            subresource: text("subresource"),
            fields: entry.get("fieldsV1").map_or_else(|| Some(FieldSet::default()), FieldSet::decode)?,
        })
    }

    fn encode(&self) -> Value {
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut entry = json!({"manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.encode()});
        for (name, value) in [("time", &self.time), ("subresource", &self.subresource)] {
            if !value.is_empty() {
                entry[name] = value.as_str().into();
            }
        }
        entry
    }

    fn new(writer: &Writer<'_>, operation: Operation, fields: FieldSet) -> Self {
        Self {
            manager: writer.manager.to_owned(),
            operation,
            api_version: writer.api_version.to_owned(),
            time: writer.now.to_owned(),
            subresource: writer.subresource.to_owned(),
            fields,
        }
    }

    /// Whether it is of the same manager: whoever applies is one in all versions.
    fn is_of(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As messages tell who it is.
    fn shown(&self) -> String {
        let mut shown = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            shown += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            shown += &format!(" using {}", self.api_version);
            if !self.time.is_empty() {
                shown += &format!(" at {}", self.time);
            }
        }
        shown
    }
}

/// All entries of an object; `None` if one is not of the form.
fn decode(object: &Value) -> Option<Vec<Entry>> {
    match object.pointer("/metadata/managedFields") {
        Some(Value::Array(entries)) => entries.iter().map(Entry::decode).collect(),
        _ => Some(Vec::new()),
    }
}

/// Puts the entries in, in upstream's order; those that are as they were keep their time.
fn encode(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        (a.operation, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
            b.operation,
            &b.time,
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if entries.is_empty() {
        meta.remove("managedFields");
    } else {
        meta.insert("managedFields".to_owned(), entries.iter().map(Entry::encode).collect());
    }
}

/// Whether a client asks that nothing be known of who manages what.
fn is_reset(object: &Value) -> bool {
    match object.pointer("/metadata/managedFields") {
        Some(Value::Array(entries)) => {
            entries.is_empty() || entries.len() == 1 && entries[0].as_object().is_some_and(|e| e.is_empty())
        }
        _ => false,
    }
}

/// The entries that hold before a write: the live object's, or those that the client puts in their place.
fn before(live: &Value, new: &Value, writer: &Writer<'_>) -> Vec<Entry> {
    if writer.subresource.is_empty() {
        if is_reset(new) {
            return Vec::new();
        }
        if let Some(given) = decode(new).filter(|given| !given.is_empty()) {
            return given;
        }
    }
    decode(live).unwrap_or_default()
}

fn without_unmanaged(mut set: FieldSet) -> FieldSet {
    UNMANAGED.iter().for_each(|path| set.take(path));
    set
}

/// Notes who manages what in an object that is made.
pub fn track_new(schema: Schema<'_>, new: &mut Value, writer: &Writer<'_>) {
    let found = compare(schema, &skeleton::of(new), new);
    let set = without_unmanaged(found.added.union(&found.modified));
    encode(new, vec![Entry::new(writer, Operation::Update, set)]);
}

/// Notes who manages what after an object was changed in any way but an apply.
pub fn track(schema: Schema<'_>, live: &Value, new: &mut Value, writer: &Writer<'_>) {
    let mut entries = before(live, new, writer);
    if entries.is_empty() {
        // Nobody is known: then it stays so, until somebody applies.
        return encode(new, entries);
    }
    let found = compare(schema, live, new);
    let changed = found.added.union(&found.modified);
    let lost = changed.union(&found.removed);
    let mut own = Entry::new(writer, Operation::Update, without_unmanaged(changed));
    let writes = !own.fields.is_empty();
    if let (true, Some(at)) = (writes, entries.iter().position(|entry| entry.is_of(&own))) {
        let old = entries.remove(at);
        own.fields = own.fields.union(&old.fields.difference(&found.removed));
    }
    entries.iter_mut().for_each(|entry| entry.fields = entry.fields.difference(&lost));
    entries.extend(writes.then_some(own));
    cap(&mut entries);
    encode(new, entries);
}

/// Puts the oldest of too many updates together, by version.
fn cap(entries: &mut Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    let updates = |entries: &[Entry]| entries.iter().filter(|e| e.operation == Operation::Update).count();
    while updates(entries) > MAX_UPDATERS {
        let oldest = |entries: &[Entry], version: Option<&str>| {
            let of = |e: &&(usize, &Entry)| {
                e.1.operation == Operation::Update
                    && version.is_none_or(|version| e.1.api_version == version && e.1.manager != ANCIENT)
            };
            let found: Vec<(usize, &Entry)> = entries.iter().enumerate().collect();
            found.iter().filter(of).min_by_key(|(_, e)| (e.manager != ANCIENT, &e.time)).map(|(i, _)| *i)
        };
        let Some(first) = oldest(entries, None) else { return };
        let mut bucket = entries.remove(first);
        let Some(second) = oldest(entries, Some(&bucket.api_version)) else {
            entries.push(bucket);
            return;
        };
        let next = entries.remove(second);
        bucket.fields = bucket.fields.union(&next.fields);
        bucket.time = bucket.time.max(next.time);
        bucket.manager = ANCIENT.to_owned();
        bucket.subresource = String::new();
        entries.push(bucket);
    }
}

/// Whether an object can be read by its schema: upstream applies nothing that has other fields.
pub fn check(schema: Schema<'_>, wanted: &Value) -> Result<(), ApplyError> {
    let wrong = faults(schema, wanted);
    if wrong.is_empty() {
        return Ok(());
    }
    let told = wrong.iter().map(|fault| format!("{}: {}", show(&fault.path), fault.message)).collect();
    Err(ApplyError::Invalid(told))
}

/// The next state of an object of which somebody wants these fields. `live` is `None` if there is no such object yet.
/// What the manager wanted before and wants no more goes, unless somebody else manages it too.
pub fn apply(
    schema: Schema<'_>,
    live: Option<&Value>,
    wanted: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if wanted.pointer("/metadata/managedFields").is_some() {
        return Err(ApplyError::ManagedFields);
    }
    check(schema, wanted)?;
    let set = without_unmanaged(fields(schema, wanted));
    let Some(live) = live else {
        let mut new = wanted.clone();
        encode(&mut new, vec![Entry::new(writer, Operation::Apply, set)]);
        return Ok(new);
    };
    let apply = Apply { schema, live, wanted, writer, set };
    match apply.run(force) {
        Err(conflicts) => apply.upgrade(conflicts),
        Ok(new) => Ok(new),
    }
    .map(|new| apply.sync_last_applied(new))
}

struct Apply<'a> {
    schema: Schema<'a>,
    live: &'a Value,
    wanted: &'a Value,
    writer: &'a Writer<'a>,
    /// The fields that are wanted.
    set: FieldSet,
}

impl Apply<'_> {
    fn run(&self, force: bool) -> Result<Value, Vec<(Entry, FieldSet)>> {
        let mut entries = self.entries();
        let mut own = Entry::new(self.writer, Operation::Apply, self.set.clone());
        let last = entries.iter().position(|entry| entry.is_of(&own)).map(|at| entries.remove(at));
        let mut new = merge(self.schema, self.live, self.wanted);
        if let Some(last) = &last {
            self.prune(&mut new, &last.fields, &entries);
        }
        let found = compare(self.schema, self.live, &new);
        let changed = found.added.union(&found.modified);
        let conflicts: Vec<(Entry, FieldSet)> = entries
            .iter()
            .map(|entry| (entry.clone(), entry.fields.intersection(&changed)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        let lost = changed.union(&found.removed);
        entries.iter_mut().for_each(|entry| entry.fields = entry.fields.difference(&lost));
        if let Some(last) = last {
            let same = last.fields == own.fields && last.api_version == own.api_version;
            let moved = !without_unmanaged(lost).is_empty();
            if same && !moved {
                own.time = last.time;
            }
        }
        entries.push(own);
        encode(&mut new, entries);
        Ok(new)
    }

    /// Who manages what before the apply. What was written when nobody was noted is somebody's too.
    fn entries(&self) -> Vec<Entry> {
        let entries = decode(self.live).unwrap_or_default();
        if !entries.is_empty() {
            return entries;
        }
        let found = compare(self.schema, &skeleton::of(self.live), self.live);
        let writer = Writer { manager: BEFORE, ..*self.writer };
        vec![Entry::new(&writer, Operation::Update, without_unmanaged(found.added.union(&found.modified)))]
    }

    /// Takes out what was wanted before, and is by nobody now.
    fn prune(&self, new: &mut Value, last: &FieldSet, others: &[Entry]) {
        let full = |set: &FieldSet| set.with_named(self.schema, &named);
        // What is wanted now counts with its name and all else that nobody manages.
        let wanted = fields(self.schema, self.wanted);
        let all = others.iter().fold(wanted, |all, entry| all.union(&entry.fields));
        let gone = full(last).difference(&full(&all));
        remove(self.schema, new, &gone);
    }

    /// kubectl may take over what its client-side apply wrote last, as long as nobody changed it since.
    fn upgrade(&self, conflicts: Vec<(Entry, FieldSet)>) -> Result<Value, ApplyError> {
        let told = |conflicts: &[(Entry, FieldSet)]| {
            let each = conflicts.iter().flat_map(|(entry, set)| {
                set.paths().into_iter().map(|path| Conflict { with: entry.shown(), field: show(&path) })
            });
            ApplyError::Conflicts(each.collect())
        };
        if self.writer.manager != "kubectl" {
            return Err(told(&conflicts));
        }
        let own = self.last_applied().unwrap_or_default();
        let left: Vec<(Entry, FieldSet)> = conflicts
            .into_iter()
            .map(|(entry, set)| (entry, set.difference(&own)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        if !left.is_empty() {
            return Err(told(&left));
        }
        self.run(true).map_err(|conflicts| told(&conflicts))
    }

    /// The fields that client-side apply wrote last, and that are so still.
    fn last_applied(&self) -> Option<FieldSet> {
        let text = annotation(self.live)?;
        let last: Value = serde_json::from_str(text).ok()?;
        if !last.is_object() || !faults(self.schema, &last).is_empty() {
            return None;
        }
        let found = compare(self.schema, &last, self.live);
        let other = found.added.union(&found.modified).union(&found.removed);
        Some(fields(self.schema, &last).difference(&other))
    }

    /// Keeps what client-side apply would look at up to date, if it was ever used.
    fn sync_last_applied(&self, mut new: Value) -> Value {
        if self.writer.manager == "kubectl" && annotation(self.live).is_some() {
            let mut wanted = self.wanted.clone();
            if let Some(annotations) =
                wanted.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
            {
                annotations.remove(LAST_APPLIED);
            }
            if let Some(slot) = new.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
                slot.insert(LAST_APPLIED.to_owned(), format!("{wanted}\n").into());
            }
        }
        new
    }
}

fn annotation(object: &Value) -> Option<&str> {
    object.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str()
}

/// Whether a step leads to a named field of this type, and the type that it leads to.
fn named<'a>(at: Schema<'a>, step: &str) -> (bool, Schema<'a>) {
    let untyped: Schema<'a> = Schema::untyped();
    match step.split_at_checked(2) {
        Some(("f:", name)) => (at.names(name), at.field(name).unwrap_or(untyped)),
        _ => match at.get() {
            Type::ListMap { item, .. } => (false, at.of(*item)),
            _ => (false, at),
        },
    }
}
