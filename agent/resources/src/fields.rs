//! Field selectors: `metadata.name=x,status.phase!=Running`.

use crate::Descriptor;
use serde_json::Value;

/// Why a field selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not `field=value`, `field==value` or `field!=value`.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term {
        /// The whole text.
        selector: String,
        /// The part at fault.
        term: String,
    },
    /// The kind has no such field to select by.
    #[error("field label not supported: {0}")]
    Unsupported(String),
    /// A backslash before something that needs none.
    #[error("invalid field selector: invalid escape sequence in '{0}'")]
    Escape(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    pointer: String,
    equal: bool,
    value: String,
}

/// A conjunction of comparisons of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Reads a selector for objects of this kind.
    pub fn parse(text: &str, kind: &Descriptor) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text).into_iter().filter(|t| !t.is_empty()) {
            let (field, equal, value) = comparison(term)
                .ok_or_else(|| ParseError::Term { selector: text.to_owned(), term: term.to_owned() })?;
            let value = unescape(value).ok_or_else(|| ParseError::Escape(value.to_owned()))?;
            let pointer = pointer(field, kind).ok_or_else(|| ParseError::Unsupported(field.to_owned()))?;
            terms.push(Term { field: field.to_owned(), pointer: pointer.to_owned(), equal, value });
        }
        Ok(Self { terms })
    }

    /// Whether nothing is asked for, so that everything matches.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that this field must have, if the selector demands one (`metadata.name=x` reads one key).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether the object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            let found = match object.pointer(&term.pointer) {
                Some(Value::String(s)) => s.clone(),
                None | Some(Value::Null) => zero(&term.field).to_owned(),
                Some(other) => other.to_string(),
            };
            (found == term.value) == term.equal
        })
    }
}

/// What an absent field compares as: flags and counters have upstream's zero value.
fn zero(field: &str) -> &'static str {
    match field {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" => "0",
        _ => "",
    }
}

fn pointer<'a>(field: &str, kind: &'a Descriptor) -> Option<&'a str> {
    match field {
        "metadata.name" => Some("/metadata/name"),
        "metadata.namespace" => Some("/metadata/namespace"),
        _ => kind.selectable.iter().find(|(name, _)| *name == field).map(|(_, pointer)| pointer.as_ref()),
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, byte) in text.bytes().enumerate() {
        if byte == b',' && !escaped {
            parts.push(&text[start..i]);
            start = i + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

fn comparison(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find('=')?;
    if let Some(field) = term[..at].strip_suffix('!') {
        return Some((field, false, &term[at + 1..]));
    }
    let value = &term[at + 1..];
    Some((&term[..at], true, value.strip_prefix('=').unwrap_or(value)))
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> &'static Descriptor {
        crate::find("", "v1", "pods").expect("pods")
    }

    #[test]
    fn selects_by_field() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "pi"}});
        for (selector, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,spec.nodeName!=pi", false),
            ("spec.nodeName=pi,status.phase=", true),
            ("spec.hostNetwork=false", true),
            ("metadata.name=b", false),
        ] {
            let parsed = FieldSelector::parse(selector, pods()).expect(selector);
            assert_eq!(parsed.matches(&pod), expected, "{selector}");
        }
        let parsed = FieldSelector::parse("metadata.name=a", pods()).expect("selector");
        assert_eq!(parsed.exact("metadata.name"), Some("a"));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let error = FieldSelector::parse("spec.x=1", pods()).expect_err("unsupported");
        assert_eq!(error.to_string(), "field label not supported: spec.x");
        let error = FieldSelector::parse("metadata.name", pods()).expect_err("no operator");
        assert_eq!(error.to_string(), "invalid selector: 'metadata.name'; can't understand 'metadata.name'");
    }

    #[test]
    fn commas_can_be_escaped() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b", pods()).expect("selector");
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        assert!(FieldSelector::parse(r"metadata.name=a\b", pods()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = FieldSelector::parse(&text, pods());
        }
    }
}
