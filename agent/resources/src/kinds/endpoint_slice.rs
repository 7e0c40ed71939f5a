//! EndpointSlice: where the pods of a service are, in pieces.

use super::BASE;
use super::columns::{AGE, NAME, shortened, string};
use super::endpoints::{check_ip, check_port};
use crate::cause::{Causes, invalid, not_supported, required};
use crate::json::{children, default, int, items, text};
use crate::{Builtin, CellContext, metadata, names};
use serde_json::Value;

const TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
/// Endpoints in one slice.
const MAX_ENDPOINTS: usize = 1000;

pub const ENDPOINT_SLICE: Builtin = Builtin {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    columns: &[
        NAME,
        string("AddressType", |slice, _| text(slice, "/addressType").into()),
        string("Ports", ports),
        string("Endpoints", endpoints),
        AGE,
    ],
    defaults,
    validate,
    ..BASE
};

fn defaults(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for port in children(fields, "ports") {
        port.entry("name").or_insert_with(|| "".into());
        default(port, "protocol", "TCP");
    }
}

fn unset(all: &[String]) -> Value {
    if all.is_empty() { "<unset>".into() } else { shortened(all, 3).into() }
}

fn ports(slice: &Value, _: &CellContext) -> Value {
    let ports = items(slice, "/ports").iter();
    unset(&ports.map(|p| int(p, "/port").map_or("*".to_owned(), |n| n.to_string())).collect::<Vec<_>>())
}

fn endpoints(slice: &Value, _: &CellContext) -> Value {
    let addresses = items(slice, "/endpoints").iter().flat_map(|e| items(e, "/addresses"));
    unset(&addresses.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let kind = text(new, "/addressType");
    if kind.is_empty() {
        causes.push(required("addressType", ""));
    } else if !TYPES.contains(&kind) {
        causes.push(not_supported("addressType", kind, &TYPES));
    }
    metadata::immutable(new, old, "/addressType", "addressType", &mut causes);
    let all = items(new, "/endpoints");
    if all.len() > MAX_ENDPOINTS {
        let message = format!("must have at most {MAX_ENDPOINTS} items");
        causes.push(invalid("endpoints", all.len(), &message));
    }
    for (i, endpoint) in all.iter().enumerate() {
        let addresses = items(endpoint, "/addresses");
        if addresses.is_empty() {
            causes.push(required(format!("endpoints[{i}].addresses"), "must contain at least 1 address"));
        }
        for (j, address) in addresses.iter().enumerate().filter(|_| kind != "FQDN") {
            let field = format!("endpoints[{i}].addresses[{j}]");
            check_ip(address.as_str().unwrap_or_default(), &field, &mut causes);
        }
    }
    for (i, port) in items(new, "/ports").iter().enumerate() {
        check_port(port, &format!("ports[{i}]"), &mut causes);
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_slice_is_shown_and_checked() {
        let mut slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.1.0.2"]}]});
        defaults(&mut slice);
        assert_eq!(validate(&slice, None), []);
        let context = CellContext { now: 0 };
        assert_eq!(ports(&slice, &context), "80");
        assert_eq!(endpoints(&slice, &context), "10.1.0.2");
        assert_eq!(endpoints(&json!({}), &context), "<unset>");
        let mut other = slice.clone();
        other["addressType"] = "IPv6".into();
        assert_eq!(validate(&other, Some(&slice))[0].field, "addressType");
    }
}
