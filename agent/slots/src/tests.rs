//! A modelled card, whose power may fail at every write, and the properties that it must keep.

use proptest::prelude::*;

use crate::*;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    /// Half written, or nothing.
    Broken,
    /// It boots and becomes healthy.
    Healthy,
    /// Its kernel and initramfs run, the rest hangs or crashes.
    Hangs,
}

/// The power is gone.
#[derive(Debug)]
struct Cut;

/// A card: each write costs one, and the one that finds nothing left is torn.
#[derive(Clone, Debug)]
struct Card {
    copies: [[u8; BLOCK]; 2],
    config: Vec<u8>,
    systems: [System; 2],
    writes_left: usize,
    noise: u8,
}

impl Card {
    fn new(noise: u8) -> Self {
        let mut card = Self {
            copies: [[0xff; BLOCK]; 2],
            config: b"# first\r\narm_64bit=1\nos_prefix=slot-a/\r\n[pi3]\nx=1\n".to_vec(),
            systems: [System::Healthy, System::Broken],
            writes_left: usize::MAX,
            noise,
        };
        card.put(State::new(Slot::A)).unwrap();
        card
    }

    fn spend(&mut self) -> bool {
        let powered = self.writes_left > 0;
        self.writes_left = self.writes_left.saturating_sub(1);
        powered
    }

    fn state(&self) -> Option<State> {
        newest(&self.copies)
    }

    fn put(&mut self, state: State) -> Result<(), Cut> {
        let (at, block) = state.block();
        let copy = &mut self.copies[usize::from(at == COPIES[1])];
        if self.writes_left == 0 {
            // A torn sector is neither old nor new.
            copy[20..].fill(self.noise);
            return Err(Cut);
        }
        *copy = block;
        self.spend();
        Ok(())
    }

    fn point(&mut self, slot: Slot) -> Result<(), Cut> {
        match switch(&self.config, slot) {
            Switch::Done => {}
            Switch::Letters(offsets) => {
                for at in offsets {
                    if !self.spend() {
                        return Err(Cut);
                    }
                    self.config[at] = slot.letter() as u8;
                }
            }
            Switch::Rewrite(_) => panic!("the card's own config.txt has the line"),
        }
        Ok(())
    }

    /// Root and boot files take several writes; the slot is whole after the last.
    fn fill(&mut self, slot: Slot, system: System) -> Result<(), Cut> {
        self.systems[slot as usize] = System::Broken;
        for _ in 0..4 {
            if !self.spend() {
                return Err(Cut);
            }
        }
        self.systems[slot as usize] = system;
        Ok(())
    }

    /// An update as the crate's documentation orders it, from the running system.
    fn update(&mut self, running: Slot, system: System) -> Result<bool, Cut> {
        let state = self.state().unwrap();
        let Ok(begun) = state.begin(running) else { return Ok(false) };
        self.point(running)?;
        self.put(begun)?;
        self.fill(running.other(), system)?;
        self.put(begun.stage())?;
        self.point(running.other())?;
        Ok(true)
    }

    fn fall_back(&mut self, running: Slot) -> Result<(), Cut> {
        let state = self.state().unwrap();
        let Ok((slot, next)) = state.fall_back(running) else { return Ok(()) };
        if slot == state.good {
            self.point(slot)?;
            self.put(next)
        } else {
            self.put(next)?;
            self.point(slot)
        }
    }

    /// One boot: the firmware, then the initramfs, then the system until it is healthy, hangs or power fails.
    fn boot(&mut self) -> Result<Option<Slot>, Cut> {
        let slot = named(&self.config).expect("config.txt always names a slot");
        assert_ne!(self.systems[slot as usize], System::Broken, "the firmware was sent into a broken slot");
        let boot = on_boot(self.state(), slot);
        if let Some(state) = boot.write {
            self.put(state)?;
        }
        match boot.then {
            Then::Repair(good) => self.point(good).map(|()| None),
            Then::Boot { .. } if self.systems[slot as usize] == System::Hangs => Ok(None),
            Then::Boot { .. } => {
                if let Some(state) = self.state().and_then(|state| state.commit(slot)) {
                    self.put(state)?;
                }
                Ok(Some(slot))
            }
        }
    }

    /// Boots until something is healthy. The power may fail once more on the way.
    fn up(&mut self) -> Slot {
        for _ in 0..2 * usize::from(TRIES) + 4 {
            match self.boot() {
                Ok(Some(slot)) => return slot,
                Ok(None) => {}
                Err(Cut) => self.writes_left = usize::MAX,
            }
        }
        panic!("never healthy: {self:?}");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Update(System, usize),
    /// With `--no-reboot`: the next event meets an update that was staged and never booted.
    Stage(System, usize),
    FallBack(usize),
    Reboot(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let writes = prop_oneof![3 => 0..14_usize, 1 => Just(usize::MAX)];
    let system = prop_oneof![Just(System::Healthy), Just(System::Hangs)];
    prop_oneof![
        4 => (system.clone(), writes.clone()).prop_map(|(s, w)| Event::Update(s, w)),
        2 => (system, writes.clone()).prop_map(|(s, w)| Event::Stage(s, w)),
        1 => writes.clone().prop_map(Event::FallBack),
        1 => writes.prop_map(Event::Reboot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_card_always_comes_up(events in proptest::collection::vec(event(), 1..12), noise: u8) {
        let mut card = Card::new(noise);
        let mut running = card.up();
        for event in events {
            let (Event::Update(_, writes)
            | Event::Stage(_, writes)
            | Event::FallBack(writes)
            | Event::Reboot(writes)) = event;
            card.writes_left = writes;
            let cut = match event {
                Event::Update(system, _) | Event::Stage(system, _) => card.update(running, system).is_err(),
                Event::FallBack(_) => card.fall_back(running).is_err(),
                Event::Reboot(_) => false,
            };
            if cut {
                card.writes_left = usize::MAX;
            } else if matches!(event, Event::Stage(..)) {
                continue;
            }
            // Cut or not, the next thing is a boot, with what power the event left.
            running = card.up();
            card.writes_left = usize::MAX;
            prop_assert_eq!(card.systems[running as usize], System::Healthy);
            prop_assert_eq!(card.state().unwrap().good, running);
        }
    }

    #[test]
    fn what_is_written_is_read(generation in 0..u64::MAX, b: bool, spare in 0..3_u8, tries_left in 0..=TRIES) {
        let good = if b { Slot::B } else { Slot::A };
        let spare = [Spare::Empty, Spare::Whole, Spare::Trial { tries_left }][usize::from(spare)];
        let state = State { generation, good, spare };
        let (_, block) = state.block();
        prop_assert_eq!(State::from_block(&block), Some(state));
        prop_assert_ne!(state.block().0, state.stage().block().0, "the next write spares this copy");
    }

    #[test]
    fn rot_is_found(at in 0..BLOCK, flip in 1..=255_u8) {
        let (_, mut block) = State::new(Slot::B).block();
        block[at] ^= flip;
        prop_assert_eq!(State::from_block(&block), None);
    }

    #[test]
    fn config_names_what_it_was_switched_to(
        lines in proptest::collection::vec("(os_prefix=(slot-[abc]/|old/)?|\\[pi3\\]|[ #a-z=]{0,9})(\r)?", 0..8),
        b: bool,
    ) {
        let slot = if b { Slot::B } else { Slot::A };
        let config = lines.join("\n").into_bytes();
        let after = apply(&config, slot);
        prop_assert_eq!(named(&after), Some(slot));
        prop_assert_eq!(switch(&after, slot), Switch::Done);
        // What is not about the slot stays as it was.
        let others = |text: &[u8]| -> Vec<Vec<u8>> {
            text.split(|b| *b == b'\n').filter(|l| !l.trim_ascii_start().starts_with(b"os_prefix="))
                .map(|l| l.to_vec()).filter(|l| !l.is_empty()).collect()
        };
        prop_assert_eq!(others(&config), others(&after));
    }
}

fn apply(config: &[u8], slot: Slot) -> Vec<u8> {
    match switch(config, slot) {
        Switch::Done => config.to_vec(),
        Switch::Letters(offsets) => {
            let mut config = config.to_vec();
            offsets.iter().for_each(|at| config[*at] = slot.letter() as u8);
            config
        }
        Switch::Rewrite(config) => config,
    }
}

/// Exhaustive where the property samples: every write of one update, with both outcomes, torn in two ways.
#[test]
fn power_cut_at_each_write_of_an_update() {
    for system in [System::Healthy, System::Hangs] {
        for noise in [0, 0xa5] {
            let mut finished = false;
            for writes in 0.. {
                let mut card = Card::new(noise);
                let running = card.up();
                card.writes_left = writes;
                let done = card.update(running, system).is_ok();
                card.writes_left = usize::MAX;
                let up = card.up();
                let expected = if done && system == System::Healthy { Slot::B } else { Slot::A };
                assert_eq!(up, expected, "cut after {writes} writes");
                finished = done;
                if done {
                    break;
                }
            }
            assert!(finished);
        }
    }
}

#[test]
fn three_tries_and_no_more() {
    let mut card = Card::new(0);
    card.update(Slot::A, System::Hangs).unwrap();
    for left in [2, 1, 0] {
        assert_eq!(card.boot().unwrap(), None);
        assert_eq!(card.state().unwrap().spare, Spare::Trial { tries_left: left });
        assert_eq!(named(&card.config), Some(Slot::B));
    }
    assert_eq!(on_boot(card.state(), Slot::B).then, Then::Repair(Slot::A));
    assert_eq!(card.boot().unwrap(), None);
    assert_eq!(card.boot().unwrap(), Some(Slot::A));
}

#[test]
fn a_trial_is_watched_and_is_never_overwritten() {
    let staged = State::new(Slot::A).begin(Slot::A).unwrap().stage();
    let boot = on_boot(Some(staged), Slot::B);
    assert_eq!(boot.then, Then::Boot { watchdog: true });
    let running = boot.write.unwrap();
    assert_eq!(running.begin(Slot::B), Err(Refusal::OnTrial { running: Slot::B }));
    let committed = running.commit(Slot::B).unwrap();
    assert_eq!((committed.good, committed.spare), (Slot::B, Spare::Whole));
    assert_eq!(committed.commit(Slot::B), None);
    assert_eq!(on_boot(Some(committed), Slot::B).then, Then::Boot { watchdog: false });
}

#[test]
fn nothing_to_fall_back_to() {
    assert_eq!(State::new(Slot::A).fall_back(Slot::A), Err(Refusal::NothingThere(Slot::B)));
}

#[test]
fn a_lost_state_boots_what_the_firmware_booted() {
    let boot = on_boot(None, Slot::B);
    assert_eq!(boot.then, Then::Boot { watchdog: false });
    assert_eq!(boot.write.map(|state| state.good), Some(Slot::B));
}

#[test]
fn the_slot_of_a_command_line() {
    assert_eq!(Slot::from_cmdline("quiet bramble.slot=b rootwait\n"), Some(Slot::B));
    assert_eq!(Slot::from_cmdline("bramble.slot=c"), None);
    assert_eq!(Slot::from_cmdline("quiet"), None);
}

#[test]
fn on_files() {
    let folder = tempfile::tempdir().unwrap();
    let card = std::fs::File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(folder.path().join("card.img"))
        .unwrap();
    card.set_len(64 * 1024).unwrap();
    assert_eq!(card::read(&card).unwrap(), None);
    let first = State::new(Slot::A);
    card::write(&card, &first).unwrap();
    card::write(&card, &first.stage()).unwrap();
    assert_eq!(card::read(&card).unwrap(), Some(first.stage()));

    let config = folder.path().join("config.txt");
    std::fs::write(&config, "os_prefix=slot-a/\nx=1\n").unwrap();
    card::point(folder.path(), Slot::B).unwrap();
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "os_prefix=slot-b/\nx=1\n");
    std::fs::write(&config, "x=1\n").unwrap();
    card::point(folder.path(), Slot::A).unwrap();
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "os_prefix=slot-a/\nx=1\n");
    assert!(!folder.path().join("config.new").exists());
}

#[test]
fn the_partitions_of_a_card() {
    let mut sector = [0_u8; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    for (entry, kind) in sector[446..510].chunks_mut(16).zip([0x0c_u32, 0x83, 0x83, 0x83].iter().zip(1_u32..))
    {
        let (kind, number) = kind;
        entry[4] = *kind as u8;
        entry[8..12].copy_from_slice(&(number * 4096).to_le_bytes());
        entry[12..16].copy_from_slice(&4096_u32.to_le_bytes());
    }
    let table = Table::parse(&sector).unwrap();
    assert_eq!(table.boot, Range { start: 4096 * 512, len: 4096 * 512 });
    assert_eq!(table.root(Slot::B), Range { start: 3 * 4096 * 512, len: 4096 * 512 });
    for (at, value) in
        [(510, 0), (446 + 4, 0x83), (446 + 16 + 4, 0x07), (446 + 8 + 1, 0x07), (446 + 48 + 13, 0)]
    {
        let mut other = sector;
        other[at] = value;
        // Overlaps its predecessor, is before the first MiB, of another type, or empty.
        if at == 446 + 8 + 1 {
            other[at + 7..at + 9].copy_from_slice(&[0, 0x40]);
        }
        assert_eq!(Table::parse(&other), None, "{at}");
    }
}
