//! What the kernel's command line asks of `/init`.

use slots::Slot;

/// The words that concern us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// `bramble.slot=`: which slot the firmware booted.
    pub slot: Option<Slot>,
    /// `bramble.card=`: the disk to use, without looking for it.
    pub card: Option<String>,
    /// `init=`: what to run instead of systemd.
    pub init: Option<String>,
}

impl Cmdline {
    /// Reads `/proc/cmdline`. As in the kernel, the last word of a name counts.
    pub fn parse(text: &str) -> Self {
        let mut found = Self { slot: Slot::from_cmdline(text), ..Self::default() };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("bramble.card", disk)) => found.card = disk_name(disk),
                Some(("init", program)) if program.starts_with('/') => found.init = Some(program.to_owned()),
                _ => {}
            }
        }
        found
    }
}

/// `/dev/sda` or `sda`, and no path elsewhere.
fn disk_name(word: &str) -> Option<String> {
    let name = word.strip_prefix("/dev/").unwrap_or(word);
    (!name.is_empty() && !name.starts_with('.') && !name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ours_are_found() {
        let line = "console=tty0 bramble.slot=b bramble.card=/dev/sda init=/bin/sh rw\n";
        let expected =
            Cmdline { slot: Some(Slot::B), card: Some("sda".into()), init: Some("/bin/sh".into()) };
        assert_eq!(Cmdline::parse(line), expected);
        assert_eq!(Cmdline::parse("quiet"), Cmdline::default());
    }

    #[test]
    fn a_card_is_a_disk_and_a_program_a_path() {
        for bad in ["bramble.card=", "bramble.card=../x", "bramble.card=/dev/", "bramble.card=a/b", "init=sh"]
        {
            assert_eq!(Cmdline::parse(bad), Cmdline::default(), "{bad}");
        }
    }
}
