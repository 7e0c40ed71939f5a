//! The masquerade rule, by nf_tables over netlink. One table, one chain, one rule, replaced in one transaction:
//!
//! ```text
//! table ip bramble {
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat;
//!         ip saddr POD_CIDR ip daddr != CLUSTER_CIDR oifname != BRIDGE masquerade
//!     }
//! }
//! ```

use crate::Error;
use ipnet::Ipv4Net;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;

const TABLE: &str = "bramble";
const CHAIN: &str = "postrouting";

// From linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const FAMILY_IPV4: u8 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_SRCNAT: u32 = 100;
const REGISTER_1: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const META_OIFNAME: u32 = 7;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const OFFSET_SOURCE: u32 = 12;
const OFFSET_DESTINATION: u32 = 16;
const NESTED: u16 = 0x8000;
const INTERFACE_NAME_LEN: usize = 16;

// From linux/netlink.h.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const MESSAGE_ERROR: u16 = 2;
const HEADER_LEN: usize = 16;
const DONT_WAIT: i32 = 0x40;

/// Installs the rule, in place of an earlier one.
pub(crate) fn masquerade(bridge: &str, pods: Ipv4Net, cluster: Ipv4Net) -> Result<(), Error> {
    commit(&replace_table(bridge, pods, cluster)).map_err(Error::Masquerade)
}

/// Takes it away.
pub(crate) fn remove() -> Result<(), Error> {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
    batch.nft(NEW_TABLE, CREATE, |a| a.string(1, TABLE));
    batch.nft(DELETE_TABLE, ACK, |a| a.string(1, TABLE));
    batch.answer_by_last();
    batch.message(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
    commit(&batch).map_err(Error::Masquerade)
}

fn commit(batch: &Batch) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&batch.bytes, 0)?;
    // The kernel works the batch off while it is being sent: the answers are there now, or there is none.
    loop {
        let mut answer = Vec::with_capacity(8192);
        socket.recv(&mut answer, DONT_WAIT)?;
        if acknowledged(&answer, batch.sequence)? {
            return Ok(());
        }
    }
}

/// Looks through one datagram for an error, or for the acknowledgement of the message `last`.
fn acknowledged(mut datagram: &[u8], last: u32) -> io::Result<bool> {
    let word = |bytes: &[u8], at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or(io::ErrorKind::InvalidData)
    };
    while datagram.len() >= HEADER_LEN {
        let len = word(datagram, 0)? as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let sequence = word(datagram, 8)?;
        if kind == MESSAGE_ERROR {
            match word(datagram, HEADER_LEN)?.cast_signed() {
                0 if sequence == last => return Ok(true),
                0 => {}
                code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            }
        }
        datagram = datagram.get(align(len.max(HEADER_LEN))..).unwrap_or_default();
    }
    Ok(false)
}

fn replace_table(bridge: &str, pods: Ipv4Net, cluster: Ipv4Net) -> Batch {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
    // Added first so that the deletion finds it on a fresh node too.
    batch.nft(NEW_TABLE, CREATE, |a| a.string(1, TABLE));
    batch.nft(DELETE_TABLE, 0, |a| a.string(1, TABLE));
    batch.nft(NEW_TABLE, CREATE, |a| a.string(1, TABLE));
    batch.nft(NEW_CHAIN, CREATE, |a| {
        a.string(1, TABLE);
        a.string(3, CHAIN);
        a.nest(4, |hook| {
            hook.number(1, HOOK_POSTROUTING);
            hook.number(2, PRIORITY_SRCNAT);
        });
        a.string(7, "nat");
    });
    batch.nft(NEW_RULE, CREATE | APPEND | ACK, |a| {
        a.string(1, TABLE);
        a.string(2, CHAIN);
        a.nest(4, |rule| {
            in_network(rule, OFFSET_SOURCE, EQUAL, pods);
            in_network(rule, OFFSET_DESTINATION, NOT_EQUAL, cluster);
            expression(rule, "meta", |e| {
                e.number(1, REGISTER_1);
                e.number(2, META_OIFNAME);
            });
            let mut name = [0; INTERFACE_NAME_LEN];
            name[..bridge.len()].copy_from_slice(bridge.as_bytes());
            compare(rule, NOT_EQUAL, &name);
            expression(rule, "masq", |_| {});
        });
    });
    batch.answer_by_last();
    batch.message(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
    batch
}

/// Compares an address of the packet, masked, with a network.
fn in_network(rule: &mut Attributes<'_>, offset: u32, operator: u32, network: Ipv4Net) {
    expression(rule, "payload", |e| {
        e.number(1, REGISTER_1);
        e.number(2, NETWORK_HEADER);
        e.number(3, offset);
        e.number(4, 4);
    });
    expression(rule, "bitwise", |e| {
        e.number(1, REGISTER_1);
        e.number(2, REGISTER_1);
        e.number(3, 4);
        e.nest(4, |mask| mask.bytes(1, &network.netmask().octets()));
        e.nest(5, |xor| xor.bytes(1, &[0; 4]));
    });
    compare(rule, operator, &network.network().octets());
}

fn compare(rule: &mut Attributes<'_>, operator: u32, value: &[u8]) {
    expression(rule, "cmp", |e| {
        e.number(1, REGISTER_1);
        e.number(2, operator);
        e.nest(3, |data| data.bytes(1, value));
    });
}

fn expression(rule: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    rule.nest(1, |element| {
        element.string(1, name);
        element.nest(2, data);
    });
}

fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// Messages that take effect together or not at all.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    count: u32,
    /// The message whose acknowledgement stands for the whole batch.
    sequence: u32,
}

impl Batch {
    fn nft(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Attributes<'_>)) {
        self.message(SUBSYSTEM << 8 | kind, flags, FAMILY_IPV4, 0, attributes);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.count += 1;
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        attributes(&mut Attributes(&mut self.bytes));
        // Bounded by what this module puts in: a few hundred bytes.
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    fn answer_by_last(&mut self) {
        self.sequence = self.count;
    }
}

/// Writes netlink attributes.
struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.put(kind, |out| out.extend(value));
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn string(&mut self, kind: u16, value: &str) {
        self.put(kind, |out| {
            out.extend(value.as_bytes());
            out.push(0);
        });
    }

    fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        self.put(kind | NESTED, |out| inner(&mut Attributes(out)));
    }

    fn put(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        value(self.0);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(start + align(usize::from(len)), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.extend(MESSAGE_ERROR.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn answers_are_read() {
        assert!(acknowledged(&answer(6, 0), 6).unwrap());
        assert!(!acknowledged(&answer(2, 0), 6).unwrap());
        let both = [answer(2, 0), answer(6, 0)].concat();
        assert!(acknowledged(&both, 6).unwrap());
        assert_eq!(acknowledged(&answer(3, -1), 6).unwrap_err().raw_os_error(), Some(1));
        assert!(acknowledged(&answer(6, 0)[..18], 6).is_err());
        assert!(!acknowledged(&[0; 40], 6).unwrap());
    }

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut bytes = Vec::new();
        Attributes(&mut bytes).nest(4, |a| a.string(1, "nat"));
        assert_eq!(bytes.len(), 12);
        assert_eq!(bytes[..4], [12_u16.to_ne_bytes(), (4 | NESTED).to_ne_bytes()].concat());
        assert_eq!(bytes[4..], [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"nat\0"].concat());
    }
}
