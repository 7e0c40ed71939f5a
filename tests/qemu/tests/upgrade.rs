//! `kube-config upgrade` on the running image, from the bundle that was baked with it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use qemu::checks::{MINUTE, healthy_system};
use qemu::{Guest, Machine, Net};
use slots::{Slot, Spare};

/// Serves one file over HTTP for as long as the test runs; gives its address as the guest sees it.
fn serve(path: PathBuf) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A guest whose plug was pulled leaves its connection.
            let _ = answer(stream, &path);
        }
    });
    Ok(format!("http://10.0.2.2:{port}/update"))
}

fn answer(mut stream: TcpStream, path: &Path) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut file, &mut stream).map(drop)
}

fn bundle(guest: &Guest) -> Result<String> {
    let image = guest.card.image();
    let path = image.with_extension("update");
    anyhow::ensure!(path.exists(), "no update bundle beside {}: hack/image makes it", image.display());
    serve(path)
}

fn slot(guest: &mut Guest) -> Result<String> {
    guest.ok("grep -o 'bramble.slot=.' /proc/cmdline", MINUTE).map(|text| text.trim().to_owned())
}

/// Types the upgrade and lets the machine reboot into it.
fn upgrade(guest: &mut Guest, from: &str) -> Result<()> {
    println!("{}", guest.ok(&format!("kube-config upgrade {from} --no-reboot"), 15 * MINUTE)?);
    guest.reboot().map(drop)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn an_upgrade_is_kept_once_the_agent_is_healthy() -> Result<()> {
    let mut guest = Guest::new("upgrade", "rpi-3", Machine::Virt, Net::User)?;
    let url = bundle(&guest)?;
    guest.power_on()?;
    guest.shell()?;
    guest.ok("echo kept > /data/kept", MINUTE)?;
    let refused = guest.run("kube-config upgrade --fall-back", MINUTE)?;
    assert!(refused.code != 0 && refused.text.contains("nothing to fall back to"), "{}", refused.text);
    upgrade(&mut guest, &url)?;
    assert_eq!(slot(&mut guest)?, "bramble.slot=b");
    guest.until("kube-config upgrade --status", "slot b (running): good", 15 * MINUTE)?;
    healthy_system(&mut guest)?;
    assert_eq!(guest.ok("cat /data/kept", MINUTE)?.trim(), "kept");
    assert_eq!(guest.card.state()?.map(|state| (state.good, state.spare)), Some((Slot::B, Spare::Whole)));
    guest
        .ok("findmnt -no OPTIONS /boot | grep -w ro", MINUTE)
        .context("the boot partition is read-only again")?;
    // And back to the older one.
    guest.ok("kube-config upgrade --fall-back --no-reboot", MINUTE)?;
    guest.reboot()?;
    assert_eq!(slot(&mut guest)?, "bramble.slot=a");
    guest.until("kube-config upgrade --status", "slot a (running): good", 15 * MINUTE)?;
    Ok(())
}

/// The plug is pulled while the update runs, each time a little later: the old system is always back, and in the end
/// the update goes through.
#[test]
#[ignore = "slow: hack/test --full"]
fn a_plug_pulled_during_an_upgrade_leaves_a_system_that_boots() -> Result<()> {
    let mut guest = Guest::new("upgrade-plug", "rpi-3", Machine::Virt, Net::User)?;
    let url = bundle(&guest)?;
    guest.power_on()?;
    guest.shell()?;
    for cut in 0..CUTS {
        let command = format!("(kube-config upgrade {url} --no-reboot > /root/upgrade.log 2>&1 &)");
        guest.ok(&command, MINUTE)?;
        // What is awaited here is the plug, not the guest.
        std::thread::sleep(Duration::from_millis(500 + 1700 * cut));
        guest.power_off();
        guest.power_on()?;
        guest.shell().with_context(|| format!("after cut {cut}"))?;
        let running = slot(&mut guest)?;
        println!("cut {cut}: {running}");
        if running != "bramble.slot=a" {
            // All of it was there before the cut.
            break;
        }
    }
    if slot(&mut guest)? == "bramble.slot=a" {
        upgrade(&mut guest, &url)?;
    }
    guest.until("kube-config upgrade --status", "slot b (running): good", 15 * MINUTE)?;
    healthy_system(&mut guest)
}

/// How often the plug is pulled.
const CUTS: u64 = 20;
