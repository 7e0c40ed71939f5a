//! get and list.

use crate::engine::Engine;
use crate::object::{self, load};
use crate::path::Target;
use crate::query::{Match, Query};
use crate::respond::Format;
use crate::status::{Result, Status};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use resources::Descriptor;
use resources::fields::FieldSelector;
use resources::labels::Selector;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use store::{Kv, Page, Record, Revision};

/// What a revision adds to an object's bytes, at most.
const SPARE: usize = 64;

/// How many records a filtered, paged list reads at once.
const CHUNK: usize = 500;

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: Selector,
    fields: FieldSelector,
}

impl Selection {
    pub fn read(kind: &Descriptor, query: &Query) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Status::bad_request(e.to_string());
        let labels = Selector::parse(query.get("labelSelector").unwrap_or_default()).map_err(|e| bad(&e))?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default(), kind)
            .map_err(|e| bad(&e))?;
        Ok(Self { labels, fields })
    }

    /// Only the object of this name.
    pub fn named(mut self, kind: &Descriptor, name: &str) -> Result<Self> {
        let escaped = name.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        self.fields = FieldSelector::parse(&format!("metadata.name={escaped}"), kind)
            .map_err(|e| Status::bad_request(e.to_string()))?;
        Ok(self)
    }

    /// The name that objects must have, if one is demanded.
    pub fn name(&self) -> Option<String> {
        self.fields.exact("metadata.name").map(str::to_owned)
    }

    pub fn is_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object.pointer("/metadata/labels")) && self.fields.matches(object)
    }
}

/// Where a paged list goes on.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    /// The revision the first page was read at.
    revision: Revision,
    /// The last key read.
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD
            .encode(json!({"v": "bramble/v1", "rv": self.revision, "after": self.after}).to_string())
    }

    fn decode(token: &str, prefix: &str) -> Result<Self> {
        let read = || {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok()?;
            let token: Value = serde_json::from_slice(&bytes).ok()?;
            let after = token["after"].as_str().filter(|key| key.starts_with(prefix))?.to_owned();
            Some(Self { revision: token["rv"].as_u64()?, after })
        };
        read().ok_or_else(|| {
            Status::bad_request("continue key is not valid: it was not given by this server for this list")
        })
    }
}

/// A list's content.
pub(crate) struct Listed {
    pub items: Vec<Value>,
    pub revision: Revision,
    after: Option<String>,
    remaining: Option<usize>,
}

impl Engine {
    /// One object.
    pub fn get(&self, target: &Target, name: &str) -> Result<Value> {
        let record = self.record(&target.kind, target.namespace.as_deref(), name)?;
        load(&target.kind, &record)
    }

    /// The record of one object.
    pub fn record(&self, kind: &Descriptor, namespace: Option<&str>, name: &str) -> Result<Record> {
        self.kv(kind).get(&object::key(kind, namespace, name)).ok_or_else(|| Status::not_found(kind, name))
    }

    /// A collection in the form asked for.
    pub fn list(&self, target: &Target, query: &Query, format: &Format) -> Result<Value> {
        let kind = &target.kind;
        let selection = Selection::read(kind, query)?;
        let listed = self.select(target, query, &selection)?;
        let mut meta = json!({"resourceVersion": listed.revision.to_string()});
        if let Some(after) = listed.after {
            meta["continue"] = Continue { revision: listed.revision, after }.encode().into();
            if let Some(remaining) = listed.remaining.filter(|n| *n > 0) {
                meta["remainingItemCount"] = remaining.into();
            }
        }
        Ok(format.list(kind, listed.items, meta))
    }

    /// A whole collection as JSON, put together of what is kept without reading it; `None` if it is not that simple.
    pub fn list_unread(&self, target: &Target, query: &Query, format: &Format) -> Result<Option<Unread>> {
        let kind = &target.kind;
        let simple = Selection::read(kind, query)?.is_all() && object::kept_as_shown(kind);
        let page = ["limit", "continue", "resourceVersionMatch"].iter().any(|name| query.get(name).is_some());
        if !simple || page || !format.is_plain_json() {
            return Ok(None);
        }
        let kv = self.kv(kind);
        check_revision(kv, query, false)?;
        let page = kv.list(&object::prefix(kind, target.namespace.as_deref()), None, 0);
        Ok(Some(Unread::new(kind, page)))
    }

    /// The objects a list asks for.
    pub fn select(&self, target: &Target, query: &Query, selection: &Selection) -> Result<Listed> {
        let kv = self.kv(&target.kind);
        let prefix = object::prefix(&target.kind, target.namespace.as_deref());
        let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0);
        let from = query.get("continue").map(|token| Continue::decode(token, &prefix)).transpose()?;
        let exactly = check_revision(kv, query, from.is_some())?;
        // Later pages show what the first one's revision held.
        let at = from.as_ref().map(|from| from.revision).or(exactly);
        let one = selection.fields.exact("metadata.name");
        match one {
            Some(name) if at.is_none() && (target.namespace.is_some() || !target.kind.namespaced) => {
                let revision = kv.revision();
                let found = kv.get(&format!("{prefix}{name}"));
                let items = found.iter().map(|r| load(&target.kind, r)).collect::<Result<Vec<_>>>()?;
                let items = items.into_iter().filter(|o| selection.matches(o)).collect();
                Ok(Listed { items, revision, after: None, remaining: None })
            }
            _ => {
                let reading = Reading { kind: &target.kind, kv, prefix: &prefix, selection, limit };
                reading.pages(from.map(|f| f.after), at)
            }
        }
    }
}

/// A list's JSON, put together piece by piece as the client takes it: however slow it is, it costs no more than one.
pub(crate) struct Unread {
    kind: Arc<Descriptor>,
    records: std::vec::IntoIter<Record>,
    /// About how many bytes it will be.
    pub size: usize,
    head: Option<String>,
    end: Option<String>,
}

impl Unread {
    /// Bytes of a piece; the last object may add to it.
    pub const PIECE: usize = 64 << 10;

    fn new(kind: &Arc<Descriptor>, page: Page) -> Self {
        let end = format!(
            "],\"kind\":{:?},\"metadata\":{{\"resourceVersion\":\"{}\"}}}}\n",
            kind.list_kind, page.revision
        );
        Self {
            kind: Arc::clone(kind),
            size: page.records.iter().map(|record| record.value.len() + SPARE).sum(),
            records: page.records.into_iter(),
            head: Some(format!("{{\"apiVersion\":{:?},\"items\":[", kind.api_version())),
            end: Some(end),
        }
    }

    fn item(&self, record: &Record, piece: &mut Vec<u8>) -> io::Result<()> {
        let at = piece.len();
        if object::append(record, piece).is_some() {
            return Ok(());
        }
        piece.truncate(at);
        let object = load(&self.kind, record).map_err(|status| io::Error::other(status.message))?;
        Ok(serde_json::to_writer(piece, &object)?)
    }
}

impl Iterator for Unread {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.end.as_ref()?;
        let mut piece = Vec::with_capacity(self.size.min(Self::PIECE) + 2 * SPARE);
        let mut first = self.head.take().inspect(|head| piece.extend(head.bytes())).is_some();
        while piece.len() < Self::PIECE {
            let Some(record) = self.records.next() else {
                piece.extend(self.end.take()?.bytes());
                break;
            };
            piece.extend((!first).then_some(b','));
            first = false;
            if let Err(error) = self.item(&record, &mut piece) {
                // The client is left without the end, and so knows.
                self.end = None;
                return Some(Err(error));
            }
        }
        Some(Ok(piece))
    }
}

/// A list that reads the store in pieces.
struct Reading<'a> {
    kind: &'a Descriptor,
    kv: &'a dyn Kv,
    prefix: &'a str,
    selection: &'a Selection,
    /// 0: all.
    limit: usize,
}

impl Reading<'_> {
    /// Reads matching records until there are enough, all as they were at one revision: this, or the present one.
    fn pages(&self, mut after: Option<String>, mut at: Option<Revision>) -> Result<Listed> {
        let (limit, all) = (self.limit, self.selection.is_all());
        let chunk = if limit == 0 || all { limit } else { limit.max(CHUNK) };
        let mut items = Vec::new();
        loop {
            let Page { records, revision, more, remaining } = self.page(after.as_deref(), chunk, at)?;
            at = Some(revision);
            let count = records.len();
            for (i, record) in records.iter().enumerate() {
                let object = load(self.kind, record)?;
                if !self.selection.matches(&object) {
                    continue;
                }
                items.push(object);
                let left = more || i + 1 < count;
                if limit > 0 && items.len() == limit && left {
                    let remaining = all.then_some(remaining + (count - i - 1));
                    return Ok(Listed { items, revision, after: Some(record.key.to_string()), remaining });
                }
            }
            match records.last() {
                Some(last) if more => after = Some(last.key.to_string()),
                _ => return Ok(Listed { items, revision, after: None, remaining: None }),
            }
        }
    }

    fn page(&self, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let Some(at) = at else { return Ok(self.kv.list(self.prefix, after, limit)) };
        self.kv.list_at(self.prefix, after, limit, at).map_err(|gone| {
            Status::expired(if after.is_some() {
                "The provided continue parameter is too old to display a consistent list result. \
                 You can start a new list without the continue parameter."
                    .to_owned()
            } else {
                format!(
                    "The resourceVersion for the provided list is too old: {} ({})",
                    gone.asked, gone.oldest
                )
            })
        })
    }
}

/// Refuses revisions that cannot be read; gives the one that is wanted exactly.
fn check_revision(kv: &dyn Kv, query: &Query, continued: bool) -> Result<Option<Revision>> {
    let (asked, wanted) = (query.revision()?, query.version_match()?);
    if wanted.is_some() && query.get("resourceVersion").is_none() {
        return Err(Status::unprocessable(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if continued && asked.is_some() {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    let current = kv.revision();
    match asked {
        Some(revision) if revision > current => Err(Status::too_new(revision, current)),
        Some(revision) if wanted == Some(Match::Exact) => Ok(Some(revision)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_only_into_its_own_list() {
        let token = Continue { revision: 7, after: "/registry/core/pods/default/a".into() };
        let text = token.encode();
        assert_eq!(Continue::decode(&text, "/registry/core/pods/").unwrap(), token);
        assert_eq!(Continue::decode(&text, "/registry/core/secrets/").unwrap_err().code, 400);
        assert_eq!(Continue::decode("%%%", "/").unwrap_err().code, 400);
    }
}
