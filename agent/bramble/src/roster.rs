//! Who the members are, as this node knows it: from its own replica of the store, or from what it last heard.

use std::sync::Arc;

use cluster::members::Member;
use store::Kv;
use tokio::sync::watch;

/// Member records live below this key; no API path reaches it.
pub const MEMBERS: &str = "/bramble/members/";
/// The CA's certificate and key.
pub const CA: &str = "/bramble/ca";
/// Cluster id and settings.
pub const CLUSTER: &str = "/bramble/cluster";
/// Join tokens.
pub const TOKENS: &str = "/bramble/tokens/";

/// The present list of members; cheap to clone.
#[derive(Clone, Debug)]
pub struct Roster {
    sender: watch::Sender<Arc<Vec<Member>>>,
}

impl Roster {
    /// Starts from what was last heard.
    pub fn new(members: Vec<Member>) -> Self {
        Self { sender: watch::Sender::new(Arc::new(members)) }
    }

    /// The members now.
    pub fn get(&self) -> Arc<Vec<Member>> {
        self.sender.borrow().clone()
    }

    /// To be told of changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<Member>>> {
        self.sender.subscribe()
    }

    /// The member with a Raft id.
    pub fn by_id(&self, id: u64) -> Option<Member> {
        self.sender.borrow().iter().find(|m| m.id == id).cloned()
    }

    /// The member with a name.
    pub fn by_name(&self, name: &str) -> Option<Member> {
        self.sender.borrow().iter().find(|m| m.name == name).cloned()
    }

    /// Takes a newer list. An empty one is never news: a replica that has nothing yet knows less than the disk.
    pub fn set(&self, members: Vec<Member>) {
        if !members.is_empty() {
            self.sender.send_if_modified(|now| {
                let changed = **now != members;
                if changed {
                    *now = Arc::new(members);
                }
                changed
            });
        }
    }

    /// Follows this node's own replica for ever.
    pub async fn follow(self, kv: Arc<dyn Kv>) {
        loop {
            let page = kv.list(MEMBERS, None, 0);
            self.set(decode(&page));
            let Ok(mut watch) = kv.watch(MEMBERS, page.revision) else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            while watch.next().await.is_some() {
                self.set(decode(&kv.list(MEMBERS, None, 0)));
            }
            // The watch ends when the store closes; then so does this task, by its owner.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}

fn decode(page: &store::Page) -> Vec<Member> {
    page.records.iter().filter_map(|r| serde_json::from_slice(&r.value).ok()).collect()
}
