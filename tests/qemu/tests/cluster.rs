//! Two machines with cards of one batch.

use std::time::Duration;

use anyhow::Result;
use qemu::checks::MINUTE;
use qemu::{Guest, Hub, Machine, Net};

fn node(hub: &Hub, number: u8, role: &str) -> Result<Guest> {
    let name = format!("node{number}");
    let guest = Guest::new(&format!("cluster-{name}"), "rpi-3", Machine::Virt, Net::Hub(hub.path(), number))?;
    let text = format!(
        "hostname = \"{name}\"\nrole = \"{role}\"\ncluster_secret = \"all cards of this batch know it\"\n\
         [network]\naddress = \"10.9.0.{number}/24\"\n"
    );
    guest.card.write("bramble.toml", text.as_bytes())?;
    Ok(guest)
}

/// Joining needs an address only; a cut cable shows, and heals.
#[test]
#[ignore = "slow: hack/test --full"]
fn two_cards_of_a_batch_make_a_cluster() -> Result<()> {
    let hub = Hub::new()?;
    let mut master = node(&hub, 1, "master")?;
    let mut worker = node(&hub, 2, "worker 10.9.0.1")?;
    master.power_on()?;
    worker.power_on()?;
    master.shell()?;
    worker.shell()?;
    let ready = |name: &str| format!("kubectl get node {name} --no-headers | grep -w Ready");
    master.until(&ready("node1"), "node1", 6 * MINUTE)?;
    master.until(&ready("node2"), "node2", 6 * MINUTE)?;
    hub.cut(true);
    let gone = "kubectl get node node2 --no-headers | grep -w NotReady";
    master.until(gone, "node2", Duration::from_secs(90))?;
    hub.cut(false);
    master.until(&ready("node2"), "node2", 3 * MINUTE)?;
    worker.until("kubectl get nodes --no-headers | grep -cw Ready", "2", 3 * MINUTE)?;
    Ok(())
}
