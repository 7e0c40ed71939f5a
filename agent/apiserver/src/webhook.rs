//! Admission webhooks: servers that have a say in writes. The mutating ones are asked one after another, before an
//! object is checked; the validating ones at the same time, after everybody else but the quotas.

mod review;

use crate::engine::Engine;
use crate::object::{list, name, text};
use crate::policy::{GROUP, Request, condition_holds, is_exempt};
use crate::status::{Result, Status};
use crate::write::Told;
use futures::StreamExt;
use resources::Descriptor;
use resources::cel::{Budget, Cel};
use review::{Answer, Failure};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Webhooks that are asked at the same time about one write.
const AT_ONCE: usize = 16;
/// How long a write may take: as long as upstream's requests.
const WRITE: Duration = Duration::from_secs(34);

/// When all who are asked must have answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Default for Deadline {
    fn default() -> Self {
        Self(Instant::now() + WRITE)
    }
}

/// The rounds in which mutating webhooks are asked: whoever wants to see again what others changed after him is asked
/// once more.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    done: usize,
    /// Those that may be asked again, since the last change.
    asked: BTreeSet<String>,
    /// Those that are to be asked again.
    again: BTreeSet<String>,
    /// What the last round left.
    last: Option<Value>,
}

impl Rounds {
    const MOST: usize = 2;

    fn changed(&mut self) {
        self.again.append(&mut self.asked);
    }
}

/// A request as a webhook sees it: in a version that the webhook asks for.
struct View<'v> {
    hook: &'v Value,
    /// The kind that is shown, if that is not the request's own.
    kind: Option<Arc<Descriptor>>,
    object: Option<Cow<'v, Value>>,
    old: Option<Cow<'v, Value>>,
}

impl Engine {
    /// Asks the mutating webhooks about a request, for one round. Gives what they made of its object, if they changed
    /// it: then the object is filled in again, and there is another round.
    pub async fn mutate(
        &self,
        request: &Request<'_>,
        rounds: &mut Rounds,
        told: &Told,
    ) -> Result<Option<Value>> {
        if rounds.done == Rounds::MOST || is_exempt(request) || !self.admits("MutatingAdmissionWebhook") {
            return Ok(None);
        }
        let configurations = self.all(GROUP, "mutatingwebhookconfigurations", "");
        if configurations.is_empty() {
            return Ok(None);
        }
        if rounds.done > 0 && request.object != rounds.last.as_ref() {
            rounds.changed();
        }
        let home = request.namespace.and_then(|name| self.one("", "namespaces", "", name));
        let mut next: Option<Value> = None;
        for (id, hook) in hooks(&configurations) {
            let request = Request { object: next.as_ref().or(request.object), ..*request };
            let Some(view) = self.view(hook, &request, home.as_ref())? else { continue };
            if rounds.done > 0 && !rounds.again.remove(&id) {
                continue;
            }
            let answer = self.settled(&view, &request, self.ask_one(&view, &request, true).await)?;
            let patched = match answer {
                Some(answer) => {
                    told.add(answer.warnings);
                    answer.patch.map(|patch| view.patched(&request, &patch)).transpose()?
                }
                None => None,
            };
            if let Some(patched) = patched.filter(|patched| Some(patched) != request.object) {
                rounds.changed();
                next = Some(patched);
            }
            if text(hook, "/reinvocationPolicy") == "IfNeeded" {
                rounds.asked.insert(id);
            }
        }
        rounds.done += 1;
        rounds.last.clone_from(&next);
        Ok(next)
    }

    /// Asks the validating webhooks.
    pub async fn ask_webhooks(&self, request: &Request<'_>, told: &Told) -> Result<()> {
        if is_exempt(request) || !self.admits("ValidatingAdmissionWebhook") {
            return Ok(());
        }
        let configurations = self.all(GROUP, "validatingwebhookconfigurations", "");
        if configurations.is_empty() {
            return Ok(());
        }
        let home = request.namespace.and_then(|name| self.one("", "namespaces", "", name));
        let mut asked = Vec::new();
        for (_, hook) in hooks(&configurations) {
            let Some(view) = self.view(hook, request, home.as_ref())? else { continue };
            asked.push(async move {
                let answer = self.ask_one(&view, request, false).await;
                self.settled(&view, request, answer)
            });
        }
        let answers: Vec<Result<Option<Answer>>> =
            futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
        for answer in answers {
            told.add(answer?.map(|answer| answer.warnings).unwrap_or_default());
        }
        Ok(())
    }

    /// The request as this webhook sees it; `None`: it has nothing to say about it.
    fn view<'v>(
        &self,
        hook: &'v Value,
        request: &Request<'v>,
        home: Option<&Value>,
    ) -> Result<Option<View<'v>>> {
        if !request.is_selected(hook, home) {
            return Ok(None);
        }
        let rules = list(hook, "/rules");
        let kind = if request.matches_rules(rules) {
            None
        } else if text(hook, "/matchPolicy") == "Exact" {
            return Ok(None);
        } else {
            let others = self.equivalents(request.kind);
            let found = others.into_iter().find(|kind| Request { kind, ..*request }.matches_rules(rules));
            let Some(found) = found else { return Ok(None) };
            Some(found)
        };
        let shown = |object: Option<&'v Value>| {
            object.map(|object| match &kind {
                Some(kind) if request.shown.is_none() => Cow::Owned(converted(request.kind, kind, object)),
                _ => Cow::Borrowed(object),
            })
        };
        let (object, old) = (shown(request.object), shown(request.old));
        let view = View { hook, kind, object, old };
        match view.conditions_hold(request) {
            Ok(true) => Ok(Some(view)),
            Err(why) if !view.ignores() => {
                let kind = request.kind;
                Err(Status::forbidden(&kind.group, &kind.plural, request.name, &why))
            }
            Ok(false) | Err(_) => Ok(None),
        }
    }

    /// Asks one webhook.
    async fn ask_one(
        &self,
        view: &View<'_>,
        request: &Request<'_>,
        mutating: bool,
    ) -> std::result::Result<Answer, Failure> {
        let hook = view.hook;
        if request.dry_run && !["None", "NoneOnDryRun"].contains(&text(hook, "/sideEffects")) {
            let why = format!("admission webhook {:?} does not support dry run", text(hook, "/name"));
            return Err(Failure::Refused(Status::bad_request(why)));
        }
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10);
        let left = request.until.0.saturating_duration_since(Instant::now());
        let within = Duration::from_secs(seconds).min(left);
        let uid = crate::object::new_uid();
        let question = review::question(hook, &uid, &view.request(request), request.kind);
        let query = format!("timeout={seconds}s");
        let answer = self.ask_outside(&hook["clientConfig"], &query, &question, within).await;
        let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
        review::read(text(hook, "/name"), &answer, &question, mutating)
    }

    /// What a failure to be asked means for the request is for the configuration to say.
    fn settled(
        &self,
        view: &View<'_>,
        request: &Request<'_>,
        answer: std::result::Result<Answer, Failure>,
    ) -> Result<Option<Answer>> {
        let name = text(view.hook, "/name");
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Refused(status)) => Err(status),
            Err(Failure::Call(why)) if view.ignores() => {
                tracing::warn!(webhook = name, %why, "a webhook could not be asked; its configuration ignores that");
                if request.until.0 <= Instant::now() {
                    return Err(Status::timeout("request did not complete within requested timeout"));
                }
                Ok(None)
            }
            Err(Failure::Call(why)) => {
                Err(Status::internal(format!("failed calling webhook {name:?}: {why}")))
            }
        }
    }
}

impl<'v> View<'v> {
    fn ignores(&self) -> bool {
        text(self.hook, "/failurePolicy") == "Ignore"
    }

    /// The request with what is shown of it.
    fn request<'a>(&'a self, request: &Request<'a>) -> Request<'a> {
        let kind = self.kind.as_deref().unwrap_or(request.kind);
        Request { kind, object: self.object.as_deref(), old: self.old.as_deref(), ..*request }
    }

    fn conditions_hold(&self, request: &Request<'_>) -> std::result::Result<bool, String> {
        let conditions = list(self.hook, "/matchConditions");
        if conditions.is_empty() {
            return Ok(true);
        }
        let (null, shown) = (Value::Null, self.request(request));
        let told = shown.told_as(request.kind);
        let names = [
            ("object", Cel::of(shown.object.unwrap_or(&null), None)),
            ("oldObject", Cel::of(shown.old.unwrap_or(&null), None)),
            ("request", Cel::of(&told, None)),
        ];
        let (mut budget, mut fault) = (Budget::default(), None);
        for condition in conditions {
            match condition_holds(text(condition, "/expression"), &names, &mut budget) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => {
                    fault = fault
                        .or(Some(format!("match condition '{}' failed: {why}", text(condition, "/name"))))
                }
            }
        }
        fault.map_or(Ok(true), Err)
    }

    /// What a patch of what was shown makes of the request's own object.
    fn patched(&self, request: &Request<'_>, patch: &Value) -> Result<Value> {
        let Some(object) = self.object.as_deref() else {
            let why = format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                text(self.hook, "/name")
            );
            return Err(Status::internal(why));
        };
        let mut next = object.clone();
        resources::patch::json_patch(&mut next, patch).map_err(Status::internal)?;
        if !next.is_object() || !next["metadata"].is_object() && request.shown.is_none() {
            return Err(Status::internal("the patched object is no object"));
        }
        if request.shown.is_some() {
            return Ok(next);
        }
        let kind = self.kind.as_deref().unwrap_or(request.kind);
        next["apiVersion"] = kind.api_version().into();
        next["kind"] = kind.kind.as_ref().into();
        if let Some(fault) = kind.conform(&mut next).mistyped.first() {
            let (kind, version) = (&kind.kind, &kind.version);
            return Err(Status::internal(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {fault}"
            )));
        }
        kind.defaults(&mut next);
        Ok(if self.kind.is_some() { converted(kind, request.kind, &next) } else { next })
    }
}

/// The webhooks of configurations, which come by name, each with what it is told apart by.
fn hooks(configurations: &[Value]) -> impl Iterator<Item = (String, &Value)> {
    configurations.iter().flat_map(|configuration| {
        let all = list(configuration, "/webhooks").iter();
        all.map(move |hook| (format!("{}/{}", name(configuration), text(hook, "/name")), hook))
    })
}

/// An object in another version of its kind.
fn converted(from: &Descriptor, to: &Descriptor, object: &Value) -> Value {
    let mut object = object.clone();
    from.store(&mut object);
    to.load(&mut object);
    object
}
