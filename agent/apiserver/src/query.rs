//! Query parameters.

use crate::status::{Result, Status};

/// A request's query parameters, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

/// How a list or watch treats its `resourceVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    NotOlderThan,
    Exact,
}

impl Query {
    pub fn read(uri: &http::Uri) -> Result<Self> {
        axum::extract::Query::try_from_uri(uri)
            .map(|axum::extract::Query(pairs)| Self(pairs))
            .map_err(|e| Status::bad_request(e.to_string()))
    }

    /// The first value of a parameter that is there and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a flag is set: present, and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| key == name && value != "false" && value != "0")
    }

    pub fn number(&self, name: &str) -> Result<Option<i64>> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
                })
            })
            .transpose()
    }

    /// The `resourceVersion`; 0 and absent both are `None`.
    pub fn revision(&self) -> Result<Option<u64>> {
        let Some(text) = self.get("resourceVersion") else { return Ok(None) };
        match text.parse() {
            Ok(0) => Ok(None),
            Ok(revision) => Ok(Some(revision)),
            Err(_) => Err(Status::bad_request(format!(
                "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))),
        }
    }

    pub fn version_match(&self) -> Result<Option<Match>> {
        match self.get("resourceVersionMatch") {
            None => Ok(None),
            Some("NotOlderThan") => Ok(Some(Match::NotOlderThan)),
            Some("Exact") => Ok(Some(Match::Exact)),
            Some(other) => Err(Status::unprocessable(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
            ))),
        }
    }

    /// Whether nothing may be kept.
    pub fn dry_run(&self) -> Result<bool> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Status::unprocessable(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }
}
