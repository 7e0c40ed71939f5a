//! Writes a pod's status, one at a time, until it lands; then deletes the object if that is wanted.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use tokio::sync::watch;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(10);

/// What the API should hold.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The status; `None` until there is one.
    pub status: Option<PodStatus>,
    /// Delete the object once the status has landed.
    pub delete: bool,
    /// Raised to have the same status written once more.
    pub again: u64,
}

/// What the API is known to hold.
#[derive(Clone, Debug, Default)]
pub struct Landed {
    /// The status that landed last.
    pub status: Option<PodStatus>,
    /// Resource version that it got.
    pub version: u64,
    /// The object is gone.
    pub deleted: bool,
}

/// Reports until the object is gone or nobody wants anything any more.
pub async fn run(
    api: Api<Pod>,
    pod: Arc<Pod>,
    mut wanted: watch::Receiver<Wanted>,
    landed: watch::Sender<Landed>,
) {
    let mut delay = RETRY_FIRST;
    let mut pending = true;
    loop {
        if pending {
            let want = wanted.borrow_and_update().clone();
            let done = tokio::time::timeout(PATIENCE, write(&api, &pod, &want, &landed)).await;
            match done {
                Ok(Ok(())) => (pending, delay) = (false, RETRY_FIRST),
                Ok(Err(error)) => tracing::debug!(pod = pod.name_any(), %error, "the status was not written"),
                Err(_) => tracing::debug!(pod = pod.name_any(), "writing the status takes too long"),
            }
        }
        if landed.borrow().deleted {
            return;
        }
        let news = async {
            if pending {
                tokio::select! {
                    () = tokio::time::sleep(delay) => Ok(()),
                    changed = wanted.changed() => changed,
                }
            } else {
                wanted.changed().await
            }
        };
        if news.await.is_err() {
            return;
        }
        if pending {
            delay = (delay * 2).min(RETRY_MOST);
        }
        pending = true;
    }
}

async fn write(
    api: &Api<Pod>,
    pod: &Pod,
    want: &Wanted,
    landed: &watch::Sender<Landed>,
) -> Result<(), kube::Error> {
    let name = pod.name_any();
    if let Some(status) = &want.status {
        let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(stored) => {
                let version = stored.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0);
                landed.send_replace(Landed { status: Some(status.clone()), version, deleted: false });
            }
            Err(error) => {
                settle(api, pod, error).await?;
                landed.send_modify(|landed| landed.deleted = true);
                return Ok(());
            }
        }
    }
    if want.delete {
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match api.delete(&name, &params).await {
            Ok(_) => {}
            Err(error) => settle(api, pod, error).await?,
        }
        landed.send_modify(|landed| landed.deleted = true);
    }
    Ok(())
}

/// Fine if the object is not there, or one of the same name is that is not ours.
async fn settle(api: &Api<Pod>, pod: &Pod, error: kube::Error) -> Result<(), kube::Error> {
    match &error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        kube::Error::Api(status) if status.code == 409 => match api.get_opt(&pod.name_any()).await? {
            Some(stored) if stored.metadata.uid == pod.metadata.uid => Err(error),
            _ => Ok(()),
        },
        _ => Err(error),
    }
}
