//! Builds the SD-card image: board config + layers of recipes -> locked Debian packages -> one tree -> card image.
//!
//! Everything runs as an ordinary user: no root, no loop devices, no maintainer scripts, no emulation. The same inputs
//! give the same bytes.
//!
//! How data flows: `schema` reads what people wrote. `lock` is made by `locking`, which trusts Debian's signature
//! (`release`) and, by hash, what hangs below it (`control`), and picks packages (`resolve`, `version`). `cache` fetches
//! what is locked.

pub mod cache;
pub mod cli;
pub mod control;
pub mod hash;
pub mod lock;
pub mod locking;
pub mod net;
pub mod project;
pub mod release;
pub mod resolve;
pub mod schema;
#[cfg(test)]
mod testing;
pub mod version;
