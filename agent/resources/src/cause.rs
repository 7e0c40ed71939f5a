//! Making [`Cause`]s worded as upstream words them.

use crate::Cause;
use serde_json::Value;

/// All causes found so far.
pub type Causes = Vec<Cause>;

/// A field as messages name it, out of the names and `[i]` that lead there: `spec.containers[0].image`.
pub fn field_path<S: AsRef<str>>(steps: impl IntoIterator<Item = S>) -> String {
    let mut path = String::new();
    for step in steps {
        let step = step.as_ref();
        if !path.is_empty() && !step.starts_with('[') {
            path.push('.');
        }
        path.push_str(step);
    }
    path
}

/// How upstream prints the offending value.
fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => format!("{s:?}"),
        other => {
            let mut text = other.to_string();
            if text.len() > 1024 {
                let end = (0..=1024).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
                text.truncate(end);
                text.push_str("...");
            }
            text
        }
    }
}

/// `Required value`.
pub fn required(field: impl Into<String>, detail: &str) -> Cause {
    let message =
        if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
    Cause { reason: "FieldValueRequired", message, field: field.into() }
}

/// `Invalid value: "x": why`.
pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {}: {detail}", shown(&value.into())),
        field: field.into(),
    }
}

/// `Unsupported value: "x": supported values: "a", "b"`.
pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Cause {
    let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    Cause {
        reason: "FieldValueNotSupported",
        message: format!(
            "Unsupported value: {}: supported values: {}",
            shown(&value.into()),
            list.join(", ")
        ),
        field: field.into(),
    }
}

/// `Forbidden: why`.
pub fn forbidden(field: impl Into<String>, detail: &str) -> Cause {
    Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {detail}"), field: field.into() }
}

/// `Duplicate value: "x"`.
pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Cause {
    Cause {
        reason: "FieldValueDuplicate",
        message: format!("Duplicate value: {}", shown(&value.into())),
        field: field.into(),
    }
}

/// `Not found: "x"`.
pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Cause {
    Cause {
        reason: "FieldValueNotFound",
        message: format!("Not found: {}", shown(&value.into())),
        field: field.into(),
    }
}

/// `Too long: may not be more than N bytes`.
pub fn too_long(field: impl Into<String>, limit: usize) -> Cause {
    Cause {
        reason: "FieldValueTooLong",
        message: format!("Too long: may not be more than {limit} bytes"),
        field: field.into(),
    }
}
