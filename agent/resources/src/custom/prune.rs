//! Taking out what a schema does not have.

use super::schema::{Additional, Schema};
use crate::cause::field_path;
use serde_json::Value;

/// No more paths than this are told.
const MAX_TOLD: usize = 100;

/// Takes fields out of an object of a custom kind that its schema does not name, and adds their paths to `told`.
pub fn prune(schema: &Schema, object: &mut Value, told: &mut Vec<String>) {
    Pruner { told, path: Vec::new() }.object(schema, object, true);
}

/// The same of a value within an object.
pub fn prune_value(schema: &Schema, value: &mut Value, told: &mut Vec<String>) {
    Pruner { told, path: Vec::new() }.value(schema, value);
}

struct Pruner<'a> {
    told: &'a mut Vec<String>,
    path: Vec<String>,
}

impl Pruner<'_> {
    /// `resource`: this value has the fields that every object has.
    fn object(&mut self, schema: &Schema, value: &mut Value, resource: bool) {
        let Value::Object(fields) = value else { return self.other(schema, value) };
        fields.retain(|name, value| {
            if resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                return true;
            }
            self.path.push(name.clone());
            let kept = match (schema.properties.get(name), &schema.additional) {
                (Some(own), _) => {
                    self.value(own, value);
                    true
                }
                (None, Some(Additional::Of(of))) => {
                    self.value(of, value);
                    true
                }
                (None, Some(Additional::Any)) => true,
                (None, None) => schema.preserve,
            };
            if !kept && self.told.len() < MAX_TOLD {
                self.told.push(field_path(&self.path));
            }
            self.path.pop();
            kept
        });
    }

    fn value(&mut self, schema: &Schema, value: &mut Value) {
        self.object(schema, value, schema.embedded);
    }

    fn other(&mut self, schema: &Schema, value: &mut Value) {
        if let (Value::Array(items), Some(schema)) = (value, &schema.items) {
            for (i, item) in items.iter_mut().enumerate() {
                self.path.push(format!("[{i}]"));
                self.value(schema, item);
                self.path.pop();
            }
        }
    }
}
