//! The README's way with Pis, its own lines typed one after the other: two cards written, booted, made a cluster, used.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use qemu::checks::{MINUTE, online};
use qemu::{Card, Guest, Hub, Machine, Net, Registry, UPLINK};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the README says to type, up to the settings: a list of lines for each block.
fn blocks() -> Result<Vec<Vec<String>>> {
    let readme = std::fs::read_to_string(repository().join("README.md"))?;
    let part = readme.split("\n## On Pis\n").nth(1).context("the part about Pis")?;
    let part = part.split("\n### ").next().unwrap_or_default();
    // Every other piece between fences is a block.
    let blocks = part.split("\n```").skip(1).step_by(2);
    Ok(blocks.map(|block| block.lines().skip(1).map(str::to_owned).collect()).collect())
}

/// Writes cards as the README says, but into files. The registry stands in for the internet.
fn cards(lines: &[String], folder: &Path, registry: &Registry) -> Result<Vec<Card>> {
    let address = registry.address(UPLINK);
    let settings = format!(
        "\n[registries.\"docker.io\"]\nmirrors = [\"{address}\"]\n[registries.\"{address}\"]\ninsecure = true\n"
    );
    let mut cards = Vec::new();
    for line in lines.iter().filter_map(|line| line.strip_prefix("sudo target/debug/image-builder flash ")) {
        let card = folder.join(format!("card{}", cards.len()));
        // The newest image, if there are several.
        let line =
            line.replace("out/bramble-rpi-3-*.img.zst", "$(ls -t out/bramble-rpi-3-*.img.zst | head -1)");
        let secret = folder.join("batch.secret");
        let line = line.replace("batch.secret", &secret.display().to_string());
        let line = format!("cargo run -q --locked -p image-builder -- flash {line}");
        // The card's name comes after the image's.
        let line = line.replace(" --secret-file", &format!(" {} --secret-file", card.display()));
        let done = Command::new("sh").current_dir(repository()).args(["-c", &line]).output()?;
        let said = String::from_utf8_lossy(&done.stdout);
        ensure!(done.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&done.stderr));
        ensure!(said.contains("is written and verified"), "{said}");
        let card = Card::of(card)?;
        let text = String::from_utf8(card.read("bramble.toml")?)? + &settings;
        card.write("bramble.toml", text.as_bytes())?;
        cards.push(card);
    }
    Ok(cards)
}

#[test]
#[ignore = "slow: hack/test --full"]
fn the_readme_is_true() -> Result<()> {
    let blocks = blocks()?;
    let [make, master, worker, use_it, ..] = &blocks[..] else {
        anyhow::bail!("the README has another shape: {blocks:?}")
    };
    assert_eq!(make[..2], ["sudo hack/setup --image", "hack/image rpi-3"], "what hack/test has done");
    let registry = Registry::with_web_server("luxas/nginx-test")?;
    let folder = tempfile::tempdir()?;
    let cards: [Card; 2] =
        cards(make, folder.path(), &registry)?.try_into().ok().context("two cards are written")?;
    let [one, two] = cards;
    let hub = Hub::with_host()?;
    let mut first = Guest::with_card("walk1", "rpi-3", Machine::Virt, Net::Hub(hub.path(), 1), one)?;
    let mut second = Guest::with_card("walk2", "rpi-3", Machine::Virt, Net::Hub(hub.path(), 2), two)?;
    first.power_on()?;
    second.power_on()?;
    for guest in [&mut first, &mut second] {
        guest.shell()?;
        online(guest)?;
    }
    assert_eq!((master.len(), worker.len()), (1, 1));
    let told = first.ok(&master[0], 4 * MINUTE)?;
    let join =
        told.lines().find_map(|line| line.strip_prefix("On the other nodes: ")).context(told.clone())?;
    let typed = join.rsplit_once(' ').context("an address")?.0;
    assert_eq!(worker[0].rsplit_once(' ').map(|line| line.0), Some(typed), "what the first node says");
    second.ok(join, 4 * MINUTE)?;
    first.until("kubectl get nodes --no-headers | grep -cw Ready", "2", 6 * MINUTE)?;
    use_them(use_it, &mut first, &mut second)
}

/// The workload, from both nodes and from a pod; and the page.
fn use_them(lines: &[String], first: &mut Guest, second: &mut Guest) -> Result<()> {
    for line in lines {
        println!("{line}\n{}", first.ok(line, 2 * MINUTE)?);
    }
    let running = first.until("kubectl get pods --no-headers | grep -cw Running", "3", 4 * MINUTE);
    running.with_context(|| {
        let told =
            first.run("kubectl get pods -o wide; kubectl get events; cat /boot/bramble-errors.txt", MINUTE);
        told.map_or_else(|error| format!("{error:#}"), |output| output.text)
    })?;
    let places = first.ok("kubectl get pods -o wide", MINUTE)?;
    assert!(places.contains(" node1 ") && places.contains(" node2 "), "they spread: {places}");
    let address = first.ok("kubectl get service my-nginx -o jsonpath='{.spec.clusterIP}'", MINUTE)?;
    for guest in [&mut *first, &mut *second] {
        let fetch = format!(
            "exec 3<>/dev/tcp/{}/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
            address.trim()
        );
        guest.until(&format!("bash -c \"{fetch}\""), "Welcome to nginx", MINUTE)?;
    }
    let pod =
        "kubectl exec $(kubectl get pods -o name | head -1) -- /bin/busybox wget -q -O - http://my-nginx";
    first.until(pod, "Welcome to nginx", MINUTE)?;
    let page = "exec 3<>/dev/tcp/bramble.local/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let page = second.until(&format!("bash -c \"{page}\""), "my-nginx", MINUTE)?;
    assert!(page.contains("node1") && page.contains("node2"), "{page}");
    Ok(())
}
