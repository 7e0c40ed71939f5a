//! Routes of our own: recognised by their protocol number, compared with what is wanted, changed where they differ.

use crate::Error;
use crate::error::{Doing, absent_is_fine, is_errno};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Marks a route as ours; not assigned to any routing daemon.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(98);
const TABLE_LOCAL: u32 = 255;
/// The index of lo in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Where packets for another node's pods go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Via {
    pub(crate) gateway: IpAddr,
    pub(crate) interface: u32,
    /// The source address of the node's own packets, where the interface has none that could be answered.
    pub(crate) source: Option<Ipv4Addr>,
}

/// How an address is reached from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is on a subnet of this interface.
    Link(u32),
    /// There is a router between.
    Routed,
    /// It is one of this node's own addresses.
    Own,
    /// There is no route to it now.
    None,
}

/// Asks the kernel how it would reach an address.
pub(crate) async fn reach(handle: &Handle, address: IpAddr) -> Result<Reach, Error> {
    let prefix_len = if address.is_ipv4() { 32 } else { 128 };
    let query = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, prefix_len)
        .map_err(|error| Error::Config(error.to_string()))?
        .build();
    match handle.route().get(query).execute().try_next().await {
        Ok(Some(route)) => Ok(reach_of(&route)),
        Ok(None) => Ok(Reach::None),
        Err(error)
            if [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL, Errno::ENETDOWN]
                .iter()
                .any(|errno| is_errno(&error, *errno)) =>
        {
            Ok(Reach::None)
        }
        Err(error) => Err(error).doing(|| format!("look up the route to {address}")),
    }
}

fn reach_of(route: &RouteMessage) -> Reach {
    match route.header.kind {
        RouteType::Local => return Reach::Own,
        RouteType::Unicast => {}
        _ => return Reach::None,
    }
    match via_of(route) {
        (Some(_), _) => Reach::Routed,
        (None, Some(interface)) => Reach::Link(interface),
        (None, None) => Reach::None,
    }
}

fn via_of(route: &RouteMessage) -> (Option<IpAddr>, Option<u32>) {
    let mut via = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via.0 = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => via.0 = Some(IpAddr::V6(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => via.0 = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => via.1 = Some(*index),
            _ => {}
        }
    }
    via
}

/// Makes the whole network local to this node, so that any of its addresses can be bound, and takes away what an
/// earlier configuration made local.
pub(crate) async fn make_local(handle: &Handle, network: Ipv4Net) -> Result<(), Error> {
    let mut there = false;
    for route in ours(handle).await?.into_iter().filter(|route| route.header.kind == RouteType::Local) {
        if destination(&route) == Some(network) {
            there = true;
        } else {
            delete(handle, route).await?;
        }
    }
    if there {
        return Ok(());
    }
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .table_id(TABLE_LOCAL)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .protocol(PROTOCOL)
        .destination_prefix(network.network(), network.prefix_len())
        .output_interface(LOOPBACK_INDEX)
        .build();
    handle.route().add(route).replace().execute().await.doing(|| format!("make {network} local"))
}

/// Removes all of ours.
pub(crate) async fn remove(handle: &Handle) -> Result<(), Error> {
    for route in ours(handle).await? {
        delete(handle, route).await?;
    }
    Ok(())
}

/// Makes the kernel's routes of ours those wanted. All are tried; the first error is returned.
pub(crate) async fn reconcile(handle: &Handle, wanted: &BTreeMap<Ipv4Net, Via>) -> Result<(), Error> {
    let mut current = BTreeMap::new();
    let mut outcome = Ok(());
    for route in ours(handle).await?.into_iter().filter(|route| route.header.kind == RouteType::Unicast) {
        let Some(network) = destination(&route) else { continue };
        if wanted.contains_key(&network) {
            current.insert(network, via(&route));
        } else {
            outcome = outcome.and(delete(handle, route).await);
        }
    }
    for (network, via) in wanted {
        if current.get(network) != Some(&Some(*via)) {
            outcome = outcome.and(put(handle, *network, via).await);
        }
    }
    outcome
}

async fn put(handle: &Handle, network: Ipv4Net, via: &Via) -> Result<(), Error> {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(PROTOCOL)
        .destination_prefix(network.network(), network.prefix_len())
        .output_interface(via.interface)
        .onlink();
    route = match via.gateway {
        IpAddr::V4(gateway) => route.gateway(gateway),
        IpAddr::V6(gateway) => route.via(gateway),
    };
    if let Some(source) = via.source {
        route = route.pref_source(source);
    }
    let put = handle.route().add(route.build()).replace().execute().await;
    put.doing(|| format!("route {network} via {}", via.gateway))
}

async fn delete(handle: &Handle, route: RouteMessage) -> Result<(), Error> {
    absent_is_fine(handle.route().del(route).execute().await).doing(|| "remove a route".into())
}

fn via(route: &RouteMessage) -> Option<Via> {
    let (Some(gateway), Some(interface)) = via_of(route) else { return None };
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    Some(Via { gateway, interface, source })
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Ipv4Net::new(*address, route.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

async fn ours(handle: &Handle) -> Result<Vec<RouteMessage>, Error> {
    let mut any = RouteMessageBuilder::<Ipv4Addr>::new().build();
    any.header.table = RouteHeader::RT_TABLE_UNSPEC;
    let routes: Vec<RouteMessage> =
        handle.route().get(any).execute().try_collect().await.doing(|| "list the routes".into())?;
    Ok(routes.into_iter().filter(|route| route.header.protocol == PROTOCOL).collect())
}
