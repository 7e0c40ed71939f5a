//! CertificateSigningRequest: who wants a certificate, from whom, and whether he gets it.

use super::BASE;
use super::columns::{AGE, NAME, string, text_at};
use crate::cause::{Causes, forbidden, invalid, required};
use crate::json::{int, items, text};
use crate::{Builtin, Subresource, metadata, names};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

pub const CERTIFICATE_SIGNING_REQUEST: Builtin = Builtin {
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Approval],
    columns: &[
        NAME,
        AGE,
        string("SignerName", |request, _| text_at(request, "/spec/signerName")),
        string("Requestor", |request, _| text_at(request, "/spec/username")),
        string("RequestedDuration", |request, _| duration(request).into()),
        string("Condition", |request, _| condition(request).into()),
    ],
    selectable: &[("spec.signerName", "/spec/signerName")],
    validate,
    ..BASE
};

fn duration(request: &Value) -> String {
    int(request, "/spec/expirationSeconds").map_or_else(|| "<none>".to_owned(), crate::time::human_duration)
}

/// `Pending`, `Approved,Issued`, `Denied`.
fn condition(request: &Value) -> String {
    let has = |kind: &str| items(request, "/status/conditions").iter().any(|c| text(c, "/type") == kind);
    let mut words: Vec<&str> =
        ["Approved", "Denied", "Failed"].into_iter().filter(|kind| has(kind)).collect();
    if !has("Approved") && !has("Denied") {
        words.insert(0, "Pending");
    }
    if !text(request, "/status/certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

fn validate(new: &Value, old: Option<&Value>) -> Causes {
    let mut causes = metadata::validate(new, old, names::dns_subdomain);
    let request = text(new, "/spec/request");
    if request.is_empty() {
        causes.push(required("spec.request", ""));
    } else if !is_pem(request) {
        causes.push(invalid("spec.request", request, "PEM block type must be CERTIFICATE REQUEST"));
    }
    if items(new, "/spec/usages").is_empty() {
        causes.push(required("spec.usages", ""));
    }
    let signer = text(new, "/spec/signerName");
    match signer.split_once('/') {
        _ if signer.is_empty() => causes.push(required("spec.signerName", "")),
        Some((domain, path)) if !path.is_empty() => {
            let faults = names::dns_subdomain(domain);
            causes.extend(faults.iter().map(|fault| invalid("spec.signerName", signer, fault)));
        }
        _ => {
            let form = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            causes.push(invalid("spec.signerName", signer, form));
        }
    }
    if int(new, "/spec/expirationSeconds").is_some_and(|seconds| seconds < 600) {
        let seconds = int(new, "/spec/expirationSeconds").unwrap_or_default();
        causes.push(invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        ));
    }
    metadata::immutable(new, old, "/spec", "spec", &mut causes);
    conditions(new, old, &mut causes);
    causes
}

fn is_pem(request: &str) -> bool {
    let text = STANDARD.decode(request).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.is_some_and(|text| text.contains("-----BEGIN CERTIFICATE REQUEST-----"))
}

/// A request is approved or denied, not both, and neither is taken back.
fn conditions(new: &Value, old: Option<&Value>, causes: &mut Causes) {
    let of = |object: &Value, kind: &str| {
        items(object, "/status/conditions").iter().any(|c| text(c, "/type") == kind)
    };
    let field = "status.conditions";
    if of(new, "Approved") && of(new, "Denied") {
        causes.push(invalid(field, "Denied", "Approved and Denied conditions are mutually exclusive"));
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if old.is_some_and(|old| of(old, kind) && !of(new, kind)) {
            causes.push(forbidden(field, &format!("updates may not remove a condition of type {kind:?}")));
        }
    }
    let issued = |object: &Value| text(object, "/status/certificate").to_owned();
    if old.is_some_and(|old| !issued(old).is_empty() && issued(old) != issued(new)) {
        causes.push(forbidden("status.certificate", "updates may not change existing certificate content"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_is_whole_and_its_approval_stands() {
        let pem = STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\n");
        let request = |spec: Value, conditions: &[&str]| {
            let conditions: Vec<Value> =
                conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
            json!({"metadata": {"name": "r"}, "spec": spec, "status": {"conditions": conditions}})
        };
        let spec = json!({"request": pem, "signerName": "example.com/x", "usages": ["client auth"]});
        let good = request(spec.clone(), &["Approved"]);
        assert_eq!(validate(&good, None), []);
        assert_eq!(condition(&good), "Approved");
        assert_eq!(condition(&request(spec.clone(), &[])), "Pending");
        let fields = |new: &Value, old: Option<&Value>| -> Vec<String> {
            validate(new, old).into_iter().map(|cause| cause.field).collect()
        };
        let bad = json!({"request": "eA==", "signerName": "plain", "expirationSeconds": 5});
        assert_eq!(
            fields(&request(bad, &[]), None),
            ["spec.request", "spec.usages", "spec.signerName", "spec.expirationSeconds"]
        );
        assert_eq!(fields(&request(spec.clone(), &["Approved", "Denied"]), None), ["status.conditions"]);
        assert_eq!(fields(&request(spec.clone(), &[]), Some(&good)), ["status.conditions"]);
        let mut other = spec;
        other["signerName"] = "example.com/y".into();
        assert_eq!(fields(&request(other, &["Approved"]), Some(&good)), ["spec"]);
    }
}
