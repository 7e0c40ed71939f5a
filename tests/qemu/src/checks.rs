//! What several tests ask of a guest.

use std::time::Duration;

use crate::Guest;
use anyhow::{Context, Result, ensure};

/// The unit of patience.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Waits until systemd is done, and looks for units that failed.
pub fn healthy_system(guest: &mut Guest) -> Result<()> {
    let state = guest.run("systemctl is-system-running --wait", 5 * MINUTE)?;
    let failed = guest.ok("systemctl list-units --failed --no-legend --plain", MINUTE)?;
    ensure!(
        failed.trim().is_empty() && state.text.contains("running"),
        "the system is {}, failed: {failed}\n{}",
        state.text.trim(),
        guest.run("journalctl -b -p warning --no-pager | tail -40", MINUTE)?.text
    );
    Ok(())
}

/// Says a figure, in the words that `hack/bench image` looks for.
pub fn measured(what: &str, value: f64) {
    println!("measured: {what} = {value:.1}");
}

/// Seconds from the kernel's start to the shell on the console, and to the node's being Ready.
pub fn times(guest: &mut Guest) -> Result<(f64, f64)> {
    let login = "systemctl show -P ActiveEnterTimestampMonotonic console-getty.service";
    let login: f64 = guest.ok(login, MINUTE)?.trim().parse()?;
    let ready = "kubectl get nodes -o jsonpath='{.items[0].status.conditions[?(@.type==\"Ready\")].lastTransitionTime}'";
    let ready = format!("date -d \"$({ready})\" +%s && sed -n 's/^btime //p' /proc/stat");
    let said = guest.ok(&ready, MINUTE)?;
    let (at, boot) = said.trim().split_once('\n').context("two times")?;
    Ok((login / 1e6, at.trim().parse::<f64>()? - boot.trim().parse::<f64>()?))
}

/// Memory that the whole system needs, in MB as `free` counts.
pub fn memory(guest: &mut Guest) -> Result<f64> {
    let said = guest.ok("free --mega | sed -n 's/^Mem: *[0-9]* *\\([0-9]*\\).*/\\1/p'", MINUTE)?;
    said.trim().parse().with_context(|| said.clone())
}

/// Waits for the network: the shell on the console does not.
pub fn online(guest: &mut Guest) -> Result<()> {
    guest.until("ip route", "default", 8 * MINUTE).map(drop)
}

/// `kube-config enable-master`, as typed in 2016, up to Node Ready.
pub fn master(guest: &mut Guest) -> Result<()> {
    println!("{}", guest.ok("kube-config enable-master", 4 * MINUTE)?);
    guest.until("kubectl get nodes", " Ready ", 8 * MINUTE)?;
    Ok(())
}

/// An image made on the node out of its own shell is loaded, run and answers.
pub fn workload(guest: &mut Guest) -> Result<()> {
    image(guest)?;
    guest.ok(
        "kubectl run hello --image=example.org/hello:1 --image-pull-policy=Never --restart=Never",
        MINUTE,
    )?;
    guest.until("kubectl get pod hello", "Completed", 4 * MINUTE)?;
    guest.until("kubectl logs hello", "hello from the card", MINUTE)?;
    guest.ok("kubectl delete pod hello", 2 * MINUTE)?;
    Ok(())
}

/// Makes an image out of the node's own shell and loads it: `example.org/hello:1`.
pub fn image(guest: &mut Guest) -> Result<()> {
    guest.ok(&archive_of_a_shell(), 3 * MINUTE)?;
    guest.ok("kube-config load /root/hello.tar", 3 * MINUTE)?;
    Ok(())
}

/// Builds a docker-save archive in the guest: bash with the libraries that it needs, one layer.
fn archive_of_a_shell() -> String {
    let config = r#"{\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"/bin/bash\",\"-c\",\"echo hello from the card\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$digest\"]}}"#;
    [
        "rm -rf /root/img && mkdir -p /root/img/root/bin /root/img/out && cd /root/img",
        "cp /bin/bash root/bin/",
        "case $(uname -m) in aarch64) arch=arm64 ;; *) arch=arm ;; esac",
        "for l in $(ldd /bin/bash | grep -o '/[^ ]*'); do mkdir -p root$(dirname $l); cp -L $l root$l; done",
        "tar -C root -cf out/layer.tar .",
        "digest=$(sha256sum out/layer.tar | cut -d' ' -f1)",
        &format!("echo \"{config}\" > out/config.json"),
        r#"echo '[{"Config":"config.json","RepoTags":["example.org/hello:1"],"Layers":["layer.tar"]}]' > out/manifest.json"#,
        "tar -C out -cf /root/hello.tar config.json layer.tar manifest.json",
        "cd",
    ]
    .join(" && ")
}
