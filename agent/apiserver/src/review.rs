//! Questions that are answered and not kept: who am I, may I.

use crate::auth::{self, Attributes, Decision, User};
use crate::engine::Engine;
use crate::object::text;
use crate::status::{Result, Status};
use serde_json::{Value, json};

/// One kind of question.
pub(crate) struct Review {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
}

/// All that are answered.
pub(crate) const REVIEWS: &[Review] = &[
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "selfsubjectaccessreviews",
        kind: "SelfSubjectAccessReview",
    },
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        plural: "selfsubjectreviews",
        kind: "SelfSubjectReview",
    },
];

impl Engine {
    /// The question with its answer.
    pub fn review(&self, user: &User, plural: &str, mut question: Value) -> Result<Value> {
        let review = REVIEWS.iter().find(|r| r.plural == plural).ok_or_else(Status::no_resource)?;
        if !question.is_object() {
            return Err(Status::bad_request("the body is not an object"));
        }
        question["kind"] = review.kind.into();
        question["apiVersion"] = format!("{}/{}", review.group, review.version).into();
        question["status"] = match plural {
            "selfsubjectreviews" => {
                json!({"userInfo": {"username": user.name, "groups": user.groups, "uid": user.uid}})
            }
            _ => self.may(user, &question),
        };
        Ok(question)
    }

    fn may(&self, user: &User, question: &Value) -> Value {
        let about = |pointer: &str| text(question, pointer);
        let attributes = if question["spec"]["nonResourceAttributes"].is_object() {
            Attributes {
                verb: about("/spec/nonResourceAttributes/verb"),
                path: about("/spec/nonResourceAttributes/path"),
                ..Attributes::default()
            }
        } else {
            Attributes {
                verb: about("/spec/resourceAttributes/verb"),
                group: about("/spec/resourceAttributes/group"),
                plural: about("/spec/resourceAttributes/resource"),
                subresource: about("/spec/resourceAttributes/subresource"),
                namespace: about("/spec/resourceAttributes/namespace"),
                name: about("/spec/resourceAttributes/name"),
                path: "",
            }
        };
        match auth::authorize(user, &attributes, self) {
            Decision::Allow => json!({"allowed": true}),
            Decision::Deny(why) => json!({"allowed": false, "reason": why}),
        }
    }
}
