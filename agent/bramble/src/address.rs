//! This node's own address: found, checked, and noticed when it changes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::state::NodeState;

/// A lease that is renewed takes the address away and brings it back: only what lasts counts.
const SETTLE: Duration = Duration::from_secs(2);

/// The address that others reach this node at: told, or the one that packets to the outside leave with.
pub fn own(told: Option<IpAddr>) -> Result<IpAddr> {
    match told {
        Some(address) => check(address).map(|()| address),
        // 192.0.2.0/24 is nobody's (RFC 5737).
        None => towards("192.0.2.1".parse()?)
            .context("this node's address cannot be found out: give it with --address"),
    }
}

/// Refuses an address that is not this machine's.
pub fn check(address: IpAddr) -> Result<()> {
    anyhow::ensure!(
        !address.is_loopback() && !address.is_unspecified() && !address.is_multicast(),
        "{address} is no address that other nodes can reach"
    );
    anyhow::ensure!(is_ours(address), "{address} is not an address of this machine (ip address shows them)");
    Ok(())
}

fn is_ours(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != std::io::ErrorKind::AddrNotAvailable,
    }
}

/// The own address of packets to this host. Nothing is sent: connecting a datagram socket only looks up the route.
fn towards(host: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match host {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(SocketAddr::new(host, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// The node's new address, when the one it has is no longer this machine's and there is another.
pub fn moved(config: &Config, state: &NodeState) -> Option<IpAddr> {
    let told = config.address.filter(|a| is_ours(*a));
    let old = state.member.addresses.first().copied()?;
    if told.is_some_and(|told| told != old) {
        return told;
    }
    if is_ours(old) {
        return None;
    }
    let others = state.members.iter().filter(|m| m.name != state.member.name);
    let mut hosts = others.flat_map(|m| m.addresses.iter().copied());
    let found = told.or_else(|| hosts.find_map(|host| towards(host).ok())).or_else(|| own(None).ok());
    found.filter(|new| !new.is_loopback() && *new != old)
}

/// The kernel's news of addresses.
pub struct Changes(Option<mpsc::Receiver<()>>);

impl Changes {
    /// No news, ever.
    pub fn never() -> Self {
        Self(None)
    }

    /// Resolves when addresses have changed and then stayed for a while.
    pub async fn next(&mut self) {
        let Some(news) = &mut self.0 else { return std::future::pending().await };
        if news.recv().await.is_none() {
            self.0 = None;
            return std::future::pending().await;
        }
        while let Ok(Some(())) = tokio::time::timeout(SETTLE, news.recv()).await {}
    }
}

/// Follows this machine's addresses.
pub fn changes() -> Result<Changes> {
    let (sender, receiver) = mpsc::channel(1);
    network::follow_addresses(move || {
        // One that waits is as good as many.
        let _ = sender.try_send(());
    })?;
    Ok(Changes(Some(receiver)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_addresses() {
        assert!(check("127.0.0.1".parse().unwrap()).is_err());
        let error = check("192.0.2.7".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("192.0.2.7 is not an address of this machine"), "{error}");
        assert!(is_ours("127.0.0.1".parse().unwrap()));
    }
}
