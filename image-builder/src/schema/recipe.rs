//! Layers and recipes: what is in the system.
//!
//! A layer is a folder: `layer.toml` and `recipes/NAME/*.toml`. Each of those `.toml` files is a recipe; the files it
//! names are in `recipes/NAME/files/`. Recipes are applied in the order of their layers, then of their paths; a later
//! one wins where two lay the same file. Every recipe has one condition (`when`); what differs by architecture or
//! board goes into a second recipe beside the first, as in `network/wifi.toml`.

use super::Arch;
use serde::Deserialize;
use toml::Spanned;

/// `layer.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerConfig {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
}

/// When a recipe takes part. Each list that is given must match; none given: always.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The board's architecture is one of these.
    #[serde(default)]
    pub arch: Vec<Arch>,
    /// The board (its file name: `rpi-3`) is one of these.
    #[serde(default)]
    pub boards: Vec<String>,
    /// The board has all these features.
    #[serde(default)]
    pub features: Vec<String>,
    /// The board has none of these features.
    #[serde(default)]
    pub without: Vec<String>,
}

/// One recipe: `recipes/NAME/*.toml`. Paths inside the image are absolute (`/etc/hostname`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What it brings, one sentence.
    #[serde(default)]
    pub description: String,
    /// Its condition.
    #[serde(default)]
    pub when: When,
    /// Debian packages, taken with all that they depend on (not what they recommend).
    #[serde(default)]
    pub packages: Vec<Spanned<String>>,
    /// Debian packages left out although something depends on them; their dependants are taken without them.
    #[serde(default)]
    pub exclude: Vec<Spanned<String>>,
    /// Globs of paths dropped from what packages bring: `/usr/share/doc/**`. `**` crosses folders, `*` and `?` do not.
    /// What `files`, `trees`, `directories` and `symlinks` lay is never dropped.
    #[serde(default)]
    pub remove: Vec<Spanned<String>>,
    /// Globs that `remove` (of any recipe) leaves alone.
    #[serde(default)]
    pub keep: Vec<Spanned<String>>,
    /// Folders in `files/` copied over `/`: owner root, 0755 for folders and executable files, 0644 for the others.
    #[serde(default)]
    pub trees: Vec<Spanned<String>>,
    /// Single files.
    #[serde(default)]
    pub files: Vec<FileEntry>,
    /// Folders, or the owner and mode of ones that packages bring.
    #[serde(default)]
    pub directories: Vec<DirectoryEntry>,
    /// Owner and mode of files that packages bring: what is left out stays as it was. The
    /// file must be there.
    #[serde(default)]
    pub permissions: Vec<DirectoryEntry>,
    /// Symbolic links; a file already there is replaced.
    #[serde(default)]
    pub symlinks: Vec<SymlinkEntry>,
    /// systemd units.
    #[serde(default)]
    pub units: Units,
    /// Lines in the format of sysusers.d(5), `g` and `u` and `m`: applied to passwd and group when baking, as are
    /// the packages' own `/usr/lib/sysusers.d/*.conf`.
    #[serde(default)]
    pub sysusers: Vec<Spanned<String>>,
    /// The kernel's modules.
    #[serde(default)]
    pub kernel: Kernel,
    /// The initramfs.
    #[serde(default)]
    pub initramfs: Initramfs,
    /// Further words for the kernel's command line.
    #[serde(default)]
    pub cmdline: Vec<Spanned<String>>,
    /// Further lines for config.txt.
    #[serde(default)]
    pub config_txt: Vec<Spanned<String>>,
    /// Files on the boot partition: `path = "bramble.toml"` is relative to it; `owner`, `group` and `mode` have no
    /// meaning there.
    #[serde(default)]
    pub boot_files: Vec<FileEntry>,
    /// Folders of the data partition, made when baking: root's; `path` is relative to the partition.
    #[serde(default)]
    pub data_directories: Vec<DirectoryEntry>,
    /// Patches of crates, applied by `hack/image` to the registry's copy before the agent is built.
    #[serde(default)]
    pub patches: Vec<CratePatch>,
    /// Container images that are on the card, in `/usr/share/bramble/images`.
    #[serde(default)]
    pub images: Vec<Preload>,
    /// Defaults of `bramble.toml`'s own keys, as in that file; merged over all recipes (later wins) into
    /// `/usr/share/bramble/defaults.toml`.
    #[serde(default)]
    pub settings: toml::Table,
}

/// A file. Exactly one of `source`, `text` and `input` says what is in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where it goes.
    pub path: Spanned<String>,
    /// A file in the recipe's `files/`.
    pub source: Option<Spanned<String>>,
    /// The contents themselves.
    pub text: Option<String>,
    /// A file given to `bake` on the command line: `agent` (`--agent`). The other one, `init`, is always `/init` of
    /// the initramfs.
    pub input: Option<Spanned<String>>,
    /// Replace `@VERSION@`, `@BOARD@`, `@ARCH@` and `@EPOCH@` (the build's date in seconds) in the contents.
    #[serde(default)]
    pub substitute: bool,
    /// Permissions, octal: "0644" where left out.
    pub mode: Option<Spanned<String>>,
    /// Name in the image's passwd; root where left out.
    pub owner: Option<Spanned<String>>,
    /// Name in the image's group; root where left out.
    pub group: Option<Spanned<String>>,
}

/// A folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryEntry {
    /// Where.
    pub path: Spanned<String>,
    /// Permissions, octal: "0755" where left out.
    pub mode: Option<Spanned<String>>,
    /// Name in the image's passwd; root where left out.
    pub owner: Option<Spanned<String>>,
    /// Name in the image's group; root where left out.
    pub group: Option<Spanned<String>>,
}

/// A symbolic link.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymlinkEntry {
    /// Where the link is.
    pub path: Spanned<String>,
    /// What it says, as is: "../run/x" or "/run/x".
    pub target: String,
}

/// What systemd runs. No unit is enabled unless a recipe says so: there is no preset but this one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Units {
    /// Unit files from the repository's `systemd/` (`repo:bramble.service`) or the recipe's `files/`, laid in
    /// `/usr/lib/systemd/system`.
    #[serde(default)]
    pub install: Vec<Spanned<String>>,
    /// Units whose `[Install]` section is carried out (WantedBy, RequiredBy, UpheldBy, Alias, Also; templates as
    /// `name@instance.service`). The unit must exist in the image.
    #[serde(default)]
    pub enable: Vec<Spanned<String>>,
    /// Units masked. They need not exist.
    #[serde(default)]
    pub mask: Vec<Spanned<String>>,
    /// The unit that is `default.target`.
    pub default: Option<Spanned<String>>,
}

/// Kernel modules of the root file system.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Modules kept, with what they depend on: names (`overlay`) or globs over the path below `kernel/`
    /// (`net/netfilter/**`). Everything else is dropped. A name that is built into the kernel is fine; one that the
    /// kernel does not know is refused.
    #[serde(default)]
    pub modules: Vec<Spanned<String>>,
}

/// The initramfs: `/init` (given by `--init`), `/etc/modules` and the modules.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initramfs {
    /// Module names, with what they depend on. `/etc/modules` lists their paths (`/lib/modules/VERSION/x.ko`,
    /// uncompressed), one a line, in an order in which each can be loaded with finit_module(2).
    #[serde(default)]
    pub modules: Vec<Spanned<String>>,
}

/// A patch of a crate in Cargo.lock.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CratePatch {
    /// The crate.
    #[serde(rename = "crate")]
    pub krate: String,
    /// The version that the patch is for: Cargo.lock must have just that one.
    pub version: String,
    /// `patch -p1` file in the recipe's `files/`.
    pub source: Spanned<String>,
}

/// A container image that is on the card.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preload {
    /// A docker-save or OCI archive in the recipe's `files/` (or an absolute path of the build machine).
    pub archive: Spanned<String>,
    /// Its name on the card; the archive's own file name where left out.
    pub name: Option<String>,
}
