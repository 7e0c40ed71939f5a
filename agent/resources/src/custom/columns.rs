//! `additionalPrinterColumns`: cells of a Table that a definition says where to find.

use super::path::Path;
use crate::json::{int, items, text};
use crate::{CellContext, time};
use serde_json::Value;

/// One column.
#[derive(Clone, Debug)]
pub struct PrinterColumn {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    path: Option<Path>,
}

/// The columns of a version: the name, then its own, or else the age.
pub fn read(version: &Value) -> Vec<PrinterColumn> {
    let column = |name: &str, kind: &str, format: &str, path: &str| PrinterColumn {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: format.to_owned(),
        description: String::new(),
        priority: 0,
        path: Path::parse(path).ok(),
    };
    let mut columns = vec![column("Name", "string", "name", ".metadata.name")];
    let own = items(version, "/additionalPrinterColumns");
    columns.extend(own.iter().map(|c| PrinterColumn {
        description: text(c, "/description").to_owned(),
        priority: int(c, "/priority").unwrap_or(0),
        ..column(text(c, "/name"), text(c, "/type"), text(c, "/format"), text(c, "/jsonPath"))
    }));
    if own.is_empty() {
        columns.push(column("Age", "date", "", ".metadata.creationTimestamp"));
    }
    columns
}

impl PrinterColumn {
    /// The cell of an object; `null` if there is nothing there, or something of another type.
    pub fn cell(&self, object: &Value, context: &CellContext) -> Value {
        let Some(path) = &self.path else { return Value::Null };
        let found = path.find(object);
        let Some(first) = found.first() else { return Value::Null };
        match (self.kind.as_str(), first) {
            ("integer", Value::Number(n)) =>
            {
                #[allow(clippy::cast_possible_truncation, reason = "as upstream shortens fractions")]
                n.as_i64().or_else(|| n.as_f64().map(|n| n as i64)).map_or(Value::Null, Value::from)
            }
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
            ("date", Value::String(at)) => time::parse(at)
                .map_or_else(|| "<invalid>".to_owned(), |_| time::since(at, context.now))
                .into(),
            ("string", _) => found.iter().map(|v| shown(v)).collect::<Vec<_>>().join(",").into(),
            _ => Value::Null,
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}
