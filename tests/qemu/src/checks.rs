//! What several tests ask of a guest.

use std::time::Duration;

use crate::Guest;
use anyhow::{Result, ensure};

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

/// `kube-config enable-master`, as typed in 2016, up to Node Ready.
pub fn master(guest: &mut Guest) -> Result<()> {
    println!("{}", guest.ok("kube-config enable-master", 4 * MINUTE)?);
    guest.until("kubectl get nodes", " Ready ", 8 * MINUTE)?;
    Ok(())
}

/// An image made on the node out of its own shell is loaded, run and answers.
pub fn workload(guest: &mut Guest) -> Result<()> {
    guest.ok(&archive_of_a_shell(), 3 * MINUTE)?;
    guest.ok("kube-config load /root/hello.tar", 3 * MINUTE)?;
    guest.ok(
        "kubectl run hello --image=example.org/hello:1 --image-pull-policy=Never --restart=Never",
        MINUTE,
    )?;
    guest.until("kubectl get pod hello", "Completed", 4 * MINUTE)?;
    guest.until("kubectl logs hello", "hello from the card", MINUTE)?;
    guest.ok("kubectl delete pod hello", 2 * MINUTE)?;
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
