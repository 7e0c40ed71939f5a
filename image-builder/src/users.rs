//! Users and groups of the image: Debian's fixed ones, and those of sysusers.d(5) which systemd would otherwise make at
//! every boot of a read-only root.

use crate::tree::{Node, Tree};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// Numbers that are given out where none is asked for: below those for people, above those that Debian fixes.
const DYNAMIC: std::ops::Range<u32> = 300..900;
const NOLOGIN: &str = "/usr/sbin/nologin";

/// `/etc/passwd` and `/etc/group`, being made.
#[derive(Debug, Default)]
pub struct Accounts {
    users: BTreeMap<String, User>,
    groups: BTreeMap<String, Group>,
}

#[derive(Clone, Debug)]
struct User {
    uid: u32,
    gid: u32,
    gecos: String,
    home: String,
    shell: String,
}

#[derive(Clone, Debug, Default)]
struct Group {
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Debian's masters (package base-passwd) where the tree has them, else just root.
    pub fn from_tree(tree: &Tree) -> Result<Self> {
        let read = |path: &str, default: &'static str| {
            tree.read(path)
                .map_or(Ok(default), |bytes| std::str::from_utf8(bytes))
                .with_context(|| path.to_owned())
        };
        let passwd = read("usr/share/base-passwd/passwd.master", "root:*:0:0:root:/root:/bin/sh\n")?;
        let group = read("usr/share/base-passwd/group.master", "root:*:0:\n")?;
        let mut accounts = Self::default();
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, _] = fields[..] else { bail!("group.master: {line:?}") };
            accounts
                .groups
                .insert(name.to_owned(), Group { gid: gid.parse().context("gid")?, members: Vec::new() });
        }
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, gecos, home, shell] = fields[..] else {
                bail!("passwd.master: {line:?}")
            };
            let user = User {
                uid: uid.parse().context("uid")?,
                gid: gid.parse().context("gid")?,
                gecos: gecos.to_owned(),
                home: home.to_owned(),
                shell: shell.to_owned(),
            };
            accounts.users.insert(name.to_owned(), user);
        }
        Ok(accounts)
    }

    /// Carries out all files in `/usr/lib/sysusers.d`, by the order of their names.
    pub fn apply_sysusers(&mut self, tree: &Tree) -> Result<()> {
        let files: Vec<(&str, &Node)> =
            tree.below("usr/lib/sysusers.d").filter(|(path, _)| path.ends_with(".conf")).collect();
        let mut lines = Vec::new();
        for (path, _) in files {
            let bytes = tree.read(path).with_context(|| path.to_owned())?;
            let text = std::str::from_utf8(bytes).with_context(|| path.to_owned())?;
            lines.extend(text.lines().map(|line| (path, line)));
        }
        // Groups first: a user's line may name a group of a later file.
        for letter in ['g', 'u', 'm'] {
            for (path, line) in &lines {
                if line.starts_with(letter) {
                    self.apply_line(line).with_context(|| format!("{path}: {line:?}"))?;
                }
            }
        }
        Ok(())
    }

    fn apply_line(&mut self, line: &str) -> Result<()> {
        let fields = words(line);
        let field = |i: usize| fields.get(i).map(String::as_str).filter(|f| *f != "-");
        let name = field(1).context("names nobody")?;
        check_name(name)?;
        match fields[0].as_str() {
            "g" => {
                let gid = self.number(name, field(2), |a, n| a.groups.values().any(|g| g.gid == n))?;
                self.groups.entry(name.to_owned()).or_insert(Group { gid, members: Vec::new() });
            }
            "u" | "u!" => self.add_user(name, field(2), field(3), field(4), field(5))?,
            "m" => {
                let group = field(2).context("names no group")?;
                let members =
                    &mut self.groups.get_mut(group).with_context(|| format!("no group {group}"))?.members;
                if !members.iter().any(|m| m == name) {
                    members.push(name.to_owned());
                    members.sort();
                }
            }
            other => bail!("{other:?}: neither g, u nor m"),
        }
        Ok(())
    }

    fn add_user(
        &mut self,
        name: &str,
        id: Option<&str>,
        gecos: Option<&str>,
        home: Option<&str>,
        shell: Option<&str>,
    ) -> Result<()> {
        if self.users.contains_key(name) {
            return Ok(());
        }
        let (uid, group) = match id.map(|id| id.split_once(':').unwrap_or((id, ""))) {
            Some((uid, group)) => (Some(uid).filter(|u| *u != "-"), Some(group).filter(|g| !g.is_empty())),
            None => (None, None),
        };
        let taken = |a: &Self, n| a.users.values().any(|u| u.uid == n);
        let taken_as_both = |a: &Self, n| taken(a, n) || a.groups.values().any(|g| g.gid == n);
        let own_group = self.groups.get(name).map(|g| g.gid);
        let uid = match (uid, own_group) {
            (None, Some(gid)) if !taken(self, gid) => gid,
            (uid, _) => self.number(name, uid, taken_as_both)?,
        };
        let gid = match (group, own_group) {
            (Some(group), _) => {
                self.gid(group).or_else(|| group.parse().ok()).with_context(|| format!("no group {group}"))?
            }
            (None, Some(gid)) => gid,
            (None, None) => {
                self.groups.insert(name.to_owned(), Group { gid: uid, members: Vec::new() });
                uid
            }
        };
        let user = User {
            uid,
            gid,
            gecos: gecos.unwrap_or_default().replace(':', " "),
            home: home.unwrap_or("/").to_owned(),
            shell: shell.unwrap_or(NOLOGIN).to_owned(),
        };
        self.users.insert(name.to_owned(), user);
        Ok(())
    }

    /// The number asked for, or one that depends on the name, so that another package coming or going does not shift
    /// the owners of files on cards in the field.
    fn number(&self, name: &str, wanted: Option<&str>, taken: impl Fn(&Self, u32) -> bool) -> Result<u32> {
        if let Some(wanted) = wanted {
            // A path: systemd takes the owner of that file. Ours are all root's: a number of its own is as good.
            if !wanted.starts_with('/') {
                return wanted.parse().with_context(|| format!("{wanted:?} is no number"));
            }
        }
        let size = DYNAMIC.end - DYNAMIC.start;
        let first = crc32fast::hash(name.as_bytes()) % size;
        (0..size)
            .map(|step| DYNAMIC.start + (first + step) % size)
            .find(|number| !taken(self, *number))
            .context("no number is free")
    }

    /// A user's number.
    pub fn uid(&self, name: &str) -> Option<u32> {
        self.users.get(name).map(|u| u.uid)
    }

    /// A group's number.
    pub fn gid(&self, name: &str) -> Option<u32> {
        self.groups.get(name).map(|g| g.gid)
    }

    /// Lays passwd, group, shadow and gshadow. Nobody has a password.
    pub fn write(&self, tree: &mut Tree) -> Result<()> {
        let mut users: Vec<(&String, &User)> = self.users.iter().collect();
        users.sort_by_key(|(name, user)| (user.uid, *name));
        let mut groups: Vec<(&String, &Group)> = self.groups.iter().collect();
        groups.sort_by_key(|(name, group)| (group.gid, *name));
        let (mut passwd, mut shadow, mut group, mut gshadow) = Default::default();
        let append = |file: &mut String, line: String| *file += &(line + "\n");
        for (name, u) in users {
            append(&mut passwd, format!("{name}:x:{}:{}:{}:{}:{}", u.uid, u.gid, u.gecos, u.home, u.shell));
            append(&mut shadow, format!("{name}:!*::0:99999:7:::"));
        }
        for (name, g) in groups {
            append(&mut group, format!("{name}:x:{}:{}", g.gid, g.members.join(",")));
            append(&mut gshadow, format!("{name}:*::{}", g.members.join(",")));
        }
        let secret = self.gid("shadow").unwrap_or(0);
        for (path, text, mode, gid) in [
            ("etc/passwd", passwd, 0o644, 0),
            ("etc/group", group, 0o644, 0),
            ("etc/shadow", shadow, 0o640, secret),
            ("etc/gshadow", gshadow, 0o640, secret),
        ] {
            tree.insert(path, Node::file(text.into_bytes(), mode).owned(0, gid))?;
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    if name.len() > 31
        || !name.bytes().all(plain)
        || !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
    {
        bail!("{name:?} is no user's or group's name");
    }
    Ok(())
}

/// Words of a line, `"..."` being one.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(conf: &[(&str, &str)]) -> Result<Accounts> {
        let mut tree = Tree::default();
        let masters = [
            ("usr/share/base-passwd/passwd.master", "root:*:0:0:root:/root:/bin/bash\n"),
            ("usr/share/base-passwd/group.master", "root:*:0:\nshadow:*:42:\nkvm:*:100:\n"),
        ];
        for (path, text) in masters {
            tree.insert(path, Node::file(text.as_bytes(), 0o644)).unwrap();
        }
        for (name, text) in conf {
            tree.insert(&format!("usr/lib/sysusers.d/{name}.conf"), Node::file(text.as_bytes(), 0o644))
                .unwrap();
        }
        let mut accounts = Accounts::from_tree(&tree)?;
        accounts.apply_sysusers(&tree)?;
        Ok(accounts)
    }

    #[test]
    fn lines_are_carried_out_across_files() {
        let accounts = accounts(&[
            ("a", "# comment\nu! systemd-network 192 \"Network: Management\" / -\nm sshd kvm\n"),
            ("b", "g kvm -\nu sshd -:nogroup \"sshd user\" /run/sshd\ng nogroup 65534\n"),
        ])
        .unwrap();
        assert_eq!(
            (accounts.uid("systemd-network"), accounts.gid("systemd-network")),
            (Some(192), Some(192))
        );
        assert_eq!(accounts.gid("kvm"), Some(100));
        assert_eq!(accounts.users["sshd"].gid, 65534);
        let mut tree = Tree::default();
        accounts.write(&mut tree).unwrap();
        let read = |path| std::str::from_utf8(tree.read(path).unwrap()).unwrap();
        assert!(read("etc/passwd").starts_with("root:x:0:0:root:/root:/bin/bash\nsystemd-network:x:192:192:Network  Management:/:/usr/sbin/nologin\n"));
        assert!(read("etc/group").contains("kvm:x:100:sshd\n"));
        assert!(read("etc/shadow").lines().all(|l| l.split(':').nth(1) == Some("!*")));
        assert_eq!(tree.get("etc/shadow").map(|n| (n.mode, n.gid)), Some((0o640, 42)));
    }

    #[test]
    fn a_number_depends_on_the_name_alone() {
        let (few, more) =
            (accounts(&[("a", "u dns -\n")]).unwrap(), accounts(&[("a", "u aaa -\nu dns -\n")]).unwrap());
        assert_eq!(few.uid("dns"), more.uid("dns"));
        assert!(few.uid("dns").is_some_and(|uid| DYNAMIC.contains(&uid)));
        assert_eq!(few.uid("dns"), few.gid("dns"));
    }

    #[test]
    fn nonsense_is_refused_by_file_and_line() {
        for (line, reason) in
            [("u evil:0 0\n", "no user's"), ("m x nobody\n", "no group"), ("u x many\n", "no number")]
        {
            let error = format!("{:#}", accounts(&[("bad", line)]).unwrap_err());
            assert!(error.contains("usr/lib/sysusers.d/bad.conf") && error.contains(reason), "{error}");
        }
    }
}
