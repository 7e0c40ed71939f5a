//! What `bramble.toml` and a user's layer set, on one card in two boots.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, ensure};
use qemu::checks::{MINUTE, healthy_system};
use qemu::{Card, GREETING, Guest, Machine, Net};

/// Joins nothing until the access point is there; then it must be the right name, key and country.
const ACCESS_POINT: &str = "country=FI\\nnetwork={\\n ssid=\\\"Bramble test\\\"\\n mode=2\\n frequency=2412\\n proto=RSN\\n pairwise=CCMP\\n key_mgmt=WPA-PSK\\n psk=\\\"correct horse\\\"\\n}\\n";

fn document(key: &str, registry: u16) -> String {
    format!(
        r#"hostname = "node7"
role = "master"
[ssh]
keys = ["{key}"]
[wifi]
country = "FI"
ssid = "Bramble test"
password = "correct horse"
[labels]
shelf = "top"
[registries."docker.io"]
mirrors = ["10.0.2.2:{registry}"]
[registries."10.0.2.2:{registry}"]
insecure = true
"#
    )
}

/// A key of this test's own; gives the private one's path and the public line.
fn key(folder: &Path) -> Result<(PathBuf, String)> {
    let path = folder.join("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let public = fs::read_to_string(path.with_extension("pub"))?;
    Ok((path, public.trim().to_owned()))
}

/// A registry that has nothing; gives its port and what it is asked.
fn empty_registry() -> Result<(u16, Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let (asked, questions) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Ok(copy) = stream.try_clone() else { continue };
            let mut lines = BufReader::new(copy).lines().map_while(|line| line.ok());
            let first = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let _ =
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            if asked.send(first).is_err() {
                return;
            }
        }
    });
    Ok((port, questions))
}

fn ssh(guest: &Guest, options: &[&str], command: &str) -> Result<Output> {
    let mut ssh = Command::new("ssh");
    ssh.args(["-p", &guest.ssh_port().to_string(), "-o", "ConnectTimeout=60", "-o", "BatchMode=yes"]);
    ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-F", "/dev/null"]);
    Ok(ssh.args(options).args(["root@127.0.0.1", command]).output()?)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn what_is_set_holds() -> Result<()> {
    let (folder, image) = qemu::with_layer("layer")?;
    let (key, public) = key(folder.path())?;
    let (port, questions) = empty_registry()?;
    let mut guest = Guest::with_card("settings", "rpi-3", Machine::Virt, Net::User, Card::of(image)?)?;
    guest.card.write("bramble.toml", document(&public, port).as_bytes())?;
    guest.power_on()?;
    println!("a shell after {:?}", guest.shell()?);
    healthy_system(&mut guest)?;
    names_and_time(&mut guest)?;
    logins(&guest, &key)?;
    wifi(&mut guest)?;
    memory_and_log(&mut guest)?;
    agent(&mut guest, &questions)?;
    clock(&mut guest)?;
    healthy_system(&mut guest)
}

fn names_and_time(guest: &mut Guest) -> Result<()> {
    let said = guest.ok("uname -n; date +%Z; command -v iw", MINUTE)?;
    assert_eq!(said.lines().collect::<Vec<_>>(), ["node7", "EET", "/usr/sbin/iw"]);
    let own = guest.ok("resolvectl query --protocol=mdns node7.local || resolvectl", MINUTE)?;
    println!("{own}");
    Ok(())
}

/// The key opens, nothing else does.
fn logins(guest: &Guest, key: &Path) -> Result<()> {
    let key = key.display().to_string();
    let by_key = ssh(guest, &["-i", &key, "-o", "IdentitiesOnly=yes"], "uname -n; id -u")?;
    let said = String::from_utf8_lossy(&by_key.stdout);
    assert_eq!(said.trim(), "node7\n0", "{}", String::from_utf8_lossy(&by_key.stderr));
    let ways = "PreferredAuthentications=password,keyboard-interactive,hostbased,none";
    let without = ssh(guest, &["-o", ways, "-o", "PubkeyAuthentication=no"], "true")?;
    let said = String::from_utf8_lossy(&without.stderr);
    assert!(!without.status.success() && said.contains("Permission denied (publickey)"), "{said}");
    Ok(())
}

/// A radio made of software: the second one is the access point.
fn wifi(guest: &mut Guest) -> Result<()> {
    let mode = guest.ok("stat -c %a /etc/bramble/wifi.conf && cat /etc/bramble/wifi.conf", MINUTE)?;
    assert!(mode.starts_with("600\ncountry=FI\n"), "{mode}");
    guest.ok("modprobe mac80211_hwsim radios=2", MINUTE)?;
    guest.until("systemctl is-active bramble-wifi@wlan0 bramble-wifi@wlan1", "active\nactive", MINUTE)?;
    guest.ok("systemctl stop bramble-wifi@wlan1", MINUTE)?;
    guest.ok(&format!("printf \"{ACCESS_POINT}\" > /run/ap.conf"), MINUTE)?;
    guest.ok("wpa_supplicant -B -D nl80211 -i wlan1 -c /run/ap.conf", MINUTE)?;
    let joined = guest.until("iw dev wlan0 link", "Connected to", 3 * MINUTE);
    let joined = joined.with_context(|| {
        guest
            .run("journalctl -b -u 'bramble-wifi@*' --no-pager | tail -30; iw dev; iw reg get", MINUTE)
            .map_or_else(|error| format!("{error:#}"), |output| output.text)
    })?;
    assert!(joined.contains("SSID: Bramble test"), "{joined}");
    guest.until("networkctl --no-legend list wlan0", "configuring", MINUTE)?;
    guest.until("iw reg get", "country FI", MINUTE)?;
    // Two radios less: what is left is as on a node without Wi-Fi.
    guest.ok("pkill -f ap.conf; rmmod mac80211_hwsim", MINUTE)?;
    guest.until("systemctl is-active bramble-wifi@wlan0 || true", "inactive", MINUTE)?;
    Ok(())
}

fn memory_and_log(guest: &mut Guest) -> Result<()> {
    let swap = guest.ok("swapon --show=NAME --noheadings", MINUTE)?;
    assert_eq!(swap.trim(), "/dev/zram0", "swap is in memory only");
    guest.ok("ls -l /proc/1/fd | grep -w /dev/watchdog0", MINUTE).context("systemd feeds the watchdog")?;
    guest.ok("test -d /run/log/journal && ! test -e /var/log/journal", MINUTE)?;
    // More than the ring holds, twice.
    let burst = "head -c 6000000 /dev/urandom | base64 -w 2000 | systemd-cat && journalctl --sync && systemctl start bramble-journal-save";
    guest.ok(&format!("{burst} && {burst}"), 4 * MINUTE)?;
    let sizes = guest.ok("du -sbc /var/log/bramble /run/log/journal", MINUTE)?;
    let bytes: Vec<u64> =
        sizes.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    assert!(matches!(bytes[..], [1_000_000..=9_000_000, 1..=20_000_000, _]), "{sizes}");
    Ok(())
}

/// Labels, the registry, and the container image that came with the layer.
fn agent(guest: &mut Guest, questions: &Receiver<String>) -> Result<()> {
    guest.until("kubectl get nodes --show-labels", "shelf=top", 6 * MINUTE)?;
    guest.until("kubectl get nodes", " Ready ", 4 * MINUTE)?;
    let greet =
        "kubectl run greeting --image=example.org/greeting:1 --image-pull-policy=Never --restart=Never";
    guest.ok(greet, MINUTE)?;
    guest.until("kubectl logs greeting", GREETING, 3 * MINUTE)?;
    guest.ok("kubectl run missing --image=nothing/there:1 --restart=Never", MINUTE)?;
    let asked = questions.recv_timeout(3 * MINUTE).context("nobody asked the mirror")?;
    assert!(asked.starts_with("GET /v2/") || asked.starts_with("HEAD /v2/"), "{asked}");
    guest.ok("kubectl delete pod missing greeting --force --grace-period=0", 2 * MINUTE)?;
    Ok(())
}

/// A clock that starts years ago does not take the system back.
fn clock(guest: &mut Guest) -> Result<()> {
    let before: u64 = guest.ok("date +%s", MINUTE)?.trim().parse()?;
    guest.set_clock("2020-01-01T00:00:00");
    guest.reboot()?;
    let after: u64 = guest.ok("date +%s", MINUTE)?.trim().parse()?;
    assert!(after >= before, "{after} is before {before}");
    assert!(after < before + 3600, "{after} is long after {before}");
    guest.until("kubectl get nodes", " Ready ", 4 * MINUTE)?;
    Ok(())
}
