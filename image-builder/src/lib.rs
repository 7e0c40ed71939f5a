//! Builds the SD-card image: board config + layers of recipes -> locked Debian packages -> one tree -> card image.
//!
//! Everything runs as an ordinary user: no root, no loop devices, no maintainer scripts, no emulation. The same inputs
//! give the same bytes.

pub mod schema;
