//! The layout: how a card is divided, `image-builder/layouts/NAME.toml`. Yocto's `.wks`.

use serde::Deserialize;
use toml::Spanned;

/// A card's partitions. MBR, since the Pi 2 and 3 boot from nothing else; so at most four.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The two 512-byte sectors with the boot state, before the first partition: where the crate `slots` has them.
    pub boot_state_sectors: Spanned<[u32; 2]>,
    /// Partitions in the order of the card.
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// What it holds.
    pub role: Spanned<Role>,
    /// Volume label, where the file system has one.
    #[serde(default)]
    pub label: String,
    /// First byte, MiB from the card's start.
    pub start_mib: Spanned<u32>,
    /// Size in MiB; the data partition grows beyond it at first boot.
    pub size_mib: Spanned<u32>,
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// FAT32: firmware, kernels, `bramble.toml`.
    Boot,
    /// Root slot A: a squashfs.
    RootA,
    /// Root slot B: empty until the first update.
    RootB,
    /// ext4: all that is written.
    Data,
}
