//! Kinds that somebody made with a CustomResourceDefinition: still data, read out of that object.
//!
//! [`descriptors`] turns a definition into one [`Descriptor`] for each version it serves; the rest of this module is
//! what such a kind does with its objects: [`conform`](Version::conform) takes out what the schema does not have,
//! [`defaults`](Version::defaults) fills in, [`validate`](Version::validate) holds an object against the schema.
//! [`definition`] is the kind CustomResourceDefinition itself.

mod columns;
pub(crate) mod definition;
mod formats;
mod names;
pub(crate) mod openapi;
mod path;
mod prune;
mod rules;
mod schema;
mod structural;
#[cfg(test)]
mod tests;
mod validate;

pub use names::settle;
pub use schema::Schema;
pub(crate) use schema::{Additional, Pattern, Type};

use crate::apply::{self, Types};
use crate::cause::Causes;
use crate::descriptor::{Rules, ScalePaths, Subresource, Text};
use crate::json::{flag, items, text};
use crate::schema::Findings;
use crate::{Descriptor, metadata};
use columns::PrinterColumn;
use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// The finalizer under which a definition waits for its objects to be gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Where definitions are served.
pub const GROUP: &str = "apiextensions.k8s.io";
/// Their plural.
pub const PLURAL: &str = "customresourcedefinitions";

/// A definition that waits for its objects to be gone before it goes.
pub fn held(definition: &Value) -> Value {
    let mut held = definition.clone();
    definition::hold(&mut held);
    held
}

/// What one version of a custom kind does with its objects.
pub struct Version {
    schema: Schema,
    /// The version objects are kept as.
    pub(crate) stored: String,
    pub(crate) columns: Vec<PrinterColumn>,
    pub(crate) scale: Option<ScalePaths>,
    has_status: bool,
    /// What objects are made of, as far as merging goes; made when it is first asked for.
    types: OnceLock<Types>,
    /// The schema as it was written, for OpenAPI.
    document: Value,
    /// The definition is being deleted: nothing new may be made.
    pub terminating: bool,
}

/// One descriptor for each version that an established definition serves.
pub fn descriptors(definition: &Value) -> Vec<Descriptor> {
    let established = items(definition, "/status/conditions")
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    if !established {
        return Vec::new();
    }
    let served = items(definition, "/spec/versions").iter().filter(|v| flag(v, "/served"));
    served.map(|version| descriptor(definition, version)).collect()
}

fn descriptor(definition: &Value, version: &Value) -> Descriptor {
    let own = |pointer: &str| Text::Owned(text(definition, pointer).to_owned());
    let texts = |pointer: &str| {
        items(definition, pointer)
            .iter()
            .filter_map(Value::as_str)
            .map(|t| Text::Owned(t.to_owned()))
            .collect()
    };
    let has_status = version.pointer("/subresources/status").is_some_and(Value::is_object);
    let scale = version.pointer("/subresources/scale").filter(|s| s.is_object()).map(scale_paths);
    let mut subresources = Vec::new();
    subresources.extend(has_status.then_some(Subresource::Status));
    subresources.extend(scale.is_some().then_some(Subresource::Scale));
    let stored = items(definition, "/spec/versions").iter().find(|v| flag(v, "/storage"));
    let selectable = items(version, "/selectableFields").iter().filter_map(|field| {
        let name = text(field, "/jsonPath").strip_prefix('.')?;
        Some((Text::Owned(name.to_owned()), pointer(text(field, "/jsonPath"))))
    });
    let deprecated = flag(version, "/deprecated").then(|| match text(version, "/deprecationWarning") {
        "" => format!(
            "{}/{} {} is deprecated",
            text(definition, "/spec/group"),
            text(version, "/name"),
            text(definition, "/spec/names/kind")
        ),
        own => own.to_owned(),
    });
    Descriptor {
        group: own("/spec/group"),
        version: Text::Owned(text(version, "/name").to_owned()),
        kind: own("/status/acceptedNames/kind"),
        list_kind: own("/status/acceptedNames/listKind"),
        plural: own("/status/acceptedNames/plural"),
        singular: own("/status/acceptedNames/singular"),
        short_names: texts("/status/acceptedNames/shortNames"),
        categories: texts("/status/acceptedNames/categories"),
        namespaced: text(definition, "/spec/scope") == "Namespaced",
        volatile: false,
        measured: false,
        subresources,
        selectable: selectable.collect(),
        idle: false,
        warning: deprecated,
        rules: Rules::Custom(Arc::new(Version {
            schema: Schema::read(&version["schema"]["openAPIV3Schema"]),
            stored: stored.map_or("", |v| text(v, "/name")).to_owned(),
            columns: columns::read(version),
            scale,
            has_status,
            types: OnceLock::new(),
            document: version["schema"]["openAPIV3Schema"].clone(),
            terminating: !text(definition, "/metadata/deletionTimestamp").is_empty(),
        })),
    }
}

fn scale_paths(scale: &Value) -> ScalePaths {
    let at = |name: &str| pointer(text(scale, name));
    ScalePaths {
        wanted: at("/specReplicasPath"),
        current: at("/statusReplicasPath"),
        selector: scale
            .get("labelSelectorPath")
            .filter(|p| p.as_str().is_some_and(|p| !p.is_empty()))
            .map(|_| at("/labelSelectorPath")),
    }
}

/// `.spec.replicas` as a JSON pointer.
fn pointer(path: &str) -> Text {
    Text::Owned(path.replace('~', "~0").replace('/', "~1").replace('.', "/"))
}

impl Version {
    /// Takes out what the schema does not have, and tells what it found.
    pub(crate) fn conform(&self, object: &mut Value) -> Findings {
        let mut found = crate::schema::conform_metadata(object);
        prune::prune(&self.schema, object, &mut found.unknown);
        found
    }

    /// Fills in defaults.
    pub(crate) fn defaults(&self, object: &mut Value) {
        self.schema.fill(object);
    }

    /// Reads what is kept: perhaps it was written when the schema was another.
    pub(crate) fn load(&self, object: &mut Value) {
        prune::prune(&self.schema, object, &mut Vec::new());
        self.schema.fill(object);
    }

    /// All that is wrong with an object.
    pub(crate) fn validate(&self, new: &Value, old: Option<&Value>) -> Causes {
        let mut causes = metadata::validate(new, old, crate::names::dns_subdomain);
        causes.extend(validate::validate(&self.schema, new));
        if causes.is_empty() {
            causes = rules::validate(&self.schema, new, old);
        }
        causes
    }

    /// Whether anything but metadata and status differs.
    pub(crate) fn differs(&self, old: &Value, new: &Value) -> bool {
        let rest = |object: &Value| {
            let mut fields = object.as_object().cloned().unwrap_or_default();
            for name in ["metadata", "apiVersion", "kind"] {
                fields.remove(name);
            }
            if self.has_status {
                fields.remove("status");
            }
            fields
        };
        rest(old) != rest(new)
    }

    /// What objects are made of, as far as merging goes.
    pub(crate) fn types(&self) -> apply::Schema<'_> {
        self.types.get_or_init(|| Types::from_structural(&self.document)).schema()
    }

    /// The schema as it was written.
    pub fn document(&self) -> &Value {
        &self.document
    }
}
