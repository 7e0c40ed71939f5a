//! Enables and masks systemd's units in a tree, as `systemctl --root` would: links in `/etc/systemd/system` by what a
//! unit's `[Install]` section says.

use crate::tree::{Node, Tree};
use std::collections::BTreeSet;

const SHIPPED: [&str; 2] = ["etc/systemd/system", "usr/lib/systemd/system"];

/// A file's `[Install]` section.
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    links: Vec<(&'static str, String)>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

/// Enables a unit and those it brings along (`Also=`). The error says what is wrong with it.
pub fn enable(tree: &mut Tree, unit: &str) -> Result<(), String> {
    let mut done = BTreeSet::new();
    let mut open = vec![unit.to_owned()];
    while let Some(unit) = open.pop() {
        if done.insert(unit.clone()) {
            open.extend(enable_one(tree, &unit)?);
        }
    }
    Ok(())
}

fn enable_one(tree: &mut Tree, unit: &str) -> Result<Vec<String>, String> {
    let (path, template) = find(tree, unit).ok_or_else(|| format!("no unit {unit} is in the image"))?;
    let text = tree
        .read(&path)
        .and_then(|b| std::str::from_utf8(b).ok())
        .ok_or_else(|| format!("{path} is no text"))?;
    let install = parse(text);
    if install == Install::default() {
        return Err(format!(
            "{unit} has no [Install] section: it cannot be enabled, something else must want it"
        ));
    }
    let name = match (&install.default_instance, template && is_bare_template(unit)) {
        (Some(instance), true) => unit.replacen("@.", &format!("@{instance}."), 1),
        (None, true) => return Err(format!("{unit} is a template: name an instance")),
        _ => unit.to_owned(),
    };
    let target = format!("/{path}");
    for (suffix, wanted_by) in &install.links {
        link(tree, &format!("etc/systemd/system/{}.{suffix}/{name}", specifiers(wanted_by, &name)), &target)?;
    }
    for alias in &install.alias {
        link(tree, &format!("etc/systemd/system/{}", specifiers(alias, &name)), &target)?;
    }
    Ok(install.also)
}

/// Masks a unit, there or not.
pub fn mask(tree: &mut Tree, unit: &str) -> Result<(), String> {
    link(tree, &format!("etc/systemd/system/{unit}"), "/dev/null")
}

/// Makes a unit the one that boot aims at.
pub fn set_default(tree: &mut Tree, unit: &str) -> Result<(), String> {
    let (path, _) = find(tree, unit).ok_or_else(|| format!("no unit {unit} is in the image"))?;
    link(tree, "etc/systemd/system/default.target", &format!("/{path}"))
}

fn link(tree: &mut Tree, path: &str, target: &str) -> Result<(), String> {
    tree.insert(path, Node::symlink(target)).map_err(|e| e.to_string())
}

/// The unit's file, and whether that is a template.
fn find(tree: &Tree, unit: &str) -> Option<(String, bool)> {
    let place =
        |name: &str| SHIPPED.iter().map(|dir| format!("{dir}/{name}")).find(|p| tree.read(p).is_some());
    if let Some(path) = place(unit) {
        return Some((path, unit.contains("@.")));
    }
    let (stem, rest) = unit.split_once('@')?;
    let (_, suffix) = rest.rsplit_once('.')?;
    place(&format!("{stem}@.{suffix}")).map(|path| (path, true))
}

fn is_bare_template(unit: &str) -> bool {
    unit.contains("@.")
}

/// `%i` and `%p` of WantedBy= and Alias=.
fn specifiers(text: &str, unit: &str) -> String {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    text.replace("%i", instance)
        .replace("%I", instance)
        .replace("%p", prefix)
        .replace("%N", stem)
        .replace("%n", unit)
}

fn parse(text: &str) -> Install {
    let mut install = Install::default();
    let mut inside = false;
    for line in text.replace("\\\n", " ").lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[Install]";
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';']))
        else {
            continue;
        };
        let mut words = value.split_whitespace().map(str::to_owned);
        match key.trim() {
            "WantedBy" => install.links.extend(words.map(|w| ("wants", w))),
            "RequiredBy" => install.links.extend(words.map(|w| ("requires", w))),
            "UpheldBy" => install.links.extend(words.map(|w| ("upholds", w))),
            "Alias" => install.alias.extend(words),
            "Also" => install.also.extend(words),
            "DefaultInstance" => install.default_instance = words.next_back(),
            _ => {}
        }
    }
    install
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(units: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (name, text) in units {
            let path = format!("usr/lib/systemd/system/{name}");
            tree.insert(&path, Node::file(text.as_bytes(), 0o644)).unwrap();
        }
        tree
    }

    fn links(tree: &Tree) -> Vec<String> {
        use crate::tree::Kind;
        let link = |(path, node): (&str, &Node)| match &node.kind {
            Kind::Symlink(target) => Some(format!("{path} -> {target}")),
            _ => None,
        };
        tree.below("etc/systemd/system").filter_map(link).collect()
    }

    #[test]
    fn an_install_section_is_carried_out() {
        let mut tree = tree(&[
            (
                "a.service",
                "[Unit]\nWantedBy=no.target\n[Install]\n# WantedBy=old.target\nWantedBy=multi-user.target \\\n x.target\nAlias=dbus-a.service\nAlso=a.socket\n",
            ),
            ("a.socket", "[Install]\nWantedBy=sockets.target\nAlso=a.service\n"),
            ("getty@.service", "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n"),
        ]);
        enable(&mut tree, "a.service").unwrap();
        enable(&mut tree, "getty@.service").unwrap();
        enable(&mut tree, "getty@ttyS1.service").unwrap();
        mask(&mut tree, "ldconfig.service").unwrap();
        assert_eq!(
            links(&tree),
            [
                "etc/systemd/system/dbus-a.service -> /usr/lib/systemd/system/a.service",
                "etc/systemd/system/getty.target.wants/getty@tty1.service -> /usr/lib/systemd/system/getty@.service",
                "etc/systemd/system/getty.target.wants/getty@ttyS1.service -> /usr/lib/systemd/system/getty@.service",
                "etc/systemd/system/ldconfig.service -> /dev/null",
                "etc/systemd/system/multi-user.target.wants/a.service -> /usr/lib/systemd/system/a.service",
                "etc/systemd/system/sockets.target.wants/a.socket -> /usr/lib/systemd/system/a.socket",
                "etc/systemd/system/x.target.wants/a.service -> /usr/lib/systemd/system/a.service",
            ]
        );
    }

    #[test]
    fn what_cannot_be_enabled_is_said() {
        let mut tree = tree(&[("static.service", "[Service]\n"), ("t@.service", "[Install]\nWantedBy=x\n")]);
        assert!(enable(&mut tree, "gone.service").unwrap_err().contains("no unit gone.service"));
        assert!(enable(&mut tree, "static.service").unwrap_err().contains("no [Install]"));
        assert!(enable(&mut tree, "t@.service").unwrap_err().contains("name an instance"));
        assert!(set_default(&mut tree, "gone.target").is_err());
    }
}
