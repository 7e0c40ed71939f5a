//! Namespaces and what is in them.

use super::*;
use std::sync::Mutex;
use store::{CommitError, Compacted, Expect, Kv, Page, Record, Revision, Txn, Watch, Write};

const HOME: &str = "/api/v1/namespaces/home";
const HOME_PODS: &str = "/api/v1/namespaces/home/pods";

#[tokio::test]
async fn a_namespace_goes_when_its_content_is_gone() {
    let world = World::new().await;
    let (_, message) = world.post(HOME_PODS, pod("a")).await.failure(404);
    assert_eq!(message, "namespaces \"home\" not found");
    world.made("/api/v1/namespaces", json!({"metadata": {"name": "home"}})).await;
    world.made(HOME_PODS, pod("a")).await;
    world.made(&format!("{HOME}/configmaps"), config_map("m", "1")).await;
    world.made(PODS, pod("a")).await;
    let marked = world.delete(HOME, Value::Null).await.ok(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let status = world.post(HOME_PODS, pod("b")).await.ok(403);
    assert_eq!(status["details"]["causes"][0]["reason"], "NamespaceTerminating");
    // What is there goes on, and may still be changed, until it is deleted.
    world.patch(&format!("{HOME}/configmaps/m"), "merge", json!({"data": {"a": "2"}})).await.ok(200);
    assert_eq!(world.delete(HOME, Value::Null).await.ok(200)["status"]["phase"], "Terminating");
    for plural in ["pods", "configmaps"] {
        let gone = world.delete(&format!("{HOME}/{plural}"), Value::Null).await.ok(200);
        assert_eq!(gone["items"].as_array().unwrap().len(), 1);
        assert_eq!(world.get(&format!("{HOME}/{plural}")).await.ok(200)["items"], json!([]));
    }
    let emptied = json!({"metadata": {"name": "home"}, "spec": {"finalizers": []}});
    world.put(&format!("{HOME}/finalize"), emptied).await.ok(200);
    assert_eq!(world.get(HOME).await.code, 404);
    assert_eq!(world.get(&format!("{PODS}/a")).await.code, 200, "another namespace's pod");
}

/// A space in which something else happens right before a pod in `home` is written.
struct Interrupted {
    space: Volatile,
    before: Mutex<Option<Txn>>,
}

#[async_trait::async_trait]
impl Kv for Interrupted {
    fn get(&self, key: &str) -> Option<Record> {
        self.space.get(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        self.space.list(prefix, after, limit)
    }

    fn list_at(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Page, Compacted> {
        self.space.list_at(prefix, after, limit, at)
    }

    fn revision(&self) -> Revision {
        self.space.revision()
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        if txn.writes.iter().any(|w| w.key.starts_with("/registry/core/pods/home/")) {
            let first = self.before.lock().unwrap().take();
            if let Some(first) = first {
                self.space.commit(first).await?;
            }
        }
        self.space.commit(txn).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Compacted> {
        self.space.watch(prefix, after)
    }
}

/// A server whose namespace `home` becomes this right before the next pod in it is written.
async fn interrupted(home: Option<Value>) -> World {
    let space = Arc::new(Interrupted { space: Volatile::new(64), before: Mutex::default() });
    let world = World::over(space.clone(), Arc::new(NoKubelets)).await;
    world.made("/api/v1/namespaces", json!({"metadata": {"name": "home"}})).await;
    let key = "/registry/core/namespaces/home".to_owned();
    let value = home.map(|home| home.to_string().into());
    *space.before.lock().unwrap() = Some(Txn { writes: vec![Write { key, expect: Expect::Any, value }] });
    world
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_goes_meanwhile() {
    let world = interrupted(None).await;
    let (_, message) = world.post(HOME_PODS, pod("a")).await.failure(404);
    assert_eq!(message, "namespaces \"home\" not found");
    let leaving = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "home"}, "status": {"phase": "Terminating"}});
    let world = interrupted(Some(leaving)).await;
    assert_eq!(world.post(HOME_PODS, pod("a")).await.failure(403).0, "Forbidden");
    assert_eq!(world.get(HOME_PODS).await.ok(200)["items"], json!([]));
}

#[tokio::test]
async fn a_namespace_that_only_changes_does_not_hold_anybody_up() {
    let labelled =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "home", "labels": {"a": "b"}}});
    let world = interrupted(Some(labelled)).await;
    world.made(HOME_PODS, pod("a")).await;
}
