//! Two machines with cards of one batch.

use std::time::Duration;

use anyhow::{Context, Result};
use qemu::checks::MINUTE;
use qemu::{Guest, Hub, Line, Machine, Net};

fn node(hub: &Hub, number: u8, role: &str) -> Result<Guest> {
    let name = format!("node{number}");
    let guest = Guest::new(&format!("cluster-{name}"), "rpi-3", Machine::Virt, Net::Hub(hub.path(), number))?;
    let text = format!(
        "hostname = \"{name}\"\nrole = \"{role}\"\ncluster_secret = \"all cards of this batch know it\"\n\
         [network]\naddress = [\"10.9.0.{number}/24\", \"fd09::{number}/64\"]\n"
    );
    guest.card.write("bramble.toml", text.as_bytes())?;
    Ok(guest)
}

fn ready(name: &str) -> String {
    format!("kubectl get node {name} --no-headers | grep -w Ready")
}

/// Joining needs an address only; names are found; a cut cable shows, and heals; a bad one is borne.
#[test]
#[ignore = "slow: hack/test --full"]
fn two_cards_of_a_batch_make_a_cluster() -> Result<()> {
    let hub = Hub::new()?;
    let mut master = node(&hub, 1, "master")?;
    let mut worker = node(&hub, 2, "worker 10.9.0.1")?;
    master.power_on()?;
    worker.power_on()?;
    println!("a shell after {:?}", master.shell()?);
    worker.shell()?;
    master.until(&ready("node1"), "node1", 6 * MINUTE)?;
    let joined = master.until(&ready("node2"), "node2", 6 * MINUTE);
    joined.with_context(|| {
        let told = worker.run("cat /boot/bramble-errors.txt; kube-config info; ip -br addr", MINUTE);
        told.map_or_else(|error| format!("{error:#}"), |output| output.text)
    })?;
    names(&mut worker)?;
    cut(&hub, &mut master, &mut worker)?;
    kubectl(&mut master, &mut worker)?;
    bad_line(&hub, &mut master, &mut worker)
}

/// The fixed addresses, and the names without any name server.
fn names(worker: &mut Guest) -> Result<()> {
    worker.ok("ping -c 3 fd09::1", MINUTE)?;
    for (name, address) in [("node1.local", "10.9.0.1"), ("bramble.local", "10.9.0.")] {
        worker.until(&format!("resolvectl --protocol=mdns query {name}"), address, MINUTE)?;
    }
    Ok(())
}

fn cut(hub: &Hub, master: &mut Guest, worker: &mut Guest) -> Result<()> {
    hub.cut(true);
    let gone = "kubectl get node node2 --no-headers | grep -w NotReady";
    master.until(gone, "node2", Duration::from_secs(90))?;
    hub.cut(false);
    master.until(&ready("node2"), "node2", 3 * MINUTE)?;
    worker.until("kube-config info", "leader: node1", 3 * MINUTE)?;
    Ok(())
}

/// Without the administrator's file kubectl says what is missing; with it it works anywhere.
fn kubectl(master: &mut Guest, worker: &mut Guest) -> Result<()> {
    let without = worker.run("kubectl get nodes", MINUTE)?;
    assert!(without.code != 0 && without.text.contains("no kubeconfig"), "{}", without.text);
    let file = master.ok("cat /var/lib/bramble/kubeconfig", MINUTE)?;
    worker.ok("mkdir -p /root/.kube", MINUTE)?;
    worker.put("/root/.kube/config", &file)?;
    worker.until("kubectl get nodes --no-headers | grep -cw Ready", "2", MINUTE)?;
    Ok(())
}

/// Wi-Fi through two walls: one frame of ten is lost, and each takes its time.
fn bad_line(hub: &Hub, master: &mut Guest, worker: &mut Guest) -> Result<()> {
    let before = hub.lost();
    hub.set(Line { loss: 10, delay: Duration::from_millis(20), ..Line::default() });
    for number in 0..3 {
        worker.ok(&format!("kubectl create configmap kept-{number} --from-literal=a=b"), 2 * MINUTE)?;
        master.until(&format!("kubectl get configmap kept-{number}"), "kept", MINUTE)?;
    }
    let states = master.ok("kubectl get nodes --no-headers", MINUTE)?;
    assert_eq!(states.matches(" Ready ").count(), 2, "{states}");
    assert!(hub.lost() > before + 10, "the line was bad: {} frames lost", hub.lost() - before);
    hub.set(Line::default());
    Ok(())
}
