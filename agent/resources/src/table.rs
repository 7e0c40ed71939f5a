//! `Table`: the rows and columns that `kubectl get` prints.

use crate::{CellContext, Descriptor};
use serde_json::{Value, json};

/// What a Table and a PartialObjectMetadata are versions of.
pub const META: &str = "meta.k8s.io/v1";

/// How much of each object goes along with its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// The query parameter `includeObject`; an empty or unknown one means metadata.
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Self::None,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A Table of these objects. `with_columns` is false for all but the first event of a watch.
pub fn table(
    d: &Descriptor,
    items: Vec<Value>,
    list_meta: Value,
    include_object: IncludeObject,
    now: i64,
    with_columns: bool,
) -> Value {
    let context = CellContext { now };
    let rows: Vec<Value> = items.into_iter().map(|item| row(d, item, include_object, &context)).collect();
    json!({
        "kind": "Table",
        "apiVersion": META,
        "metadata": if list_meta.is_object() { list_meta } else { json!({}) },
        "columnDefinitions": if with_columns { d.columns().into() } else { Value::Null },
        "rows": rows,
    })
}

fn row(d: &Descriptor, item: Value, include_object: IncludeObject, context: &CellContext) -> Value {
    let mut row = json!({"cells": d.cells(&item, context)});
    if d.kind == "Pod"
        && let Some(conditions) = completed(&item)
    {
        row["conditions"] = conditions;
    }
    row["object"] = match include_object {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(item),
        IncludeObject::Object => item,
    };
    row
}

/// A `PartialObjectMetadata`: an object of which only the metadata is told.
pub fn partial(mut item: Value) -> Value {
    let metadata = item.get_mut("metadata").map_or_else(|| json!({}), Value::take);
    json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": metadata})
}

/// Rows of ended pods say so.
fn completed(pod: &Value) -> Option<Value> {
    match crate::json::text(pod, "/status/phase") {
        phase @ ("Succeeded" | "Failed") => Some(json!([{
            "type": "Completed",
            "status": "True",
            "reason": phase,
            "message": if phase == "Failed" { "The pod failed." } else { "The pod has completed successfully." },
        }])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_cell_for_each_column() {
        for d in crate::all() {
            let mut object = json!({"metadata": {"name": "x", "creationTimestamp": "1970-01-01T00:00:00Z"}});
            d.defaults(&mut object);
            let table =
                table(d, vec![object], json!({"resourceVersion": "7"}), IncludeObject::Metadata, 330, true);
            let columns = table["columnDefinitions"].as_array().expect("columns");
            let cells = table["rows"][0]["cells"].as_array().expect("cells");
            assert_eq!(columns.len(), cells.len(), "{}", d.kind);
            assert_eq!(table["metadata"]["resourceVersion"], "7");
            assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
            if columns.iter().any(|c| c["name"] == "Age") {
                assert!(cells.contains(&json!("5m30s")), "{}", d.kind);
            }
            for (column, cell) in columns.iter().zip(cells) {
                let good = match column["type"].as_str() {
                    Some("integer") => cell.is_number(),
                    Some("boolean") => cell.is_boolean(),
                    _ => cell.is_string(),
                };
                assert!(good, "{} {column} {cell}", d.kind);
            }
        }
    }

    #[test]
    fn later_events_have_no_columns() {
        let d = crate::find("", "v1", "pods").expect("pods");
        let object = json!({"metadata": {"name": "x"}, "kind": "Pod"});
        let table = table(d, vec![object.clone()], Value::Null, IncludeObject::Object, 0, false);
        assert!(table["columnDefinitions"].is_null());
        assert_eq!(table["rows"][0]["object"], object);
    }

    #[test]
    fn cells_survive_objects_of_any_shape() {
        for d in crate::all() {
            for object in
                [json!(null), json!([]), json!({"spec": 1, "status": [], "metadata": "x"}), json!("x")]
            {
                table(d, vec![object], Value::Null, IncludeObject::None, 0, true);
            }
        }
    }
}
