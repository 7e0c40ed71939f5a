//! Flashing files, through the command and with cards that fail.

use std::io::Read;

use super::bmap::{Extent, Map};
use super::image::Image;
use super::write::{Card, Phase, put};
use super::*;
use crate::boot_partition::BootPartition;
use crate::testing_card::{self, SETTINGS};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn flash(image: &Path, target: &Path) -> Flash {
    Flash {
        image: Some(image.to_owned()),
        target: Some(target.display().to_string()),
        list: false,
        hostname: None,
        role: None,
        secret_file: None,
        force: false,
        confirm: None,
    }
}

fn bmap_text(size: u64, ranges: &str) -> String {
    let zeros = "0".repeat(64);
    let text = format!(
        "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n<ImageSize> {size} </ImageSize>\n\
         <BlockSize> 4096 </BlockSize>\n<BlocksCount> 9 </BlocksCount>\n<MappedBlocksCount> 2 </MappedBlocksCount>\n\
         <ChecksumType> sha256 </ChecksumType>\n<BmapFileChecksum> {zeros} </BmapFileChecksum>\n\
         <BlockMap>\n{ranges}</BlockMap>\n</bmap>\n"
    );
    let sum = hex(&Sha256::digest(text.as_bytes()));
    text.replacen(&zeros, &sum, 1)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn range(first: u64, last: u64, content: &[u8]) -> String {
    format!("<Range chksum=\"{}\"> {first}-{last} </Range>\n", hex(&Sha256::digest(content)))
}

#[test]
fn a_file_becomes_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = testing_card::write(folder.path());
    let target = folder.path().join("target");
    run(&flash(&image, &target)).unwrap();
    assert!(fs::read(&image).unwrap() == fs::read(&target).unwrap());
}

#[test]
fn a_packed_image_with_a_map_and_settings_of_the_card() {
    let folder = tempfile::tempdir().unwrap();
    let image = testing_card::write(folder.path());
    let content = fs::read(&image).unwrap();
    let packed = folder.path().join("b.img.zst");
    fs::write(&packed, zstd::encode_all(content.as_slice(), 1).unwrap()).unwrap();
    let blocks = content.len() as u64 / 4096;
    let ranges = range(0, 10, &content[..11 * 4096]) + &range(1024, blocks - 1, &content[1024 * 4096..]);
    fs::write(folder.path().join("b.img.bmap"), bmap_text(content.len() as u64, &ranges)).unwrap();
    let target = folder.path().join("target");
    let mut args = flash(&packed, &target);
    args.hostname = Some("node2".to_owned());
    args.role = Some("worker 192.168.1.102".to_owned());
    run(&args).unwrap();

    let card = File::open(&target).unwrap();
    let boot = BootPartition::open(&card).unwrap();
    let mut text = String::new();
    boot.root().open_file("bramble.toml").unwrap().read_to_string(&mut text).unwrap();
    let settings: toml::Table = text.parse().unwrap();
    assert_eq!(settings["hostname"].as_str(), Some("node2"));
    assert_eq!(settings["role"].as_str(), Some("worker 192.168.1.102"));
    assert!(text.contains("# Settings of this card."), "{text}");
    assert_ne!(text, SETTINGS);
    let mut kernel = Vec::new();
    boot.root().open_file("slot-a/vmlinuz").unwrap().read_to_end(&mut kernel).unwrap();
    assert!(kernel == vec![3; 70_000]);
}

#[test]
fn a_damaged_image_never_touches_the_card() {
    let folder = tempfile::tempdir().unwrap();
    let image = testing_card::write(folder.path());
    let content = fs::read(&image).unwrap();
    fs::write(folder.path().join("card.bmap"), bmap_text(content.len() as u64, &range(0, 3, &content[..5])))
        .unwrap();
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    let mut args = flash(&image, &target);
    args.confirm = Some("target".to_owned());
    let error = format!("{:#}", run(&args).unwrap_err());
    assert!(error.contains("card.img: nothing was written: damaged"), "{error}");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn the_image_itself_is_no_target() {
    let folder = tempfile::tempdir().unwrap();
    let image = testing_card::write(folder.path());
    let content = fs::read(&image).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    for target in [&image, &link] {
        let mut args = flash(&image, target);
        args.confirm = target.file_name().unwrap().to_str().map(str::to_owned);
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(error.contains("the image itself"), "{error}");
        assert!(fs::read(&image).unwrap() == content);
    }
}

#[test]
fn what_is_no_image_never_touches_the_card() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    let packed = zstd::encode_all(&[0; 100_000][..], 1).unwrap();
    let cut = {
        let content = fs::read(testing_card::write(folder.path())).unwrap();
        let packed = zstd::encode_all(content.as_slice(), 1).unwrap();
        packed[..packed.len() - 100].to_vec()
    };
    for (name, bytes) in [
        ("empty.img", &b""[..]),
        ("x.img.xz", b"\xfd7zXZ\0 and so on"),
        ("not-packed.img.zst", &[7; 4096]),
        ("zeros.img.zst", &packed),
        ("cut.img.zst", &cut),
    ] {
        let image = folder.path().join(name);
        fs::write(&image, bytes).unwrap();
        let mut args = flash(&image, &target);
        args.confirm = Some("target".to_owned());
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(error.contains(name), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"precious", "{name}");
    }
}

#[test]
fn what_is_there_is_only_overwritten_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let image = testing_card::write(folder.path());
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    // Without a name and without a terminal, and with a wrong name.
    assert!(run(&flash(&image, &target)).is_err());
    for wrong in ["", "Target", "y"] {
        let mut args = flash(&image, &target);
        args.confirm = Some(wrong.to_owned());
        assert!(run(&args).is_err(), "{wrong}");
    }
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    let error = run(&flash(&image, Path::new("sdz9"))).unwrap_err().to_string();
    assert!(error.contains("no such card"), "{error}");
}

#[test]
fn maps_that_are_refused() {
    let good = bmap_text(8192, &range(0, 0, b"x"));
    assert_eq!(Map::parse(&good).unwrap().extents[0].len, 4096);
    let sum = |text: &str| Map::parse(text).unwrap_err().to_string();
    assert!(sum(&good.replace("> 0-0 <", "> 1-1 <")).contains("damaged"));
    assert!(sum(&bmap_text(8192, &range(2, 3, b"x"))).contains("does not fit"));
    assert!(sum(&bmap_text(8192, &range(1, 0, b"x"))).contains("does not fit"));
    assert!(sum(&bmap_text(8192, &(range(1, 1, b"x") + &range(0, 0, b"x")))).contains("does not fit"));
    assert!(sum(&bmap_text(8192, "<Range> 0-0 </Range>")).contains("checksum"));
    assert!(sum("<x/>").contains("not a block map"));
    assert!(Map::parse("hello").is_err());
    assert!(Map::parse(&bmap_text(8192, &range(0, u64::MAX, b"x"))).is_err());
}

/// A card in memory that stops, or forgets.
struct Faulty {
    bytes: Vec<u8>,
    writes_left: usize,
    error: i32,
    /// Writes at or beyond this are taken and lost: a card that says it is larger than it is.
    end: u64,
}

impl Faulty {
    fn new(len: usize, writes_left: usize) -> Self {
        Self { bytes: vec![0xee; len], writes_left, error: 5, end: u64::MAX }
    }
}

impl Card for Faulty {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.writes_left == 0 {
            return Err(io::Error::from_raw_os_error(self.error));
        }
        self.writes_left -= 1;
        if at < self.end {
            self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        bytes.copy_from_slice(&self.bytes[at as usize..][..bytes.len()]);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn opened(folder: &Path) -> (Image, Map) {
    let path = testing_card::write(folder);
    let mut image = Image::open(&path).unwrap();
    let map = image.check(None, &mut |_, _, _| {}).unwrap();
    (image, map)
}

#[test]
fn a_card_pulled_out_boots_nowhere_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (mut image, map) = opened(folder.path());
    let mut stopped = 0;
    for writes in 0.. {
        let mut card = Faulty::new(map.image_size as usize, writes);
        match put(&mut image, &map, &mut card, &mut |_, _, _| {}) {
            Ok(()) => break,
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("pulled out") && error.contains("flash it again"), "{error}");
                assert_ne!(card.bytes[510..512], [0x55, 0xaa], "half a card must not boot");
                stopped += 1;
            }
        }
    }
    assert!(stopped > 3, "{stopped}");
    let mut card = Faulty::new(map.image_size as usize, 1);
    card.error = 28;
    let error = format!("{:#}", put(&mut image, &map, &mut card, &mut |_, _, _| {}).unwrap_err());
    assert!(error.contains("No space left"), "{error}");
}

#[test]
fn a_card_that_lies_about_its_size_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut image, map) = opened(folder.path());
    let mut card = Faulty::new(map.image_size as usize, usize::MAX);
    card.end = 40 << 20;
    let error = put(&mut image, &map, &mut card, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(error.contains("use another"), "{error}");
}

#[test]
fn only_mapped_blocks_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (mut image, map) = opened(folder.path());
    let mut card = Faulty::new(map.image_size as usize, usize::MAX);
    let mut phases = Vec::new();
    put(&mut image, &map, &mut card, &mut |phase, done, total| phases.push((phase, done, total))).unwrap();
    assert!(map.mapped() < map.image_size / 10, "{} of {}", map.mapped(), map.image_size);
    assert!(phases.contains(&(Phase::Writing, map.mapped(), map.mapped())));
    assert!(phases.contains(&(Phase::Verifying, map.mapped(), map.mapped())));
    let content = fs::read(image.path()).unwrap();
    let mut covered = vec![false; content.len()];
    for Extent { start, len, .. } in &map.extents {
        covered[*start as usize..][..*len as usize].fill(true);
    }
    for (at, covered) in covered.into_iter().enumerate().skip(4096) {
        assert_eq!(card.bytes[at], if covered { content[at] } else { 0xee }, "{at}");
    }
}

/// A machine that is made up: a system disk under an encrypted volume, a data disk, cards and readers.
fn machine(sys: &Path) -> Machine {
    let disk = |name: &str, size: u64, removable: &str, extra: &[(&str, &str)]| {
        let folder = sys.join("devices").join(name);
        fs::create_dir_all(folder.join("device")).unwrap();
        fs::create_dir_all(folder.join("slaves")).unwrap();
        fs::create_dir_all(folder.join("holders")).unwrap();
        for (file, text) in [("size", &*(size / 512).to_string()), ("removable", removable), ("ro", "0")] {
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        }
        for (file, text) in extra {
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        }
        for kind in ["block", "class/block"] {
            fs::create_dir_all(sys.join(kind)).unwrap();
            std::os::unix::fs::symlink(&folder, sys.join(kind).join(name)).unwrap();
        }
        folder
    };
    let partition = |disk: &Path, name: &str, number: &str| {
        let folder = disk.join(name);
        fs::create_dir_all(folder.join("holders")).unwrap();
        fs::write(folder.join("partition"), "1\n").unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&folder, sys.join("dev/block").join(number)).unwrap();
        std::os::unix::fs::symlink(&folder, sys.join("class/block").join(name)).unwrap();
        folder
    };
    let nvme = disk("nvme0n1", 512_000_000_000, "0", &[("device/model", "Fast 980")]);
    let under = partition(&nvme, "nvme0n1p2", "259:2");
    let crypt = disk("dm-0", 511_000_000_000, "0", &[]);
    std::os::unix::fs::symlink(&under, crypt.join("slaves/nvme0n1p2")).unwrap();
    std::os::unix::fs::symlink(&crypt, under.join("holders/dm-0")).unwrap();
    std::os::unix::fs::symlink(&crypt, sys.join("dev/block/253:0")).unwrap();
    disk("sda", 2_000_000_000_000, "0", &[("device/vendor", "USB"), ("device/model", "Backup")]);
    let stick = disk("sdb", 32_000_000_000, "1", &[("device/vendor", "Generic"), ("device/model", "Reader")]);
    partition(&stick, "sdb1", "8:17");
    disk("sdc", 0, "1", &[("device/model", "Empty slot")]);
    disk("sdd", 400_000_000_000, "1", &[("device/model", "Huge")]);
    disk("mmcblk0", 31_900_000_000, "0", &[("device/type", "SD"), ("device/name", "SC32G")]);
    disk("mmcblk1", 31_900_000_000, "0", &[("device/type", "MMC"), ("device/name", "eMMC")]);
    disk("sde", 8_000_000_000, "1", &[("device/model", "Locked"), ("ro", "1")]);
    disk("loop0", 4096, "0", &[]);
    disk("sr0", 700_000_000, "1", &[]);
    let mountinfo = "22 1 253:0 / / rw - ext4 /dev/mapper/root rw\n\
                     23 22 0:22 / /proc rw - proc proc rw\n\
                     40 22 8:17 / /media/me/BRAMBLE rw - vfat /dev/sdb1 rw\n"
        .to_owned();
    Machine { sys: sys.to_owned(), mountinfo, swaps: "Filename Type\n".to_owned() }
}

#[test]
fn which_disks_may_be_written() {
    let sys = tempfile::tempdir().unwrap();
    let machine = machine(sys.path());
    let disks = machine.disks().unwrap();
    let names: Vec<&str> = disks.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["mmcblk0", "mmcblk1", "nvme0n1", "sda", "sdb", "sdc", "sdd", "sde"]);
    let why = |name: &str, force| {
        let disk = disks.iter().find(|d| d.name == name).unwrap();
        disk.refusal(force).unwrap_or_else(|| "fit".to_owned())
    };
    assert_eq!(why("mmcblk0", false), "fit");
    assert_eq!(disks[0].to_string(), "mmcblk0: SC32G, 29.71 GiB");
    for force in [false, true] {
        assert!(why("nvme0n1", force).contains("running system"), "{}", why("nvme0n1", force));
        assert!(why("sdb", force).contains("/media/me/BRAMBLE"));
        assert!(why("sdc", force).contains("no card"));
        assert!(why("sde", force).contains("write-protected"));
    }
    for name in ["mmcblk1", "sda", "sdd"] {
        assert!(why(name, false).contains("--force"), "{name}");
        assert_eq!(why(name, true), "fit");
    }
}

#[test]
fn swap_and_root_on_a_plain_partition_make_a_system_disk() {
    let sys = tempfile::tempdir().unwrap();
    let mut machine = machine(sys.path());
    machine.mountinfo = "22 1 0:40 / / rw - btrfs /dev/sdb1 rw\n".to_owned();
    let disk = |machine: &Machine, name: &str| {
        machine.disks().unwrap().into_iter().find(|d| d.name == name).unwrap()
    };
    assert!(disk(&machine, "sdb").system);
    machine.mountinfo = String::new();
    machine.swaps = "Filename Type Size\n/dev/sdb1 partition 100\n".to_owned();
    assert!(disk(&machine, "sdb").system);
    assert!(disk(&machine, "nvme0n1").stacked, "an open volume that is not mounted");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn maps_never_panic(text in "(<bmap>|<Range>|[0-9]{0,20}|-|<|>| ){0,20}", a: u64, b: u64) {
        let _ = Map::parse(&text);
        if let Ok(map) = Map::parse(&bmap_text(1 << 30, &range(a, b, b""))) {
            prop_assert!(map.mapped() <= map.image_size);
        }
    }
}
