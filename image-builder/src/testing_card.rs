//! A small card image for tests, with real partitions, a FAT of `fatfs`'s making and something like a squashfs.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use slots::{Slot, State};

use crate::boot_partition::BootPartition;

pub(crate) const CMDLINE: &[u8] = b"console=tty0 bramble.slot=a\n";
pub(crate) const SETTINGS: &str =
    "# Settings of this card.\n# hostname = \"node1\"\n\n[wifi]\n# ssid = \"\"\n";
const MIB: u64 = 1 << 20;

/// What is in root A: a superblock that claims 10000 bytes, and noise.
pub(crate) fn rootfs() -> Vec<u8> {
    let mut root: Vec<u8> = (0..12288_u32).map(|i| (i * 7 % 253) as u8).collect();
    root[..4].copy_from_slice(b"hsqs");
    root[40..48].copy_from_slice(&10000_u64.to_le_bytes());
    root
}

/// Writes `card.img` into a folder.
pub(crate) fn write(folder: &Path) -> PathBuf {
    let path = folder.join("card.img");
    let card = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    card.set_len(48 * MIB).unwrap();
    let mut sector = [0_u8; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let parts = [(0x0c, 4, 36), (0x83, 40, 2), (0x83, 42, 2), (0x83, 44, 4)];
    for (entry, (kind, start, size)) in sector[446..510].chunks_mut(16).zip(parts) {
        entry[4] = kind;
        entry[8..12].copy_from_slice(&(start * 2048_u32).to_le_bytes());
        entry[12..16].copy_from_slice(&(size * 2048_u32).to_le_bytes());
    }
    card.write_all_at(&sector, 0).unwrap();
    slots::card::write(&card, &State::new(Slot::A)).unwrap();
    card.write_all_at(&rootfs(), 40 * MIB).unwrap();
    let window = BootPartition::window(&card).unwrap();
    let options = fatfs::FormatVolumeOptions::new().fat_type(fatfs::FatType::Fat32).bytes_per_cluster(512);
    fatfs::format_volume(window, options.volume_label(*b"BRAMBLE    ")).unwrap();
    let boot = BootPartition::open(&card).unwrap();
    let root = boot.root();
    root.create_dir("slot-a").unwrap();
    root.create_dir("slot-a/overlays").unwrap();
    for (name, content) in [
        ("config.txt", b"os_prefix=slot-a/\n".as_slice()),
        ("bramble.toml", SETTINGS.as_bytes()),
        ("slot-a/vmlinuz", &[3; 70_000]),
        ("slot-a/cmdline.txt", CMDLINE),
        ("slot-a/overlays/a.dtbo", &[9; 900]),
    ] {
        root.create_file(name).unwrap().write_all(content).unwrap();
    }
    path
}
