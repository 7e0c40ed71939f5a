//! The node's links: loopback, the bridge, MTUs, kernel switches.

use crate::Error;
use crate::error::{Doing, absent_is_fine, is_errno};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Taken when the node's link is not known (yet).
const DEFAULT_MTU: u32 = 1500;

/// A locally administered hardware address that follows from an IP address: two nodes agree on it without talking,
/// and an address given to a new pod does not leave stale neighbours behind.
pub(crate) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x62, a, b, c, d]
}

/// The bridge of the pods.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    /// The node link's MTU.
    full_mtu: u32,
    /// What pods get now: less than `full_mtu` while VXLAN is in use.
    mtu: AtomicU32,
}

impl Bridge {
    /// Makes the bridge, or corrects the one that is there.
    pub(crate) async fn ensure(
        handle: &Handle,
        name: &str,
        gateway: Ipv4Addr,
        cidr: Ipv4Net,
        mtu: u32,
    ) -> Result<Bridge, Error> {
        if find(handle, name).await?.is_none() {
            let add = handle.link().add(LinkBridge::new(name).build()).execute().await;
            add.doing(|| format!("create the bridge {name}"))?;
        }
        let link = find(handle, name).await?.ok_or_else(|| Error::Missing(name.to_owned()))?;
        if kind(&link) != Some(&InfoKind::Bridge) {
            return Err(Error::Taken { name: name.to_owned(), why: "not a bridge" });
        }
        let index = link.header.index;
        // A bridge without a hardware address of its own takes on its lowest port's, and changes it with the ports.
        let mut change = LinkUnspec::new_with_index(index).address(mac_of(gateway).to_vec()).up();
        // A bridge that was lowered for VXLAN stays so until the peers are known again.
        let lowered = mtu.saturating_sub(crate::vxlan::OVERHEAD);
        let current = mtu_of(&link).filter(|current| *current == lowered).unwrap_or(mtu);
        change = change.mtu(current);
        handle.link().set(change.build()).execute().await.doing(|| format!("set up the bridge {name}"))?;
        set_only_address(handle, index, gateway, cidr.prefix_len()).await?;
        Ok(Bridge { index, full_mtu: mtu, mtu: AtomicU32::new(current) })
    }

    /// What new pods get.
    pub(crate) fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    pub(crate) fn full_mtu(&self) -> u32 {
        self.full_mtu
    }

    /// Lowers or raises the bridge's MTU. Pods that are there keep theirs; path MTU discovery covers them.
    pub(crate) async fn set_mtu(&self, handle: &Handle, mtu: u32) -> Result<(), Error> {
        if self.mtu() != mtu {
            let change = LinkUnspec::new_with_index(self.index).mtu(mtu).build();
            handle.link().set(change).execute().await.doing(|| format!("set the bridge's MTU to {mtu}"))?;
            self.mtu.store(mtu, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The link of that name.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, Error> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(error) if is_errno(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(error).doing(|| format!("look up the interface {name}")),
    }
}

/// Every link of the namespace.
pub(crate) async fn list(handle: &Handle) -> Result<Vec<LinkMessage>, Error> {
    handle.link().get().execute().try_collect().await.doing(|| "list the interfaces".into())
}

/// Deletes a link; it may be gone already.
pub(crate) async fn delete(handle: &Handle, index: u32) -> Result<(), Error> {
    absent_is_fine(handle.link().del(index).execute().await).doing(|| format!("delete interface {index}"))
}

pub(crate) fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    infos(link).find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// The kind-specific parts of a link.
pub(crate) fn infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    link.attributes.iter().flat_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.as_slice(),
        _ => &[],
    })
}

pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

pub(crate) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(crate) fn alias_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

/// The index of the other end of a veth pair.
pub(crate) fn peer_index(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// Brings the loopback of the namespace up.
pub(crate) async fn loopback_up(handle: &Handle) -> Result<(), Error> {
    let up = LinkUnspec::new_with_name("lo").up().build();
    handle.link().set(up).execute().await.doing(|| "bring lo up".into())
}

/// Makes `address` the only IPv4 address of a link.
pub(crate) async fn set_only_address(
    handle: &Handle,
    index: u32,
    address: Ipv4Addr,
    prefix_len: u8,
) -> Result<(), Error> {
    let mut there = false;
    for message in addresses(handle).await?.into_iter().filter(|m| m.header.index == index) {
        match local_address(&message) {
            Some(IpAddr::V4(found)) if found == address && message.header.prefix_len == prefix_len => {
                there = true
            }
            Some(IpAddr::V4(found)) => {
                absent_is_fine(handle.address().del(message).execute().await)
                    .doing(|| format!("remove the address {found}"))?;
            }
            _ => {}
        }
    }
    if !there {
        let add = handle.address().add(index, IpAddr::V4(address), prefix_len).replace().execute().await;
        add.doing(|| format!("add the address {address}"))?;
    }
    Ok(())
}

async fn addresses(handle: &Handle) -> Result<Vec<AddressMessage>, Error> {
    handle.address().get().execute().try_collect().await.doing(|| "list the addresses".into())
}

fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// The MTU of the link that has the node's address.
pub(crate) async fn node_mtu(handle: &Handle, node_ip: IpAddr) -> Result<u32, Error> {
    let addresses = addresses(handle).await?;
    let index = addresses.iter().find(|m| local_address(m) == Some(node_ip)).map(|m| m.header.index);
    let links = list(handle).await?;
    let mtu = links.iter().find(|link| Some(link.header.index) == index).and_then(mtu_of);
    // A node whose address is on lo has lo's 64 KiB, which no wire carries.
    Ok(mtu.filter(|mtu| (576..=9216).contains(mtu)).unwrap_or(DEFAULT_MTU))
}

/// The node routes between its pods and the world.
pub(crate) fn enable_forwarding() -> Result<(), Error> {
    sysctl("net/ipv4/ip_forward", "1")
}

/// Sets a kernel switch of the calling thread's namespace, unless it is set already (/proc/sys may be read-only).
pub(crate) fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys").join(name);
    let current = std::fs::read_to_string(&path).map_err(|error| Error::file("read", &path, error))?;
    if current.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|error| Error::file("write", &path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_follow_from_addresses() {
        assert_eq!(mac_of(Ipv4Addr::new(10, 1, 3, 7)), [0x0a, 0x62, 10, 1, 3, 7]);
    }
}
