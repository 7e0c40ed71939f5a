//! The tunnel to peers behind a router: one VXLAN device, no multicast and no learning. Each peer's tunnel end has a
//! hardware address that follows from its pod CIDR, so that nodes need not tell each other.

use crate::error::{Doing, absent_is_fine};
use crate::links::{self, mac_of};
use crate::{Config, Error};
use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// What the outer headers take from the MTU.
pub(crate) const OVERHEAD: u32 = 50;
pub(crate) const NAME: &str = "bramble.vx";
const NETWORK_ID: u32 = 1;

/// The tunnel ends of the peers: the gateway of the peer's pods to the peer's address.
pub(crate) type Tunnels = BTreeMap<Ipv4Addr, IpAddr>;

/// Makes the device, or corrects the one that is there, and returns its index.
pub(crate) async fn ensure(handle: &Handle, config: &Config, mtu: u32) -> Result<u32, Error> {
    let mut link = links::find(handle, NAME).await?;
    if let Some(found) = link.as_ref().filter(|found| !fits(found, config)) {
        links::delete(handle, found.header.index).await?;
        link = None;
    }
    let index = match link {
        Some(link) => link.header.index,
        None => create(handle, config).await?,
    };
    let change = LinkUnspec::new_with_index(index).address(mac_of(config.gateway()).to_vec()).mtu(mtu).up();
    handle.link().set(change.build()).execute().await.doing(|| format!("set up {NAME}"))?;
    Ok(index)
}

async fn create(handle: &Handle, config: &Config) -> Result<u32, Error> {
    let device = LinkVxlan::new(NAME, NETWORK_ID).port(config.vxlan_port).learning(false);
    let device = match config.node_ip {
        IpAddr::V4(address) => device.local(address),
        IpAddr::V6(address) => device.local6(address),
    };
    handle.link().add(device.build()).execute().await.doing(|| format!("create {NAME}"))?;
    let link = links::find(handle, NAME).await?.ok_or_else(|| Error::Missing(NAME.into()))?;
    Ok(link.header.index)
}

/// Whether a device that is there was made for this configuration; these things cannot be changed afterwards.
fn fits(link: &LinkMessage, config: &Config) -> bool {
    let data: Vec<&InfoVxlan> = links::infos(link)
        .flat_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => data.as_slice(),
            _ => &[],
        })
        .collect();
    let local = match config.node_ip {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    links::kind(link) == Some(&InfoKind::Vxlan)
        && [InfoVxlan::Id(NETWORK_ID), InfoVxlan::Port(config.vxlan_port), local]
            .iter()
            .all(|wanted| data.contains(&wanted))
}

/// Removes the device when no peer needs it.
pub(crate) async fn remove(handle: &Handle) -> Result<(), Error> {
    match links::find(handle, NAME).await? {
        Some(link) => links::delete(handle, link.header.index).await,
        None => Ok(()),
    }
}

/// Makes the device know these tunnel ends and no others.
pub(crate) async fn reconcile(handle: &Handle, index: u32, wanted: &Tunnels) -> Result<(), Error> {
    let mut outcome = Ok(());
    for family in [AddressFamily::Inet, AddressFamily::Bridge] {
        for message in entries(handle, index, family).await? {
            if !is_wanted(&message, wanted) {
                let delete = handle.neighbours().del(message).execute().await;
                outcome = outcome.and(absent_is_fine(delete).doing(|| "forget a tunnel's end".into()));
            }
        }
    }
    for (gateway, address) in wanted {
        outcome = outcome.and(put(handle, index, *gateway, *address).await);
    }
    outcome
}

async fn put(handle: &Handle, index: u32, gateway: Ipv4Addr, address: IpAddr) -> Result<(), Error> {
    let mac = mac_of(gateway);
    let neighbour = handle.neighbours().add(index, IpAddr::V4(gateway)).link_layer_address(&mac).replace();
    neighbour.execute().await.doing(|| format!("set the neighbour {gateway}"))?;
    let end =
        handle.neighbours().add_bridge(index, &mac).destination(address).flags(NeighbourFlags::Own).replace();
    end.execute().await.doing(|| format!("set the tunnel's end {address}"))
}

/// The device's permanent entries, reduced to what a deletion needs.
async fn entries(handle: &Handle, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>, Error> {
    let all: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(family)
        .execute()
        .try_collect()
        .await
        .doing(|| "list the neighbours".into())?;
    let ours = |message: &NeighbourMessage| {
        message.header.ifindex == index && message.header.state == NeighbourState::Permanent
    };
    Ok(all
        .into_iter()
        .filter(ours)
        .map(|mut message| {
            message.attributes.retain(|attribute| {
                matches!(
                    attribute,
                    NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_)
                )
            });
            message
        })
        .collect())
}

fn is_wanted(message: &NeighbourMessage, wanted: &Tunnels) -> bool {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found))
            }
            NeighbourAttribute::LinkLayerAddress(found) => mac = Some(found.as_slice()),
            _ => {}
        }
    }
    wanted.iter().any(|(gateway, end)| {
        let known = if message.header.family == AddressFamily::Inet { IpAddr::V4(*gateway) } else { *end };
        address == Some(known) && mac == Some(&mac_of(*gateway))
    })
}
