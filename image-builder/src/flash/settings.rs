//! What a card has of its own: `bramble.toml` on its boot partition.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ring::rand::SecureRandom;
use toml_edit::DocumentMut;

use crate::boot_partition::BootPartition;

/// The settings file, which people can edit too.
const FILE: &str = "bramble.toml";
const MAX: u64 = 256 * 1024;

/// Values that differ from card to card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) hostname: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) secret: Option<String>,
}

impl Settings {
    /// Writes them to a card that has been written, and waits until they are there.
    pub(crate) fn put(&self, card: &File) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        {
            let boot = BootPartition::open(card)?;
            let root = boot.root();
            let mut text = String::new();
            root.open_file(FILE)
                .with_context(|| format!("the image has no {FILE}"))?
                .take(MAX)
                .read_to_string(&mut text)?;
            let changed = self.apply(&text).with_context(|| format!("the image's {FILE}"))?;
            let mut file = root.create_file(FILE)?;
            file.truncate()?;
            file.write_all(changed.as_bytes())?;
            file.flush()?;
        }
        card.sync_all()?;
        Ok(())
    }

    /// The text with the values set; comments stay.
    fn apply(&self, text: &str) -> Result<String> {
        let mut document: DocumentMut = text.parse()?;
        let values = [("hostname", &self.hostname), ("role", &self.role), ("cluster_secret", &self.secret)];
        for (name, value) in values {
            if let Some(value) = value {
                document[name] = toml_edit::value(value);
            }
        }
        let changed = document.to_string();
        ensure!(changed.len() as u64 <= MAX, "it is too long");
        Ok(changed)
    }
}

/// Characters that a secret has at least: an HMAC made with it may be captured and guessed at off line.
const SECRET_LEAST: usize = 26;

/// The secret of a batch of cards, from its file; the first card of a batch makes the file.
pub(crate) fn secret(file: &Path) -> Result<String> {
    let name = || file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0_u8; 20];
            ring::rand::SystemRandom::new()
                .fill(&mut bytes)
                .ok()
                .context("the system has no random numbers")?;
            let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut new =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).with_context(name)?;
            new.write_all(format!("{secret}\n").as_bytes()).with_context(name)?;
            new.sync_all().with_context(name)?;
            return Ok(secret);
        }
        other => other.with_context(name)?,
    };
    let secret = text.trim();
    let plain = secret.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(
        plain && (SECRET_LEAST..=128).contains(&secret.len()),
        "{} holds no secret: one word of {SECRET_LEAST} to 128 characters",
        name()
    );
    Ok(secret.to_owned())
}

/// A host name as RFC 1123 has it, one label.
pub(crate) fn hostname(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good { Ok(text.to_owned()) } else { Err("small letters, digits and '-' only, at most 63".to_owned()) }
}

/// `master`, or `worker` and any node's address.
pub(crate) fn role(text: &str) -> Result<String, String> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["master"] => Ok("master".to_owned()),
        ["worker", address] if address.parse::<IpAddr>().is_ok() => Ok(format!("worker {address}")),
        ["worker", address] => Err(format!("{address} is no IP address")),
        _ => Err("it is `master` or `worker ADDRESS`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_sections_stay() {
        let text = "# Edit me.\n# hostname = \"node1\"\n\n[wifi]\nssid = \"x\" # mine\n";
        let settings = Settings {
            hostname: Some("node2".to_owned()),
            role: Some("master".to_owned()),
            ..Settings::default()
        };
        let changed = settings.apply(text).unwrap();
        assert!(
            changed.starts_with("# Edit me.\n# hostname") || changed.starts_with("hostname"),
            "{changed}"
        );
        let read: toml::Table = changed.parse().unwrap();
        assert_eq!(read["hostname"].as_str(), Some("node2"));
        assert_eq!(read["role"].as_str(), Some("master"));
        assert_eq!(read["wifi"]["ssid"].as_str(), Some("x"));
        assert!(changed.contains("# Edit me.") && changed.contains("# mine"), "{changed}");
        // Once more replaces.
        let again =
            Settings { hostname: Some("node3".to_owned()), ..Settings::default() }.apply(&changed).unwrap();
        assert_eq!(again.matches("node3").count(), 1);
        assert!(!again.contains("node2"));
    }

    #[test]
    fn a_batch_shares_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("batch.secret");
        let made = secret(&file).unwrap();
        assert!(made.len() >= SECRET_LEAST);
        assert_eq!(secret(&file).unwrap(), made, "the second card of the batch");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let text = Settings { secret: Some(made.clone()), ..Settings::default() }.apply("[wifi]\n").unwrap();
        assert_eq!(text.parse::<toml::Table>().unwrap()["cluster_secret"].as_str(), Some(made.as_str()));
        std::fs::write(&file, "short\n").unwrap();
        assert!(secret(&file).unwrap_err().to_string().contains("26 to 128"));
    }

    #[test]
    fn names_and_roles() {
        assert!(hostname("node2").is_ok());
        for bad in ["", "-a", "a-", "Node", "a.b", "a b", &"x".repeat(64)] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
        assert_eq!(role("worker  192.168.1.102").as_deref(), Ok("worker 192.168.1.102"));
        assert!(role("master").is_ok());
        for bad in ["", "worker", "worker node1", "boss", "master 1.2.3.4"] {
            assert!(role(bad).is_err(), "{bad}");
        }
    }
}
