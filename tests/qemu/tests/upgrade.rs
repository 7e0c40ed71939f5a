//! `kube-config upgrade` on the running image, from the bundle that was baked with it.

use anyhow::{Context, Result};
use qemu::checks::{MINUTE, healthy_system, image, online};
use qemu::{Guest, Hub, Machine, Net, Server, UPLINK};
use slots::{Slot, Spare};

fn slot(guest: &mut Guest) -> Result<String> {
    guest.ok("grep -o 'bramble.slot=.' /proc/cmdline", MINUTE).map(|text| text.trim().to_owned())
}

#[test]
#[ignore = "slow: hack/test --full"]
fn an_upgrade_is_kept_once_the_agent_is_healthy() -> Result<()> {
    let mut guest = Guest::new("upgrade", "rpi-3", Machine::Virt, Net::User)?;
    let server = Server::start(guest.card.bundle()?)?;
    guest.power_on()?;
    guest.shell()?;
    online(&mut guest)?;
    guest.ok("echo kept > /data/kept", MINUTE)?;
    let refused = guest.run("kube-config upgrade --fall-back", MINUTE)?;
    assert!(refused.code != 0 && refused.text.contains("nothing to fall back to"), "{}", refused.text);

    // A server that goes away in the middle: nothing has changed.
    server.break_off_after(20 << 20);
    let command = format!("kube-config upgrade {} --no-reboot", server.url("10.0.2.2"));
    let broken = guest.run(&command, 15 * MINUTE)?;
    // Some of it was there before the rest was missing.
    assert!(broken.code != 0 && broken.text.contains("MB/s"), "{}", broken.text);
    let status = guest.ok("kube-config upgrade --status", MINUTE)?;
    assert!(status.contains("slot a (running): good"), "{status}");
    assert!(status.contains("slot b: holds no complete system"), "{status}");
    server.break_off_after(u64::MAX);

    println!("{}", guest.ok(&command, 15 * MINUTE)?);
    guest.reboot()?;
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

fn node(hub: &Hub, number: u8, role: &str) -> Result<Guest> {
    let name = format!("node{number}");
    let net = Net::Hub(hub.path(), number);
    let guest = Guest::new(&format!("upgrade-{name}"), "rpi-3", Machine::Virt, net)?;
    let text = format!(
        "hostname = \"{name}\"\nrole = \"{role}\"\ncluster_secret = \"all cards of this batch know it\"\n\
         [network]\naddress = \"10.9.0.{number}/24\"\n"
    );
    guest.card.write("bramble.toml", text.as_bytes())?;
    Ok(guest)
}

/// A workload that is bound to the second node, and adds a line to a file there whenever it starts.
const DEPLOYMENT: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "notes"},
"spec": {"replicas": 1, "selector": {"matchLabels": {"app": "notes"}}, "template": {"metadata": {"labels": {"app": "notes"}},
"spec": {"nodeSelector": {"kubernetes.io/hostname": "node2"}, "terminationGracePeriodSeconds": 1,
"containers": [{"name": "notes", "image": "example.org/hello:1", "imagePullPolicy": "Never",
"command": ["/bin/bash", "-c", "echo started >> /kept/notes; coproc read; wait"],
"volumeMounts": [{"name": "kept", "mountPath": "/kept"}]}],
"volumes": [{"name": "kept", "hostPath": {"path": "/data/notes", "type": "DirectoryOrCreate"}}]}}}}"#;

/// The first failure stops it and touches nobody else; then one node after the other, drained, and all that was there
/// is there afterwards.
#[test]
#[ignore = "slow: hack/test --full"]
fn a_cluster_is_upgraded_node_by_node() -> Result<()> {
    let hub = Hub::with_host()?;
    let mut master = node(&hub, 1, "master")?;
    let mut worker = node(&hub, 2, "worker 10.9.0.1")?;
    let server = Server::start(master.card.bundle()?)?;
    master.power_on()?;
    worker.power_on()?;
    master.shell()?;
    worker.shell()?;
    let ready = "kubectl get nodes --no-headers | grep -cw Ready";
    master.until(ready, "2", 10 * MINUTE)?;
    image(&mut worker)?;
    master.ok(&format!("cat > /root/notes.json <<'E'\n{DEPLOYMENT}\nE"), MINUTE)?;
    master.ok("kubectl apply -f /root/notes.json", MINUTE)?;
    master.ok("kubectl create configmap before --from-literal=a=b", MINUTE)?;
    let available = "kubectl get deployment notes -o jsonpath='<{.status.availableReplicas}>'";
    master.until(available, "<1>", 5 * MINUTE)?;

    let command = format!("kube-config upgrade {} --cluster", server.url(UPLINK));
    server.break_off_after(20 << 20);
    let failed = master.run(&command, 15 * MINUTE)?;
    assert!(failed.code != 0 && failed.text.contains("node2: "), "{}", failed.text);
    assert!(
        failed.text.contains("not touched") && !failed.text.contains("node1: draining"),
        "{}",
        failed.text
    );
    let cordoned = master.run("kubectl get nodes --no-headers | grep SchedulingDisabled", MINUTE)?;
    assert_ne!(cordoned.code, 0, "a node stays cordoned: {}", cordoned.text);
    master.until(available, "<1>", 5 * MINUTE)?;
    server.break_off_after(u64::MAX);

    master.ok(&format!("({command} > /root/upgrade.log 2>&1 &)"), MINUTE)?;
    worker.back(20 * MINUTE)?;
    assert_eq!(slot(&mut worker)?, "bramble.slot=b");
    master.back(30 * MINUTE)?;
    assert_eq!(slot(&mut master)?, "bramble.slot=b");
    // Told again what it has done, it says so; until then the last node is on trial.
    master.until(&command, "All 2 nodes run it", 20 * MINUTE)?;
    let log = master.ok("cat /root/upgrade.log", MINUTE)?;
    let position = |text: &str| log.find(text).with_context(|| format!("{text}: {log}"));
    let order = ["node2: draining", "node2: upgrading", "node1: draining", "node1: upgrading"];
    let order = order.map(position).into_iter().collect::<Result<Vec<_>>>()?;
    assert!(order.is_sorted(), "{log}");

    for guest in [&mut master, &mut worker] {
        let status = guest.ok("kube-config upgrade --status", MINUTE)?;
        assert!(status.contains("slot b (running): good"), "{status}");
    }
    master.until(ready, "2", 5 * MINUTE)?;
    let cordoned = master.run("kubectl get nodes --no-headers | grep SchedulingDisabled", MINUTE)?;
    assert_ne!(cordoned.code, 0, "a node stays cordoned: {}", cordoned.text);
    master.until(available, "<1>", 5 * MINUTE)?;
    master.ok("kubectl get configmap before", MINUTE)?;
    // Once at first, once after each drain; nothing of it was lost.
    let notes = worker.ok("grep -c started /data/notes/notes", MINUTE)?;
    assert!(notes.trim().parse::<u32>()? >= 3, "{notes}");
    Ok(())
}
