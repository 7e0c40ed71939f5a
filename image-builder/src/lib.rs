//! Builds the SD-card image: board config + layers of recipes -> locked Debian packages -> one tree -> card image.
//!
//! Everything runs as an ordinary user: no root, no loop devices, no maintainer scripts, no emulation. The same inputs
//! give the same bytes.
//!
//! How data flows: `schema` reads what people wrote, `project` puts it together. `locking` makes the `lock`: it trusts
//! Debian's signature (`release`) and, by hash, what hangs below it (`control`), and picks packages (`resolve`,
//! `version`). `cache` fetches what is locked. `bake` runs the rest: `deb` unpacks into a `tree`; `system` applies the
//! recipes and does what maintainer scripts would have done (`users`, `units`, `kernel`); `initramfs`, `boot`,
//! `squashfs`, `fat` and `ext4` make the file systems, `card` the image, `sbom` the bill of materials. `inspect` takes an
//! image apart again.
//!
//! From a finished image, `update_bundle` makes what running nodes update from, `os_list` what Raspberry Pi Imager reads,
//! and `flash` writes cards. `deb_package` is the agent for a system that is there already.

pub mod bake;
pub mod boot;
mod boot_partition;
pub mod cache;
pub mod card;
pub mod cli;
pub mod control;
pub mod deb;
pub mod deb_package;
pub mod ext4;
pub mod fat;
pub mod flash;
pub mod hash;
pub mod initramfs;
pub mod inspect;
pub mod kernel;
pub mod lock;
pub mod locking;
pub mod net;
pub mod os_list;
pub mod project;
pub mod release;
pub mod resolve;
pub mod sbom;
pub mod schema;
pub mod squashfs;
pub mod system;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_card;
pub mod toolchain;
pub mod tools;
pub mod tree;
pub mod units;
pub mod update_bundle;
pub mod users;
pub mod version;
