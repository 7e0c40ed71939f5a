//! patch: a part of an object, in one of three forms (the fourth, apply, is in `managed`).

use crate::auth;
use crate::engine::Engine;
use crate::object;
use crate::path::Target;
use crate::status::{Result, Status};
use crate::write::{Options, Part, check_identity};
use resources::Descriptor;
use resources::patch::PatchError;
use serde_json::Value;

/// The forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Merge,
    Strategic,
    /// What somebody wants, all of it.
    Apply,
}

impl Form {
    /// The form a media type names.
    pub fn read(media_type: &str) -> Result<Self> {
        match media_type {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                 application/apply-patch+yaml"
            ))),
        }
    }

    /// The document with the patch applied.
    pub fn apply(self, kind: &Descriptor, old: &Value, patch: &Value) -> Result<Value> {
        let mut new = old.clone();
        let applied = match self {
            Self::Json => resources::patch::json_patch(&mut new, patch),
            // A Scale, of which there is only one field to apply.
            Self::Merge | Self::Apply => resources::patch::merge_patch(&mut new, patch),
            // Nothing says how lists of a custom kind are merged.
            Self::Strategic if kind.custom().is_some() => {
                return Err(Status::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                ));
            }
            Self::Strategic => resources::patch::strategic_merge(kind, &mut new, patch),
        };
        match applied {
            Ok(()) if !new.is_object() => {
                Err(Status::bad_request("the patch makes the object something else"))
            }
            Ok(()) => Ok(new),
            Err(error @ PatchError::NotApplicable(_)) => Err(Status::unprocessable(error.to_string())),
            Err(error) => Err(Status::bad_request(error.to_string())),
        }
    }
}

impl Engine {
    /// Changes part of an object. Without a `resourceVersion` in the patch there is nothing to conflict with: it is
    /// applied to whatever there is.
    pub async fn patch(
        &self,
        target: &Target,
        name: &str,
        form: Form,
        patch: &Value,
        part: Part,
        options: &mut Options,
    ) -> Result<Value> {
        let kind = &target.kind;
        let mut warned = Vec::new();
        let fresh = Options { warnings: Vec::new(), ..options.clone() };
        let make = |old: &Value| {
            let mut new = form.apply(kind, old, patch)?;
            let mut own = fresh.clone();
            check_identity(target, &mut new)?;
            own.conform(kind, &mut new, Vec::new())?;
            warned = own.warnings;
            auth::check_grant(&fresh.by, kind, &new, Some(old), self)?;
            if object::text(&new, "/metadata/resourceVersion").is_empty() {
                // `null` in a patch asks for no check.
                object::meta(&mut new).remove("resourceVersion");
            }
            Ok(new)
        };
        let changed = self.change(target, name, part, &fresh, make).await?;
        options.warnings.extend(warned);
        Ok(changed)
    }
}
