//! From a request to its answer: route, user, permission, verb.

use crate::audit::{self, Trail};
use crate::auth::{self, Attributes, Decision, User};
use crate::body;
use crate::certificates;
use crate::delete;
use crate::discovery;
use crate::engine::Engine;
use crate::impersonate;
use crate::managed;
use crate::object;
use crate::patch::Form;
use crate::path::{Route, Target, route};
use crate::query::Query;
use crate::read::Selection;
use crate::respond::{self, Format};
use crate::status::{self, Result, Status};
use crate::subresource::Sent;
use crate::write::{Options, Part, Told, check_identity};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use resources::Subresource;
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};

impl Engine {
    /// Answers a request.
    pub async fn serve(&self, mut request: Request<Body>) -> Response<Body> {
        let find = |group: &str, version: &str, plural: &str| self.find(group, version, plural);
        let seen = self.metrics.begin(&request, &find);
        let route = route(request.uri().path(), &find);
        let (user, id) = (self.authenticate(&request), audit::id(&request));
        let audit = self.config.audit.as_ref();
        let trail = Trail::new(audit, &request, &route, user.as_ref().ok(), &id);
        trail.begin().await;
        request.extensions_mut().insert(trail.clone());
        let (response, failure) = match self.dispatch(route, user, request).await {
            Ok(response) => (response, None),
            Err(status) => (respond::failure(&status), Some(status.to_value())),
        };
        let mut response = trail.end(response, failure).await;
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(audit::ID, id);
        }
        seen.end(response.status());
        response
    }

    async fn dispatch(
        &self,
        route: Route,
        user: Result<User>,
        request: Request<Body>,
    ) -> Result<Response<Body>> {
        let trail = Trail::of(&request);
        let query = Query::read(request.uri())?;
        match &route {
            Route::Health { name, check } => return self.health(name, check, &query),
            Route::Version => {
                return Ok(Format::negotiate(request.headers(), &query)?
                    .answer(StatusCode::OK, &discovery::version(&self.config)));
            }
            _ => {}
        }
        if !*self.leading.borrow() {
            return Err(Status::unavailable("no leader is known, or this node stopped leading: try again"));
        }
        let user = user?;
        let acting = impersonate::acting(user.clone(), request.headers(), self)?;
        if acting != user {
            trail.acts_as(&acting);
        }
        let user = acting;
        match route {
            Route::Object(target) => self.object(&user, target, &query, request).await,
            Route::Review { plural, .. } => {
                let format = Format::negotiate(request.headers(), &query)?;
                if request.method() != Method::POST {
                    return Err(Status::method_not_allowed());
                }
                let (question, _) = self.body(request).await?;
                let answer = self.review(&user, &plural, question, &trail)?;
                Ok(format.answer(StatusCode::CREATED, &answer))
            }
            route => {
                let path = request.uri().path();
                let attributes = Attributes { verb: "get", path, ..Attributes::default() };
                self.permit(&user, &attributes, &trail)?;
                self.about(&route, &query, &request)
            }
        }
    }

    /// Lets a user do something, or not, and notes which.
    pub fn permit(&self, user: &User, attributes: &Attributes<'_>, trail: &Trail) -> Result<()> {
        match auth::authorize(user, attributes, self) {
            Decision::Allow(why) => {
                trail.decided(true, &why);
                Ok(())
            }
            Decision::Deny(why) => {
                trail.decided(false, &why);
                Err(Status::forbidden(attributes.group, attributes.plural, attributes.name, &why))
            }
        }
    }

    /// Discovery and OpenAPI.
    fn about(&self, route: &Route, query: &Query, request: &Request<Body>) -> Result<Response<Body>> {
        let headers = request.headers();
        let accept = respond::text(headers, header::ACCEPT);
        let aggregated = discovery::aggregated(accept);
        let value = match route {
            Route::Root => {
                json!({"paths": ["/.well-known/openid-configuration", "/api", "/apis", "/healthz", "/livez", "/metrics",
                    "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]})
            }
            Route::Metrics => return Ok(self.metrics_text()),
            Route::OpenIdConfiguration => return Ok(json_bytes("application/json", &self.openid())),
            Route::OpenIdKeys => return Ok(json_bytes("application/jwk-set+json", &self.jwks()?)),
            Route::CoreVersions | Route::Groups if aggregated.is_some() => {
                let media_type = aggregated.unwrap_or(discovery::AGGREGATED_V2);
                let core = matches!(route, Route::CoreVersions);
                let value = discovery::discovery_list(&self.catalog(), core, media_type);
                let bytes = serde_json::to_vec(&value).map_err(Status::internal)?;
                return tagged(request, media_type, bytes.into());
            }
            Route::CoreVersions => discovery::core_versions(&self.config),
            Route::Groups => discovery::groups(&self.catalog()),
            Route::Group(name) => discovery::group(&self.catalog(), name).ok_or_else(Status::no_resource)?,
            Route::Resources { group, version } => {
                discovery::resource_list(&self.catalog(), group, version).ok_or_else(Status::no_resource)?
            }
            Route::OpenApiV2 => {
                return self.documents.v2(request, &self.config.git_version, &self.catalog());
            }
            Route::OpenApiV3 => self.documents.v3(&self.config.git_version, &self.catalog()),
            Route::OpenApiV3Group { group, version } => {
                return self.documents.v3_group(request, group, version, &self.catalog());
            }
            _ => return Err(Status::no_resource()),
        };
        Ok(Format::negotiate(headers, query)
            .unwrap_or_else(|_| Format::plain())
            .answer(StatusCode::OK, &value))
    }

    async fn object(
        &self,
        user: &User,
        target: Target,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>> {
        let verb = verb(request.method(), &target, query)?;
        // Whoever selects one object by its name asks for that one alone.
        let selected = match target.name {
            None if verb == "list" || verb == "watch" => Selection::read(&target.kind, query)?.name(),
            _ => None,
        };
        let attributes = Attributes {
            verb,
            group: &target.kind.group,
            plural: &target.kind.plural,
            subresource: target.subresource.as_deref().unwrap_or_default(),
            // A namespace is in itself: roles in it say who may look at it.
            namespace: match &target.namespace {
                Some(namespace) => namespace,
                None if target.kind.plural == "namespaces" => target.name.as_deref().unwrap_or_default(),
                None => "",
            },
            name: target.name.as_deref().or(selected.as_deref()).unwrap_or_default(),
            path: "",
        };
        self.permit(user, &attributes, &Trail::of(&request))?;
        let warning = target.kind.warning.clone();
        let answer = match (&target.name, &target.subresource) {
            (Some(name), Some(sub)) => {
                let name = name.clone();
                let known = target.kind.subresources.iter().find(|s| s.name() == sub).copied();
                self.sub(user, &target, &name, known.ok_or_else(Status::no_resource)?, query, request).await
            }
            _ => self.main(user, &target, verb, query, request).await,
        };
        Ok(warn(answer?, warning.as_slice()))
    }

    /// The eight verbs on objects and collections.
    async fn main(
        &self,
        user: &User,
        target: &Target,
        verb: &str,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>> {
        let format = Format::negotiate(request.headers(), query)?;
        let name = target.name.as_deref().unwrap_or_default();
        let kind = &target.kind;
        match verb {
            verb if !kind.verbs().contains(&verb) => Err(Status::method_not_allowed()),
            "get" if kind.measured => {
                Ok(format
                    .answer(StatusCode::OK, &format.object(kind, self.measured(target, name).await?, true)))
            }
            "list" if kind.measured => {
                Ok(format.answer(StatusCode::OK, &self.measurements(target, query, &format).await?))
            }
            "get" => Ok(format.answer(StatusCode::OK, &format.object(kind, self.get(target, name)?, true))),
            "list" => Ok(match self.list_unread(target, query, &format)? {
                Some(list) => format.unread(list),
                None => format.answer(StatusCode::OK, &self.list(target, query, &format)?),
            }),
            "watch" => self.watch(target, query, format),
            "create" => {
                let mut options = Options::read(user, query, request.headers())?;
                let (mut object, duplicates) = self.body(request).await?;
                check_identity(target, &mut object)?;
                options.conform(kind, &mut object, duplicates)?;
                let made = self.create(target, object, &options).await?;
                options.warnings.extend(options.told.take());
                options.warnings.extend(kind.idle.then(|| {
                    format!("{} are kept, but nothing in this cluster acts on them yet", kind.qualified())
                }));
                Ok(warn(
                    format.answer(StatusCode::CREATED, &format.object(kind, made, true)),
                    &options.warnings,
                ))
            }
            "update" | "patch" => self.alter(user, target, name, Part::Main, query, request, &format).await,
            "delete" => {
                let (body, _) = self.body(request).await?;
                let options = delete::Options::read(user, &body, query)?;
                let left = self.delete(target, name, &options).await?;
                // What is shown may be the object or a Status that says it is gone.
                let shown = if object::text(&left, "/kind") == "Status" {
                    left
                } else {
                    format.object(kind, left, true)
                };
                Ok(warn(format.answer(StatusCode::OK, &shown), &options.told.take()))
            }
            _ => {
                let (body, _) = self.body(request).await?;
                let options = delete::Options::read(user, &body, query)?;
                Ok(format
                    .answer(StatusCode::OK, &self.delete_collection(target, query, &options, &format).await?))
            }
        }
    }

    async fn sub(
        &self,
        user: &User,
        target: &Target,
        name: &str,
        sub: Subresource,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>> {
        let method = request.method().clone();
        if matches!(
            sub,
            Subresource::Log | Subresource::Exec | Subresource::Attach | Subresource::PortForward
        ) {
            return self.to_kubelet(user, target, name, sub, query, request).await;
        }
        if sub == Subresource::Proxy {
            return self.proxy(user, target, name, request).await;
        }
        let format = Format::negotiate(request.headers(), query)?;
        let told = Told::default();
        let sent = |kind| Sent {
            by: user,
            target,
            name,
            subresource: sub.name(),
            operation: "CREATE",
            kind,
            dry_run: query.dry_run().unwrap_or_default(),
        };
        let answer = match (sub, method) {
            (Subresource::Status | Subresource::Approval | Subresource::EphemeralContainers, Method::GET) => {
                Ok(format.answer(StatusCode::OK, &format.object(&target.kind, self.get(target, name)?, true)))
            }
            (Subresource::Status, Method::PUT | Method::PATCH) => {
                if target.kind.has(Subresource::Approval) && self.admits("CertificateSigning") {
                    certificates::check_signer(user, "sign", &self.get(target, name)?, self)?;
                }
                self.alter(user, target, name, Part::Status, query, request, &format).await
            }
            (Subresource::Approval, Method::PUT | Method::PATCH) => {
                if self.admits("CertificateApproval") {
                    certificates::check_signer(user, "approve", &self.get(target, name)?, self)?;
                }
                self.alter(user, target, name, Part::Approval, query, request, &format).await
            }
            (Subresource::EphemeralContainers, Method::PUT | Method::PATCH) => {
                self.alter(user, target, name, Part::Ephemeral, query, request, &format).await
            }
            (Subresource::Scale, Method::GET) => {
                Ok(format.answer(StatusCode::OK, &self.scale(target, name)?))
            }
            (Subresource::Scale, Method::PUT) => {
                let options = Options::read(user, query, request.headers())?.on("scale");
                let (sent, _) = self.body(request).await?;
                let scale = self.rescale(target, name, &options, |_| Ok(sent.clone())).await?;
                Ok(format.answer(StatusCode::OK, &scale))
            }
            (Subresource::Scale, Method::PATCH) => {
                let form = Form::read(&body::media_type(request.headers()))?;
                let options = Options::read(user, query, request.headers())?.on("scale");
                let (patch, _) = self.patch_body(request).await?;
                let scale =
                    self.rescale(target, name, &options, |old| form.apply(&target.kind, old, &patch)).await?;
                Ok(format.answer(StatusCode::OK, &scale))
            }
            (Subresource::Binding, Method::POST) => {
                let (binding, _) = self.body(request).await?;
                let sent = sent(["", "v1", "Binding"]);
                let binding = self.admit_sent(&sent, binding, &told).await?;
                self.bind(target, name, &binding, query.dry_run()?).await?;
                Ok(format.answer(StatusCode::CREATED, &status::success(&target.kind, name, "")))
            }
            (Subresource::Eviction, Method::POST) => {
                let (eviction, _) = self.body(request).await?;
                let sent = sent(["policy", "v1", "Eviction"]);
                let eviction = self.admit_sent(&sent, eviction, &told).await?;
                let options = delete::Options::read(user, &eviction["deleteOptions"], query)?;
                self.evict(target, name, &options).await?;
                Ok(format.answer(
                    StatusCode::CREATED,
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
                ))
            }
            (Subresource::Token, Method::POST) => {
                let (asked, _) = self.body(request).await?;
                let sent = sent(["authentication.k8s.io", "v1", "TokenRequest"]);
                let asked = self.admit_sent(&sent, asked, &told).await?;
                let made = self.token(user, target, name, asked)?;
                Ok(format.answer(StatusCode::CREATED, &made))
            }
            (Subresource::Finalize, Method::PUT) => {
                let options = Options::read(user, query, request.headers())?.on("finalize");
                let (sent, _) = self.body(request).await?;
                let left = self.finalize(target, name, &sent, &options).await?;
                Ok(format.answer(StatusCode::OK, &left))
            }
            _ => Err(Status::method_not_allowed()),
        };
        Ok(warn(answer?, &told.take()))
    }

    /// update and patch, of an object or its status.
    #[allow(clippy::too_many_arguments, reason = "what a request is made of")]
    async fn alter(
        &self,
        user: &User,
        target: &Target,
        name: &str,
        part: Part,
        query: &Query,
        request: Request<Body>,
        format: &Format,
    ) -> Result<Response<Body>> {
        let mut options = Options::read(user, query, request.headers())?;
        options.subresource = match part {
            Part::Status => "status",
            Part::Approval => "approval",
            Part::Ephemeral => "ephemeralcontainers",
            Part::Main | Part::Whole => "",
        };
        let mut code = StatusCode::OK;
        let changed = if request.method() == Method::PATCH {
            let form = Form::read(&body::media_type(request.headers()))?;
            let force = managed::force(form, query)?;
            let (patch, duplicates) = self.patch_body(request).await?;
            if form == Form::Apply {
                options.complain(duplicates.iter().map(|f| format!("duplicate field {f:?}")).collect())?;
                let (made, applied) = self.apply(target, name, patch, part, force, &options).await?;
                code = if made { StatusCode::CREATED } else { code };
                applied
            } else {
                self.patch(target, name, form, &patch, part, &mut options).await?
            }
        } else {
            let (mut object, duplicates) = self.body(request).await?;
            check_identity(target, &mut object)?;
            options.conform(&target.kind, &mut object, duplicates)?;
            self.update(target, name, object, part, &options).await?
        };
        options.warnings.extend(options.told.take());
        Ok(warn(format.answer(code, &format.object(&target.kind, changed, true)), &options.warnings))
    }

    /// A body, `null` when there is none.
    async fn body(&self, request: Request<Body>) -> Result<(Value, Vec<String>)> {
        let trail = Trail::of(&request);
        let (media_type, bytes) = self.bytes(request).await?;
        if bytes.is_empty() {
            return Ok((Value::Null, Vec::new()));
        }
        let read = body::decode(&media_type, &bytes, self.config.max_body)?;
        trail.sent(&read.0);
        Ok(read)
    }

    /// Patches are JSON; what is applied may also be YAML.
    async fn patch_body(&self, request: Request<Body>) -> Result<(Value, Vec<String>)> {
        let trail = Trail::of(&request);
        let (media_type, bytes) = self.bytes(request).await?;
        let json = !media_type.ends_with("+yaml") || bytes.trim_ascii_start().starts_with(b"{");
        let form = if json { "application/json" } else { "application/yaml" };
        let read = body::decode(form, &bytes, self.config.max_body)?;
        trail.sent(&read.0);
        Ok(read)
    }

    async fn bytes(&self, request: Request<Body>) -> Result<(String, Bytes)> {
        let media_type = body::media_type(request.headers());
        Ok((media_type, body::read(request.into_body(), self.config.max_body).await?))
    }
}

/// What a method on a target asks for, as permissions name it.
fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str> {
    let (name, sub) = (target.name.is_some(), target.subresource.as_deref());
    // Across namespaces one may look, not touch.
    let touches = *method == Method::POST || *method == Method::DELETE;
    if touches && target.kind.namespaced && target.namespace.is_none() {
        return Err(Status::method_not_allowed());
    }
    Ok(match *method {
        // Streams into a pod are made, however they are opened.
        Method::GET | Method::POST if matches!(sub, Some("exec" | "attach" | "portforward")) => "create",
        Method::GET | Method::HEAD if query.flag("watch") && sub.is_none() => "watch",
        Method::GET | Method::HEAD if name => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST if !name || sub.is_some() => "create",
        Method::PUT if name => "update",
        Method::PATCH if name => "patch",
        // What a server behind it may be asked.
        Method::DELETE if name && sub == Some("proxy") => "delete",
        Method::OPTIONS if sub == Some("proxy") => "",
        Method::DELETE if sub.is_some() => return Err(Status::method_not_allowed()),
        Method::DELETE if name => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(Status::method_not_allowed()),
    })
}

/// Adds what the client should know (RFC 9111's predecessor's Warning header, code 299).
fn warn(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings.iter().take(16) {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        let text = text.chars().filter(|c| !c.is_control()).collect::<String>();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

fn json_bytes(media_type: &'static str, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// An answer with an ETag, or 304 to whom has it already.
fn tagged(request: &Request<Body>, media_type: &'static str, bytes: Bytes) -> Result<Response<Body>> {
    let tag = format!("\"{:016X}\"", hash(&bytes));
    let known = respond::text(request.headers(), header::IF_NONE_MATCH) == tag;
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(&tag).map_err(Status::internal)?);
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    *response.body_mut() = Body::from(bytes);
    Ok(response)
}
