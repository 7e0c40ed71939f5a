//! Label selectors, as text in a query and as `LabelSelector` in an object.

use crate::names;
use serde_json::Value;
use std::fmt;

/// Requirements, and values in one of them, that a selector may have.
const MAX_TERMS: usize = 1000;

/// Why a label selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is not a selector.
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Syntax {
        /// What stands there.
        found: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// A key or value is not one.
    #[error("unable to parse requirement: {field}: Invalid value: {value:?}: {fault}")]
    Invalid {
        /// `key`, `values[0][x]`.
        field: String,
        /// The text at fault.
        value: String,
        /// What is wrong.
        fault: String,
    },
    /// A `LabelSelector` object holds something else.
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    /// More than anyone needs.
    #[error("selector is too long")]
    TooLong,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Greater,
    Less,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, ParseError> {
        check("key", key, names::qualified_name(key))?;
        if values.len() > MAX_TERMS {
            return Err(ParseError::TooLong);
        }
        for (i, value) in values.iter().enumerate() {
            check(&format!("values[{i}][{key}]"), value, names::label_value(value))?;
        }
        if matches!(operator, Operator::Greater | Operator::Less)
            && values.iter().any(|v| v.parse::<i64>().is_err())
        {
            let value = values.first().cloned().unwrap_or_default();
            let fault = "for 'Gt', 'Lt' operators, the value must be an integer".to_owned();
            return Err(ParseError::Invalid { field: "values[0]".to_owned(), value, fault });
        }
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    fn matches(&self, labels: Option<&Value>) -> bool {
        let found = labels.and_then(|l| l.get(&self.key)).and_then(Value::as_str);
        let number =
            |found: &str| Some((found.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator {
            Operator::In => found.is_some_and(|f| self.values.iter().any(|v| v == f)),
            Operator::NotIn => !found.is_some_and(|f| self.values.iter().any(|v| v == f)),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::Greater => found.and_then(number).is_some_and(|(a, b)| a > b),
            Operator::Less => found.and_then(number).is_some_and(|(a, b)| a < b),
        }
    }
}

fn check(field: &str, value: &str, faults: Vec<String>) -> Result<(), ParseError> {
    match faults.into_iter().next() {
        None => Ok(()),
        Some(fault) => Err(ParseError::Invalid { field: field.to_owned(), value: value.to_owned(), fault }),
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operator, values } = self;
        let one = values.first().map(String::as_str).unwrap_or_default();
        match operator {
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::In if values.len() == 1 => write!(f, "{key}={one}"),
            Operator::NotIn if values.len() == 1 => write!(f, "{key}!={one}"),
            Operator::In => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Greater => write!(f, "{key}>{one}"),
            Operator::Less => write!(f, "{key}<{one}"),
        }
    }
}

/// A conjunction of requirements on labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Matches nothing at all: an absent `LabelSelector`.
    nothing: bool,
    requirements: Vec<Requirement>,
}

impl Selector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let tokens = tokens(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0 };
        Ok(Self::of(parser.requirements()?))
    }

    /// Everything that has these labels; no labels, or none given: everything.
    pub fn from_map(labels: &Value) -> Self {
        let all = labels.as_object().into_iter().flatten();
        let requirement = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or_default().to_owned()],
        };
        Self::of(all.map(requirement).collect())
    }

    /// A `LabelSelector` with `matchLabels` and `matchExpressions`; null matches nothing, `{}` everything.
    pub fn from_label_selector(selector: &Value) -> Result<Self, ParseError> {
        if selector.is_null() {
            return Ok(Self { nothing: true, requirements: Vec::new() });
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        for expression in crate::json::items(selector, "/matchExpressions") {
            let operator = match crate::json::text(expression, "/operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(ParseError::Operator(other.to_owned())),
            };
            let values = crate::json::items(expression, "/values").iter().filter_map(Value::as_str);
            let values: Vec<String> = values.map(str::to_owned).collect();
            requirements.push(Requirement::new(crate::json::text(expression, "/key"), operator, values)?);
        }
        if requirements.len() > MAX_TERMS {
            return Err(ParseError::TooLong);
        }
        Ok(Self::of(requirements))
    }

    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { nothing: false, requirements }
    }

    /// Whether nothing is asked for, so that everything matches.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether an object with these labels (`metadata.labels`) is selected.
    pub fn matches(&self, labels: Option<&Value>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Sign(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(s) | Self::Sign(s) => s,
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let special = |c: char| "=!(),<>".contains(c);
    let mut rest = text.trim_start();
    let mut out = Vec::new();
    while let Some(first) = rest.chars().next() {
        let end = if special(first) {
            if rest.starts_with("==") || rest.starts_with("!=") { 2 } else { 1 }
        } else {
            rest.find(|c: char| special(c) || c.is_whitespace()).unwrap_or(rest.len())
        };
        let (token, tail) = rest.split_at(end);
        out.push(if special(first) { Token::Sign(token) } else { Token::Word(token) });
        rest = tail.trim_start();
        if out.len() > 4 * MAX_TERMS {
            return Err(ParseError::TooLong);
        }
    }
    Ok(out)
}

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'a> Parser<'_, 'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn eat(&mut self, sign: &str) -> bool {
        let eaten = self.peek() == Some(Token::Sign(sign));
        self.at += usize::from(eaten);
        eaten
    }

    fn word(&mut self) -> Option<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Some(word)
            }
            _ => None,
        }
    }

    fn fail<T>(&self, expected: &'static str) -> Result<T, ParseError> {
        let found = self.peek().map(Token::text).unwrap_or_default().to_owned();
        Err(ParseError::Syntax { found, expected })
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, ParseError> {
        let mut all = Vec::new();
        if self.peek().is_none() {
            return Ok(all);
        }
        loop {
            all.push(self.requirement()?);
            if self.peek().is_none() {
                return Ok(all);
            }
            if !self.eat(",") {
                return self.fail("',' or 'end of string'");
            }
            if self.peek().is_none() {
                return self.fail("identifier after ','");
            }
            if all.len() >= MAX_TERMS {
                return Err(ParseError::TooLong);
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let absent = self.eat("!");
        let Some(key) = self.word() else { return self.fail("!, identifier, or 'end of string'") };
        if absent {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        let next = self.peek();
        match next {
            None | Some(Token::Sign(",")) => return Requirement::new(key, Operator::Exists, Vec::new()),
            Some(_) => self.at += 1,
        }
        match next.map(Token::text) {
            Some("in") => Requirement::new(key, Operator::In, self.set()?),
            Some("notin") => Requirement::new(key, Operator::NotIn, self.set()?),
            Some("=" | "==") => Requirement::new(key, Operator::In, self.exact()?),
            Some("!=") => Requirement::new(key, Operator::NotIn, self.exact()?),
            Some(">") => Requirement::new(key, Operator::Greater, self.exact()?),
            Some("<") => Requirement::new(key, Operator::Less, self.exact()?),
            _ => {
                self.at -= 1;
                self.fail("in, notin, =, ==, !=, gt, lt")
            }
        }
    }

    /// The one value after `=`; it may be empty.
    fn exact(&mut self) -> Result<Vec<String>, ParseError> {
        match self.peek() {
            None | Some(Token::Sign(",")) => Ok(vec![String::new()]),
            Some(Token::Word(_)) => Ok(self.word().map(str::to_owned).into_iter().collect()),
            Some(Token::Sign(_)) => self.fail("identifier"),
        }
    }

    /// The values in parentheses; one may be empty.
    fn set(&mut self) -> Result<Vec<String>, ParseError> {
        if !self.eat("(") {
            return self.fail("'('");
        }
        let mut values = Vec::new();
        loop {
            values.push(self.word().unwrap_or_default().to_owned());
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return self.fail("',' or ')'");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn selects_by_label() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("missing notin (x)", true),
            ("missing!=x", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app in (,web)", true),
            ("app=", false),
        ] {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.matches(Some(&labels)), expected, "{text}");
        }
        assert!(Selector::parse("!x").expect("selector").matches(None));
    }

    #[test]
    fn refuses_what_is_not_a_selector() {
        for text in ["a=b=c", "a in b", ",", "a,", "=x", "a in (b", "a b", "-=x", "a=_", "a>b"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_selector_objects() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["front", "back"]},
            {"key": "old", "operator": "DoesNotExist"}]});
        let selector = Selector::from_label_selector(&selector).expect("selector");
        assert!(selector.matches(Some(&json!({"app": "web", "tier": "back"}))));
        assert!(!selector.matches(Some(&json!({"app": "web", "tier": "back", "old": ""}))));
        assert_eq!(selector.to_string(), "app=web,!old,tier in (back,front)");
        let none = Selector::from_label_selector(&Value::Null).expect("null");
        assert!(!none.matches(Some(&json!({"app": "web"}))));
        assert!(Selector::from_label_selector(&json!({})).expect("empty").matches(None));
        assert!(Selector::from_map(&json!({"a": "b"})).matches(Some(&json!({"a": "b", "c": "d"}))));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = Selector::parse(&text);
        }

        #[test]
        fn round_trips(text in "[!]?[a-c]{1,2}(=|!=|==| in | notin |>|<|,)?[(]?[a-c0-9]{0,2}[,]?[a-c]{0,2}[)]?") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()).expect("canonical form"), selector);
            }
        }
    }
}
