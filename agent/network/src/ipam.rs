//! Which pod has which address. Pure: the leases themselves live in the kernel, see the crate's page.

use crate::Error;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The first address of a network, the pods' gateway.
pub(crate) fn gateway(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

/// The addresses of one node.
#[derive(Debug)]
pub(crate) struct Ipam {
    cidr: Ipv4Net,
    leases: BTreeMap<String, Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    /// Next-fit: an address just freed is taken again as late as possible, because others may still remember it.
    next: u32,
}

impl Ipam {
    /// Starts from the leases found; those outside the CIDR (from an earlier one) are kept until they are released.
    pub(crate) fn new(cidr: Ipv4Net, found: impl IntoIterator<Item = (String, Ipv4Addr)>) -> Self {
        let leases: BTreeMap<_, _> = found.into_iter().collect();
        let used: BTreeSet<_> = leases.values().copied().collect();
        let next = used.range(cidr.network()..=cidr.broadcast()).next_back().map_or(0, |a| u32::from(*a) + 1);
        Self { cidr, leases, used, next }
    }

    /// The address of `id`, a new one when it has none inside the CIDR; and whether it is new.
    pub(crate) fn lease(&mut self, id: &str) -> Result<(Ipv4Addr, bool), Error> {
        if let Some(address) = self.leases.get(id).filter(|address| self.cidr.contains(*address)) {
            return Ok((*address, false));
        }
        let address = self.free().ok_or(Error::Exhausted(self.cidr))?;
        self.release(id);
        self.leases.insert(id.to_owned(), address);
        self.used.insert(address);
        self.next = u32::from(address) + 1;
        Ok((address, true))
    }

    fn free(&self) -> Option<Ipv4Addr> {
        // The network's own address, the gateway and the broadcast address are not given out.
        let first = u32::from(self.cidr.network()) + 2;
        let last = u32::from(self.cidr.broadcast()) - 1;
        let start = if (first..=last).contains(&self.next) { self.next } else { first };
        (start..=last).chain(first..start).map(Ipv4Addr::from).find(|address| !self.used.contains(address))
    }

    pub(crate) fn release(&mut self, id: &str) {
        if let Some(address) = self.leases.remove(id) {
            self.used.remove(&address);
        }
    }

    pub(crate) fn address_of(&self, id: &str) -> Option<Ipv4Addr> {
        self.leases.get(id).copied()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.leases.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr() -> Ipv4Net {
        "10.1.3.0/24".parse().unwrap()
    }

    #[test]
    fn addresses_are_unique_until_none_is_left() {
        let mut ipam = Ipam::new(cidr(), []);
        let mut seen = BTreeSet::new();
        for n in 0..253 {
            let (address, fresh) = ipam.lease(&format!("pod-{n}")).unwrap();
            assert!(fresh && seen.insert(address) && cidr().contains(&address));
        }
        for reserved in ["10.1.3.0", "10.1.3.1", "10.1.3.255"] {
            assert!(!seen.contains(&reserved.parse().unwrap()));
        }
        assert!(matches!(ipam.lease("one-more"), Err(Error::Exhausted(_))));
        ipam.release("pod-17");
        assert!(ipam.lease("one-more").unwrap().1);
    }

    #[test]
    fn a_lease_is_kept_and_a_freed_address_rests() {
        let mut ipam = Ipam::new(cidr(), []);
        let (first, _) = ipam.lease("a").unwrap();
        assert_eq!(ipam.lease("a").unwrap(), (first, false));
        ipam.release("a");
        assert_eq!(ipam.address_of("a"), None);
        assert_ne!(ipam.lease("b").unwrap().0, first);
    }

    #[test]
    fn leases_found_are_respected_and_old_networks_are_left() {
        let found =
            [("a".to_owned(), Ipv4Addr::new(10, 1, 3, 2)), ("old".to_owned(), Ipv4Addr::new(10, 1, 9, 2))];
        let mut ipam = Ipam::new(cidr(), found);
        assert_eq!(ipam.lease("a").unwrap(), (Ipv4Addr::new(10, 1, 3, 2), false));
        assert_eq!(ipam.address_of("old"), Some(Ipv4Addr::new(10, 1, 9, 2)));
        assert_eq!(ipam.lease("old").unwrap(), (Ipv4Addr::new(10, 1, 3, 3), true));
        assert_eq!(ipam.ids(), ["a", "old"]);
    }
}
