//! Boots the very card image under QEMU and drives it over the serial line.
//!
//! QEMU has no Raspberry Pi firmware, so [`firmware`] plays it: it reads `config.txt`, the kernel, the initramfs, the
//! device tree and the command line out of the image's FAT at every power-on, as the firmware would. [`Guest`] is one
//! machine: power on, type, read, reboot, pull the plug. [`Card`] is its card: a copy of the image, grown to a card's
//! size; [`Writes`] makes cards as power cuts leave them. [`Hub`] is a network between guests that can be cut, lossy and
//! slow, [`Server`] a web server for them and [`Registry`] one for container images.
//! [`image_of`] and [`with_layer`] bake an image of another board or with a layer of a user's.
//!
//! Every wait has a limit; what the console said until then is in the error and in `out/qemu/NAME.log`.

mod bake;
mod card;
pub mod checks;
mod console;
pub mod firmware;
mod guest;
mod hub;
mod registry;
mod server;
mod writes;

pub use bake::{GREETING, image_of, with_layer};
pub use card::Card;
pub use console::Output;
pub use guest::{Guest, Machine, Net};
pub use hub::{Hub, Line, UPLINK};
pub use registry::Registry;
pub use server::Server;
pub use writes::{Cut, Writes};

use std::path::PathBuf;

/// The repository's `out/`.
pub fn out() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../out")
}
