//! A cable pulled, a new lease from DHCP, an interface renamed: the kernel drops routes silently then. This listens to
//! the kernel's own notices and has the peers' routes put in again.

use crate::{Error, Network, routes};
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::sys::SocketAddr;
use std::net::IpAddr;
use std::sync::Weak;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Notices come in bursts; one correction for the whole burst is enough.
const BURST: Duration = Duration::from_millis(200);

pub(crate) type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Asks for the kernel's notices.
pub(crate) fn subscribe(tasks: &mut JoinSet<()>, node_ip: IpAddr) -> Result<Events, Error> {
    let mut groups = vec![MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
    if node_ip.is_ipv6() {
        groups.extend([MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv6Route]);
    }
    let (connection, _, events) = rtnetlink::new_multicast_connection(&groups).map_err(Error::socket)?;
    tasks.spawn(connection);
    Ok(events)
}

/// Calls `told` whenever an address of this machine came or went, for as long as the async runtime lives.
///
/// # Errors
/// When no netlink socket can be had.
pub fn follow_addresses(told: impl Fn() + Send + 'static) -> Result<(), Error> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _, mut events) = rtnetlink::new_multicast_connection(&groups).map_err(Error::socket)?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        while events.next().await.is_some() {
            told();
        }
    });
    Ok(())
}

/// Corrects the routes after each burst of notices, for as long as the network lives.
pub(crate) async fn follow(network: Weak<Network>, mut events: Events) {
    while let Some((event, _)) = events.next().await {
        if !matters(&event) {
            continue;
        }
        let end = Instant::now() + BURST;
        while let Ok(Some(_)) = timeout_at(end, events.next()).await {}
        let Some(network) = network.upgrade() else { return };
        if let Err(error) = network.refresh_peers().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "routes to peers could not be corrected"
            );
        }
    }
}

/// What this crate does itself (it would answer itself for ever), and pods' links coming and going, need no correction.
fn matters(event: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &event.payload {
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewRoute(route) => route.header.protocol != routes::PROTOCOL,
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => !is_ours(link),
            _ => true,
        },
        // An overrun: something was missed.
        _ => true,
    }
}

fn is_ours(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.starts_with("bram"),
        _ => false,
    })
}
