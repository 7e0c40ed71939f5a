//! Questions that are answered and not kept: who am I, may I, may he.

use crate::audit::Trail;
use crate::auth::{self, Attributes, Decision, User};
use crate::engine::Engine;
use crate::object::{list, text};
use crate::rbac;
use crate::status::{Result, Status};
use serde_json::{Value, json};

/// One kind of question.
pub(crate) struct Review {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
}

const fn authorization(plural: &'static str, kind: &'static str) -> Review {
    Review { group: "authorization.k8s.io", version: "v1", plural, kind }
}

/// All that are answered.
pub(crate) const REVIEWS: &[Review] = &[
    authorization("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    authorization("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    authorization("subjectaccessreviews", "SubjectAccessReview"),
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        plural: "selfsubjectreviews",
        kind: "SelfSubjectReview",
    },
    Review { group: "authentication.k8s.io", version: "v1", plural: "tokenreviews", kind: "TokenReview" },
];

impl Engine {
    /// The question with its answer.
    pub fn review(&self, user: &User, plural: &str, mut question: Value, trail: &Trail) -> Result<Value> {
        let review = REVIEWS.iter().find(|r| r.plural == plural).ok_or_else(Status::no_resource)?;
        if !question.is_object() {
            return Err(Status::bad_request("the body is not an object"));
        }
        let attributes = Attributes { verb: "create", group: review.group, plural, ..Attributes::default() };
        self.permit(user, &attributes, trail)?;
        question["kind"] = review.kind.into();
        question["apiVersion"] = format!("{}/{}", review.group, review.version).into();
        question["status"] = match plural {
            "selfsubjectreviews" => {
                json!({"userInfo": user_info(user)})
            }
            "tokenreviews" => self.token_review(&question),
            "selfsubjectrulesreviews" => self.rules_of(user, text(&question, "/spec/namespace")),
            "subjectaccessreviews" => self.may(&asked_about(&question), &question),
            _ => self.may(user, &question),
        };
        Ok(question)
    }

    fn may(&self, user: &User, question: &Value) -> Value {
        match auth::authorize(user, &attributes(question), self) {
            Decision::Allow(why) if why.is_empty() => json!({"allowed": true}),
            Decision::Allow(why) => json!({"allowed": true, "reason": why}),
            // Upstream gives no reason where no rule allows it: kubectl would print it behind its "no".
            Decision::Deny(_) => json!({"allowed": false}),
        }
    }

    /// What `kubectl auth can-i --list` shows.
    fn rules_of(&self, user: &User, namespace: &str) -> Value {
        let mut rules = rbac::rules(user, namespace, self);
        rules.extend(auth::built_in_rules(user));
        let (paths, resources): (Vec<Value>, Vec<Value>) =
            rules.into_iter().partition(|rule| !list(rule, "/nonResourceURLs").is_empty());
        // What a node may is more than rules can say.
        let incomplete = user.node().is_some();
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete})
    }
}

fn asked_about(question: &Value) -> User {
    let groups = list(question, "/spec/groups").iter().filter_map(Value::as_str).map(str::to_owned);
    let uid = Some(text(question, "/spec/uid")).filter(|uid| !uid.is_empty()).map(str::to_owned);
    User { name: text(question, "/spec/user").to_owned(), groups: groups.collect(), uid, ..User::default() }
}

/// authentication.k8s.io/v1 UserInfo.
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if let Some(uid) = &user.uid {
        info["uid"] = uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn attributes(question: &Value) -> Attributes<'_> {
    let about = |pointer: &str| text(question, pointer);
    if question["spec"]["nonResourceAttributes"].is_object() {
        return Attributes {
            verb: about("/spec/nonResourceAttributes/verb"),
            path: about("/spec/nonResourceAttributes/path"),
            ..Attributes::default()
        };
    }
    Attributes {
        verb: about("/spec/resourceAttributes/verb"),
        group: about("/spec/resourceAttributes/group"),
        plural: about("/spec/resourceAttributes/resource"),
        subresource: about("/spec/resourceAttributes/subresource"),
        namespace: about("/spec/resourceAttributes/namespace"),
        name: about("/spec/resourceAttributes/name"),
        path: "",
    }
}
