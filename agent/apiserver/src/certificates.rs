//! Certificate signing requests: who asks is who sent the request, and who approves or signs must be allowed to, for
//! that very signer.

use crate::auth::{Attributes, Facts, User, check};
use crate::object::{as_map, field, list, text};
use crate::status::{Result, Status};
use serde_json::{Value, json};

const GROUP: &str = "certificates.k8s.io";
const VERDICTS: [&str; 2] = ["Approved", "Denied"];

/// Whether these are the requests meant here.
pub(crate) fn is_request(group: &str, plural: &str) -> bool {
    group == GROUP && plural == "certificatesigningrequests"
}

/// Writes down who asks, whatever he says himself.
pub(crate) fn stamp(user: &User, request: &mut Value) {
    let spec = field(as_map(request), "spec");
    for said in ["username", "uid", "groups", "extra"] {
        spec.remove(said);
    }
    spec.insert("username".into(), user.name.as_str().into());
    spec.insert("groups".into(), json!(user.groups));
    if let Some(uid) = &user.uid {
        spec.insert("uid".into(), uid.as_str().into());
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// Whether a user may do this (`approve`, `sign`) for the signer of a request: for it alone, or for its whole domain.
pub(crate) fn check_signer(
    user: &User,
    verb: &'static str,
    request: &Value,
    facts: &dyn Facts,
) -> Result<()> {
    let signer = text(request, "/spec/signerName");
    let domain = format!("{}/*", signer.split_once('/').map_or(signer, |(domain, _)| domain));
    let may = |name: &str| {
        let attributes = Attributes { verb, group: GROUP, plural: "signers", name, ..Attributes::default() };
        check(user, &attributes, facts).is_ok()
    };
    if may(signer) || may(&domain) {
        return Ok(());
    }
    let what = if verb == "approve" { "approve requests" } else { "sign requests" };
    let why = format!("user not permitted to {what} with signerName {signer:?}");
    Err(Status::forbidden(GROUP, "certificatesigningrequests", crate::object::name(request), &why))
}

/// What an approver may change: the conditions.
pub(crate) fn approve(old: &Value, new: &mut Value) {
    let conditions = list(new, "/status/conditions").to_vec();
    let mut status = old.get("status").cloned().unwrap_or_else(|| json!({}));
    status["conditions"] = timed(conditions).into();
    new["status"] = status;
}

/// What a signer may not: the verdict.
pub(crate) fn sign(old: &Value, new: &mut Value) {
    let is_verdict = |condition: &&Value| VERDICTS.contains(&text(condition, "/type"));
    let verdict = list(old, "/status/conditions").iter().filter(is_verdict);
    let rest = list(new, "/status/conditions").iter().filter(|condition| !is_verdict(condition));
    let conditions: Vec<Value> = verdict.chain(rest).cloned().collect();
    let status = field(as_map(new), "status");
    if conditions.is_empty() {
        status.remove("conditions");
    } else {
        status.insert("conditions".into(), timed(conditions).into());
    }
}

fn timed(mut conditions: Vec<Value>) -> Vec<Value> {
    let now = crate::object::timestamp(0);
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        for time in ["lastUpdateTime", "lastTransitionTime"] {
            if condition.get(time).is_none_or(Value::is_null) {
                condition.insert(time.into(), now.as_str().into());
            }
        }
        condition.entry("status").or_insert_with(|| "True".into());
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approver_and_signer_each_change_their_part() {
        let kinds = |object: &Value| -> Vec<String> {
            list(object, "/status/conditions").iter().map(|c| text(c, "/type").to_owned()).collect()
        };
        let old = json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "old"}});
        let mut new = json!({"status": {"certificate": "forged", "conditions": [{"type": "Denied"}]}});
        approve(&old, &mut new);
        assert_eq!(
            (kinds(&new), new["status"]["certificate"].as_str()),
            (vec!["Denied".into()], Some("old"))
        );
        let mut new =
            json!({"status": {"certificate": "new", "conditions": [{"type": "Denied"}, {"type": "Failed"}]}});
        sign(&old, &mut new);
        assert_eq!(kinds(&new), ["Approved", "Failed"]);
        let mut new = json!({"status": {"conditions": [{"type": "Approved"}]}});
        sign(&json!({}), &mut new);
        assert!(kinds(&new).is_empty(), "a signer approves nothing");
    }
}
