//! Updates of a card that loses power at any write, and whatever else goes wrong on the way.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle::{Entry, FORMAT, Manifest, SigningKey, TrustedKeys};
use proptest::prelude::*;
use slots::{Slot, Spare, State, Then};

use super::card::{Card, DiskCard, Room};
use super::install::{Here, Unfit, commit, fall_back, install, peek};

const ROOT_A: u64 = 4 << 20;
const ROOT_LEN: u64 = 1 << 20;

/// A card image, and a folder that is its boot partition.
struct Lab {
    folder: tempfile::TempDir,
    key: SigningKey,
    keys: TrustedKeys,
}

/// A system as a bundle carries it.
fn system(version: u8) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("boot/vmlinuz", vec![version; 3000]),
        ("boot/overlays/a.dtbo", vec![version ^ 0x55; 40]),
        ("boot/cmdline.txt", b"quiet bramble.slot=a".to_vec()),
        ("root.squashfs", (0..300_000_usize).map(|i| (i % 241) as u8 ^ version).collect()),
    ]
}

fn here(running: Slot) -> Here {
    Here {
        running,
        board: "rpi-3".to_owned(),
        arch: "arm64".to_owned(),
        version: "0.1.0".to_owned(),
        allow_older: false,
    }
}

fn manifest(version: u8) -> Manifest {
    Manifest {
        format: FORMAT.to_owned(),
        version: format!("0.{version}.0"),
        board: "rpi-3".to_owned(),
        arch: "arm64".to_owned(),
        files: system(version).iter().map(|(name, c)| bundle::measure(name, c.as_slice()).unwrap()).collect(),
    }
}

impl Lab {
    /// A card with version 1 in slot A.
    fn new() -> Self {
        let (key, _) = SigningKey::generate().unwrap();
        let mut keys = TrustedKeys::default();
        keys.add("test", &key.public_pem()).unwrap();
        let lab = Self { folder: tempfile::tempdir().unwrap(), key, keys };
        lab.fresh();
        lab
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("card.img")
    }

    fn boot(&self) -> PathBuf {
        self.folder.path().join("boot")
    }

    fn fresh(&self) {
        let _ = fs::remove_dir_all(self.boot());
        fs::create_dir(self.boot()).unwrap();
        fs::write(self.boot().join("config.txt"), "os_prefix=slot-a/\n").unwrap();
        let card = fs::File::create(self.image()).unwrap();
        card.set_len(8 << 20).unwrap();
        let mut sector = [0_u8; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        let starts = [1 << 20, ROOT_A, ROOT_A + ROOT_LEN, ROOT_A + 2 * ROOT_LEN];
        for (entry, start) in sector[446..510].chunks_mut(16).zip(starts) {
            entry[4] = if start == 1 << 20 { 0x0c } else { 0x83 };
            entry[8..12].copy_from_slice(&u32::try_from(start / 512).unwrap().to_le_bytes());
            entry[12..16].copy_from_slice(&u32::try_from(ROOT_LEN / 512).unwrap().to_le_bytes());
        }
        card.write_all_at(&sector, 0).unwrap();
        let mut card = self.card();
        card.put_state(&State::new(Slot::A)).unwrap();
        for (name, content) in system(1) {
            match name.strip_prefix("boot/") {
                Some("cmdline.txt") => card.write_boot(Slot::A, "cmdline.txt", 0, b"quiet bramble.slot=a\n"),
                Some(path) => card.write_boot(Slot::A, path, 0, &content),
                None => card.write_root(Slot::A, 0, &content),
            }
            .unwrap();
        }
        assert_eq!(self.content(Slot::A), Some(1));
    }

    fn card(&self) -> DiskCard {
        DiskCard::open(&self.image(), &self.boot(), Duration::ZERO).unwrap()
    }

    fn bundle(&self, version: u8) -> Vec<u8> {
        let mut out = Vec::new();
        bundle::write(&mut out, &manifest(version), &self.key, |entry| {
            let (_, content) = system(version).into_iter().find(|(name, _)| *name == entry.name).unwrap();
            Ok(io::Cursor::new(content))
        })
        .unwrap();
        out
    }

    /// The version of the complete system in a slot.
    fn content(&self, slot: Slot) -> Option<u8> {
        let card = fs::File::open(self.image()).unwrap();
        (1..5).find(|version| {
            system(*version).iter().all(|(name, content)| match name.strip_prefix("boot/") {
                Some(path) => {
                    let found = fs::read(self.boot().join(slot.folder()).join(path)).unwrap_or_default();
                    match path {
                        "cmdline.txt" => found == format!("quiet bramble.slot={slot}\n").as_bytes(),
                        _ => found == *content,
                    }
                }
                None => {
                    let mut found = vec![0; content.len()];
                    let start = ROOT_A + if slot == Slot::B { ROOT_LEN } else { 0 };
                    card.read_exact_at(&mut found, start).unwrap();
                    found == *content
                }
            })
        })
    }

    /// One boot as firmware and initramfs do it: the slot, and the version that it holds.
    fn power_on(&self) -> (Slot, u8) {
        let mut card = self.card();
        for _ in 0..3 {
            let slot = slots::named(&fs::read(self.boot().join("config.txt")).unwrap()).unwrap();
            let version =
                self.content(slot).unwrap_or_else(|| panic!("sent into slot {slot}, which is not whole"));
            let boot = slots::on_boot(card.state().unwrap(), slot);
            if let Some(state) = boot.write {
                card.put_state(&state).unwrap();
            }
            match boot.then {
                Then::Boot { .. } => return (slot, version),
                Then::Repair(good) => card.point(good).unwrap(),
            }
        }
        panic!("repairs for ever");
    }
}

/// A card whose power fails: after `left` writes nothing gets through, the one that meets the cut is torn, and what
/// was not synced is partly lost.
struct Failing<'a> {
    card: DiskCard,
    lab: &'a Lab,
    left: usize,
    /// Root pieces and boot files since the last sync.
    pieces: Vec<(Slot, u64, usize)>,
    files: Vec<PathBuf>,
}

impl<'a> Failing<'a> {
    fn new(lab: &'a Lab, left: usize) -> Self {
        Self { card: lab.card(), lab, left, pieces: Vec::new(), files: Vec::new() }
    }

    fn spend(&mut self) -> io::Result<()> {
        if self.left == 0 {
            self.lose();
            return Err(io::Error::other("power cut"));
        }
        self.left -= 1;
        Ok(())
    }

    /// Every other piece that was not synced never arrived.
    fn lose(&mut self) {
        for (slot, at, len) in std::mem::take(&mut self.pieces).into_iter().step_by(2) {
            self.card.write_root(slot, at, &vec![0; len]).unwrap();
        }
        for path in std::mem::take(&mut self.files).into_iter().step_by(2) {
            fs::write(path, b"lost").unwrap();
        }
    }
}

impl Card for Failing<'_> {
    fn state(&mut self) -> io::Result<Option<State>> {
        self.card.state()
    }

    fn put_state(&mut self, state: &State) -> io::Result<()> {
        if self.left == 0 {
            let (at, block) = state.block();
            let disk = fs::OpenOptions::new().write(true).open(self.lab.image()).unwrap();
            disk.write_all_at(&block[..20], at).unwrap();
        }
        self.spend()?;
        self.card.put_state(state)
    }

    fn point(&mut self, slot: Slot) -> io::Result<()> {
        self.spend()?;
        self.card.point(slot)
    }

    fn room(&mut self, slot: Slot) -> io::Result<Room> {
        self.card.room(slot)
    }

    fn clear_boot(&mut self, slot: Slot) -> io::Result<()> {
        self.spend()?;
        self.card.clear_boot(slot)
    }

    fn write_boot(&mut self, slot: Slot, path: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let half = if self.left == 0 { &bytes[..bytes.len() / 2] } else { bytes };
        self.card.write_boot(slot, path, at, half)?;
        self.files.push(self.lab.boot().join(slot.folder()).join(path));
        self.spend()
    }

    fn write_root(&mut self, slot: Slot, at: u64, bytes: &[u8]) -> io::Result<()> {
        // Smaller pieces than the reader's: more places to cut.
        for (index, piece) in bytes.chunks(50_000).enumerate() {
            let at = at + index as u64 * 50_000;
            self.card.write_root(slot, at, piece)?;
            self.pieces.push((slot, at, piece.len()));
            self.spend()?;
        }
        Ok(())
    }

    fn sync(&mut self, slot: Slot) -> io::Result<()> {
        self.spend()?;
        self.pieces.clear();
        self.files.clear();
        self.card.sync(slot)
    }

    fn read_back(&mut self, slot: Slot, file: &Entry) -> io::Result<Entry> {
        self.card.read_back(slot, file)
    }
}

fn update(lab: &Lab, card: &mut impl Card, version: u8, running: Slot) -> anyhow::Result<Manifest> {
    install(lab.bundle(version).as_slice(), &lab.keys, &here(running), card, &mut |_, _| {})
}

#[test]
fn an_update_and_back() {
    let lab = Lab::new();
    let mut seen = Vec::new();
    let bytes = lab.bundle(2);
    install(bytes.as_slice(), &lab.keys, &here(Slot::A), &mut lab.card(), &mut |d, t| seen.push((d, t)))
        .unwrap();
    assert!(seen.last().is_some_and(|(done, total)| done == total && *total == manifest(2).size()));
    assert_eq!(lab.power_on(), (Slot::B, 2));
    let refused = update(&lab, &mut lab.card(), 3, Slot::B).unwrap_err().to_string();
    assert!(refused.contains("--fall-back"), "{refused}");
    assert!(commit(&mut lab.card(), Slot::B).unwrap());
    assert!(!commit(&mut lab.card(), Slot::B).unwrap());
    assert_eq!(lab.power_on(), (Slot::B, 2));
    assert_eq!(fall_back(&mut lab.card(), Slot::B).unwrap(), Slot::A);
    assert_eq!(lab.power_on(), (Slot::A, 1));
    assert_eq!(fall_back(&mut lab.card(), Slot::A).unwrap(), Slot::B);
    assert_eq!(lab.power_on(), (Slot::B, 2));
    update(&lab, &mut lab.card(), 3, Slot::B).unwrap();
    assert_eq!(lab.power_on(), (Slot::A, 3));
}

#[test]
fn never_healthy_comes_back() {
    let lab = Lab::new();
    update(&lab, &mut lab.card(), 2, Slot::A).unwrap();
    let boots: Vec<_> = (0..5).map(|_| lab.power_on().1).collect();
    assert_eq!(boots, [2, 2, 2, 1, 1]);
    assert_eq!(lab.card().state().unwrap().unwrap().spare, Spare::Trial { tries_left: 0 });
    update(&lab, &mut lab.card(), 3, Slot::A).unwrap();
    assert_eq!(lab.power_on(), (Slot::B, 3));
}

#[test]
fn power_cut_at_each_write() {
    let lab = Lab::new();
    let mut cuts = 0;
    for left in 0.. {
        lab.fresh();
        let mut card = Failing::new(&lab, left);
        let done = update(&lab, &mut card, 2, Slot::A).is_ok();
        drop(card);
        let expected = if done { (Slot::B, 2) } else { (Slot::A, 1) };
        assert_eq!(lab.power_on(), expected, "cut after {left} writes");
        if done {
            break;
        }
        cuts += 1;
        // And the next try works.
        update(&lab, &mut lab.card(), 3, Slot::A).unwrap();
        assert_eq!(lab.power_on(), (Slot::B, 3), "cut after {left} writes");
    }
    assert!(cuts > 12, "{cuts}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A life of updates, trials and fall-backs with the power failing at random.
    #[test]
    fn a_life_of_cuts(steps in proptest::collection::vec((0..4_u8, 0..24_usize), 1..8)) {
        let lab = Lab::new();
        let (mut running, mut version) = lab.power_on();
        for (kind, left) in steps {
            let mut card = Failing::new(&lab, left);
            let next = version % 4 + 1;
            let _ = match kind {
                0 => fall_back(&mut card, running).map(|_| ()),
                1 => commit(&mut card, running).map(|_| ()),
                _ => {
                    let mut here = here(running);
                    here.allow_older = true;
                    install(lab.bundle(next).as_slice(), &lab.keys, &here, &mut card, &mut |_, _| {}).map(|_| ())
                }
            };
            drop(card);
            (running, version) = lab.power_on();
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    let before = fs::read(lab.image()).unwrap();
    let refused = |change: &dyn Fn(&mut Here)| {
        let mut here = here(Slot::A);
        change(&mut here);
        let error =
            install(lab.bundle(2).as_slice(), &lab.keys, &here, &mut lab.card(), &mut |_, _| {}).unwrap_err();
        assert!(fs::read(lab.image()).unwrap() == before);
        error.downcast::<Unfit>().unwrap()
    };
    assert!(matches!(refused(&|h| h.board = "rpi-2".to_owned()), Unfit::Other { .. }));
    assert!(matches!(refused(&|h| h.arch = "armhf".to_owned()), Unfit::Other { .. }));
    assert!(matches!(refused(&|h| h.version = "0.10.0".to_owned()), Unfit::Older { .. }));
    let bytes = lab.bundle(2);
    assert_eq!(peek(&bytes[..4096.min(bytes.len())], &lab.keys, &here(Slot::A)).unwrap(), manifest(2));
    assert!(peek(bytes.as_slice(), &lab.keys, &Here { board: "x".to_owned(), ..here(Slot::A) }).is_err());
    let stranger = Lab::new();
    let error =
        install(stranger.bundle(2).as_slice(), &lab.keys, &here(Slot::A), &mut lab.card(), &mut |_, _| {});
    assert!(error.unwrap_err().to_string().contains("not signed"));
    assert!(fs::read(lab.image()).unwrap() == before);
}

#[test]
fn a_damaged_update_never_boots() {
    let lab = Lab::new();
    let mut bytes = lab.bundle(2);
    let last = bytes.len() - 5000;
    bytes[last] ^= 1;
    let error =
        install(bytes.as_slice(), &lab.keys, &here(Slot::A), &mut lab.card(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(lab.power_on(), (Slot::A, 1));
    assert_eq!(lab.card().state().unwrap().unwrap().spare, Spare::Empty);
    bytes.truncate(20_000);
    assert!(install(bytes.as_slice(), &lab.keys, &here(Slot::A), &mut lab.card(), &mut |_, _| {}).is_err());
    assert_eq!(lab.power_on(), (Slot::A, 1));
}

/// A card that takes everything and keeps half of it.
struct Fake(DiskCard);

impl Card for Fake {
    fn state(&mut self) -> io::Result<Option<State>> {
        self.0.state()
    }
    fn put_state(&mut self, state: &State) -> io::Result<()> {
        self.0.put_state(state)
    }
    fn point(&mut self, slot: Slot) -> io::Result<()> {
        self.0.point(slot)
    }
    fn room(&mut self, slot: Slot) -> io::Result<Room> {
        self.0.room(slot)
    }
    fn clear_boot(&mut self, slot: Slot) -> io::Result<()> {
        self.0.clear_boot(slot)
    }
    fn write_boot(&mut self, slot: Slot, path: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_boot(slot, path, at, bytes)
    }
    fn write_root(&mut self, slot: Slot, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_root(slot, at, &bytes[..bytes.len() / 2])
    }
    fn sync(&mut self, slot: Slot) -> io::Result<()> {
        self.0.sync(slot)
    }
    fn read_back(&mut self, slot: Slot, file: &Entry) -> io::Result<Entry> {
        self.0.read_back(slot, file)
    }
}

#[test]
fn a_card_that_forgets_is_found() {
    let lab = Lab::new();
    let mut card = Fake(lab.card());
    let error = update(&lab, &mut card, 2, Slot::A).unwrap_err().to_string();
    drop(card);
    assert!(error.contains("root.squashfs") && error.contains("replace it"), "{error}");
    assert_eq!(lab.power_on(), (Slot::A, 1));
}

#[test]
fn a_disk_that_is_no_card_of_ours() {
    let lab = Lab::new();
    let disk = fs::OpenOptions::new().write(true).open(lab.image()).unwrap();
    disk.write_all_at(&[0x07], 446 + 16 + 4).unwrap();
    let error = DiskCard::open(&lab.image(), Path::new("/nowhere"), Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("partition table"), "{error}");
}

#[test]
fn one_update_at_a_time() {
    let lab = Lab::new();
    let _first = lab.card();
    let error = DiskCard::open(&lab.image(), &lab.boot(), Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("another update"), "{error}");
}

/// udev looks at a device each time that somebody who could write has closed it, and holds a lock meanwhile.
#[test]
fn a_short_lock_of_others_is_waited_for() {
    let lab = Lab::new();
    let udev = fs::File::open(lab.image()).unwrap();
    rustix::fs::flock(&udev, rustix::fs::FlockOperation::LockShared).unwrap();
    let (image, boot) = (lab.image(), lab.boot());
    let opened = std::thread::spawn(move || DiskCard::open(&image, &boot, Duration::from_secs(60)).map(drop));
    // A refused lock leaves no trace that could be awaited.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!opened.is_finished(), "the lock is not waited for");
    drop(udev);
    opened.join().unwrap().unwrap();
}

#[test]
fn the_slots_in_words() {
    let fresh = State::new(Slot::A);
    assert_eq!(
        super::status(&fresh, Slot::A),
        ["slot a (running): good", "slot b: holds no complete system"]
    );
    let staged = fresh.stage();
    assert!(super::status(&staged, Slot::A)[1].contains("3 tries left"));
    assert!(super::status(&staged, Slot::B)[1].contains("(running): on trial"));
}
