//! What a card has of its own: `bramble.toml` on its boot partition.

use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
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
        for (name, value) in [("hostname", &self.hostname), ("role", &self.role)] {
            if let Some(value) = value {
                document[name] = toml_edit::value(value);
            }
        }
        let changed = document.to_string();
        ensure!(changed.len() as u64 <= MAX, "it is too long");
        Ok(changed)
    }
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
        let settings = Settings { hostname: Some("node2".to_owned()), role: Some("master".to_owned()) };
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
        let again = Settings { hostname: Some("node3".to_owned()), role: None }.apply(&changed).unwrap();
        assert_eq!(again.matches("node3").count(), 1);
        assert!(!again.contains("node2"));
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
