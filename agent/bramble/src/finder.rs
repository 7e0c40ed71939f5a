//! The last resort of a node that finds nobody where they were: it asks the network who is `bramble.local` and has
//! whoever answers prove which member it is.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cluster::members::Member;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use store::Status;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::dial::{self, Hop};
use crate::peers;
use crate::roster::Roster;

/// Time for answers to a question.
const LISTEN: Duration = Duration::from_secs(1);
/// Between questions.
const APART: Duration = Duration::from_secs(5);
/// Time for one proof.
const PROOF: Duration = Duration::from_secs(3);
/// Strangers looked at after one question. Others on this network may have clusters, too.
const STRANGERS: usize = 16;

/// Finds members that have moved.
pub struct Finder {
    /// This node.
    pub me: Member,
    /// Who there is.
    pub roster: Roster,
    /// What Raft says on this node.
    pub status: watch::Receiver<Status>,
    /// Told when the node finds no leader.
    pub lost: Arc<Notify>,
    /// TLS between members.
    pub tls: Arc<ClientConfig>,
}

impl Finder {
    /// Looks whenever the node is lost.
    pub async fn run(self, own: Ipv4Addr) {
        loop {
            self.lost.notified().await;
            if self.status.borrow().leader.is_none() {
                match dns::mdns::find(own, LISTEN).await {
                    Ok(found) => self.meet(own, found).await,
                    Err(error) => tracing::debug!(%error, "cannot ask who is bramble.local"),
                }
            }
            tokio::time::sleep(APART).await;
        }
    }

    async fn meet(&self, own: Ipv4Addr, found: BTreeSet<Ipv4Addr>) {
        for address in found.into_iter().filter(|a| *a != own).take(STRANGERS) {
            for member in self.roster.get().iter().filter(|m| m.id != self.me.id) {
                match timeout(PROOF, self.prove(member, address)).await {
                    Ok(Ok(())) => {
                        tracing::info!(node = member.name, %address, "found a member by bramble.local");
                        self.roster.hear(&member.key, address.into());
                        break;
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%address, error = format!("{error:#}"), "not {}", member.name);
                    }
                    Err(_) => break,
                }
            }
        }
    }

    /// Succeeds when the host at the address is this member; it then knows where this node is, too.
    async fn prove(&self, member: &Member, address: Ipv4Addr) -> Result<()> {
        let there = Member { addresses: vec![address.into()], ..member.clone() };
        let stream = dial::connect(&there, Hop::Peer).await?;
        let name = ServerName::try_from(member.name.clone())?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        peers::verify(member, stream.get_ref().1.peer_certificates())
    }
}
