//! What pods, services and nodes serve over HTTP, reached through the API: `/api/v1/namespaces/x/pods/web:8080/proxy/a/b`.

use crate::auth::User;
use crate::engine::Engine;
use crate::kubelet::{Stream, carry_on};
use crate::object::{list, text};
use crate::outside::{dial, dial_tls};
use crate::path::{Target, proxied};
use crate::status::{Result, Status};
use crate::subresource::Sent;
use crate::write::Told;
use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use resources::Descriptor;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Time for a server to take a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// The kubelet's own port, where only this server is let in.
const KUBELET_PORT: &str = "10250";
/// Headers that belong to one connection, besides those that no request is carried on with.
const HOP: [HeaderName; 4] = [
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Which server is meant: `web`, `web:8080`, `https:web:8443`.
#[derive(Debug, PartialEq)]
struct Named<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https") && !name.is_empty();
        known.then_some(Self { tls: scheme == "https", name, port })
    }

    /// The port that is said, or the usual one.
    fn number(&self) -> Option<u16> {
        match self.port {
            "" => Some(if self.tls { 443 } else { 80 }),
            port => port.parse().ok(),
        }
    }
}

impl Engine {
    /// Carries a request to the server that a pod, a service or a node is, and its answer back.
    pub async fn proxy(
        &self,
        user: &User,
        target: &Target,
        name: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Body>> {
        let kind = &target.kind;
        let named = Named::read(name);
        let invalid = || Status::bad_request(format!("invalid {} request {name:?}", kind.singular));
        let named = named.ok_or_else(invalid)?;
        let uri = request.uri().clone();
        let (prefix, below) = proxied(uri.path()).ok_or_else(Status::no_resource)?;
        self.admit_proxy(user, target, name, below).await?;
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let upgrades = request.headers().contains_key(header::UPGRADE);
        if below.is_empty() && !upgrades && matches!(*request.method(), Method::GET | Method::HEAD) {
            return moved(&format!("{prefix}/{query}"));
        }
        let path = format!("{}{query}", if below.is_empty() { "/" } else { below });
        let path: Uri = path.parse().map_err(|e| Status::bad_request(format!("{path}: {e}")))?;
        let reached = tokio::time::timeout(CONNECT, self.reach(target, &named));
        let reached = reached.await.unwrap_or_else(|_| Err(unreachable("dial tcp: i/o timeout")));
        let (stream, host) = reached?;
        forwarded(request.headers_mut(), uri.path());
        if !upgrades {
            HOP.iter().for_each(|name| drop(request.headers_mut().remove(name)));
        }
        let mut answer = carry_on(stream, request, path, &host, &|error| unreachable(error)).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            HOP.iter().for_each(|name| drop(answer.headers_mut().remove(name)));
            answer.headers_mut().remove(header::TRANSFER_ENCODING);
        }
        relocate(answer.headers_mut(), prefix, &host);
        Ok(answer)
    }

    /// Whoever has a say in connections has one in this.
    async fn admit_proxy(&self, user: &User, target: &Target, name: &str, below: &str) -> Result<()> {
        let kind = options(&target.kind);
        let sent = Sent {
            by: user,
            target,
            name,
            subresource: "proxy",
            operation: "CONNECT",
            kind: ["", "v1", kind],
            dry_run: false,
        };
        let options = json!({"kind": kind, "apiVersion": "v1", "path": below.trim_start_matches('/')});
        self.admit_sent(&sent, options, &Told::default()).await.map(drop)
    }

    /// A connection to the server, and its host as it knows itself.
    async fn reach(&self, target: &Target, named: &Named<'_>) -> Result<(Box<dyn Stream>, String)> {
        let found = Target { name: None, subresource: None, ..target.clone() };
        let addresses = match target.kind.plural.as_ref() {
            "pods" => vec![pod_address(&self.get(&found, named.name)?, named)?],
            "services" => {
                self.get(&found, named.name)?;
                let namespace = target.namespace.as_deref().unwrap_or_default();
                let found = self.service_addresses(namespace, named.name, named.port).await;
                found.map_err(|why| {
                    Status::told(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", why, None)
                })?
            }
            _ => {
                let node = self.get(&found, named.name)?;
                if ["", KUBELET_PORT].contains(&named.port) {
                    let stream = self.kubelets.connect(&node).await.map_err(|e| unreachable(&e))?;
                    return Ok((stream, named.name.to_owned()));
                }
                vec![node_address(&node, named)?]
            }
        };
        let usable: Vec<SocketAddr> = addresses.into_iter().filter(|at| may_be_reached(at.ip())).collect();
        let Some(first) = usable.first() else { return Err(Status::bad_request("address not allowed")) };
        let stream = if named.tls {
            // Nobody can know the certificates of all pods: upstream asks for none either.
            dial_tls(&usable, self.trust.anybody(), ServerName::IpAddress(first.ip().into())).await
        } else {
            dial(&usable).await.map(|stream| Box::new(stream) as Box<dyn Stream>)
        };
        Ok((stream.map_err(|why| unreachable(&why))?, first.to_string()))
    }
}

/// The kind of what somebody says who is to be connected to one.
pub(crate) fn options(kind: &Descriptor) -> &'static str {
    match kind.plural.as_ref() {
        "pods" => "PodProxyOptions",
        "services" => "ServiceProxyOptions",
        _ => "NodeProxyOptions",
    }
}

fn unreachable(why: &(impl std::fmt::Display + ?Sized)) -> Status {
    let message = format!("error trying to reach service: {why}");
    Status::told(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message, None)
}

/// A pod's port: the one that is said, or the first of its containers', or the usual one.
fn pod_address(pod: &Value, named: &Named<'_>) -> Result<SocketAddr> {
    let declared = || {
        let containers = list(pod, "/spec/containers").iter();
        containers.filter_map(|c| list(c, "/ports").first()?["containerPort"].as_u64()).next()
    };
    let port = match named.port {
        "" => declared().and_then(|port| u16::try_from(port).ok()).or(named.number()),
        _ => named.number(),
    };
    address(text(pod, "/status/podIP"), port, named)
}

fn node_address(node: &Value, named: &Named<'_>) -> Result<SocketAddr> {
    let internal = list(node, "/status/addresses").iter().find(|a| text(a, "/type") == "InternalIP");
    address(internal.map(|a| text(a, "/address")).unwrap_or_default(), named.number(), named)
}

fn address(ip: &str, port: Option<u16>, named: &Named<'_>) -> Result<SocketAddr> {
    let port = port.ok_or_else(|| Status::bad_request(format!("{:?} is not a port's number", named.port)))?;
    let ip: IpAddr = ip.parse().map_err(|_| Status::bad_request("address not allowed"))?;
    Ok(SocketAddr::new(ip, port))
}

/// Nobody gets at what this host serves to itself alone.
fn may_be_reached(ip: IpAddr) -> bool {
    let local = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let ip = ip.to_canonical();
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn moved(to: &str) -> Result<Response<Body>> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let to = HeaderValue::from_str(to).map_err(|e| Status::bad_request(e.to_string()))?;
    response.headers_mut().insert(header::LOCATION, to);
    Ok(response)
}

/// Tells the server by what URL it was reached.
fn forwarded(headers: &mut HeaderMap, path: &str) {
    let host = headers.get(header::HOST).cloned();
    for (name, value) in [
        ("x-forwarded-uri", HeaderValue::from_str(path).ok()),
        ("x-forwarded-host", host),
        ("x-forwarded-proto", Some(HeaderValue::from_static("https"))),
    ] {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let own: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    own.iter().for_each(|name| drop(headers.remove(name)));
}

/// Where a server sends its client is below the path that it was reached at.
fn relocate(headers: &mut HeaderMap, prefix: &str, host: &str) {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let moved = location.and_then(|location| relocated(location, prefix, host));
    if let Some(value) = moved.and_then(|moved| HeaderValue::from_str(&moved).ok()) {
        headers.insert(header::LOCATION, value);
    }
}

fn relocated(location: &str, prefix: &str, host: &str) -> Option<String> {
    let path = match location.split_once("://") {
        Some((_, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            (&rest[..end] == host).then_some(&rest[end..])?
        }
        // Another host, or a path that is meant from where the client is.
        None if location.starts_with("//") || !location.starts_with('/') => return None,
        None => location,
    };
    let below = path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    Some(if below { path.to_owned() } else { format!("{prefix}/{}", path.trim_start_matches('/')) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_server_is_meant() {
        let named = |tls, name, port| Some(Named { tls, name, port });
        assert_eq!(Named::read("web"), named(false, "web", ""));
        assert_eq!(Named::read("web:80"), named(false, "web", "80"));
        assert_eq!(Named::read("https:web:"), named(true, "web", ""));
        assert_eq!(Named::read("ftp:web:1"), None);
        assert_eq!(Named::read("https::1"), None);
        assert_eq!(Named::read("a:b:c:d"), None);
        let pod = json!({"status": {"podIP": "10.1.0.2"}, "spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]}});
        let at = |text: &str| {
            pod_address(&pod, &Named::read(text).unwrap()).map(|at| at.to_string()).map_err(|s| s.message)
        };
        assert_eq!(at("web").unwrap(), "10.1.0.2:8080");
        assert_eq!(at("web:81").unwrap(), "10.1.0.2:81");
        assert_eq!(at("web:http").unwrap_err(), "\"http\" is not a port's number");
    }

    #[test]
    fn this_host_is_not_reached() {
        for ip in
            ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "::ffff:127.0.0.1"]
        {
            assert!(!may_be_reached(ip.parse().unwrap()), "{ip}");
        }
        assert!(may_be_reached("10.1.0.2".parse().unwrap()));
    }

    #[test]
    fn locations_stay_below_the_path() {
        let (prefix, host) = ("/api/v1/nodes/n/proxy", "10.1.0.2:80");
        let moved = |location: &str| relocated(location, prefix, host);
        assert_eq!(moved("/a?b=c").unwrap(), "/api/v1/nodes/n/proxy/a?b=c");
        assert_eq!(moved("http://10.1.0.2:80/a/").unwrap(), "/api/v1/nodes/n/proxy/a/");
        assert_eq!(moved("http://10.1.0.2:80").unwrap(), "/api/v1/nodes/n/proxy/");
        assert_eq!(moved("/api/v1/nodes/n/proxy/x").unwrap(), "/api/v1/nodes/n/proxy/x");
        assert_eq!(moved("/api/v1/nodes/n/proxyx").unwrap(), "/api/v1/nodes/n/proxy/api/v1/nodes/n/proxyx");
        for other in ["http://example.com/a", "//example.com/a", "b", "../c"] {
            assert_eq!(moved(other), None, "{other}");
        }
    }
}
