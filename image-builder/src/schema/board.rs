//! The board config: Yocto's "machine", one file in `board-configs/` for each kind of board.

use serde::Deserialize;
use toml::Spanned;

/// Debian's name of an architecture that a board can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86: no board has it; the `.deb` for an existing machine does.
    Amd64,
    /// 64-bit ARM: Pi 3, 4, Zero 2.
    Arm64,
    /// 32-bit ARM with hardware floating point: Pi 2.
    Armhf,
}

impl Arch {
    /// Debian's spelling.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Armhf => "armhf",
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.debian())
    }
}

/// `board-configs/NAME.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// What the board is called in sentences: "Raspberry Pi 3 Model B, B+ and A+".
    pub description: String,
    /// Debian's architecture.
    pub arch: Arch,
    /// Rust's target triple of the agent and of `/init`.
    pub target: String,
    /// Debian suite whose lock the image is made from: `image-builder/suites/SUITE.toml`.
    pub suite: String,
    /// Partition layout: `image-builder/layouts/LAYOUT.toml`.
    pub layout: String,
    /// Kernel package, usually the meta package (`linux-image-arm64`): the lock pins the version it stands for.
    pub kernel: Spanned<String>,
    /// Words that a recipe's `when.features` can ask for: `wifi`, `bluetooth`, `usb-net`, ...
    #[serde(default)]
    pub features: Vec<String>,
    /// Device trees, taken from the kernel package and laid in each slot's folder on the boot partition.
    pub dtbs: Vec<Dtb>,
    /// Boot firmware.
    pub firmware: Firmware,
    /// Values of `console=` for the kernel, in order; the last one is `/dev/console`.
    pub consoles: Vec<String>,
    /// Further words of the kernel's command line. `console=` and `bramble.slot=` are added by the builder.
    #[serde(default)]
    pub cmdline: Vec<Spanned<String>>,
    /// Lines of config.txt. `os_prefix=`, `kernel=` and `initramfs` are added by the builder.
    #[serde(default)]
    pub config_txt: Vec<Spanned<String>>,
    /// What Raspberry Pi Imager calls the boards that this image is for.
    #[serde(default)]
    pub imager_devices: Vec<String>,
    /// How QEMU plays this board, where it can.
    pub qemu: Option<Qemu>,
}

/// One device tree.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dtb {
    /// File name in the kernel package, without its folder: `bcm2837-rpi-3-b.dtb`.
    pub file: Spanned<String>,
    /// Other names under which some firmware asks for it; each becomes a copy.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// Boot firmware out of a package.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// Package that has it.
    pub package: Spanned<String>,
    /// File names, found anywhere in the package, laid at the top of the boot partition.
    pub files: Vec<Spanned<String>>,
}

/// How QEMU plays the board; read by `tests/qemu`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// `-M`.
    pub machine: String,
    /// `-dtb`, one of `dtbs`.
    pub dtb: String,
    /// Index of the `-serial` that carries the console.
    #[serde(default)]
    pub serial: u8,
}
