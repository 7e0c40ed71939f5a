//! A network between guests: QEMU's `stream` sockets carry frames with their length in front (four bytes, big-endian).
//! As a switch does, it sends a frame to whom it is for once it has heard of that one, and to all others until then. The
//! network may be cut, lose frames and be slow ([`Line`]). The host may be on it, too ([`Hub::with_host`]).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
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

/// The host's address on a network that it is on.
pub const UPLINK: &str = "10.9.0.254";

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
    /// QEMU's user network, which is the host here.
    host: Option<Child>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(mut host) = self.host.take() {
            let _ = host.kill();
            let _ = host.wait();
        }
    }
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
        Ok(Self { folder, state, host: None })
    }

    /// The same with the host on it, as [`UPLINK`], which also gives addresses out: the network is 10.9.0.0/24. It is a
    /// QEMU of its own: that user network answers every connection it sees, whomever it is for, and so must see no more
    /// than a switch shows it.
    pub fn with_host() -> Result<Self> {
        let mut hub = Self::new()?;
        let mut command = Command::new("qemu-system-aarch64");
        command.args(["-M", "none", "-nodefaults", "-display", "none"]);
        for device in [
            format!("stream,id=s0,server=off,addr.type=unix,addr.path={}", hub.path().display()),
            format!("user,id=u0,net=10.9.0.0/24,host={UPLINK},dhcpstart=10.9.0.200"),
            "hubport,id=h0,hubid=0,netdev=s0".to_owned(),
            "hubport,id=h1,hubid=0,netdev=u0".to_owned(),
        ] {
            command.args(["-netdev", &device]);
        }
        hub.host = Some(command.spawn().context("QEMU: hack/setup --qemu")?);
        Ok(hub)
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
    let mut places: HashMap<[u8; 6], u64> = HashMap::new();
    for Parcel { from, due, frame } in parcels {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut ports = lock(ports);
        let to = addresses(&frame).and_then(|(to, source)| {
            places.insert(source, from);
            places.get(&to).copied().filter(|port| ports.contains_key(port))
        });
        // A machine that is off is unplugged.
        ports.retain(|port, socket| {
            *port == from || to.is_some_and(|to| to != *port) || socket.write_all(&frame).is_ok()
        });
    }
}

/// Whom a frame is for and whom it is from, after the four bytes of its length.
fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    Some((frame.get(4..10)?.try_into().ok()?, frame.get(10..16)?.try_into().ok()?))
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
    fn a_frame_goes_to_whom_it_is_for_once_that_one_was_heard() {
        let (hub, mut one, mut two) = two();
        let mut three = Hub::plug(&hub.path()).unwrap();
        three.write_all(&frame(b"<all->three-here")).unwrap();
        let heard = |port: &mut UnixStream| while read_frame(port).unwrap()[4..] != *b"<all->three-here" {};
        heard(&mut one);
        heard(&mut two);
        one.write_all(&frame(b"three-one---secret")).unwrap();
        one.write_all(&frame(b"<all->one---end")).unwrap();
        assert_eq!(read_frame(&mut three).unwrap()[4..], *b"three-one---secret");
        assert_eq!(read_frame(&mut two).unwrap()[4..], *b"<all->one---end");
        two.write_all(&frame(b"one---two---answer")).unwrap();
        assert_eq!(read_frame(&mut one).unwrap()[4..], *b"one---two---answer");
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
