//! Validation of requests and limits.

use crate::cause::{Causes, invalid};
use crate::json::{Fields, fields};
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

/// Checks a container's `resources`.
pub fn check(container: &Value, field: &str, causes: &mut Causes) {
    let limits = fields(container, "/resources/limits");
    let requests = fields(container, "/resources/requests");
    for (list, name) in [(limits, "limits"), (requests, "requests")] {
        amounts(list, &format!("{field}.resources.{name}"), causes);
    }
    for (name, request) in requests.into_iter().flatten() {
        let Some(limit) = limits.and_then(|l| l.get(name)) else { continue };
        if let (Some(request), Some(limit)) = (parse(request), parse(limit))
            && request > limit
        {
            causes.push(invalid(
                format!("{field}.resources.requests"),
                request.to_string(),
                &format!("must be less than or equal to {name} limit of {limit}"),
            ));
        }
    }
}

fn parse(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

fn amounts(list: Option<&Fields>, field: &str, causes: &mut Causes) {
    for (name, amount) in list.into_iter().flatten() {
        let own = format!("{field}[{name}]");
        causes.extend(names::qualified_name(name).iter().map(|f| invalid(own.as_str(), name.as_str(), f)));
        if !name.contains('/') && !standard(name) {
            causes.push(invalid(own.as_str(), name.as_str(), "must be a standard resource for containers"));
        }
        match parse(amount) {
            Some(amount) if amount.is_negative() => {
                causes.push(invalid(own, amount.to_string(), "must be greater than or equal to 0"));
            }
            Some(_) => {}
            None => causes.push(invalid(own, amount.clone(), &crate::quantity::ParseError.to_string())),
        }
    }
}

fn standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}
