//! What nodes ask of the leader besides the Kubernetes API: to be let in, who the members are, to move, to leave.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::Api;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cluster::join::{self, BAKED, BINDING, ClusterSettings, Hello, Side, SignedRequest, Token, Welcome};
use cluster::members::{Member, understood};
use cluster::pki::Subject;
use http::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use store::{Expect, Kv, Status, Txn, Write};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::check_name;
use crate::health::Health;
use crate::raft_status;
use crate::roster::{MEMBERS, Roster, TOKENS};
use crate::serving::authority;

/// All paths here begin so; no Kubernetes path does.
pub const PREFIX: &str = "/bramble/v1/";
/// A join request is small.
const MAX_BODY: usize = 64 << 10;
/// And arrives at once.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time for the others to take a leaving node's vote away.
const RETIREMENT: Duration = Duration::from_secs(8);

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
        port: u16,
    ) -> Self {
        let (cluster_id, settings) = cluster;
        Self { inner: Arc::new(Inner { kv, leading, roster, health, cluster_id, settings, port, api }) }
    }

    /// Answers one request.
    pub async fn handle(
        &self,
        request: Request<Body>,
        subject: Option<Subject>,
        binding: Option<[u8; BINDING]>,
        status: watch::Receiver<Status>,
    ) -> Response<Body> {
        if !*self.inner.leading.borrow() {
            return refuse((StatusCode::SERVICE_UNAVAILABLE, "this node does not lead; try again".into()));
        }
        let path = request.uri().path().trim_start_matches(PREFIX).to_owned();
        let result = match (request.method(), path.as_str()) {
            (&Method::GET, "join") => self.hello(request.uri().query(), binding),
            (&Method::POST, "join") => self.join(request, binding).await,
            (&Method::GET, "members") => self.members(subject.as_ref()),
            (&Method::GET, "raft") => self.raft(subject.as_ref(), &status),
            (&Method::POST, "addresses" | "format") => self.news(request, subject.as_ref(), &path).await,
            (&Method::POST, "leave") => self.leave(subject.as_ref(), status).await,
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
        let body = read(request).await.map_err(bad)?;
        let signed: SignedRequest = serde_json::from_slice(&body).map_err(|e| bad(&e.to_string()))?;
        let request: join::Request =
            serde_json::from_str(&signed.request).map_err(|e| bad(&e.to_string()))?;
        let secret = self.secret(&request.token)?;
        let proof = BASE64.decode(&signed.proof).map_err(|_| bad("the proof is not base64"))?;
        if !join::verify(Side::Joiner, &secret, &binding, signed.request.as_bytes(), &proof) {
            return Err((StatusCode::FORBIDDEN, "the cluster secret does not match".into()));
        }
        check_name(&request.name).map_err(|e| bad(&e.to_string()))?;
        check_addresses(&request.addresses).map_err(bad)?;
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
        let format = understood(&inner.roster.get());
        if request.format < format {
            let text = format!(
                "this node's agent is too old for the cluster (log format {}, the cluster's is {format}): upgrade it first",
                request.format
            );
            return Err((StatusCode::CONFLICT, text));
        }
        let record = inner.kv.get(&format!("{MEMBERS}{}", request.name));
        let old: Option<Member> = record.as_ref().and_then(|r| serde_json::from_slice(&r.value).ok());
        let id = match &old {
            // The same key asks again: its answer was lost.
            Some(old) if old.key == key => old.id,
            Some(_) if inner.health.may_live(&request.name) => {
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
            format: request.format,
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

    /// How Raft is, for nodes without a replica.
    fn raft(
        &self,
        subject: Option<&Subject>,
        status: &watch::Receiver<Status>,
    ) -> Result<Response<Body>, Refusal> {
        self.node(subject)?;
        json(&raft_status::named(&status.borrow(), &self.inner.roster, ""))
    }

    /// A node is not as its record says.
    async fn news(
        &self,
        request: Request<Body>,
        subject: Option<&Subject>,
        path: &str,
    ) -> Result<Response<Body>, Refusal> {
        let member = self.node(subject)?;
        let bad = |why: &str| (StatusCode::BAD_REQUEST, format!("the {path} cannot be valid: {why}"));
        let body = read(request).await.map_err(bad)?;
        let news = News::read(path, &body).map_err(|why| bad(&why))?;
        let done = set(&*self.inner.kv, &member.name, &member.key, &news).await;
        done.map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, format!("{e:#}")))?;
        tracing::info!(node = member.name, ?news, "a node has changed");
        json(&())
    }

    /// A node takes itself out: of Raft first, since the others may need this node's vote to do without it, and nobody
    /// listens to one without a record; then its record, which ends its rights, then its Node object. Asked again (the
    /// answer was lost, or this node went away in between) it finishes what is left.
    async fn leave(
        &self,
        subject: Option<&Subject>,
        status: watch::Receiver<Status>,
    ) -> Result<Response<Body>, Refusal> {
        let name = subject.and_then(Subject::node).ok_or_else(no_certificate)?;
        let key = format!("{MEMBERS}{name}");
        if let Some(record) = self.inner.kv.get(&key) {
            let member: Member = serde_json::from_slice(&record.value).map_err(|e| internal(e.into()))?;
            if subject.is_none_or(|s| s.key != member.key) {
                return Err((StatusCode::GONE, format!("another node is {name} now")));
            }
            let modified = self.retire(&key, &member, record.modified, status).await?;
            self.put(key, Expect::Modified(modified), None::<&Member>).await?;
        }
        let path = format!("/api/v1/nodes/{name}");
        let mut request = Request::delete(path).body(Body::empty()).map_err(|e| internal(e.into()))?;
        request.extensions_mut().insert(crate::client::system());
        let status = self.inner.api.handle(request).await.status();
        if !status.is_success() && status != StatusCode::NOT_FOUND {
            return Err((status, "the Node object cannot be deleted".into()));
        }
        tracing::info!(node = name, "a node left");
        json(&())
    }

    /// Bars a member from voting and waits until Raft does without it; else all is as it was. The new revision of its
    /// record.
    async fn retire(
        &self,
        key: &str,
        member: &Member,
        modified: u64,
        mut status: watch::Receiver<Status>,
    ) -> Result<u64, Refusal> {
        let barred = Member { vote: false, ..member.clone() };
        let modified = self.put(key.to_owned(), Expect::Modified(modified), Some(&barred)).await?;
        let out = status
            .wait_for(|s| !s.leading || ![&s.voters, &s.leaving].iter().any(|ids| ids.contains(&member.id)));
        if timeout(RETIREMENT, out).await.is_ok_and(|out| out.is_ok_and(|status| status.leading)) {
            return Ok(modified);
        }
        let undone = self.put(key.to_owned(), Expect::Modified(modified), Some(member)).await;
        if let Err((_, error)) = undone {
            tracing::warn!(node = member.name, error, "a node that stays cannot be given its vote back yet");
        }
        let text = "the cluster cannot do without this node's vote now: other nodes are away, or the leader changed. Bring them back, or try again";
        Err((StatusCode::SERVICE_UNAVAILABLE, text.into()))
    }

    /// The member that a certificate belongs to: it must be the present one of that name.
    fn node(&self, subject: Option<&Subject>) -> Result<Member, Refusal> {
        let subject = subject.ok_or_else(no_certificate)?;
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
        let plain = !id.is_empty() && id.len() <= 16 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let record =
            plain.then(|| self.inner.kv.get(&format!("{TOKENS}{id}"))).flatten().ok_or_else(unknown)?;
        let kept: Kept = serde_json::from_slice(&record.value).map_err(|e| internal(e.into()))?;
        if kept.is_over(now()) {
            let text = "this token has expired; kube-config token on a master prints a new one";
            return Err((StatusCode::FORBIDDEN, text.into()));
        }
        Ok(kept.token.secret)
    }

    async fn put<T: serde::Serialize>(
        &self,
        key: String,
        expect: Expect,
        value: Option<&T>,
    ) -> Result<u64, Refusal> {
        let value = value.map(serde_json::to_vec).transpose().map_err(|e| internal(e.into()))?;
        let write = Write { key, expect, value: value.map(Bytes::from) };
        let done = self.inner.kv.commit(Txn { writes: vec![write] }).await;
        done.map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, e.to_string()))
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

fn no_certificate() -> Refusal {
    (StatusCode::UNAUTHORIZED, "a node's certificate is needed".into())
}

/// A body that is small and comes at once, or what is wrong with it.
async fn read(request: Request<Body>) -> Result<Bytes, &'static str> {
    let body = tokio::time::timeout(PATIENCE, axum::body::to_bytes(request.into_body(), MAX_BODY));
    body.await.map_err(|_| "too slow")?.map_err(|_| "too large")
}

fn check_addresses(addresses: &[IpAddr]) -> Result<(), &'static str> {
    let odd = |a: &IpAddr| a.is_loopback() || a.is_unspecified() || a.is_multicast();
    if addresses.is_empty() || addresses.len() > 16 || addresses.iter().any(odd) {
        return Err("between 1 and 16 addresses that others can reach");
    }
    Ok(())
}

/// What a member says of itself, for its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Where it is reached.
    Addresses(Vec<IpAddr>),
    /// What its agent understands.
    Format(u32),
}

impl News {
    fn read(path: &str, body: &[u8]) -> Result<Self, String> {
        if path == "format" {
            return serde_json::from_slice(body).map(Self::Format).map_err(|e| e.to_string());
        }
        let addresses: Vec<IpAddr> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        check_addresses(&addresses)?;
        Ok(Self::Addresses(addresses))
    }

    /// Where and how the leader is told.
    pub fn request(&self) -> Result<Request<Body>> {
        let (path, body) = match self {
            Self::Addresses(addresses) => ("addresses", serde_json::to_vec(addresses)?),
            Self::Format(format) => ("format", serde_json::to_vec(format)?),
        };
        Ok(Request::post(format!("{PREFIX}{path}")).body(Body::from(body))?)
    }

    /// Whether a record says so already.
    pub fn is_on(&self, record: &Member) -> bool {
        match self {
            Self::Addresses(addresses) => record.addresses == *addresses,
            Self::Format(format) => record.format == *format,
        }
    }

    fn put_on(&self, record: &mut Member) {
        match self {
            Self::Addresses(addresses) => record.addresses.clone_from(addresses),
            Self::Format(format) => record.format = *format,
        }
    }
}

/// Puts a member's news on record, if it still is who it was.
pub async fn set(kv: &dyn Kv, name: &str, key: &str, news: &News) -> Result<()> {
    let path = format!("{MEMBERS}{name}");
    let record = kv.get(&path).context("no such member")?;
    let mut member: Member = serde_json::from_slice(&record.value)?;
    anyhow::ensure!(member.key == key, "another node is {name} now");
    // Told twice: the node's own replica was behind.
    if news.is_on(&member) {
        return Ok(());
    }
    news.put_on(&mut member);
    let value = Some(Bytes::from(serde_json::to_vec(&member)?));
    let write = Write { key: path, expect: Expect::Modified(record.modified), value };
    kv.commit(Txn { writes: vec![write] }).await.context("cannot be written")?;
    Ok(())
}

/// A token as the store keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    token: Token,
    /// Seconds since the epoch; a baked secret has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
}

impl Kept {
    fn is_over(&self, now: i64) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// The write that makes a token known, until then.
pub fn token_write(token: &Token, expires: Option<i64>) -> Result<Write> {
    let kept = Kept { token: token.clone(), expires };
    let value = Some(Bytes::from(serde_json::to_vec(&kept)?));
    Ok(Write { key: format!("{TOKENS}{}", token.id), expect: Expect::Absent, value })
}

/// Writes a new token; `kube-config token` and `enable-master` print it. Those that are over go.
pub async fn new_token(kv: &dyn Kv, lifetime: Duration) -> Result<Token> {
    let (token, now) = (Token::generate(), now());
    let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    let over =
        kv.list(TOKENS, None, 0).records.into_iter().filter(|record| {
            serde_json::from_slice::<Kept>(&record.value).is_ok_and(|kept| kept.is_over(now))
        });
    let forget = |r: store::Record| Write { key: r.key.to_string(), expect: Expect::Any, value: None };
    let mut writes: Vec<Write> = over.map(forget).collect();
    writes.push(token_write(&token, Some(now.saturating_add(lifetime)))?);
    kv.commit(Txn { writes }).await.context("cannot store the token")?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_end_and_baked_secrets_do_not() {
        let kv = store::Volatile::default();
        let old = new_token(&kv, Duration::ZERO).await.unwrap();
        let baked = Token::baked("abcdefghijklmnopqrstuvwxyz").unwrap();
        kv.commit(Txn { writes: vec![token_write(&baked, None).unwrap()] }).await.unwrap();
        let kept = |id: &str| {
            let record = kv.get(&format!("{TOKENS}{id}"));
            record.map(|r| serde_json::from_slice::<Kept>(&r.value).unwrap())
        };
        assert!(kept(&old.id).unwrap().is_over(now()));
        let new = new_token(&kv, Duration::from_secs(60)).await.unwrap();
        assert!(kept(&old.id).is_none(), "what is over goes with the next one");
        assert!(!kept(&new.id).unwrap().is_over(now()) && kept(&new.id).unwrap().is_over(now() + 61));
        assert!(!kept(BAKED).unwrap().is_over(i64::MAX));
    }

    #[tokio::test]
    async fn only_the_member_itself_moves() {
        let kv = store::Volatile::default();
        let old: Vec<IpAddr> = vec!["192.168.1.5".parse().unwrap()];
        let member = Member {
            name: "a".into(),
            id: 7,
            addresses: old.clone(),
            port: 6443,
            vote: true,
            key: "k".into(),
            format: 0,
        };
        let value = Some(Bytes::from(serde_json::to_vec(&member).unwrap()));
        let write = Write { key: format!("{MEMBERS}a"), expect: Expect::Absent, value };
        kv.commit(Txn { writes: vec![write] }).await.unwrap();
        let new: Vec<IpAddr> = vec!["192.168.1.9".parse().unwrap()];
        let moved = News::Addresses(new.clone());
        assert!(set(&kv, "a", "another", &moved).await.is_err());
        assert!(set(&kv, "b", "k", &moved).await.is_err());
        set(&kv, "a", "k", &moved).await.unwrap();
        set(&kv, "a", "k", &News::Format(3)).await.unwrap();
        let record = kv.get(&format!("{MEMBERS}a")).unwrap();
        let now: Member = serde_json::from_slice(&record.value).unwrap();
        assert_eq!(now, Member { addresses: new, format: 3, ..member });
    }
}
