//! Acting as somebody else (`kubectl --as`), for those who may.

use crate::auth::{Attributes, Facts, User, check};
use crate::status::{Result, Status};
use http::{HeaderMap, HeaderValue};
use std::collections::BTreeMap;

const EXTRA: &str = "impersonate-extra-";

/// The user that a request's `Impersonate-*` headers name, or the one who sent it if there are none.
pub(crate) fn acting(user: User, headers: &HeaderMap, facts: &dyn Facts) -> Result<User> {
    let name = values(headers, "impersonate-user")?.first().copied().unwrap_or_default();
    let groups = values(headers, "impersonate-group")?;
    let uid = values(headers, "impersonate-uid")?.first().copied();
    let extras: Vec<&str> = headers.keys().filter_map(|key| key.as_str().strip_prefix(EXTRA)).collect();
    if name.is_empty() {
        return if groups.is_empty() && uid.is_none() && extras.is_empty() {
            Ok(user)
        } else {
            Err(Status::bad_request(
                "groups, uid or extra fields were requested without impersonating a user",
            ))
        };
    }
    let may = |group: &str, plural: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes =
            Attributes { verb: "impersonate", group, plural, subresource, namespace, name, path: "" };
        check(&user, &attributes, facts)
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => may("", "serviceaccounts", "", namespace, name)?,
        None => may("", "users", "", "", name)?,
    }
    for group in &groups {
        may("", "groups", "", "", group)?;
    }
    if let Some(uid) = uid {
        may("authentication.k8s.io", "uids", "", "", uid)?;
    }
    let mut extra = BTreeMap::new();
    for key in extras {
        let said = values(headers, &format!("{EXTRA}{key}"))?;
        for value in &said {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
        extra.insert(key.to_owned(), said.into_iter().map(str::to_owned).collect());
    }
    let groups = match account {
        Some((namespace, _)) if groups.is_empty() => {
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
        }
        _ => groups.into_iter().map(str::to_owned).collect(),
    };
    let user = User { name: name.to_owned(), groups, uid: uid.map(str::to_owned), extra };
    Ok(if name == "system:anonymous" { user } else { user.authenticated() })
}

/// A header's values. What cannot be read is refused: left out, it would let the request do more.
fn values<'a>(headers: &'a HeaderMap, name: &str) -> Result<Vec<&'a str>> {
    let read = |value: &'a HeaderValue| {
        value.to_str().map_err(|_| Status::bad_request(format!("the header {name} is not plain ASCII")))
    };
    headers.get_all(name).iter().map(read).collect()
}
