//! Boards that QEMU cannot boot: what their firmware looks for is on the card, under the name it looks for.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use qemu::{Card, image_of};

/// What a board's firmware wants, from its makers' documents.
struct Wanted {
    board: &'static str,
    /// At the top of the boot partition.
    firmware: &'static [&'static str],
    /// In the slot's folder.
    device_trees: &'static [&'static str],
    /// What stands in a device tree's list of what it is for.
    chip: &'static str,
    console: &'static str,
    /// The 3D driver's memory, set aside where there is little.
    cma: bool,
}

const BOARDS: [Wanted; 2] = [
    Wanted {
        board: "rpi-4",
        // Its first stage is in a chip on the board.
        firmware: &["fixup4.dat", "start4.elf"],
        device_trees: &["bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2711-rpi-cm4-io.dtb"],
        chip: "brcm,bcm2711",
        console: "ttyS1,115200",
        cma: false,
    },
    Wanted {
        board: "rpi-zero-2",
        firmware: &["bootcode.bin", "fixup.dat", "start.elf"],
        device_trees: &["bcm2837-rpi-zero-2-w.dtb"],
        chip: "brcm,bcm2837",
        console: "ttyS1,115200",
        cma: true,
    },
];

#[test]
#[ignore = "bakes two images: hack/image rpi-3 first; hack/test --full"]
fn boards_that_qemu_lacks_have_what_their_firmware_wants() -> Result<()> {
    for wanted in BOARDS {
        let (_folder, image) = image_of(wanted.board)?;
        check(&Card::of(image)?, &wanted)?;
        println!("{}: all there", wanted.board);
    }
    Ok(())
}

fn check(card: &Card, wanted: &Wanted) -> Result<()> {
    let top: Vec<String> = card.list("")?.into_iter().filter(|name| !name.ends_with('/')).collect();
    let mut expected = vec!["bramble.toml", "config.txt"];
    expected.extend(wanted.firmware);
    expected.sort_unstable();
    assert_eq!(top, expected);
    for name in wanted.firmware {
        ensure!(card.read(name)?.len() > 4096, "{name} is empty");
    }
    let config = String::from_utf8(card.read("config.txt")?)?;
    for line in [
        "os_prefix=slot-a/",
        "kernel=kernel",
        "initramfs initramfs",
        "arm_64bit=1",
        "enable_uart=1",
        "upstream_kernel=1",
    ] {
        ensure!(config.lines().any(|have| have == line), "{line} is not in config.txt:\n{config}");
    }
    slot(card, wanted)?;
    ensure!(card.list("slot-b")?.is_empty(), "slot B is for the first update");
    partitions(card)
}

fn slot(card: &Card, wanted: &Wanted) -> Result<()> {
    let mut expected = vec!["cmdline.txt", "initramfs", "kernel"];
    expected.extend(wanted.device_trees);
    expected.sort_unstable();
    assert_eq!(card.list("slot-a")?, expected);
    let line = String::from_utf8(card.read("slot-a/cmdline.txt")?)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(line.trim().lines().count(), 1, "the firmware reads one line");
    // The last console is the one that /dev/console is.
    let consoles = words.iter().rfind(|word| word.starts_with("console="));
    assert_eq!(consoles.copied(), Some(format!("console={}", wanted.console).as_str()));
    for word in ["bramble.slot=a", "cgroup_enable=memory", "net.ifnames=0", "console=tty0"] {
        ensure!(words.contains(&word), "{word} is not in {line}");
    }
    assert_eq!(words.iter().any(|word| word.starts_with("cma=")), wanted.cma, "{line}");
    let kernel = card.read("slot-a/kernel")?;
    assert_eq!(&kernel[56..60], b"ARM\x64", "an arm64 Image, which is all that the firmware knows");
    let initramfs = card.read("slot-a/initramfs")?;
    assert_eq!(initramfs[..4], [0x28, 0xb5, 0x2f, 0xfd], "Zstandard");
    for name in wanted.device_trees {
        let tree = card.read(&format!("slot-a/{name}"))?;
        assert_eq!(tree[..4], [0xd0, 0x0d, 0xfe, 0xed], "{name} is a device tree");
        let chip = wanted.chip.as_bytes();
        ensure!(tree.windows(chip.len()).any(|bytes| bytes == chip), "{name} is not of {}", wanted.chip);
    }
    Ok(())
}

/// An MBR whose first partition is one that the chip's first stage looks into, and a squashfs in the second.
fn partitions(card: &Card) -> Result<()> {
    let file = fs::File::open(card.path())?;
    let mut table = [0; 512];
    file.read_exact_at(&mut table, 0)?;
    assert_eq!(table[510..], [0x55, 0xaa]);
    assert_eq!(table[446 + 4], 0x0c, "FAT32 with LBA");
    let root = u64::from(u32::from_le_bytes(table[470..474].try_into()?)) * 512;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, root)?;
    assert_eq!(&magic, b"hsqs");
    Ok(())
}
