//! The few programs of the host that are run: mkfs.vfat, mtools, mke2fs, depmod.

use anyhow::{Context, Result, bail};
use std::process::Command;

/// Runs a program to its end. `package` is Debian's, for whoever does not have it.
pub fn run(command: &mut Command, package: &str) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .output()
        .with_context(|| format!("{name} cannot be run: on Debian it is in the package {package}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}: {}", output.status, said.lines().rev().take(5).collect::<Vec<_>>().join(" / "));
    }
    Ok(output.stdout)
}

/// PATH with the folders where Debian keeps administrators' programs, which ordinary users' PATH does not have.
pub fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
