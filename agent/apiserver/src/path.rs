//! What a URL means. Pure.

use resources::Descriptor;
use std::sync::Arc;

/// A resource's collection, object or subresource.
#[derive(Clone)]
pub(crate) struct Target {
    pub kind: Arc<Descriptor>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

/// Where a request goes.
#[derive(Clone)]
pub(crate) enum Route {
    Root,
    Health {
        name: &'static str,
        /// One check of it; empty: all.
        check: String,
    },
    Metrics,
    /// `/.well-known/openid-configuration`
    OpenIdConfiguration,
    /// `/openid/v1/jwks`
    OpenIdKeys,
    Version,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources {
        group: String,
        version: String,
    },
    OpenApiV2,
    OpenApiV3,
    OpenApiV3Group {
        group: String,
        version: String,
    },
    /// A question that is answered and not kept: access reviews.
    Review {
        plural: String,
    },
    Object(Target),
    Unknown,
}

/// Finds the kind of a group, version and plural.
pub(crate) type Find<'a> = &'a dyn Fn(&str, &str, &str) -> Option<Arc<Descriptor>>;

/// Reads a path.
pub(crate) fn route(path: &str, find: Find<'_>) -> Route {
    let path = proxied(path).map_or(path, |(own, _)| own);
    let Some(segments) = path.split('/').filter(|s| !s.is_empty()).map(decode).collect::<Option<Vec<_>>>()
    else {
        return Route::Unknown;
    };
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Route::Root,
        ["healthz", check @ ..] => Route::Health { name: "healthz", check: check.join("/") },
        ["livez", check @ ..] => Route::Health { name: "livez", check: check.join("/") },
        ["readyz", check @ ..] => Route::Health { name: "readyz", check: check.join("/") },
        ["version"] => Route::Version,
        ["metrics"] => Route::Metrics,
        [".well-known", "openid-configuration"] => Route::OpenIdConfiguration,
        ["openid", "v1", "jwks"] => Route::OpenIdKeys,
        ["api"] => Route::CoreVersions,
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).to_owned()),
        ["api", version] => Route::Resources { group: String::new(), version: (*version).to_owned() },
        ["apis", group, version] => {
            Route::Resources { group: (*group).to_owned(), version: (*version).to_owned() }
        }
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApiV3,
        ["openapi", "v3", "api", version] => {
            Route::OpenApiV3Group { group: String::new(), version: (*version).to_owned() }
        }
        ["openapi", "v3", "apis", group, version] => {
            Route::OpenApiV3Group { group: (*group).to_owned(), version: (*version).to_owned() }
        }
        ["api", version, rest @ ..] => resource(find, "", version, rest),
        ["apis", group, version, rest @ ..] => resource(find, group, version, rest),
        _ => Route::Unknown,
    }
}

/// The parts of a path to what a pod, a service or a node serves: its own, which ends in `/proxy`, and the server's, which
/// is passed on as it is.
pub(crate) fn proxied(path: &str) -> Option<(&str, &str)> {
    let in_namespace = path.strip_prefix("/api/v1/namespaces/").and_then(|rest| {
        let (_, rest) = rest.split_once('/')?;
        rest.strip_prefix("pods/").or_else(|| rest.strip_prefix("services/"))
    });
    let (_, rest) = in_namespace.or_else(|| path.strip_prefix("/api/v1/nodes/"))?.split_once('/')?;
    let below = rest.strip_prefix("proxy").filter(|below| below.is_empty() || below.starts_with('/'))?;
    Some(path.split_at(path.len() - below.len()))
}

fn resource(find: Find<'_>, group: &str, version: &str, rest: &[&str]) -> Route {
    let (namespace, rest) = match rest {
        // A namespace's own subresources look like resources in it.
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            return object(find, group, version, "namespaces", None, &[*name, *sub]);
        }
        ["namespaces", namespace, plural @ ..] if !plural.is_empty() => (Some(*namespace), plural),
        rest => (None, rest),
    };
    match rest {
        [plural, below @ ..] => object(find, group, version, plural, namespace, below),
        [] => Route::Unknown,
    }
}

fn object(
    find: Find<'_>,
    group: &str,
    version: &str,
    plural: &str,
    namespace: Option<&str>,
    below: &[&str],
) -> Route {
    let namespace = namespace.map(str::to_owned);
    if crate::review::REVIEWS.iter().any(|r| r.group == group && r.version == version && r.plural == plural)
        && below.is_empty()
    {
        return Route::Review { plural: plural.to_owned() };
    }
    let Some(kind) = find(group, version, plural) else {
        return Route::Unknown;
    };
    if kind.namespaced != namespace.is_some() && (namespace.is_some() || !below.is_empty()) {
        return Route::Unknown;
    }
    let (name, subresource) = match below {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, sub] => (Some((*name).to_owned()), Some((*sub).to_owned())),
        _ => return Route::Unknown,
    };
    Route::Object(Target { kind, namespace, name, subresource })
}

/// Undoes percent-encoding; `None` if it is broken, or hides a slash or a NUL.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = [rest.next()?, rest.next()?];
        let byte = u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?;
        bytes.push(byte);
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains(['/', '\0']) && text != "." && text != "..").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_as_it_is() {
        for (path, own, below) in [
            ("/api/v1/nodes/n/proxy", "/api/v1/nodes/n/proxy", ""),
            ("/api/v1/nodes/n:10250/proxy/a//b%2F/", "/api/v1/nodes/n:10250/proxy", "/a//b%2F/"),
            ("/api/v1/namespaces/x/pods/p/proxy/proxy", "/api/v1/namespaces/x/pods/p/proxy", "/proxy"),
            ("/api/v1/namespaces/x/services/s/proxy/", "/api/v1/namespaces/x/services/s/proxy", "/"),
        ] {
            assert_eq!(proxied(path), Some((own, below)));
        }
        for path in [
            "/api/v1/nodes/n/proxyx",
            "/api/v1/namespaces/x/configmaps/c/proxy/a",
            "/api/v1/namespaces/proxy/pods/p",
            "/api/v1/pods/p/proxy",
            "/apis/apps/v1/namespaces/x/pods/p/proxy",
        ] {
            assert_eq!(proxied(path), None, "{path}");
        }
    }
}
