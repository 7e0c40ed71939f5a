//! A kind is data: one [`Descriptor`] per kind tells the API engine all it needs.

use serde_json::Value;

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
    /// `log`: pods, streamed from the kubelet.
    Log,
    /// `exec`: pods, upgraded connection to the kubelet.
    Exec,
    /// `attach`: pods, upgraded connection to the kubelet.
    Attach,
    /// `portforward`: pods, upgraded connection to the kubelet.
    PortForward,
    /// `finalize`: namespaces.
    Finalize,
}

impl Subresource {
    /// The path segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Finalize => "finalize",
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

/// How objects are kept of a kind that is one more version of a kind: as the other one's, which both show.
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

/// One Kubernetes kind.
#[derive(Clone, Copy)]
pub struct Descriptor {
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

/// `v1`, `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl Descriptor {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether it has this subresource.
    pub fn has(&self, sub: Subresource) -> bool {
        self.subresources.contains(&sub)
    }
}
