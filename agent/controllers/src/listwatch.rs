//! Lists a kind, then watches it, forever: the world's news.
//!
//! Not `kube::runtime::watcher`: the world must know the revision of every list, to tell an object that is gone from
//! one made after the list.

use std::{fmt::Debug, time::Duration};

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::{
    kind::{KindId, Object},
    meta::version,
    world::Change,
};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// A kind the API does not serve is asked for again this rarely.
const UNSERVED: Duration = Duration::from_secs(30);

/// Why a watch ended.
enum End {
    /// The server closed it in peace: go on from this revision.
    Resume(String),
    /// List anew.
    Relist,
    /// Nobody listens any more.
    Closed,
}

/// Feeds `changes` with one kind until nobody listens.
pub(crate) async fn list_watch<K>(
    kind: KindId,
    api: Api<K>,
    wrap: impl Fn(K) -> Object + Send,
    changes: mpsc::Sender<Change>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut retry = RETRY_FIRST;
    loop {
        match list(kind, &api, &wrap, &changes).await {
            Ok(Some(mut revision)) => {
                retry = RETRY_FIRST;
                loop {
                    match watch(&api, &wrap, &changes, revision).await {
                        End::Resume(next) => revision = next,
                        End::Relist => break,
                        End::Closed => return,
                    }
                }
            }
            Ok(None) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                // Not served: as if there were none.
                let none = Change::Listed { kind, version: 0, objects: Vec::new() };
                if changes.send(none).await.is_err() {
                    return;
                }
                retry = UNSERVED;
            }
            Err(error) => tracing::debug!(%error, ?kind, "list failed"),
        }
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = changes.closed() => return,
        }
        retry = (retry * 2).min(RETRY_MAX.max(retry));
    }
}

/// Lists once; gives the revision to watch from, or nothing when nobody listens.
async fn list<K>(
    kind: KindId,
    api: &Api<K>,
    wrap: &impl Fn(K) -> Object,
    changes: &mpsc::Sender<Change>,
) -> kube::Result<Option<String>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let list = api.list(&ListParams::default()).await?;
    let revision = list.metadata.resource_version.clone().unwrap_or_default();
    let objects = list.items.into_iter().map(|object| wrap(trim(object))).collect();
    let change = Change::Listed { kind, version: version(&revision), objects };
    Ok(changes.send(change).await.is_ok().then_some(revision))
}

async fn watch<K>(
    api: &Api<K>,
    wrap: &impl Fn(K) -> Object,
    changes: &mpsc::Sender<Change>,
    mut revision: String,
) -> End
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = match api.watch(&WatchParams::default(), &revision).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "watch not started");
            return End::Relist;
        }
    };
    let mut stream = stream.boxed();
    let mut any = false;
    loop {
        let event = match stream.try_next().await {
            Ok(Some(event)) => event,
            // A watch that ends at once, again and again, is treated as a failure.
            Ok(None) => return if any { End::Resume(revision) } else { End::Relist },
            Err(error) => {
                tracing::debug!(%error, "watch broke off");
                return End::Relist;
            }
        };
        any = true;
        let change = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                revision = object.resource_version().unwrap_or(revision);
                Change::Applied(wrap(trim(object)))
            }
            WatchEvent::Deleted(object) => {
                revision = object.resource_version().unwrap_or(revision);
                Change::Deleted(wrap(trim(object)))
            }
            WatchEvent::Bookmark(bookmark) => {
                revision = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => {
                tracing::debug!(message = %status.message, "watch ended by the server");
                return End::Relist;
            }
        };
        if changes.send(change).await.is_err() {
            return End::Closed;
        }
    }
}

/// Field ownership is of no use here and takes much room.
fn trim<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}
