//! The package as dpkg sees it.

use std::path::Path;
use std::process::Command;

use super::*;

fn program(machine: u8) -> Vec<u8> {
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
    program.extend([machine, 0]);
    program.extend(b"....GLIBC_2.4\0GLIBC_2.31\0GLIBC_2.34\0");
    program
}

fn make(folder: &Path, version: &str) -> PathBuf {
    let agent = folder.join("agent");
    fs::write(&agent, program(62)).unwrap();
    let args = Deb {
        arch: Arch::Amd64,
        agent,
        package_version: version.to_owned(),
        epoch: 1_700_000_000,
        preset: 1,
        root: Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned(),
        out: folder.join("out"),
    };
    run(&args).unwrap();
    folder.join("out").join(format!("bramble_{version}_amd64.deb"))
}

fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn dpkg_reads_it_and_it_is_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let deb = make(folder.path(), "0.2.0");
    let again = tempfile::tempdir().unwrap();
    assert!(fs::read(&deb).unwrap() == fs::read(make(again.path(), "0.2.0")).unwrap());
    let fields = ok(Command::new("dpkg-deb").args(["--field"]).arg(&deb));
    assert!(fields.contains("Architecture: amd64") && fields.contains("libc6 (>= 2.34)"), "{fields}");
    let list = ok(Command::new("dpkg-deb").args(["--contents"]).arg(&deb));
    assert!(list.contains(" usr/bin/kube-config -> ../lib/bramble/bramble"), "{list}");
    assert!(list.lines().all(|line| line.contains(" root/root ")), "{list}");
}

/// Into an empty root: dpkg itself lays the files, and takes all of them away again.
#[test]
fn installed_replaced_and_removed_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let everything = || {
        let list =
            ok(Command::new("find").arg(&root).args(["-not", "-path", "*/var/lib/dpkg*", "-type", "f,l"]));
        list.lines().count()
    };
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display()));
        // The scripts need a running system; the files are what is looked at here.
        command.args(["--force-depends", "--force-not-root", "--force-script-chrootless", "--log=/dev/null"]);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(args);
        ok(&mut command)
    };
    for version in ["0.2.0", "0.3.0"] {
        dpkg(&["--unpack", make(folder.path(), version).to_str().unwrap()]);
        assert!(root.join("usr/lib/systemd/system/bramble.service").exists());
        assert_eq!(fs::read_link(root.join("usr/bin/bramble")).unwrap(), Path::new("../lib/bramble/bramble"));
    }
    // Only unpacked: what the scripts do to a running system must not happen to the one that runs this test.
    fs::remove_file(root.join("var/lib/dpkg/info/bramble.prerm")).unwrap();
    fs::remove_file(root.join("var/lib/dpkg/info/bramble.postrm")).unwrap();
    dpkg(&["--purge", "bramble"]);
    assert_eq!(everything(), 0);
}

#[test]
fn scripts_are_sound_shell() {
    for (_, script) in SCRIPTS {
        ok(Command::new("sh").args(["-n", "-c", script]));
    }
}

#[test]
fn another_architecture_is_refused() {
    assert_eq!(needs(&program(183), Arch::Arm64).unwrap(), "libc6 (>= 2.34)");
    assert!(needs(&program(62), Arch::Arm64).unwrap_err().to_string().contains("arm64"));
    assert!(needs(&program(183), Arch::Armhf).is_err());
    assert!(needs(b"#!/bin/sh", Arch::Amd64).is_err());
    assert!(version("0.1.0-g123").is_ok());
    for bad in ["", "v1", "1 2", "1/2"] {
        assert!(version(bad).is_err(), "{bad}");
    }
}
