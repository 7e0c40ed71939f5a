//! A kind is data: one [`Descriptor`] per kind tells the API engine all it needs, whether the kind is built in
//! ([`Builtin`]) or somebody made it with a CustomResourceDefinition ([`crate::custom`]).

use crate::apply::Schema;
use crate::custom::Version;
use crate::schema::{Findings, conform};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;

/// A name: a constant of a built-in kind's, a custom kind's own.
pub type Text = Cow<'static, str>;

/// What can be done with objects of most kinds.
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What is served below an object's path besides the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `status`: the part that reports.
    Status,
    /// `scale`: replicas of a workload, as autoscaling/v1 Scale.
    Scale,
    /// `binding`: pods.
    Binding,
    /// `eviction`: pods.
    Eviction,
    /// `ephemeralcontainers`: pods.
    EphemeralContainers,
    /// `log`: pods, streamed from the kubelet.
    Log,
    /// `exec`: pods, upgraded connection to the kubelet.
    Exec,
    /// `attach`: pods, upgraded connection to the kubelet.
    Attach,
    /// `portforward`: pods, upgraded connection to the kubelet.
    PortForward,
    /// `proxy`: pods, services and nodes, and any path below: what they serve over HTTP.
    Proxy,
    /// `finalize`: namespaces.
    Finalize,
    /// `token`: service accounts.
    Token,
    /// `approval`: certificate signing requests.
    Approval,
}

impl Subresource {
    /// The path segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Finalize => "finalize",
            Self::Token => "token",
            Self::Approval => "approval",
        }
    }
}

/// One column of a Table (`kubectl get`).
#[derive(Clone, Copy)]
pub struct Column {
    /// Heading, as upstream spells it (`READY`'s definition name is `Ready`).
    pub name: &'static str,
    /// `string`, `integer`, `date` ...
    pub kind: &'static str,
    /// OpenAPI format (`name` for the first column).
    pub format: &'static str,
    /// 0: always; 1: `-o wide`.
    pub priority: i32,
    /// The cell.
    pub cell: fn(&Value, &CellContext) -> Value,
}

/// What a cell may look at besides the object.
#[derive(Clone, Copy, Debug)]
pub struct CellContext {
    /// Now, seconds since the epoch, for ages.
    pub now: i64,
}

/// One thing that is wrong with an object, as upstream words causes of a 422 `Invalid` status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueForbidden`,
    /// `FieldValueDuplicate`, `FieldValueTooLong`.
    pub reason: &'static str,
    /// `Required value: ...`, `Invalid value: "x": ...`.
    pub message: String,
    /// `spec.containers[0].image`.
    pub field: String,
}

/// How objects are kept of a built-in kind that is one more version of a kind: as the other one's, which both show.
#[derive(Clone, Copy)]
pub struct Stored {
    /// The group of the kind that is kept; its plural is the same.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Turns what is kept into this version.
    pub load: fn(&mut Value),
    /// And back, without loss.
    pub store: fn(&mut Value),
}

/// A built-in kind: a constant.
#[derive(Clone, Copy)]
pub struct Builtin {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version (`v1`).
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// Kept in the leader's memory only (Leases).
    pub volatile: bool,
    /// Not kept at all: measured when asked for.
    pub measured: bool,
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// Table columns; the first is the name.
    pub columns: &'static [Column],
    /// Fields besides metadata.name and metadata.namespace that a field selector may name, with their JSON pointers.
    pub selectable: &'static [(&'static str, &'static str)],
    /// Fills in defaults on the way in (create, update, patch). Idempotent.
    pub defaults: fn(&mut Value),
    /// All that is wrong with an object; `old` on update. Also checks immutable fields.
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<Cause>,
    /// The part whose change makes a new `metadata.generation` (`spec`); empty: none.
    pub generation: &'static str,
    /// Another kind whose objects these are; `None`: they are kept as they are.
    pub stored: Option<Stored>,
    /// Nothing in a cluster acts on these objects yet: they are kept and shown, and whoever makes one is told.
    pub idle: bool,
    /// Default grace period of a delete in seconds given the object; `None`: deleted at once.
    pub grace: fn(&Value) -> Option<i64>,
}

/// One Kubernetes kind, as it is served.
#[derive(Clone)]
pub struct Descriptor {
    /// API group, empty for core.
    pub group: Text,
    /// API version (`v1`).
    pub version: Text,
    /// `Pod`.
    pub kind: Text,
    /// `PodList`.
    pub list_kind: Text,
    /// `pods`.
    pub plural: Text,
    /// `pod`.
    pub singular: Text,
    /// `po`.
    pub short_names: Vec<Text>,
    /// `all`.
    pub categories: Vec<Text>,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// Kept in the leader's memory only (Leases).
    pub volatile: bool,
    /// Not kept at all: measured when asked for.
    pub measured: bool,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Fields besides metadata.name and metadata.namespace that a field selector may name, with their JSON pointers.
    pub selectable: Vec<(Text, Text)>,
    /// Nothing in a cluster acts on these objects yet: they are kept and shown, and whoever makes one is told.
    pub idle: bool,
    /// What whoever uses this version is told.
    pub warning: Option<String>,
    pub(crate) rules: Rules,
}

/// What a kind does with its objects.
#[derive(Clone)]
pub(crate) enum Rules {
    Builtin(&'static Builtin),
    Custom(Arc<Version>),
}

/// Where the parts of a Scale are in an object: JSON pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// How many replicas are wanted.
    pub wanted: Text,
    /// How many there are.
    pub current: Text,
    /// A selector of theirs in text form, if the kind has one.
    pub selector: Option<Text>,
}

/// `v1`, `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl From<&'static Builtin> for Descriptor {
    fn from(kind: &'static Builtin) -> Self {
        let texts = |all: &'static [&'static str]| all.iter().map(|text| Text::Borrowed(*text)).collect();
        Self {
            group: kind.group.into(),
            version: kind.version.into(),
            kind: kind.kind.into(),
            list_kind: format!("{}List", kind.kind).into(),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            short_names: texts(kind.short_names),
            categories: texts(kind.categories),
            namespaced: kind.namespaced,
            volatile: kind.volatile,
            measured: kind.measured,
            subresources: kind.subresources.to_vec(),
            selectable: kind.selectable.iter().map(|(name, path)| ((*name).into(), (*path).into())).collect(),
            idle: kind.idle,
            warning: None,
            rules: Rules::Builtin(kind),
        }
    }
}

impl Descriptor {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// What can be done with its objects.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.measured { &["get", "list"] } else { &VERBS }
    }

    /// Whether it is the kind that is served at this path.
    pub fn is(&self, group: &str, version: &str, plural: &str) -> bool {
        self.group == group && self.version == version && self.plural == plural
    }

    /// Whether it has this subresource.
    pub fn has(&self, sub: Subresource) -> bool {
        self.subresources.contains(&sub)
    }

    /// The custom kind's rules, if it is one.
    pub fn custom(&self) -> Option<&Version> {
        match &self.rules {
            Rules::Builtin(_) => None,
            Rules::Custom(version) => Some(version),
        }
    }

    /// Takes out what the kind does not have, and tells what it found.
    pub fn conform(&self, object: &mut Value) -> Findings {
        match &self.rules {
            Rules::Builtin(_) => conform(object).unwrap_or_default(),
            Rules::Custom(version) => version.conform(object),
        }
    }

    /// Fills in defaults on the way in (create, update, patch). Idempotent.
    pub fn defaults(&self, object: &mut Value) {
        match &self.rules {
            Rules::Builtin(kind) => (kind.defaults)(object),
            Rules::Custom(version) => version.defaults(object),
        }
    }

    /// All that is wrong with an object; `old` on update. Also checks immutable fields.
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<Cause> {
        match &self.rules {
            Rules::Builtin(kind) => (kind.validate)(new, old),
            Rules::Custom(version) => version.validate(new, old),
        }
    }

    /// Default grace period of a delete in seconds given the object; `None`: deleted at once.
    pub fn grace(&self, object: &Value) -> Option<i64> {
        match &self.rules {
            Rules::Builtin(kind) => (kind.grace)(object),
            Rules::Custom(_) => None,
        }
    }

    /// Whether objects count their generations.
    pub fn counts(&self) -> bool {
        match &self.rules {
            Rules::Builtin(kind) => !kind.generation.is_empty(),
            Rules::Custom(_) => true,
        }
    }

    /// Whether what is wanted differs between two states, so that there is a new `metadata.generation`.
    pub fn differs(&self, old: &Value, new: &Value) -> bool {
        match &self.rules {
            Rules::Builtin(kind) => old.get(kind.generation) != new.get(kind.generation),
            Rules::Custom(version) => version.differs(old, new),
        }
    }

    /// The group whose keys the objects are kept under.
    pub fn kept_in(&self) -> &str {
        match &self.rules {
            Rules::Builtin(Builtin { stored: Some(stored), .. }) => stored.group,
            _ => &self.group,
        }
    }

    /// What its objects are made of, as far as merging goes.
    pub fn types(&self) -> Schema<'_> {
        match &self.rules {
            Rules::Builtin(_) => {
                Schema::built_in(&self.api_version(), &self.kind).unwrap_or_else(Schema::untyped)
            }
            Rules::Custom(version) => version.types(),
        }
    }

    /// The `apiVersion` of the built-in kind whose objects these are, if they are another's.
    pub fn kept_as(&self) -> Option<String> {
        match &self.rules {
            Rules::Builtin(kind) => {
                kind.stored.as_ref().map(|stored| api_version(stored.group, stored.version))
            }
            Rules::Custom(_) => None,
        }
    }

    /// Turns what is kept into an object of this kind and version.
    pub fn load(&self, object: &mut Value) {
        match &self.rules {
            Rules::Builtin(kind) => {
                let Some(stored) = &kind.stored else { return };
                (stored.load)(object);
            }
            Rules::Custom(version) => version.load(object),
        }
        object["apiVersion"] = self.api_version().into();
    }

    /// And back.
    pub fn store(&self, object: &mut Value) {
        match &self.rules {
            Rules::Builtin(kind) => {
                let Some(stored) = &kind.stored else { return };
                (stored.store)(object);
                object["apiVersion"] = api_version(stored.group, stored.version).into();
            }
            Rules::Custom(version) => object["apiVersion"] = api_version(&self.group, &version.stored).into(),
        }
    }

    /// The headings of its Table.
    pub fn columns(&self) -> Vec<Value> {
        let heading = |name: &str, kind: &str, format: &str, description: &str, priority: i64| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
        match &self.rules {
            Rules::Builtin(kind) => kind
                .columns
                .iter()
                .map(|c| heading(c.name, c.kind, c.format, "", c.priority.into()))
                .collect(),
            Rules::Custom(version) => version
                .columns
                .iter()
                .map(|c| heading(&c.name, &c.kind, &c.format, &c.description, c.priority))
                .collect(),
        }
    }

    /// The cells of an object's row.
    pub fn cells(&self, object: &Value, context: &CellContext) -> Vec<Value> {
        match &self.rules {
            Rules::Builtin(kind) => {
                kind.columns.iter().map(|column| (column.cell)(object, context)).collect()
            }
            Rules::Custom(version) => version.columns.iter().map(|c| c.cell(object, context)).collect(),
        }
    }

    /// Where a Scale's parts are.
    pub fn scale(&self) -> ScalePaths {
        let usual = || ScalePaths {
            wanted: "/spec/replicas".into(),
            current: "/status/replicas".into(),
            selector: None,
        };
        self.custom().and_then(|version| version.scale.clone()).unwrap_or_else(usual)
    }
}
