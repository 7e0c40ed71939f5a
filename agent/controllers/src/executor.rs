//! Does what a reconcile decided, by the API.

use futures::{StreamExt, stream};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::DynamicObject,
    discovery::{Discovery, Scope, verbs},
};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    event::Event,
    kind::{KindId, Kinds, Object},
    world::Change,
    write::{Propagation, Target, Write},
};

/// Creates and deletes in flight for one key.
const CONCURRENCY: usize = 16;

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error("{0}")]
    Api(#[source] kube::Error),
    #[error("{0} is there after all")]
    Present(String),
    #[error("namespace {namespace} still has {plural}")]
    NotEmpty { namespace: String, plural: String },
    #[error("object has no JSON form: {0}")]
    Form(#[source] serde_json::Error),
    #[error("kind {0:?} is not known")]
    Kind(KindId),
}

impl StepError {
    /// HTTP status code, if the API answered.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Somebody else was faster: look again at once.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Seconds the server asked to wait.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Api(kube::Error::Api(status)) => {
                status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
            }
            _ => None,
        }
    }

    /// For people.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Api(kube::Error::Api(status)) => status.message.clone(),
            other => other.to_string(),
        }
    }
}

/// Executes writes.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) client: Client,
    pub(crate) kinds: std::sync::Arc<Kinds>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Executor {
    /// Does the writes in order until one fails. What the API answered comes back in any case.
    pub(crate) async fn execute(&self, writes: Vec<Write>) -> (Vec<Change>, Result<(), StepError>) {
        let mut changes = Vec::new();
        let mut queue = writes.into_iter().peekable();
        while let Some(first) = queue.next() {
            let mut batch = vec![first];
            if is_independent(&batch[0]) {
                while let Some(next) = queue.next_if(is_independent) {
                    batch.push(next);
                }
            }
            let mut results = stream::iter(batch).map(|write| self.step(write)).buffer_unordered(CONCURRENCY);
            let mut failed = None;
            while let Some(result) = results.next().await {
                match result {
                    Ok(change) => changes.extend(change),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            if let Some(error) = failed {
                return (changes, Err(error));
            }
        }
        (changes, Ok(()))
    }

    async fn step(&self, write: Write) -> Result<Option<Change>, StepError> {
        match write {
            Write::Create { object, done, failed } => self.create(&object, done, failed).await,
            Write::Make { kind, namespace, object } => {
                let api = self.api(kind, &namespace)?;
                let body = serde_json::from_value(object).map_err(StepError::Form)?;
                match api.create(&PostParams::default(), &body).await.map_err(StepError::Api) {
                    Ok(answer) => Ok(applied(kind, answer)),
                    // The watch will tell.
                    Err(error) if error.is_conflict() => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Write::Update { object, done } => {
                let (api, name, body) = self.sendable(&object)?;
                let answer =
                    api.replace(&name, &PostParams::default(), &body).await.map_err(StepError::Api)?;
                self.tell(done);
                Ok(applied(object.kind(), answer))
            }
            Write::UpdateStatus { object } => self.replace_part("status", &object).await,
            Write::Finalize { object } => self.replace_part("finalize", &object).await,
            Write::Patch { target, patch, done } => {
                let api = self.api(target.kind, &target.namespace)?;
                let patch = Patch::Merge(patch);
                let answer =
                    api.patch(&target.name, &PatchParams::default(), &patch).await.map_err(StepError::Api)?;
                self.tell(done);
                Ok(applied(target.kind, answer))
            }
            Write::Delete { target, grace, propagation, done, failed } => {
                self.delete(target, grace, propagation, done, failed).await
            }
            Write::RequireAbsent { target } => self.require_absent(&target).await,
            Write::RequireEmpty { namespace } => self.require_empty(&namespace).await,
            Write::Tell(event) => {
                self.tell(Some(event));
                Ok(None)
            }
        }
    }

    async fn create(
        &self,
        object: &Object,
        done: Option<Event>,
        failed: Option<Event>,
    ) -> Result<Option<Change>, StepError> {
        let (api, _, body) = self.sendable(object)?;
        match api.create(&PostParams::default(), &body).await.map_err(StepError::Api) {
            Ok(answer) => {
                self.tell(done);
                Ok(applied(object.kind(), answer))
            }
            Err(error) => {
                self.tell_failure(failed, &error);
                Err(error)
            }
        }
    }

    async fn replace_part(&self, part: &str, object: &Object) -> Result<Option<Change>, StepError> {
        let (api, name, body) = self.sendable(object)?;
        let answer = api
            .replace_subresource(part, &name, &PostParams::default(), &body)
            .await
            .map_err(StepError::Api)?;
        Ok(applied(object.kind(), answer))
    }

    async fn delete(
        &self,
        target: Target,
        grace: Option<u32>,
        propagation: Propagation,
        done: Option<Event>,
        failed: Option<Event>,
    ) -> Result<Option<Change>, StepError> {
        let api = self.api(target.kind, &target.namespace)?;
        let params = DeleteParams {
            grace_period_seconds: grace,
            propagation_policy: Some(match propagation {
                Propagation::Background => PropagationPolicy::Background,
                Propagation::Foreground => PropagationPolicy::Foreground,
                Propagation::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions { uid: Some(target.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&target.name, &params).await.map_err(StepError::Api) {
            Ok(_) => {
                self.tell(done);
                Ok(Some(Change::Doomed { uid: target.uid }))
            }
            // Gone, or another one of that name: either way this one is no more.
            Err(error) if matches!(error.code(), Some(404 | 409)) => {
                Ok(Some(Change::Doomed { uid: target.uid }))
            }
            Err(error) => {
                self.tell_failure(failed, &error);
                Err(error)
            }
        }
    }

    async fn require_absent(&self, target: &Target) -> Result<Option<Change>, StepError> {
        let api = self.api(target.kind, &target.namespace)?;
        match api.get_opt(&target.name).await.map_err(StepError::Api)? {
            Some(o) if target.uid.is_empty() || o.metadata.uid.as_deref() == Some(target.uid.as_str()) => {
                Err(StepError::Present(target.name.clone()))
            }
            _ => Ok(None),
        }
    }

    /// Asks the API about every namespaced kind it serves now, also those the world does not know.
    async fn require_empty(&self, namespace: &str) -> Result<Option<Change>, StepError> {
        let discovery = Discovery::new(self.client.clone()).run().await.map_err(StepError::Api)?;
        let one = ListParams::default().limit(1);
        for (resource, capabilities) in discovery.groups().flat_map(|g| g.recommended_resources()) {
            let deletable = capabilities.supports_operation(verbs::LIST)
                && capabilities.supports_operation(verbs::DELETE);
            if capabilities.scope != Scope::Namespaced || !deletable {
                continue;
            }
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
            if !api.list_metadata(&one).await.map_err(StepError::Api)?.items.is_empty() {
                return Err(StepError::NotEmpty { namespace: namespace.to_owned(), plural: resource.plural });
            }
        }
        Ok(None)
    }

    fn api(&self, kind: KindId, namespace: &str) -> Result<Api<DynamicObject>, StepError> {
        let info = self.kinds.get(kind).ok_or(StepError::Kind(kind))?;
        Ok(if info.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &info.resource)
        } else {
            Api::all_with(self.client.clone(), &info.resource)
        })
    }

    fn sendable(&self, object: &Object) -> Result<(Api<DynamicObject>, String, DynamicObject), StepError> {
        let meta = object.meta();
        let api = self.api(object.kind(), meta.namespace.as_deref().unwrap_or_default())?;
        let body =
            serde_json::from_value(object.to_json().unwrap_or(Value::Null)).map_err(StepError::Form)?;
        Ok((api, meta.name.clone().unwrap_or_default(), body))
    }

    fn tell(&self, event: Option<Event>) {
        if let Some(event) = event {
            // Full means that events come faster than they can be written: drop, they are hints.
            let _ = self.events.try_send(event);
        }
    }

    fn tell_failure(&self, event: Option<Event>, error: &StepError) {
        self.tell(
            event.map(|event| Event { message: format!("{}{}", event.message, error.message()), ..event }),
        );
    }
}

/// Writes of which no one waits for another.
fn is_independent(write: &Write) -> bool {
    matches!(
        write,
        Write::Create { .. } | Write::Delete { .. } | Write::UpdateStatus { object: Object::Pod(_) }
    )
}

fn applied(kind: KindId, answer: DynamicObject) -> Option<Change> {
    Object::parse(kind, answer).map(Change::Applied)
}
