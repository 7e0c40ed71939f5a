//! What an event says of a request when it comes. Pure but for the clock.

use super::policy::{Asked, Decision};
use super::{MAX_TEXT, Remote};
use crate::auth::User;
use crate::object;
use crate::path::Route;
use crate::query::Query;
use crate::respond;
use crate::review::{REVIEWS, user_info};
use axum::body::Body;
use http::{Method, Request, header};
use serde_json::{Map, Value, json};

/// The header that says what a request is called.
pub(crate) const ID: &str = "audit-id";
/// What clients may call a request at most.
const MAX_ID: usize = 64;

/// Whoever was not let in.
pub(super) fn anonymous() -> User {
    let groups = vec!["system:unauthenticated".to_owned()];
    User { name: "system:anonymous".to_owned(), groups, ..User::default() }
}

/// The id that the client gave its request, or a new one.
pub(crate) fn id(request: &Request<Body>) -> String {
    let given = request.headers().get(ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if given.is_empty() || given.len() > MAX_ID { object::new_uid() } else { given.to_owned() }
}

/// A request as rules look at it.
pub(super) fn asked<'a>(request: &'a Request<Body>, route: &'a Route, user: &'a User) -> Asked<'a> {
    let path = request.uri().path();
    let plain = Asked {
        user: &user.name,
        groups: &user.groups,
        verb: method(request.method()),
        path,
        ..Asked::default()
    };
    match route {
        Route::Object(target) => {
            let subresource = target.subresource.as_deref().unwrap_or_default();
            let named = target.name.is_some();
            let watches = || Query::read(request.uri()).is_ok_and(|query| query.flag("watch"));
            let verb = match *request.method() {
                Method::GET | Method::HEAD if subresource.is_empty() && watches() => "watch",
                Method::GET | Method::HEAD if named => "get",
                Method::GET | Method::HEAD => "list",
                Method::POST => "create",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE if named => "delete",
                Method::DELETE => "deletecollection",
                _ => plain.verb,
            };
            Asked {
                verb,
                plural: &target.kind.plural,
                group: &target.kind.group,
                subresource,
                namespace: target.namespace.as_deref().unwrap_or_default(),
                name: target.name.as_deref().unwrap_or_default(),
                ..plain
            }
        }
        Route::Review { plural } => {
            let group = REVIEWS.iter().find(|r| r.plural == plural).map_or("", |r| r.group);
            Asked { verb: "create", plural, group, ..plain }
        }
        _ => plain,
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// What is known of a request when it comes.
pub(super) fn first(
    request: &Request<Body>,
    route: &Route,
    user: &User,
    asked: &Asked<'_>,
    decided: &Decision,
    id: &str,
) -> Map<String, Value> {
    let uri = request.uri().path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let mut event = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": decided.level.name(), "auditID": id,
        "stage": "", "requestURI": cut(uri), "verb": asked.verb, "user": user_info(user),
        "requestReceivedTimestamp": now()});
    if let Some(Remote(from)) = request.extensions().get::<Remote>() {
        event["sourceIPs"] = json!([from]);
    }
    let agent = respond::text(request.headers(), header::USER_AGENT);
    if !agent.is_empty() {
        event["userAgent"] = cut(agent).into();
    }
    if !asked.plural.is_empty() {
        let version = match route {
            Route::Object(target) => target.kind.version.as_ref(),
            _ => "v1",
        };
        let parts = [
            ("resource", asked.plural),
            ("namespace", asked.namespace),
            ("name", asked.name),
            ("apiGroup", asked.group),
            ("apiVersion", version),
            ("subresource", asked.subresource),
        ];
        let said = parts.into_iter().filter(|(_, value)| !value.is_empty());
        event["objectRef"] = said.map(|(key, value)| (key.to_owned(), Value::from(cut(value)))).collect();
    }
    match event {
        Value::Object(event) => event,
        _ => Map::new(),
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Now, as `metav1.MicroTime`.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
