//! Who belongs to the cluster, how they prove it, and who votes.
//!
//! Four small parts, all free of sockets and clocks:
//!
//! * [`pki`]: the cluster's CA, the certificates it signs and the rustls configurations made of them. A node is its
//!   key: its certificate names the node, never relies on an address, and is back-dated because a Pi boots without
//!   a clock.
//! * [`join`]: the mutual proof of a shared secret, bound to the TLS channel, that comes before either side trusts
//!   the other.
//! * [`members`]: the record of each member, and the pure plan that keeps one, three or five of them voting.
//! * [`ledger`]: small state files that are old or new after a power cut, never half.
//!
//! `bramble` feeds it: the CA and member records live in the replicated store, the node's own key in its data folder.

pub mod join;
pub mod ledger;
pub mod members;
pub mod pki;
