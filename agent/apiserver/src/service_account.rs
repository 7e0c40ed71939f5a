//! Service accounts' tokens: given out (`TokenRequest`, legacy Secrets), known again, and what they prove.
//!
//! The signing key is kept beside the objects, where no API path leads. A token is good for as long as what it is bound
//! to is there: the service account, and the pod, Secret or node it names.

use crate::auth::User;
use crate::engine::Engine;
use crate::jwt::Signer;
use crate::object::{self, list, name, text};
use crate::path::Target;
use crate::status::{Result, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use resources::Cause;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use store::{CommitError, Expect, Txn, Write};

/// Where the signing key is.
const KEY: &str = "/bramble/service-account-key";
/// Who gives out tokens that are kept in Secrets, and never expire.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Clocks may differ by this many seconds.
const LEEWAY: i64 = 60;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const USUAL: i64 = 3600;
/// A token names no more audiences than this.
const MAX_AUDIENCES: usize = 32;

type Verdict<T> = std::result::Result<T, String>;

impl Engine {
    /// Makes the signing key if the cluster has none.
    pub async fn make_signing_key(&self) -> Verdict<()> {
        if self.durable.get(KEY).is_some() {
            return Ok(());
        }
        let value = Some(Signer::new_key()?.into());
        let write = Write { key: KEY.into(), expect: Expect::Absent, value };
        match self.durable.commit(Txn { writes: vec![write] }).await {
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn signer(&self) -> Verdict<&Signer> {
        if let Some(signer) = self.signer.get() {
            return Ok(signer);
        }
        let record = self.durable.get(KEY).ok_or("the cluster has no signing key yet")?;
        let signer = Signer::load(&record.value)?;
        Ok(self.signer.get_or_init(|| signer))
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Result<Value> {
        Ok(self.signer().map_err(Status::unavailable)?.jwks())
    }

    /// `/.well-known/openid-configuration` (OpenID Connect Discovery 1.0).
    pub fn openid(&self) -> Value {
        let issuer = &self.config.issuer;
        json!({"issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"), "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"]})
    }

    /// `serviceaccounts/token`: a token for the account, and what it is bound to.
    pub fn token(&self, user: &User, target: &Target, account: &str, mut asked: Value) -> Result<Value> {
        if asked.is_null() {
            asked = json!({});
        }
        let service_account = self.get(target, account)?;
        let spec = &asked["spec"];
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(USUAL);
        check_duration(seconds)?;
        let mut audiences = list(&asked, "/spec/audiences").to_vec();
        if audiences.len() > MAX_AUDIENCES || !audiences.iter().all(Value::is_string) {
            return Err(Status::bad_request(format!("spec.audiences: at most {MAX_AUDIENCES} texts")));
        }
        if audiences.is_empty() {
            audiences.push(self.config.issuer.as_str().into());
        }
        let namespace = text(&service_account, "/metadata/namespace");
        let bound = self.bound(namespace, account, spec.get("boundObjectRef"))?;
        if let Some(node) = user.node() {
            for_own_pod(node, &bound)
                .map_err(|why| Status::forbidden("", "serviceaccounts", account, why))?;
        }
        let now = object::now();
        let mut about = json!({"namespace": namespace, "serviceaccount": identity(&service_account)});
        bound.describe(&mut about);
        let claims = json!({"aud": audiences, "exp": now + seconds, "iat": now, "iss": self.config.issuer,
            "jti": object::new_uid(), "kubernetes.io": about, "nbf": now, "sub": subject(namespace, account)});
        let token = self.signer().and_then(|signer| signer.sign(&claims)).map_err(Status::unavailable)?;
        (asked["kind"], asked["apiVersion"]) = ("TokenRequest".into(), "authentication.k8s.io/v1".into());
        asked["metadata"] =
            json!({"name": account, "namespace": namespace, "creationTimestamp": object::timestamp(0)});
        asked["spec"]["audiences"] = audiences.into();
        asked["spec"]["expirationSeconds"] = seconds.into();
        asked["status"] = json!({"token": token, "expirationTimestamp": object::timestamp(seconds)});
        Ok(asked)
    }

    /// The object that a token is to be bound to.
    fn bound(&self, namespace: &str, account: &str, reference: Option<&Value>) -> Result<Bound> {
        let Some(reference) = reference.filter(|r| r.is_object()) else { return Ok(Bound::None) };
        let (kind, version) = (text(reference, "/kind"), text(reference, "/apiVersion"));
        let plural = match (version, kind) {
            ("v1", "Pod") => "pods",
            ("v1", "Secret") => "secrets",
            ("v1", "Node") => "nodes",
            _ => {
                let why = format!("cannot bind token to object of type {version}, Kind={kind}");
                return Err(Status::bad_request(why));
            }
        };
        let descriptor = resources::find("", "v1", plural).ok_or_else(Status::no_resource)?;
        let home = if descriptor.namespaced { namespace } else { "" };
        let found = self.one("", plural, home, name_of(reference));
        let found = found.ok_or_else(|| Status::not_found(descriptor, name_of(reference)))?;
        let (wanted, uid) = (text(reference, "/uid"), text(&found, "/metadata/uid"));
        if !wanted.is_empty() && wanted != uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(descriptor, name(&found), &why));
        }
        let runs_as = text(&found, "/spec/serviceAccountName");
        if plural == "pods" && runs_as != account {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name {runs_as:?}"
            )));
        }
        Ok(match plural {
            "pods" => {
                let node = self.one("", "nodes", "", text(&found, "/spec/nodeName"));
                Bound::Pod(found, node)
            }
            "secrets" => Bound::Secret(found),
            _ => Bound::Node(found),
        })
    }

    /// Gives a new Secret of the legacy kind its token. Pure but for the account that is looked up.
    pub fn fill_token_secret(&self, secret: &mut Value) -> Verdict<()> {
        let account = text(secret, "/metadata/annotations/kubernetes.io~1service-account.name").to_owned();
        let namespace = text(secret, "/metadata/namespace").to_owned();
        let Some(found) = self.one("", "serviceaccounts", &namespace, &account) else { return Ok(()) };
        let uid = text(&found, "/metadata/uid");
        let claims = json!({"iss": LEGACY_ISSUER, "sub": subject(&namespace, &account),
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": name(secret),
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": uid});
        let token = self.signer()?.sign(&claims)?;
        object::field(object::meta(secret), "annotations")
            .insert("kubernetes.io/service-account.uid".into(), uid.into());
        let data = object::field(object::as_map(secret), "data");
        for (key, value) in [("ca.crt", &self.config.ca), ("namespace", &namespace), ("token", &token)] {
            data.insert(key.into(), STANDARD.encode(value).into());
        }
        Ok(())
    }

    /// The account behind a token, and for which of these audiences it is good. Or why it is not.
    pub fn service_account_of(&self, token: &str, audiences: &[String]) -> Verdict<(User, Vec<String>)> {
        let claims = self.signer()?.verify(token)?;
        if text(&claims, "/iss") == LEGACY_ISSUER {
            return self.legacy(token, &claims, audiences);
        }
        if text(&claims, "/iss") != self.config.issuer {
            return Err("the token is somebody else's".into());
        }
        in_time(&claims, object::now())?;
        let meant: Vec<String> =
            audiences.iter().filter(|a| list(&claims, "/aud").iter().any(|aud| aud == *a)).cloned().collect();
        if meant.is_empty() {
            return Err("the token is not for this audience".into());
        }
        let about = &claims["kubernetes.io"];
        let namespace = text(about, "/namespace");
        let account = self.still("serviceaccounts", namespace, &about["serviceaccount"])?;
        for (kind, plural) in [("pod", "pods"), ("secret", "secrets")] {
            if about[kind].is_object() {
                self.still(plural, namespace, &about[kind])?;
            }
        }
        // A pod's token also names the pod's node, whose going is the pod's affair.
        if about["node"].is_object() && !about["pod"].is_object() {
            self.still("nodes", "", &about["node"])?;
        }
        Ok((user(namespace, &account, extra(&claims)), meant))
    }

    /// A token that is kept in a Secret is good while it is kept there.
    fn legacy(&self, token: &str, claims: &Value, audiences: &[String]) -> Verdict<(User, Vec<String>)> {
        let said =
            |what: &str| claims[format!("kubernetes.io/serviceaccount/{what}")].as_str().unwrap_or_default();
        let meant: Vec<String> = audiences.iter().filter(|a| **a == self.config.issuer).cloned().collect();
        if meant.is_empty() {
            return Err("the token is not for this audience".into());
        }
        let namespace = said("namespace");
        let named = json!({"name": said("service-account.name"), "uid": said("service-account.uid")});
        let account = self.still("serviceaccounts", namespace, &named)?;
        let secret = self.one("", "secrets", namespace, said("secret.name")).ok_or("its secret is gone")?;
        if object::deleting(&secret) || text(&secret, "/data/token") != STANDARD.encode(token) {
            return Err("its secret no longer holds it".into());
        }
        Ok((user(namespace, &account, BTreeMap::new()), meant))
    }

    /// What a token names, if it is there and still the same.
    fn still(&self, plural: &str, namespace: &str, named: &Value) -> Verdict<Value> {
        let found = self.one("", plural, namespace, name_of(named));
        let same = found.filter(|f| text(f, "/metadata/uid") == text(named, "/uid") && !over(f));
        same.ok_or_else(|| format!("what the token is bound to is gone: {plural} {:?}", name_of(named)))
    }

    /// authentication.k8s.io/v1 TokenReview's answer.
    pub fn token_review(&self, question: &Value) -> Value {
        let audiences: Vec<String> =
            list(question, "/spec/audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        match self.by_token(text(question, "/spec/token"), &audiences) {
            Ok(found) => {
                json!({"authenticated": true, "user": crate::review::user_info(&found.user), "audiences": found.audiences})
            }
            Err(why) => json!({"user": {}, "error": why}),
        }
    }
}

/// What a new token is bound to.
enum Bound {
    None,
    /// And the node it is on.
    Pod(Value, Option<Value>),
    Secret(Value),
    Node(Value),
}

impl Bound {
    fn describe(&self, about: &mut Value) {
        match self {
            Self::None => {}
            Self::Pod(pod, node) => {
                about["pod"] = identity(pod);
                if let Some(node) = node {
                    about["node"] = identity(node);
                }
            }
            Self::Secret(secret) => about["secret"] = identity(secret),
            Self::Node(node) => about["node"] = identity(node),
        }
    }
}

/// A node gets tokens for the pods it runs, and only such as end with them.
fn for_own_pod(node: &str, bound: &Bound) -> std::result::Result<(), &'static str> {
    match bound {
        Bound::Pod(pod, _) if text(pod, "/spec/nodeName") == node => Ok(()),
        Bound::Pod(..) => Err("node requested token bound to a pod scheduled on a different node"),
        _ => Err("node requested token not bound to a pod"),
    }
}

fn check_duration(seconds: i64) -> Result<()> {
    let why = match seconds {
        ..SHORTEST => "may not specify a duration less than 10 minutes",
        s if s > LONGEST => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    let cause = Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {seconds}: {why}"),
        field: "spec.expirationSeconds".into(),
    };
    Err(Status::invalid_as("authentication.k8s.io", "TokenRequest", "", &[cause]))
}

/// An account that is being deleted is none any more; a pod is one until its time is over.
fn over(object: &Value) -> bool {
    let ends = text(object, "/metadata/deletionTimestamp");
    !ends.is_empty() && resources::time::parse(ends).is_none_or(|ends| ends + LEEWAY < object::now())
}

fn in_time(claims: &Value, now: i64) -> Verdict<()> {
    let at = |claim: &str| claims[claim].as_i64();
    if at("exp").is_none_or(|ends| now > ends.saturating_add(LEEWAY)) {
        return Err("the token has expired".into());
    }
    if at("nbf").is_some_and(|begins| now < begins.saturating_sub(LEEWAY)) {
        return Err("the token is not valid yet".into());
    }
    Ok(())
}

fn identity(object: &Value) -> Value {
    json!({"name": name(object), "uid": text(object, "/metadata/uid")})
}

fn name_of(reference: &Value) -> &str {
    text(reference, "/name")
}

fn subject(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

fn user(namespace: &str, account: &Value, extra: BTreeMap<String, Vec<String>>) -> User {
    User {
        name: subject(namespace, name(account)),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")],
        uid: Some(text(account, "/metadata/uid").to_owned()),
        extra,
    }
}

/// What a token says of its bearer besides the account.
fn extra(claims: &Value) -> BTreeMap<String, Vec<String>> {
    let mut extra = BTreeMap::new();
    let mut say = |key: &str, value: String| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    say("credential-id", format!("JTI={}", text(claims, "/jti")));
    for kind in ["node", "pod"] {
        let named = &claims["kubernetes.io"][kind];
        if named.is_object() {
            say(&format!("{kind}-name"), name_of(named).to_owned());
            say(&format!("{kind}-uid"), text(named, "/uid").to_owned());
        }
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_its_time() {
        let claims = json!({"nbf": 1000, "exp": 2000});
        assert!(
            in_time(&claims, 1500).is_ok() && in_time(&claims, 950).is_ok() && in_time(&claims, 2050).is_ok()
        );
        assert!(in_time(&claims, 900).is_err() && in_time(&claims, 2100).is_err());
        assert!(in_time(&json!({}), 0).is_err());
    }

    #[test]
    fn a_node_gets_tokens_of_its_own_pods_alone() {
        let pod = |node: &str| Bound::Pod(json!({"spec": {"nodeName": node}}), None);
        assert!(for_own_pod("n1", &pod("n1")).is_ok());
        assert!(for_own_pod("n1", &pod("n2")).is_err() && for_own_pod("n1", &Bound::None).is_err());
    }
}
