//! The JSONPath that printer columns are written in: fields, indices, `[*]` and simple filters.

use serde_json::Value;

/// Steps in one path.
const MAX_STEPS: usize = 64;
/// Values that one path may lead to.
const MAX_FOUND: usize = 1000;

/// A path that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Where { path: Path, is: Comparison, value: Value },
    Has(Path),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Different,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Path {
    /// Reads `.status.conditions[?(@.type=="Ready")].status`. What is wrong is told as upstream tells it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if steps.len() == MAX_STEPS {
                return Err("the path is too long".to_owned());
            }
            let (step, after) = if let Some(after) = rest.strip_prefix('.') {
                field(after)?
            } else if let Some(after) = rest.strip_prefix('[') {
                bracket(after)?
            } else {
                return Err(format!(
                    "unrecognized character in action: {:?}",
                    rest.chars().next().unwrap_or(' ')
                ));
            };
            steps.push(step);
            rest = after;
        }
        Ok(Self(steps))
    }

    /// What the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.take(value)).take(MAX_FOUND).collect();
        }
        found
    }
}

impl Step {
    fn take<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let items = || value.as_array().map(Vec::as_slice).unwrap_or_default();
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(at) => {
                let length = i64::try_from(items().len()).unwrap_or(0);
                let at = if *at < 0 { length + at } else { *at };
                usize::try_from(at).ok().and_then(|at| items().get(at)).into_iter().collect()
            }
            Self::All => match value {
                Value::Object(fields) => fields.values().collect(),
                _ => items().iter().collect(),
            },
            Self::Has(path) => items().iter().filter(|item| !path.find(item).is_empty()).collect(),
            Self::Where { path, is, value } => items()
                .iter()
                .filter(|item| path.find(item).first().is_some_and(|v| is.holds(v, value)))
                .collect(),
        }
    }
}

impl Comparison {
    fn holds(self, a: &Value, b: &Value) -> bool {
        use std::cmp::Ordering;
        let order = match (a, b) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            _ => match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => a.partial_cmp(&b),
                _ => None,
            },
        };
        match (self, order) {
            (Self::Different, order) => order != Some(Ordering::Equal),
            (_, None) => false,
            (Self::Equal, Some(order)) => order == Ordering::Equal,
            (Self::Less, Some(order)) => order == Ordering::Less,
            (Self::LessOrEqual, Some(order)) => order != Ordering::Greater,
            (Self::Greater, Some(order)) => order == Ordering::Greater,
            (Self::GreaterOrEqual, Some(order)) => order != Ordering::Less,
        }
    }
}

/// A name after a dot; a backslash takes the next character as it is.
fn field(text: &str) -> Result<(Step, &str), String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => {
                end = at;
                break;
            }
            '*' if name.is_empty() => return Ok((Step::All, &text[at + 1..])),
            c if c.is_whitespace() || "]()@?{}'\"=<>!,|&".contains(c) => {
                return Err(format!("unrecognized character in action: {c:?}"));
            }
            c => name.push(c),
        }
    }
    if name.is_empty() && end < text.len() && text[end..].starts_with('.') {
        return Err("recursive descent is not supported".to_owned());
    }
    if name.is_empty() {
        // `.` alone is the object; a bracket may follow a dot.
        return Err("a name is missing after a dot".to_owned());
    }
    Ok((Step::Field(name), &text[end..]))
}

/// What stands in brackets.
fn bracket(text: &str) -> Result<(Step, &str), String> {
    if let Some(filter) = text.strip_prefix("?(") {
        let end = filter.find(")]").ok_or("unterminated filter")?;
        return Ok((condition(filter[..end].trim())?, &filter[end + 2..]));
    }
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let inner = &text[1..];
        let end = inner.find(&format!("{quote}]")).ok_or("unterminated quoted string")?;
        let name = inner[..end].replace('\\', "");
        return Ok((Step::Field(name), &inner[end + 2..]));
    }
    let end = text.find(']').ok_or("unterminated array")?;
    let (inside, after) = (text[..end].trim(), &text[end + 1..]);
    if inside == "*" {
        return Ok((Step::All, after));
    }
    let at = inside.parse().map_err(|_| format!("invalid array index {inside}"))?;
    Ok((Step::Index(at), after))
}

fn condition(text: &str) -> Result<Step, String> {
    const SIGNS: [(&str, Comparison); 6] = [
        ("==", Comparison::Equal),
        ("!=", Comparison::Different),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let found = SIGNS.iter().filter_map(|(sign, is)| Some((text.find(sign)?, *sign, *is)));
    // The first; of two at one place the longer.
    let first = found.min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())));
    let path = |text: &str| {
        let text = text.trim();
        let inner = text.strip_prefix('@').ok_or_else(|| format!("a filter must begin with @: {text}"))?;
        Path::parse(inner)
    };
    let Some((at, sign, is)) = first else { return Ok(Step::Has(path(text)?)) };
    let value = text[at + sign.len()..].trim();
    let quoted = |quote: char| value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote));
    let value = match quoted('"').or_else(|| quoted('\'')) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(value).map_err(|_| format!("a filter cannot compare with {value}"))?,
    };
    Ok(Step::Where { path: path(&text[..at])?, is, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(path: &str) -> Vec<Value> {
        let object = json!({"spec": {"list": [1, 2, 3], "a.b": "dotted", "labels": {"x.y/z": "label"}},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 3}, {"type": "Other"}]}});
        Path::parse(path).expect(path).find(&object).into_iter().cloned().collect()
    }

    #[test]
    fn paths_lead_to_values() {
        assert_eq!(found(".spec.list"), [json!([1, 2, 3])]);
        assert_eq!(found(".spec.list[1]"), [json!(2)]);
        assert_eq!(found(".spec.list[-1]"), [json!(3)]);
        assert_eq!(found(".spec.list[*]"), [json!(1), json!(2), json!(3)]);
        assert_eq!(found(r".spec.a\.b"), [json!("dotted")]);
        assert_eq!(found(r".spec.labels.x\.y/z"), [json!("label")]);
        assert_eq!(found(".spec.labels['x.y/z']"), [json!("label")]);
        assert_eq!(found(r#".status.conditions[?(@.type=="Ready")].status"#), [json!("True")]);
        assert_eq!(found(".status.conditions[?(@.n >= 3)].type"), [json!("Ready")]);
        assert_eq!(found(".status.conditions[?(@.status)].type"), [json!("Ready")]);
        assert_eq!(found(".status.nothing.here"), [json!(null); 0]);
    }

    #[test]
    fn bad_paths_are_refused() {
        for bad in ["spec", ".spec[", ".spec[x]", ".spec[?(@.a", "..", ".a..b", ".a b"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in r#"[.\[\]a-c@?()*="'\\0-9 é-]{0,24}"#) {
            if let Ok(path) = Path::parse(&text) {
                path.find(&json!({"a": [{"b": 1}, {"c": "x"}]}));
            }
        }
    }
}
