//! A network between guests: QEMU's `stream` sockets carry frames with their length in front (four bytes, big-endian).
//! Every frame goes to all others, unless the network is cut; it may also lose frames and be slow ([`Line`]).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// No frame of an Ethernet is longer, with room for tags.
const MAX_FRAME: usize = 65_536;
/// Frames under way. Who sends more waits, as at a full switch that asks for a pause.
const UNDER_WAY: usize = 4096;

type Ports = Arc<Mutex<HashMap<u64, UnixStream>>>;

/// What the cables are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Nothing gets through.
    pub cut: bool,
    /// Frames lost, of a hundred.
    pub loss: u8,
    /// Time that a frame is under way.
    pub delay: Duration,
}

/// The cables, and how many frames they lost.
#[derive(Debug, Default)]
struct State {
    line: Line,
    lost: u64,
}

/// A hub that guests plug in to.
#[derive(Debug)]
pub struct Hub {
    folder: TempDir,
    state: Arc<Mutex<State>>,
}

/// A frame on its way.
struct Parcel {
    from: u64,
    due: Instant,
    frame: Vec<u8>,
}

impl Hub {
    /// Listens on a socket in a temporary folder.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bramble-hub-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join("hub")).context("the hub's socket")?;
        let state = Arc::<Mutex<State>>::default();
        let (ports, asked) = (Ports::default(), state.clone());
        let (sender, parcels) = sync_channel(UNDER_WAY);
        let destinations = ports.clone();
        std::thread::spawn(move || deliver(&parcels, &destinations));
        std::thread::spawn(move || {
            for (number, port) in (0..).zip(listener.incoming().map_while(|port| port.ok())) {
                plug_in(number, port, &ports, &asked, &sender);
            }
        });
        Ok(Self { folder, state })
    }

    /// Where to plug in.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    /// Changes the cables; frames under way arrive as they would have.
    pub fn set(&self, line: Line) {
        lock(&self.state).line = line;
    }

    /// Cuts all cables, or mends them.
    pub fn cut(&self, cut: bool) {
        lock(&self.state).line.cut = cut;
    }

    /// How many frames were lost so far.
    pub fn lost(&self) -> u64 {
        lock(&self.state).lost
    }

    /// A socket plugged in, for tests of the hub itself.
    pub fn plug(path: &Path) -> Result<UnixStream> {
        UnixStream::connect(path).context("the hub's socket")
    }
}

fn plug_in(
    number: u64,
    mut port: UnixStream,
    ports: &Ports,
    state: &Arc<Mutex<State>>,
    sender: &SyncSender<Parcel>,
) {
    let Ok(writer) = port.try_clone() else { return };
    lock(ports).insert(number, writer);
    let (ports, state, sender) = (ports.clone(), state.clone(), sender.clone());
    std::thread::spawn(move || {
        let mut dice = Dice(number + 1);
        while let Some(frame) = read_frame(&mut port) {
            let delay = {
                let mut state = lock(&state);
                // Thrown for every frame, so that the same frames lose the same ones.
                if dice.throw() < state.line.loss || state.line.cut {
                    state.lost += 1;
                    continue;
                }
                state.line.delay
            };
            let parcel = Parcel { from: number, due: Instant::now() + delay, frame };
            if sender.send(parcel).is_err() {
                break;
            }
        }
        lock(&ports).remove(&number);
    });
}

/// Hands out frames in the order in which they came, each when it is due.
fn deliver(parcels: &Receiver<Parcel>, ports: &Ports) {
    for Parcel { from, due, frame } in parcels {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A machine that is off is unplugged.
        lock(ports).retain(|other, socket| *other == from || socket.write_all(&frame).is_ok());
    }
}

/// Numbers below a hundred, the same ones each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u8 {
        // Knuth's linear congruential generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from((self.0 >> 33) % 100).unwrap_or_default()
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame with its length in front.
fn read_frame(port: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    port.read_exact(&mut length).ok()?;
    let count = usize::try_from(u32::from_be_bytes(length)).ok().filter(|count| *count <= MAX_FRAME)?;
    let mut frame = vec![0; 4 + count];
    frame[..4].copy_from_slice(&length);
    port.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &[u8]) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
    }

    /// A hub with two machines that know of each other.
    fn two() -> (Hub, UnixStream, UnixStream) {
        let hub = Hub::new().unwrap();
        let mut one = Hub::plug(&hub.path()).unwrap();
        let mut two = Hub::plug(&hub.path()).unwrap();
        // Whoever hears is plugged in: knock until it does.
        two.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        loop {
            one.write_all(&frame(b"knock")).unwrap();
            if read_frame(&mut two).is_some() {
                break;
            }
        }
        two.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        one.write_all(&frame(b"ready")).unwrap();
        while read_frame(&mut two).unwrap()[4..] != *b"ready" {}
        (hub, one, two)
    }

    /// What arrives up to a frame that says "end".
    fn arrived(port: &mut UnixStream) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| read_frame(port).filter(|frame| frame[4..] != *b"end"))
            .map(|frame| frame[4..].to_vec())
            .collect()
    }

    #[test]
    fn a_cut_cable_carries_nothing_until_it_is_mended() {
        let (hub, mut one, mut two) = two();
        hub.cut(true);
        one.write_all(&frame(b"lost")).unwrap();
        while hub.lost() == 0 {
            std::thread::yield_now();
        }
        hub.cut(false);
        one.write_all(&frame(b"found")).unwrap();
        one.write_all(&frame(b"end")).unwrap();
        assert_eq!(arrived(&mut two), [b"found".to_vec()]);
    }

    #[test]
    fn a_bad_line_loses_as_many_as_it_should_and_keeps_their_order() {
        let (hub, mut one, mut two) = two();
        hub.set(Line { loss: 30, ..Line::default() });
        for number in 0..1000_u32 {
            one.write_all(&frame(&number.to_be_bytes())).unwrap();
        }
        // Until one gets through.
        (0..50).for_each(|_| one.write_all(&frame(b"end")).unwrap());
        let got = arrived(&mut two);
        assert!((600..800).contains(&got.len()), "{} of 1000", got.len());
        assert!(got.is_sorted());
    }

    #[test]
    fn a_long_line_is_late() {
        let (hub, mut one, mut two) = two();
        let delay = Duration::from_millis(300);
        hub.set(Line { delay, ..Line::default() });
        let sent = Instant::now();
        one.write_all(&frame(b"late")).unwrap();
        assert_eq!(read_frame(&mut two).unwrap()[4..], *b"late");
        assert!(sent.elapsed() >= delay, "{:?}", sent.elapsed());
    }
}
