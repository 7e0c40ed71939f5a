//! The image boots.

use std::time::Duration;

use anyhow::Result;
use qemu::checks::{MINUTE, healthy_system, master, measured, memory, times, workload};
use qemu::{Guest, Machine, Net};

/// The one boot that every run of the tests makes: first boot file, master, a pod from the card, reboot.
#[test]
#[ignore = "boots an image in QEMU: hack/image rpi-3 first; hack/test does both"]
fn smoke_virt_becomes_a_master_and_comes_back() -> Result<()> {
    let mut guest = Guest::new("smoke-virt", "rpi-3", Machine::Virt, Net::User)?;
    guest.card.write("bramble.toml", b"hostname = \"node1\"\nrole = \"master\"\ntimezone = \"Europe/Helsinki\"\n[labels]\nshelf = \"top\"\n")?;
    guest.power_on()?;
    let took = guest.shell()?;
    println!("a shell after {took:?}");
    healthy_system(&mut guest)?;
    let size = guest.ok("df -BM --output=size /data | tail -1", MINUTE)?;
    let megabytes: u64 = size.trim().trim_end_matches('M').parse()?;
    assert!(megabytes > 1000, "the data partition grew to the card: {size}");
    guest.until("kubectl get nodes --show-labels", "shelf=top", 4 * MINUTE)?;
    guest.until("kubectl get nodes", " Ready ", 4 * MINUTE)?;
    let (login, ready) = times(&mut guest)?;
    measured("virt: kernel start to login, s", login);
    measured("virt: kernel start to Node Ready, s", ready);
    assert_eq!(guest.ok("uname -n; date +%Z", MINUTE)?.lines().next(), Some("node1"));
    workload(&mut guest)?;
    guest.reboot()?;
    healthy_system(&mut guest)?;
    guest.until("kubectl get nodes", " Ready ", 4 * MINUTE)?;
    Ok(())
}

/// The session of 2016, typed on the console: enable-master, Ready, an image from the card, a reboot.
fn runs_the_2016_way(name: &str, board: &str, machine: Machine) -> Result<()> {
    let real = machine == Machine::Board;
    let mut guest = Guest::new(name, board, machine, Net::User)?;
    guest.power_on()?;
    println!("a shell after {:?}", guest.shell()?);
    healthy_system(&mut guest)?;
    let idle = memory(&mut guest)?;
    measured(&format!("{board}: idle memory of the whole system, MB"), idle);
    // A Pi's share; the other machine has other drivers.
    assert!(!real || idle <= 160.0, "{idle} MB are in use");
    master(&mut guest)?;
    workload(&mut guest)?;
    measured(&format!("{board}: the same as a master, MB"), memory(&mut guest)?);
    guest.reboot()?;
    guest.until("kubectl get nodes", " Ready ", 8 * MINUTE)?;
    guest.ok("grep -q Bramble /var/log/bramble/system.log", MINUTE)?;
    guest.ok("test -e /data/clock", MINUTE)?;
    healthy_system(&mut guest)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn virt_runs_the_2016_way() -> Result<()> {
    runs_the_2016_way("virt", "rpi-3", Machine::Virt)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn pi3_runs_the_2016_way() -> Result<()> {
    runs_the_2016_way("pi3", "rpi-3", Machine::Board)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn pi2_runs_the_2016_way() -> Result<()> {
    runs_the_2016_way("pi2", "rpi-2", Machine::Board)
}

/// Nothing listens to the network but what the agent needs, and mDNS; SSH is off.
#[test]
#[ignore = "slow: hack/test --full"]
fn a_fresh_system_offers_nothing() -> Result<()> {
    let mut guest = Guest::new("quiet", "rpi-3", Machine::Virt, Net::User)?;
    guest.power_on()?;
    guest.shell()?;
    healthy_system(&mut guest)?;
    let listening = guest.ok("ss -Hltun", MINUTE)?;
    for line in listening.lines() {
        let local = line.split_whitespace().nth(4).unwrap_or_default();
        // mDNS, the DHCP clients and the agent's own port for commands of other nodes.
        let known = [":5353", ":68", ":546", ":6443"].iter().any(|port| local.ends_with(port));
        let inside = local.starts_with("127.") || local.starts_with("[::1]");
        assert!(known || inside, "{line} in:\n{listening}");
    }
    let shadow = guest.ok("cut -d: -f2 /etc/shadow | sort -u", MINUTE)?;
    assert!(shadow.lines().all(|hash| hash.starts_with('*') || hash.starts_with('!')), "{shadow}");
    Ok(())
}

#[test]
#[ignore = "slow: hack/test --full"]
fn a_wrong_first_boot_file_is_told_and_mended() -> Result<()> {
    let mut guest = Guest::new("first-boot", "rpi-3", Machine::Virt, Net::User)?;
    guest.card.write("bramble.toml", b"hostname = \"node1\"\nrole = \"boss\"\n")?;
    guest.power_on()?;
    guest.said("line 2: role: ", 5 * MINUTE)?;
    guest.shell()?;
    healthy_system(&mut guest)?;
    guest.ok("systemctl poweroff --no-block", MINUTE)?;
    guest.wait_off()?;
    let told = String::from_utf8(guest.card.read("bramble-errors.txt")?)?;
    assert!(told.contains("line 2: role: "), "{told}");
    let secret = "correct horse";
    let good =
        format!("hostname = \"node1\"\n[wifi]\ncountry = \"FI\"\nssid = \"x\"\npassword = \"{secret}\"\n");
    guest.card.write("bramble.toml", good.as_bytes())?;
    guest.power_on()?;
    guest.shell()?;
    assert_eq!(guest.ok("uname -n", MINUTE)?.trim(), "node1");
    guest.power_off();
    assert!(!guest.card.has("bramble-errors.txt"));
    let raw = std::fs::read(guest.card.path())?;
    let boot_partition = &raw[4 << 20..260 << 20];
    assert!(
        !boot_partition.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()),
        "the password is gone"
    );
    Ok(())
}

/// The plug is pulled while the node works: it is back by itself.
#[test]
#[ignore = "slow: hack/test --full"]
fn a_master_survives_its_plug() -> Result<()> {
    let mut guest = Guest::new("plug", "rpi-3", Machine::Virt, Net::User)?;
    guest.card.write("bramble.toml", b"role = \"master\"\n")?;
    guest.power_on()?;
    guest.shell()?;
    guest.until("kubectl get nodes", " Ready ", 4 * MINUTE)?;
    guest.ok("kubectl create configmap kept --from-literal=a=b", MINUTE)?;
    guest.power_off();
    guest.power_on()?;
    guest.shell()?;
    guest.until("kubectl get configmap kept", "kept", Duration::from_secs(240))?;
    healthy_system(&mut guest)
}
