//! AdmissionReview: what a webhook is asked, and how its answer is read. Pure.

use crate::object::{list, text};
use crate::policy::Request;
use crate::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use resources::Descriptor;
use serde_json::{Value, json};

/// Characters of one warning.
const MAX_WARNING: usize = 256;
const MAX_WARNINGS: usize = 16;

/// What a webhook says of a request that it lets pass.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
}

/// A webhook did not let a request pass.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// It could not be asked, or its answer is none.
    Call(String),
    /// It said no.
    Refused(Status),
}

/// What is posted to a webhook. `shown`: the request as it sees it; `own`: the kind that was asked for.
pub(super) fn question(hook: &Value, uid: &str, shown: &Request<'_>, own: &Descriptor) -> Value {
    let wanted = list(hook, "/admissionReviewVersions").iter().filter_map(Value::as_str);
    let version = wanted.into_iter().find(|version| matches!(*version, "v1" | "v1beta1")).unwrap_or("v1");
    let mut request = shown.told_as(own);
    if let Some(fields) = request.as_object_mut() {
        fields.retain(|_, value| value != "");
        fields.insert("uid".into(), uid.into());
        fields.insert("object".into(), shown.object.cloned().unwrap_or_default());
        fields.insert("oldObject".into(), shown.old.cloned().unwrap_or_default());
    }
    if let Some(user) = request["userInfo"].as_object_mut() {
        user.retain(|_, value| value != "" && *value != json!({}) && *value != json!([]));
    }
    let version = format!("admission.k8s.io/{version}");
    json!({"kind": "AdmissionReview", "apiVersion": version, "request": request})
}

/// Reads the answer of the webhook of this name to a question.
pub(super) fn read(hook: &str, answer: &Value, question: &Value, mutating: bool) -> Result<Answer, Failure> {
    let broken = |why: String| Failure::Call(format!("received invalid webhook response: {why}"));
    let name = |review: &Value| {
        let version = text(review, "/apiVersion");
        let slash = if version.contains('/') { "" } else { "/" };
        format!("{slash}{version}, Kind={}", text(review, "/kind"))
    };
    let response = &answer["response"];
    let v1 = question["apiVersion"] == "admission.k8s.io/v1";
    if v1 && name(answer) != name(question) {
        return Err(broken(format!("expected webhook response of {}, got {}", name(question), name(answer))));
    }
    if !response.is_object() {
        return Err(broken("webhook response was absent".to_owned()));
    }
    let (uid, own) = (text(question, "/request/uid"), text(response, "/uid"));
    if v1 && uid != own {
        return Err(broken(format!("expected response.uid={uid:?}, got {own:?}")));
    }
    if response["allowed"] != true {
        return Err(Failure::Refused(refusal(hook, &response["status"])));
    }
    let patch = patch(response, mutating, v1).map_err(broken)?;
    let warnings = list(response, "/warnings").iter().filter_map(Value::as_str).take(MAX_WARNINGS);
    Ok(Answer { patch, warnings: warnings.map(|told| told.chars().take(MAX_WARNING).collect()).collect() })
}

fn patch(response: &Value, mutating: bool, v1: bool) -> Result<Option<Value>, String> {
    let (encoded, form) = (text(response, "/patch"), text(response, "/patchType"));
    match (mutating, encoded, form) {
        (_, "", "") => return Ok(None),
        (false, "", _) => return Err("validating webhook may not return response.patchType".to_owned()),
        (false, ..) => return Err("validating webhook may not return response.patch".to_owned()),
        (true, "", _) => return Err("webhook returned response.patchType but not response.patch".to_owned()),
        (true, _, "") if v1 => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        (true, _, "JSONPatch" | "") => {}
        (true, _, other) => return Err(format!("webhook returned invalid response.patchType of {other:?}")),
    }
    let bytes = STANDARD.decode(encoded).map_err(|error| format!("response.patch: {error}"))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("response.patch: {error}"))
}

/// A webhook's no, in upstream's words.
fn refusal(hook: &str, status: &Value) -> Status {
    let denied = format!("admission webhook {hook:?} denied the request");
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| *code >= 400).and_then(|code| StatusCode::from_u16(code).ok());
    let (message, reason) = (text(status, "/message"), text(status, "/reason"));
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let details = status.get("details").filter(|details| details.is_object()).cloned();
    Status::told(code.unwrap_or(StatusCode::BAD_REQUEST), reason, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(response: Value, mutating: bool) -> Result<Answer, Failure> {
        let question =
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": "u"}});
        let answer =
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        read("a.example.com", &answer, &question, mutating)
    }

    fn refused(response: Value) -> String {
        match answered(response, false) {
            Err(Failure::Refused(status)) => {
                format!("{} {} {}", status.code.as_u16(), status.reason, status.message)
            }
            other => panic!("{other:?}"),
        }
    }

    fn broken(response: Value, mutating: bool) -> String {
        match answered(response, mutating) {
            Err(Failure::Call(why)) => {
                why.strip_prefix("received invalid webhook response: ").unwrap().to_owned()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_no_is_told_as_upstream_tells_it() {
        let denied = "admission webhook \"a.example.com\" denied the request";
        assert_eq!(
            refused(json!({"uid": "u", "allowed": false})),
            format!("400  {denied} without explanation")
        );
        let status = json!({"code": 200, "reason": "NoSuchLuck"});
        assert_eq!(
            refused(json!({"uid": "u", "status": status})),
            format!("400 NoSuchLuck {denied}: NoSuchLuck")
        );
        let status = json!({"code": 403, "reason": "Forbidden", "message": "not today"});
        assert_eq!(
            refused(json!({"uid": "u", "status": status})),
            format!("403 Forbidden {denied}: not today")
        );
    }

    #[test]
    fn answers_that_are_none() {
        assert_eq!(broken(Value::Null, true), "webhook response was absent");
        assert_eq!(broken(json!({"uid": "x"}), true), "expected response.uid=\"u\", got \"x\"");
        let with =
            |patch: &str, form: &str| json!({"uid": "u", "allowed": true, "patch": patch, "patchType": form});
        assert_eq!(
            broken(with("W10=", "JSONPatch"), false),
            "validating webhook may not return response.patch"
        );
        assert_eq!(
            broken(with("W10=", ""), true),
            "webhook returned response.patch but not response.patchType"
        );
        assert_eq!(
            broken(with("W10=", "Merge"), true),
            "webhook returned invalid response.patchType of \"Merge\""
        );
        assert!(broken(with("W10", "JSONPatch"), true).starts_with("response.patch: "));
        let question = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"});
        let why = read("a", &json!({"kind": "Pod", "apiVersion": "v1"}), &question, true).unwrap_err();
        let told =
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=Pod";
        assert_eq!(why, Failure::Call(format!("received invalid webhook response: {told}")));
    }

    #[test]
    fn patches_and_warnings() {
        let long = "w".repeat(300);
        let response = json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch", "warnings": [long]});
        let answer = answered(response, true).unwrap();
        assert_eq!(answer.patch, Some(json!([])));
        assert_eq!(answer.warnings, ["w".repeat(256)]);
    }
}
