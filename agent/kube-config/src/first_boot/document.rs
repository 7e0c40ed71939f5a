//! `bramble.toml` as text: values with the line they are on, and every mistake, not only the first.

use std::ops::Range;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A mistake in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Counted from 1; 0 where no line is to blame.
    pub line: usize,
    /// `wifi.password`; empty where the text itself is not TOML.
    pub field: String,
    /// What is wrong and what to write instead.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

/// What is found while reading.
#[derive(Debug)]
pub struct Findings<'t> {
    text: &'t str,
    /// The mistakes so far.
    pub problems: Vec<Problem>,
    /// Where in the text the values of passwords and secrets are, quotes included.
    pub secrets: Vec<Range<usize>>,
}

/// Something with its place in the text.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    span: Range<usize>,
    field: String,
}

/// A table of the file. What is not taken out of it by name is a mistake ([`Table::finish`]).
#[derive(Debug)]
pub struct Table<'a, 't> {
    name: String,
    span: Range<usize>,
    table: &'a DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'t> Findings<'t> {
    /// Reads the text; what is not TOML is a problem, and the rest is there.
    pub fn parse(text: &'t str) -> (Self, Spanned<DeTable<'t>>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut findings = Self { text, problems: Vec::new(), secrets: Vec::new() };
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            findings.at(&span, "", error.message().replace('\n', "; "));
        }
        (findings, table)
    }

    fn at(&mut self, span: &Range<usize>, field: &str, what: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        self.problems.push(Problem { line, field: field.to_owned(), what: what.into() });
    }

    /// Notes what is wrong with a value.
    pub fn wrong<T>(&mut self, found: &Found<T>, what: impl Into<String>) {
        self.at(&found.span, &found.field, what);
    }

    /// Notes that a value must not stay in the file.
    pub fn secret(&mut self, found: &Found<String>) {
        if !found.value.is_empty() {
            self.secrets.push(found.span.clone());
        }
    }
}

impl<'a, 't> Table<'a, 't> {
    /// The whole file.
    pub fn root(table: &'a Spanned<DeTable<'t>>) -> Self {
        Self { name: String::new(), span: 0..0, table: table.get_ref(), known: Vec::new() }
    }

    fn field(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn get<T>(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        kind: &str,
        read: impl Fn(&'a DeValue<'t>) -> Option<T>,
    ) -> Option<Found<T>> {
        self.known.push(key);
        self.value(findings, key, kind, read)
    }

    fn value<T>(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        kind: &str,
        read: impl Fn(&'a DeValue<'t>) -> Option<T>,
    ) -> Option<Found<T>> {
        let value = self.table.get(key)?;
        let (span, field) = (value.span(), self.field(key));
        match read(value.get_ref()) {
            Some(value) => Some(Found { value, span, field }),
            None => {
                findings.at(&span, &field, format!("must be {kind}, not {}", value.get_ref().type_str()));
                None
            }
        }
    }

    /// A text.
    pub fn string(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<Found<String>> {
        self.get(findings, key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    /// A text of a key that is not known before.
    pub fn any_string(&self, findings: &mut Findings<'_>, key: &str) -> Option<Found<String>> {
        self.value(findings, key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<Found<bool>> {
        self.get(findings, key, "true or false", DeValue::as_bool)
    }

    /// A list of texts; one text alone is a list as well.
    pub fn strings(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Vec<Found<String>> {
        let list = self.get(findings, key, "a list of texts in quotes", |value| match value {
            DeValue::String(text) => Some(vec![(text.to_string(), None)]),
            DeValue::Array(array) => array
                .iter()
                .map(|item| Some((item.get_ref().as_str()?.to_owned(), Some(item.span()))))
                .collect(),
            _ => None,
        });
        let Some(Found { value, span, field }) = list else { return Vec::new() };
        value
            .into_iter()
            .map(|(value, at)| Found {
                value,
                span: at.unwrap_or_else(|| span.clone()),
                field: field.clone(),
            })
            .collect()
    }

    /// A table in it.
    pub fn table(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<Self> {
        self.known.push(key);
        self.any_table(findings, key)
    }

    /// A table under a key that is not known before.
    pub fn any_table(&self, findings: &mut Findings<'_>, key: &str) -> Option<Self> {
        let found = self.value(findings, key, "a table", DeValue::as_table)?;
        let header = self.table.get_key_value(key).map_or(found.span.clone(), |(key, _)| key.span());
        Some(Self { name: found.field, span: header, table: found.value, known: Vec::new() })
    }

    /// All its keys.
    pub fn keys(&self) -> impl Iterator<Item = Found<String>> {
        self.table.keys().map(|key| Found {
            value: key.get_ref().to_string(),
            span: key.span(),
            field: self.field(key.get_ref()),
        })
    }

    /// Notes that a key is missing.
    pub fn missing(&self, findings: &mut Findings<'_>, key: &str, what: &str) {
        findings.at(&self.span, &self.field(key), what);
    }

    /// Notes every key that nobody asked for.
    pub fn finish(self, findings: &mut Findings<'_>) {
        let unknown: Vec<_> = self.keys().filter(|key| !self.known.contains(&key.value.as_str())).collect();
        for key in unknown {
            let what = format!("is not known here: there are {}", self.known.join(", "));
            findings.wrong(&key, what);
        }
    }
}

/// The text with its secrets taken out: as long as before, so that the file can be overwritten where it is and no copy
/// of them stays in a part of the card that is no longer the file's.
pub fn without_secrets(text: &str, secrets: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for span in secrets {
        let Some(value) = bytes.get_mut(span.clone()).filter(|value| value.len() >= 2) else { continue };
        value.fill(b' ');
        value[..2].copy_from_slice(b"\"\"");
    }
    // Spans are of whole values: what is cut out is whole characters.
    String::from_utf8(bytes).unwrap_or_default()
}
