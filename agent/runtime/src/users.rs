//! Who a container runs as: `user[:group]` looked up in the container's own /etc/passwd and /etc/group. Pure.

/// Bytes read of each file at most.
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// The outcome of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups that /etc/group adds the user to.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd { name, uid, gid, home })
    })
}

/// Name, number and members of each group.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` or nothing (root).
pub(crate) fn resolve(spec: &str, passwd_text: &str, group_text: &str) -> Result<Identity, String> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd(passwd_text)
        .find(|p| p.name == user)
        .or_else(|| user.parse().ok().and_then(|uid: u32| passwd(passwd_text).find(|p| p.uid == uid)));
    let mut identity = match (&entry, user.parse::<u32>()) {
        (Some(p), _) => {
            Identity { uid: p.uid, gid: p.gid, groups: Vec::new(), home: Some(p.home.to_owned()) }
        }
        (None, Ok(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: None },
        (None, Err(_)) => {
            return Err(format!("unable to find user {user:?}: no matching entry in /etc/passwd"));
        }
    };
    match group.filter(|g| !g.is_empty()) {
        Some(group) => {
            let named = groups(group_text).find(|(name, ..)| *name == group).map(|(_, gid, _)| gid);
            identity.gid = named
                .or_else(|| group.parse().ok())
                .ok_or_else(|| format!("unable to find group {group:?}: no matching entry in /etc/group"))?;
        }
        // An explicit group stands alone; otherwise the user brings all of theirs.
        None => {
            if let Some(p) = &entry {
                let member = |members: &str| members.split(',').any(|m| m == p.name);
                identity.groups = groups(group_text)
                    .filter(|(_, gid, m)| *gid != p.gid && member(m))
                    .map(|(_, gid, _)| gid)
                    .collect();
            }
        }
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:/bin/false\n12:x:99:99::/odd:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nmedia:x:44:web,other\naudio:x:45:other\n";

    #[test]
    fn every_form_is_understood() {
        for (spec, want) in [
            ("", (0, 0, vec![])),
            ("root", (0, 0, vec![])),
            ("web", (33, 34, vec![44])),
            ("33", (33, 34, vec![44])),
            ("web:audio", (33, 45, vec![])),
            ("web:7", (33, 7, vec![])),
            ("1000", (1000, 0, vec![])),
            ("1000:2000", (1000, 2000, vec![])),
            ("12", (99, 99, vec![])),
        ] {
            let got = resolve(spec, PASSWD, GROUP).unwrap();
            assert_eq!((got.uid, got.gid, got.groups), want, "{spec}");
        }
        assert!(resolve("nobody", PASSWD, GROUP).unwrap_err().contains("nobody"));
        assert!(resolve("web:nogroup", PASSWD, GROUP).is_err());
        assert_eq!(resolve("1000", "", "").unwrap().home, None);
        assert_eq!(resolve("web", PASSWD, GROUP).unwrap().home.as_deref(), Some("/var/www"));
    }
}
