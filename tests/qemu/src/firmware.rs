//! What the Pi's firmware does before there is a kernel: `config.txt` and the files that it names.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::Card;

/// What `config.txt` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// In front of every name below.
    pub prefix: String,
    /// `kernel=`.
    pub kernel: String,
    /// `initramfs NAME`.
    pub initramfs: Option<String>,
}

impl Config {
    /// Reads `config.txt`. Sections are not told apart: an image has none but `[all]`.
    pub fn parse(text: &str) -> Self {
        let mut config = Self { prefix: String::new(), kernel: "kernel8.img".to_owned(), initramfs: None };
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(value) = line.strip_prefix("os_prefix=") {
                config.prefix = value.to_owned();
            } else if let Some(value) = line.strip_prefix("kernel=") {
                config.kernel = value.to_owned();
            } else if let Some(value) = line.strip_prefix("initramfs ") {
                config.initramfs = value.split_whitespace().next().map(str::to_owned);
            }
        }
        config
    }
}

/// Files and words for QEMU.
#[derive(Debug)]
pub struct Loaded {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// The device tree.
    pub dtb: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Loads what `config.txt` of a card names; `dtb` is the board's.
pub fn load(card: &Card, dtb: Option<&str>) -> Result<Loaded> {
    let config = Config::parse(&String::from_utf8_lossy(&card.read("config.txt")?));
    let folder = card.folder().join("firmware");
    fs::create_dir_all(&folder)?;
    let fetch = |name: &str| -> Result<PathBuf> {
        let to = folder.join(name);
        card.extract(&format!("{}{name}", config.prefix), &to)?;
        Ok(to)
    };
    let cmdline = card.read(&format!("{}cmdline.txt", config.prefix)).context("the command line")?;
    Ok(Loaded {
        kernel: fetch(&config.kernel)?,
        initramfs: config.initramfs.as_deref().map(fetch).transpose()?,
        dtb: dtb.map(fetch).transpose()?,
        cmdline: String::from_utf8_lossy(&cmdline).trim().to_owned(),
    })
}

/// A command line for a machine whose only console is `console`.
pub fn with_console(cmdline: &str, console: &str) -> String {
    let words = cmdline.split_whitespace().filter(|word| !word.starts_with("console="));
    let mut words: Vec<&str> = words.collect();
    words.push(console);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_txt_is_read_as_the_firmware_does() {
        let text = "# kernel=no\nos_prefix=slot-a/\r\nkernel=vmlinuz\ninitramfs initrd.img followkernel\narm_64bit=1\n";
        let expected = Config {
            prefix: "slot-a/".into(),
            kernel: "vmlinuz".into(),
            initramfs: Some("initrd.img".into()),
        };
        assert_eq!(Config::parse(text), expected);
    }

    #[test]
    fn the_console_is_replaced() {
        assert_eq!(
            with_console("console=tty0 quiet console=ttyS1", "console=ttyAMA0"),
            "quiet console=ttyAMA0"
        );
    }
}
