//! Errors as clients know them: `metav1.Status` with the field's own reasons, details and wording.

use http::StatusCode;
use resources::apply::Conflict;
use resources::{Cause, Descriptor};
use serde_json::{Value, json};
use std::borrow::Cow;

/// A request's failure, in the form it is answered with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    pub code: StatusCode,
    pub reason: Cow<'static, str>,
    pub message: String,
    pub details: Option<Value>,
    pub retry_after: Option<u32>,
}

/// What an operation gives.
pub(crate) type Result<T> = std::result::Result<T, Status>;

impl Status {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None, retry_after: None }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let mut details = json!({});
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                details[key] = value.into();
            }
        }
        self.details = Some(details);
        self
    }

    fn causes(mut self, causes: Value) -> Self {
        self.details.get_or_insert_with(|| json!({}))["causes"] = causes;
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, plural);
        let message = if what.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(group, plural, name)
    }

    /// Somebody who has a say in writes says no. `reason`: why, of those that a policy may give.
    pub fn refused(group: &str, plural: &str, name: &str, why: &str, reason: &str) -> Self {
        let mut status = Self::forbidden(group, plural, name, why).causes(json!([{"message": why}]));
        let (code, reason) = match reason {
            "Forbidden" => (StatusCode::FORBIDDEN, "Forbidden"),
            "Unauthorized" => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            "RequestEntityTooLarge" => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
        };
        (status.code, status.reason) = (code, reason.into());
        status
    }

    /// What somebody outside said.
    pub fn told(code: StatusCode, reason: &str, message: String, details: Option<Value>) -> Self {
        Self { code, reason: reason.to_owned().into(), message, details, retry_after: None }
    }

    /// It took too long; whether anything came of it is not known.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    /// Adds the cause by which clients know that the namespace is going away.
    pub fn terminating(self, namespace: &str) -> Self {
        self.causes(json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]))
    }

    pub fn not_found(kind: &Descriptor, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(&kind.group, &kind.plural));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(&kind.group, &kind.plural, name)
    }

    /// No such path.
    pub fn no_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about("", "", "")
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).about("", "", "")
    }

    pub fn method_not_allowed_because(why: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", why).about("", "", "")
    }

    pub fn already_exists(kind: &Descriptor, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(&kind.group, &kind.plural));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(&kind.group, &kind.plural, name)
    }

    pub fn conflict(kind: &Descriptor, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            qualified(&kind.group, &kind.plural)
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(&kind.group, &kind.plural, name)
    }

    /// Somebody else wrote the object since it was read.
    pub fn modified(kind: &Descriptor, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// Others manage what would change.
    pub fn apply_conflict(conflicts: &[Conflict]) -> Self {
        let mut message = format!("Apply failed with {} conflict", conflicts.len());
        match conflicts {
            [one] => message += &format!(": conflict with {}: {}", one.with, one.field),
            many => {
                let mut managers: Vec<&str> = many.iter().map(|c| c.with.as_str()).collect();
                managers.sort_unstable();
                managers.dedup();
                let told = managers.into_iter().map(|with| {
                    let of = many.iter().filter(|c| c.with == with).map(|c| format!("\n- {}", c.field));
                    format!("conflicts with {with}:{}", of.collect::<String>())
                });
                message += &format!("s: {}", told.collect::<Vec<_>>().join("\n"));
            }
        }
        let cause = |c: &Conflict| {
            let message = format!("conflict with {}", c.with);
            json!({"reason": "FieldManagerConflict", "message": message, "field": c.field})
        };
        Self::new(StatusCode::CONFLICT, "Conflict", message).causes(conflicts.iter().map(cause).collect())
    }

    /// What upstream has no reason for.
    pub fn unexplained(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    pub fn invalid(kind: &Descriptor, name: &str, causes: &[Cause]) -> Self {
        Self::invalid_as(&kind.group, &kind.kind, name, causes)
    }

    /// The same of what is not kept: a question, or what is sent to a subresource.
    pub fn invalid_as(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let lines: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let all = if lines.len() == 1 { lines.concat() } else { format!("[{}]", lines.join(", ")) };
        let message = format!("{} {name:?} is invalid: {all}", qualified(group, kind));
        let list: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(group, kind, name)
            .causes(list.into())
    }

    /// A patch, or a list option, that can be read but not used.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about("", "", "")
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The client saw a revision that is not there yet.
    pub fn too_new(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        status.details = Some(json!({"retryAfterSeconds": 1}));
        status.retry_after = Some(1);
        status.causes(json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]))
    }

    /// A disruption budget has nothing left.
    pub fn too_many(message: &str, cause: &str, retry_after: Option<u32>) -> Self {
        let mut status = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        status.retry_after = retry_after;
        if let Some(seconds) = retry_after {
            status.details = Some(json!({"retryAfterSeconds": seconds}));
        }
        status.causes(json!([{"reason": "DisruptionBudget", "message": cause}]))
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut status = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message);
        status.details = Some(json!({"retryAfterSeconds": 1}));
        status.retry_after = Some(1);
        status
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {message}");
        let causes = json!([{"message": message}]);
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message).causes(causes)
    }

    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.as_ref().into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// What is answered when something was done and there is no object left to show.
pub(crate) fn success(kind: &Descriptor, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": kind.plural, "uid": uid});
    if !kind.group.is_empty() {
        details["group"] = kind.group.as_ref().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// `deployments.apps`, `pods`.
fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() || name.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl From<store::CommitError> for Status {
    fn from(error: store::CommitError) -> Self {
        use store::CommitError::*;
        match error {
            // Callers turn conflicts on an object's own key into better words.
            Conflict { key, .. } => {
                Self::new(StatusCode::CONFLICT, "Conflict", format!("{key}: changed meanwhile"))
            }
            NotLeader | Closed => Self::unavailable(error.to_string()),
            // Whether it was written is unknown: a timeout is what clients read as that. No Retry-After: kubectl and
            // its kin send whatever they are told to retry again, and a create or a patch could happen twice.
            Unknown => Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", error.to_string()),
            TooLarge { limit, .. } => Self::too_large(limit),
            Disk(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "InternalError", error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::CommitError;

    #[test]
    fn only_what_was_not_written_may_be_sent_again() {
        assert_eq!(Status::from(CommitError::NotLeader).retry_after, Some(1));
        assert_eq!(Status::from(CommitError::Unknown).retry_after, None);
    }
}
