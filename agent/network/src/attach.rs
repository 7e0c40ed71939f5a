//! A pod's link: a veth pair, one end in the pod as `eth0`, the other a port of the bridge. The host end's alias says
//! whose it is and which address it holds.

use crate::error::Doing;
use crate::ipam::Ipam;
use crate::links::{self, mac_of};
use crate::netns::Namespace;
use crate::{Error, Network};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::{Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::Ipv4Addr;

const POD_INTERFACE: &str = "eth0";
const LINK_PREFIX: &str = "bram";
/// The kernel's limit on an interface's name, without the terminating zero.
const LINK_NAME_LEN: usize = 15;
const ALIAS_TAG: &str = "bramble";
/// Keeps the alias below the kernel's 256 bytes.
const MAX_ID_LEN: usize = 128;

/// An id goes into an interface's alias, so it must be one plain word.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if id.is_empty() || id.len() > MAX_ID_LEN || !id.chars().all(plain) {
        return Err(Error::InvalidId(id.chars().take(MAX_ID_LEN).collect()));
    }
    Ok(())
}

/// The host end's name, from a hash (FNV-1a) of the id, as an id does not fit.
fn link_name(id: &str) -> String {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{LINK_PREFIX}{:011x}", hash >> 20)
}

fn is_pod_link(link: &LinkMessage) -> bool {
    let is_name = |name: &str| {
        name.len() == LINK_NAME_LEN
            && name.strip_prefix(LINK_PREFIX).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    links::kind(link) == Some(&InfoKind::Veth) && links::name_of(link).is_some_and(is_name)
}

fn alias(id: &str, address: Ipv4Addr) -> String {
    format!("{ALIAS_TAG} {id} {address}")
}

fn lease_in(alias: &str) -> Option<(String, Ipv4Addr)> {
    let mut words = alias.split(' ');
    let (tag, id, address) = (words.next()?, words.next()?, words.next()?);
    (tag == ALIAS_TAG && words.next().is_none() && check_id(id).is_ok())
        .then(|| Some((id.to_owned(), address.parse().ok()?)))?
}

/// Reads the leases back from the links, and removes links whose making was cut short.
pub(crate) async fn read_leases(handle: &Handle, cidr: Ipv4Net) -> Result<Ipam, Error> {
    let mut leases = Vec::new();
    for link in links::list(handle).await?.iter().filter(|link| is_pod_link(link)) {
        match links::alias_of(link).and_then(lease_in) {
            Some(lease) => leases.push(lease),
            None => links::delete(handle, link.header.index).await?,
        }
    }
    Ok(Ipam::new(cidr, leases))
}

/// Makes or mends the link of one pod.
pub(crate) async fn attach(
    network: &Network,
    id: &str,
    address: Ipv4Addr,
    namespace: Namespace,
) -> Result<(), Error> {
    let index = match existing(network, id, address, &namespace).await? {
        Some(index) => index,
        None => create(network, id, address, &namespace).await?,
    };
    let handle = &network.handle;
    let port =
        LinkUnspec::new_with_index(index).alias(alias(id, address)).controller(network.bridge.index).up();
    handle.link().set(port.build()).execute().await.doing(|| format!("put {id} on the bridge"))?;
    // A pod that reaches itself through a service address must get its own packets back.
    let hairpin = LinkBridgePort::new(index).hairpin(true).build();
    handle.link().set_port(hairpin).execute().await.doing(|| format!("set hairpin mode for {id}"))?;
    let (prefix_len, gateway) = (network.config.pod_cidr.prefix_len(), network.config.gateway());
    namespace.run(move |handle| async move { configure(&handle, address, prefix_len, gateway).await }).await
}

/// The index of the host end, if the pair is whole, connects this very namespace and holds this address.
async fn existing(
    network: &Network,
    id: &str,
    address: Ipv4Addr,
    namespace: &Namespace,
) -> Result<Option<u32>, Error> {
    let name = link_name(id);
    let Some(link) = links::find(&network.handle, &name).await? else { return Ok(None) };
    let index = link.header.index;
    let lease = links::alias_of(&link).and_then(lease_in);
    if lease.as_ref().is_some_and(|(owner, _)| owner != id) {
        return Err(Error::Taken { name, why: "another pod's" });
    }
    let whole = lease.is_some_and(|(_, held)| held == address)
        && namespace
            .run(move |handle| async move {
                let inner = links::find(&handle, POD_INTERFACE).await?;
                Ok(inner.as_ref().and_then(links::peer_index) == Some(index))
            })
            .await?;
    if whole {
        return Ok(Some(index));
    }
    links::delete(&network.handle, index).await?;
    Ok(None)
}

async fn create(network: &Network, id: &str, address: Ipv4Addr, namespace: &Namespace) -> Result<u32, Error> {
    let (name, mtu) = (link_name(id), network.bridge.mtu());
    // The pod's end is born in the pod's namespace under its final name: there is no half-way state to clean up.
    let inner = LinkMessageBuilder::<LinkUnspec>::new()
        .name(POD_INTERFACE)
        .address(mac_of(address).to_vec())
        .mtu(mtu)
        .setns_by_fd(namespace.raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name.clone())
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inner)))
        .build();
    network.handle.link().add(pair).execute().await.doing(|| format!("create the veth pair of {id}"))?;
    let link = links::find(&network.handle, &name).await?.ok_or(Error::Missing(name))?;
    Ok(link.header.index)
}

/// Sets up the pod's side. Runs in the pod's namespace.
async fn configure(
    handle: &Handle,
    address: Ipv4Addr,
    prefix_len: u8,
    gateway: Ipv4Addr,
) -> Result<(), Error> {
    // Hairpin mode shows an interface its own neighbour solicitations, which duplicate address detection takes for a
    // clash. Without IPv6 in the kernel, or with /proc/sys read-only, there is nothing to switch off.
    let _ = links::sysctl("net/ipv6/conf/eth0/accept_dad", "0");
    links::loopback_up(handle).await?;
    let link =
        links::find(handle, POD_INTERFACE).await?.ok_or_else(|| Error::Missing(POD_INTERFACE.into()))?;
    let index = link.header.index;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.doing(|| "bring the pod's eth0 up".into())?;
    links::set_only_address(handle, index, address, prefix_len).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(RouteProtocol::Static)
        .gateway(gateway)
        .output_interface(index)
        .build();
    handle.route().add(route).replace().execute().await.doing(|| "set the pod's default route".into())
}

/// Removes the pod's link, both ends of it.
pub(crate) async fn detach(handle: &Handle, id: &str) -> Result<(), Error> {
    let Some(link) = links::find(handle, &link_name(id)).await? else { return Ok(()) };
    match links::alias_of(&link).and_then(lease_in) {
        Some((owner, _)) if owner != id => Ok(()),
        _ => links::delete(handle, link.header.index).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_words() {
        for good in ["a", "3f0c9a", "kube-system_dns.1", "uid:7"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "a\n", &"a".repeat(129)] {
            assert!(matches!(check_id(bad), Err(Error::InvalidId(_))), "{bad}");
        }
    }

    #[test]
    fn a_lease_survives_being_an_alias() {
        let address = Ipv4Addr::new(10, 1, 3, 7);
        assert_eq!(lease_in(&alias("pod-1", address)), Some(("pod-1".into(), address)));
        for other in
            ["", "uplink", "bramble pod-1", "bramble pod-1 10.1.3", "bramble a 10.1.3.7 b", "x a 10.1.3.7"]
        {
            assert_eq!(lease_in(other), None, "{other}");
        }
    }

    #[test]
    fn link_names_fit_and_differ() {
        let names: std::collections::BTreeSet<_> =
            (0..1000).map(|n| link_name(&format!("pod-{n}"))).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == LINK_NAME_LEN));
    }
}
