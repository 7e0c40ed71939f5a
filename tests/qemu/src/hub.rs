//! A network between guests: QEMU's `stream` sockets carry frames with their length in front (four bytes, big-endian).
//! Every frame goes to all others, unless the network is cut.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// No frame of an Ethernet is longer, with room for tags.
const MAX_FRAME: usize = 65_536;

type Ports = Arc<Mutex<HashMap<u64, UnixStream>>>;

/// A hub that guests plug in to.
#[derive(Debug)]
pub struct Hub {
    folder: TempDir,
    cut: Arc<AtomicBool>,
}

impl Hub {
    /// Listens on a socket in a temporary folder.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bramble-hub-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join("hub")).context("the hub's socket")?;
        let cut = Arc::new(AtomicBool::new(false));
        let (ports, severed) = (Ports::default(), cut.clone());
        std::thread::spawn(move || {
            for (number, port) in (0..).zip(listener.incoming().map_while(|port| port.ok())) {
                plug_in(number, port, &ports, &severed);
            }
        });
        Ok(Self { folder, cut })
    }

    /// Where to plug in.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    /// Cuts all cables, or mends them.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// A socket plugged in, for tests of the hub itself.
    pub fn plug(path: &Path) -> Result<UnixStream> {
        UnixStream::connect(path).context("the hub's socket")
    }
}

fn plug_in(number: u64, mut port: UnixStream, ports: &Ports, cut: &Arc<AtomicBool>) {
    let Ok(writer) = port.try_clone() else { return };
    lock(ports).insert(number, writer);
    let (ports, cut) = (ports.clone(), cut.clone());
    std::thread::spawn(move || {
        while let Some(frame) = read_frame(&mut port) {
            if cut.load(Ordering::SeqCst) {
                continue;
            }
            let mut ports = lock(&ports);
            // A machine that is off is unplugged.
            ports.retain(|other, socket| *other == number || socket.write_all(&frame).is_ok());
        }
        lock(&ports).remove(&number);
    });
}

fn lock(ports: &Ports) -> std::sync::MutexGuard<'_, HashMap<u64, UnixStream>> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::time::Duration;

    use super::*;

    fn frame(text: &[u8]) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
    }

    #[test]
    fn frames_reach_the_others_until_the_cable_is_cut() {
        let hub = Hub::new().unwrap();
        let mut ends: Vec<UnixStream> = (0..3).map(|_| Hub::plug(&hub.path()).unwrap()).collect();
        for end in &ends {
            end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        }
        // Whoever answers is plugged in: knock until both others do.
        let knock =
            |from: usize, ends: &mut [UnixStream], text: &[u8]| ends[from].write_all(&frame(text)).unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            knock(0, &mut ends, b"hello");
            for end in [1, 2] {
                ends[end].set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                if !got.contains(&end) && read_frame(&mut ends[end]).is_some_and(|got| got[4..] == *b"hello")
                {
                    got.push(end);
                }
            }
        }
        hub.cut(true);
        knock(0, &mut ends, b"lost");
        // A frame of the same sender comes after it; only that one arrives.
        let mut seen = Vec::new();
        hub.cut(false);
        knock(0, &mut ends, b"found");
        ends[1].set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        while seen.last().is_none_or(|last: &Vec<u8>| last[4..] != *b"found") {
            seen.push(read_frame(&mut ends[1]).unwrap());
        }
    }
}
