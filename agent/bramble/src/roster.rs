//! Who the members are, as this node knows it: from its own replica of the store, or from what it last heard.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// By key, where a member called from that is not on its record: it has moved, and its record will follow once
    /// the cluster can write again, for which it may have to be reached there.
    heard: Arc<Mutex<HashMap<String, IpAddr>>>,
}

impl Roster {
    /// Starts from what was last heard.
    pub fn new(members: Vec<Member>) -> Self {
        Self { sender: watch::Sender::new(Arc::new(members)), heard: Arc::default() }
    }

    /// The members now.
    pub fn get(&self) -> Arc<Vec<Member>> {
        self.sender.borrow().clone()
    }

    /// To be told of changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<Member>>> {
        self.sender.subscribe()
    }

    /// The member with a Raft id, with where it was last heard from.
    pub fn by_id(&self, id: u64) -> Option<Member> {
        let member = self.sender.borrow().iter().find(|m| m.id == id).cloned();
        member.map(|m| self.heard_from(m))
    }

    /// The member with a name, with where it was last heard from.
    pub fn by_name(&self, name: &str) -> Option<Member> {
        let member = self.sender.borrow().iter().find(|m| m.name == name).cloned();
        member.map(|m| self.heard_from(m))
    }

    /// A member has proved its key on a stream from this address.
    pub fn hear(&self, key: &str, from: IpAddr) {
        let from = from.to_canonical();
        let members = self.get();
        let Some(member) = members.iter().find(|m| m.key == key) else { return };
        let mut heard = self.heard();
        heard.retain(|key, _| members.iter().any(|m| m.key == *key));
        if member.addresses.contains(&from) {
            heard.remove(key);
        } else {
            heard.insert(key.to_owned(), from);
        }
    }

    fn heard_from(&self, mut member: Member) -> Member {
        if let Some(address) = self.heard().get(&member.key).filter(|a| !member.addresses.contains(a)) {
            member.addresses.insert(0, *address);
        }
        member
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<String, IpAddr>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_moved_is_found_where_it_called_from() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (old, new) = (address("192.168.1.5"), address("192.168.1.9"));
        let member = |addresses| Member {
            name: "a".into(),
            id: 7,
            addresses,
            port: 6443,
            vote: true,
            key: "k".into(),
            format: 0,
        };
        let roster = Roster::new(vec![member(vec![old])]);
        roster.hear("somebody else's", new);
        assert_eq!(roster.by_id(7).unwrap().addresses, [old]);
        roster.hear("k", address("::ffff:192.168.1.9"));
        assert_eq!(roster.by_id(7).unwrap().addresses, [new, old]);
        assert_eq!(roster.get()[0].addresses, [old], "its record is its own to change");
        roster.set(vec![member(vec![new])]);
        assert_eq!(roster.by_name("a").unwrap().addresses, [new]);
        // And back again.
        roster.set(vec![member(vec![old])]);
        roster.hear("k", old);
        assert_eq!(roster.by_id(7).unwrap().addresses, [old]);
    }
}
