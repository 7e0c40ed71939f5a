//! What nodes ask of the leader besides the Kubernetes API: to be let in, who the members are, to leave.

use std::sync::Arc;

use anyhow::{Context, Result};
use apiserver::Api;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cluster::join::{self, BAKED, BINDING, ClusterSettings, Hello, Side, SignedRequest, Token, Welcome};
use cluster::members::Member;
use cluster::pki::Subject;
use http::{Method, Request, Response, StatusCode};
use store::{Expect, Kv, Txn, Write};
use tokio::sync::watch;

use crate::config::check_name;
use crate::health::Health;
use crate::roster::{MEMBERS, Roster, TOKENS};
use crate::serving::authority;

/// All paths here begin so; no Kubernetes path does.
pub const PREFIX: &str = "/bramble/v1/";
/// A join request is small.
const MAX_BODY: usize = 64 << 10;
/// And arrives at once.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

/// Handles them; cheap to clone.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    kv: Arc<dyn Kv>,
    leading: watch::Receiver<bool>,
    roster: Roster,
    health: Health,
    cluster_id: String,
    settings: ClusterSettings,
    baked: Option<Token>,
    port: u16,
    /// For the Node object of a member that leaves.
    api: Api,
}

/// A refusal with its HTTP status.
type Refusal = (StatusCode, String);

impl Gate {
    /// For one node.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        kv: Arc<dyn Kv>,
        api: Api,
        leading: watch::Receiver<bool>,
        roster: Roster,
        health: Health,
        cluster: (String, ClusterSettings),
        baked: Option<Token>,
        port: u16,
    ) -> Self {
        let (cluster_id, settings) = cluster;
        Self {
            inner: Arc::new(Inner { kv, leading, roster, health, cluster_id, settings, baked, port, api }),
        }
    }

    /// Answers one request.
    pub async fn handle(
        &self,
        request: Request<Body>,
        subject: Option<Subject>,
        binding: Option<[u8; BINDING]>,
    ) -> Response<Body> {
        if !*self.inner.leading.borrow() {
            return refuse((StatusCode::SERVICE_UNAVAILABLE, "this node does not lead; try again".into()));
        }
        let path = request.uri().path().trim_start_matches(PREFIX).to_owned();
        let result = match (request.method(), path.as_str()) {
            (&Method::GET, "join") => self.hello(request.uri().query(), binding),
            (&Method::POST, "join") => self.join(request, binding).await,
            (&Method::GET, "members") => self.members(subject.as_ref()),
            (&Method::POST, "leave") => self.leave(subject.as_ref()).await,
            _ => Err((StatusCode::NOT_FOUND, "there is no such path".into())),
        };
        result.unwrap_or_else(refuse)
    }

    /// The server's proof. Whoever asks without the secret gets 32 bytes that are worth nothing on another channel.
    fn hello(&self, query: Option<&str>, binding: Option<[u8; BINDING]>) -> Result<Response<Body>, Refusal> {
        let id = query.and_then(|q| q.strip_prefix("token=")).unwrap_or_default();
        let secret = self.secret(id)?;
        let binding = binding.ok_or_else(old_tls)?;
        json(&Hello { proof: BASE64.encode(join::proof(Side::Server, &secret, &binding, b"")) })
    }

    async fn join(
        &self,
        request: Request<Body>,
        binding: Option<[u8; BINDING]>,
    ) -> Result<Response<Body>, Refusal> {
        let binding = binding.ok_or_else(old_tls)?;
        let bad = |why: &str| (StatusCode::BAD_REQUEST, format!("the join request is not valid: {why}"));
        let body = tokio::time::timeout(PATIENCE, axum::body::to_bytes(request.into_body(), MAX_BODY));
        let body: Bytes = body.await.map_err(|_| bad("too slow"))?.map_err(|_| bad("too large"))?;
        let signed: SignedRequest = serde_json::from_slice(&body).map_err(|e| bad(&e.to_string()))?;
        let request: join::Request =
            serde_json::from_str(&signed.request).map_err(|e| bad(&e.to_string()))?;
        let secret = self.secret(&request.token)?;
        let proof = BASE64.decode(&signed.proof).map_err(|_| bad("the proof is not base64"))?;
        if !join::verify(Side::Joiner, &secret, &binding, signed.request.as_bytes(), &proof) {
            return Err((StatusCode::FORBIDDEN, "the cluster secret does not match".into()));
        }
        check_name(&request.name).map_err(|e| bad(&e.to_string()))?;
        let odd = |a: &std::net::IpAddr| a.is_loopback() || a.is_unspecified() || a.is_multicast();
        if request.addresses.is_empty() || request.addresses.len() > 16 || request.addresses.iter().any(odd) {
            return Err(bad("between 1 and 16 addresses that others can reach"));
        }
        let welcome = self.admit(&request).await?;
        tracing::info!(node = request.name, id = welcome.member.id, "a node joined");
        json(&welcome)
    }

    /// Signs the node's certificate and puts it on record, in the place of a dead node of its name.
    async fn admit(&self, request: &join::Request) -> Result<Welcome, Refusal> {
        let inner = &*self.inner;
        let ca = authority(&*inner.kv).map_err(internal)?;
        let signed = ca.sign_node(&request.csr, &request.name);
        let (certificate, key) = signed.map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
        let record = inner.kv.get(&format!("{MEMBERS}{}", request.name));
        let old: Option<Member> = record.as_ref().and_then(|r| serde_json::from_slice(&r.value).ok());
        let id = match &old {
            // The same key asks again: its answer was lost.
            Some(old) if old.key == key => old.id,
            Some(_) if inner.health.is_healthy(&request.name) => {
                let text = format!(
                    "a node named {} is alive in this cluster; give this one another name, or switch that one off and wait 10 seconds",
                    request.name
                );
                return Err((StatusCode::CONFLICT, text));
            }
            _ => rand::random_range(1..=u64::MAX >> 1),
        };
        let member = Member {
            name: request.name.clone(),
            id,
            addresses: request.addresses.clone(),
            port: inner.port,
            vote: request.vote,
            key,
        };
        let expect = record.map_or(Expect::Absent, |r| Expect::Modified(r.modified));
        self.put(format!("{MEMBERS}{}", member.name), expect, Some(&member)).await?;
        let mut members: Vec<Member> =
            inner.roster.get().iter().filter(|m| m.name != member.name).cloned().collect();
        members.push(member.clone());
        Ok(Welcome {
            cluster_id: inner.cluster_id.clone(),
            ca: ca.pair().certificate.clone(),
            certificate,
            member,
            members,
            settings: inner.settings.clone(),
            now: jiff::Timestamp::now().as_second(),
        })
    }

    fn members(&self, subject: Option<&Subject>) -> Result<Response<Body>, Refusal> {
        self.node(subject)?;
        json(&*self.inner.roster.get())
    }

    /// A node takes itself out: its record and its Node object.
    async fn leave(&self, subject: Option<&Subject>) -> Result<Response<Body>, Refusal> {
        let member = self.node(subject)?;
        let path = format!("/api/v1/nodes/{}", member.name);
        let mut request = Request::delete(path).body(Body::empty()).map_err(|e| internal(e.into()))?;
        request.extensions_mut().insert(crate::client::system());
        let status = self.inner.api.handle(request).await.status();
        if !status.is_success() && status != StatusCode::NOT_FOUND {
            return Err((status, "the Node object cannot be deleted".into()));
        }
        self.put(format!("{MEMBERS}{}", member.name), Expect::Any, None::<&Member>).await?;
        tracing::info!(node = member.name, "a node left");
        json(&())
    }

    /// The member that a certificate belongs to: it must be the present one of that name.
    fn node(&self, subject: Option<&Subject>) -> Result<Member, Refusal> {
        let subject =
            subject.ok_or_else(|| (StatusCode::UNAUTHORIZED, "a node's certificate is needed".into()))?;
        let member = subject.node().and_then(|name| self.inner.roster.by_name(name));
        let member = member.filter(|m| m.key == subject.key);
        member.ok_or_else(|| (StatusCode::FORBIDDEN, "you are no member of this cluster".into()))
    }

    fn secret(&self, id: &str) -> Result<String, Refusal> {
        let unknown = || {
            let text = if id == BAKED {
                "this cluster was made without a baked secret; use the token that enable-master printed, or kube-config token"
            } else {
                "no such token; kube-config token on a master prints a new one"
            };
            (StatusCode::FORBIDDEN, text.to_owned())
        };
        if id == BAKED
            && let Some(baked) = &self.inner.baked
        {
            return Ok(baked.secret.clone());
        }
        let plain = !id.is_empty() && id.len() <= 16 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let record =
            plain.then(|| self.inner.kv.get(&format!("{TOKENS}{id}"))).flatten().ok_or_else(unknown)?;
        let token: Token = serde_json::from_slice(&record.value).map_err(|e| internal(e.into()))?;
        Ok(token.secret)
    }

    async fn put<T: serde::Serialize>(
        &self,
        key: String,
        expect: Expect,
        value: Option<&T>,
    ) -> Result<(), Refusal> {
        let value = value.map(serde_json::to_vec).transpose().map_err(|e| internal(e.into()))?;
        let write = Write { key, expect, value: value.map(Bytes::from) };
        let done = self.inner.kv.commit(Txn { writes: vec![write] }).await;
        done.map(drop).map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, e.to_string()))
    }
}

fn old_tls() -> Refusal {
    (StatusCode::UPGRADE_REQUIRED, "a join needs TLS 1.3".into())
}

fn internal(error: anyhow::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}

fn json<T: serde::Serialize>(value: &T) -> Result<Response<Body>, Refusal> {
    let body = serde_json::to_vec(value).map_err(|e| internal(e.into()))?;
    Ok(Response::new(Body::from(body)))
}

fn refuse((status, text): Refusal) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// Writes a new token; `kube-config token` and `enable-master` print it.
pub async fn new_token(kv: &dyn Kv) -> Result<Token> {
    let token = Token::generate();
    let value = Bytes::from(serde_json::to_vec(&token)?);
    let write = Write { key: format!("{TOKENS}{}", token.id), expect: Expect::Absent, value: Some(value) };
    kv.commit(Txn { writes: vec![write] }).await.context("cannot store the token")?;
    Ok(token)
}
